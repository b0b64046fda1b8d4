//! What the size of the world costs: the same agent in worlds of more and more services, each with ten endpoints on
//! other nodes, and one service of its own node whose endpoint changes.

pub(super) mod large;
mod model;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use orlop_tests::traffic::HttpServer;
use orlop_tests::{AgentOptions, Pod, PodSpec, ServiceSpec, TargetPort, Testbed};

use super::figure::{Figure, Unit};
use super::measure::prepare;
use super::record::Output;

/// Changes that nothing is told of, so that every pair of pods has met.
const WARM_UP: usize = 6;
/// Between two changes, so that none is seen as part of another.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two looks where the service leads.
const LOOK_AGAIN: Duration = Duration::from_micros(300);
const PATIENCE: Duration = Duration::from_secs(60);
const START: Duration = Duration::from_secs(300);

const LIMITS: &[Limit] = &[
    Limit { what: "one endpoint", quantity: "p99", most: 0.05 },
    Limit { what: "agent", quantity: "RSS", most: 150e6 },
];

#[derive(Args)]
pub(super) struct Options {
    /// So many services, of ten endpoints each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1000, 10_000])]
    services: Vec<usize>,
    /// How often an endpoint changes in each world.
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// Measure this program instead of a release build, and what is measured by itself as cargo builds it for tests.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(options: &Options) -> Result<()> {
    let program = match &options.program {
        Some(program) => program.canonicalize().with_context(|| format!("finding {}", program.display()))?,
        None => prepare()?.orlop,
    };
    let mut worlds = Vec::new();
    for &services in &options.services {
        eprintln!("  {services} services");
        let mut world = measure(&program, services, options.changes)
            .with_context(|| format!("a world of {services} services"))?;
        world.extend(model::figures(services, options.program.is_none())?);
        worlds.push(world);
    }
    let figures = with_growth(worlds);
    println!("{}\n{}", table(&figures), verdicts(&figures, LIMITS));
    options.output.finish("scale", &figures)
}

/// Starts an agent in a world of this size, and changes an endpoint now and then.
fn measure(program: &Path, services: usize, changes: usize) -> Result<Vec<Figure>> {
    let testbed = Testbed::new()?;
    large::fill(testbed.world(), services, &[("orlop.dev/mesh", "enabled")])?;
    testbed.world().enrolled_namespace("mesh")?;
    let node = testbed.node("n1")?;
    let client = node.pod("mesh", "client", PodSpec::new())?;
    let servers =
        [server(node.pod("mesh", "a", PodSpec::new())?)?, server(node.pod("mesh", "b", PodSpec::new())?)?];
    let service = ServiceSpec::new("mesh", "changing", 80, TargetPort::Number(8080));
    let service = service.cluster_ips(testbed.vip());
    let lead_to = |pod: &Pod| testbed.world().service(&service.clone().endpoints([pod]));
    let address = (*service.cluster_ips.first().context("no address for a service")?, 80).into();
    lead_to(&servers[0].0)?;

    let start = Instant::now();
    let args = ["--log", "warn"].map(str::to_owned).into();
    let binary = Some(program.to_owned());
    let agent = node.agent(AgentOptions { binary, args, ready_timeout: START, ..AgentOptions::default() })?;
    let full = start.elapsed();

    let mut times = Vec::new();
    for (nth, (pod, _)) in servers.iter().cycle().skip(1).take(WARM_UP + changes).enumerate() {
        thread::sleep(PAUSE);
        let start = Instant::now();
        lead_to(pod)?;
        wait_until_at(&client, address, pod)?;
        if nth >= WARM_UP {
            times.push(start.elapsed());
        }
    }
    times.sort();
    let at = |hundredth: usize| times.get(times.len() * hundredth / 100).map_or(0.0, Duration::as_secs_f64);
    let figure = |what: &str, quantity, value, unit| figure(services, what, quantity, value, unit);
    Ok(vec![
        figure("whole world", "start", full.as_secs_f64(), Unit::Seconds),
        figure("one endpoint", "p50", at(50), Unit::Seconds),
        figure("one endpoint", "p99", at(99), Unit::Seconds),
        figure("agent", "RSS", agent.rss()? as f64, Unit::Bytes),
        figure("BPF maps", "memory", agent.bpf_memory()? as f64, Unit::Bytes),
    ])
}

fn server(pod: Pod) -> Result<(Pod, HttpServer)> {
    let server = pod.serve_http(8080)?;
    Ok((pod, server))
}

/// Dials a service until a new connection comes to this pod.
fn wait_until_at(client: &Pod, service: std::net::SocketAddr, pod: &Pod) -> Result<()> {
    let wanted = format!("{}/{}", pod.namespace(), pod.name());
    let start = Instant::now();
    loop {
        let answer = client.http_get(service, "/", PATIENCE).context("a call of the service")?;
        if answer.field("pod").as_ref() == Some(&wanted) {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            bail!("the service did not come to lead to {wanted}");
        }
        thread::sleep(LOOK_AGAIN);
    }
}

pub(super) fn figure(services: usize, what: &str, quantity: &str, value: f64, unit: Unit) -> Figure {
    let case = format!("{} workloads", services * large::ENDPOINTS);
    Figure { what: what.to_owned(), case, quantity: quantity.to_owned(), value, unit, ratio: None }
}

/// The ratio of each figure is to that of the smaller world before.
pub(super) fn with_growth(worlds: Vec<Vec<Figure>>) -> Vec<Figure> {
    let mut all: Vec<Figure> = Vec::new();
    for world in worlds {
        for mut figure in world {
            let is_same =
                |other: &&Figure| (&other.what, &other.quantity) == (&figure.what, &figure.quantity);
            figure.ratio = all.iter().rev().find(is_same).map(|smaller| figure.value / smaller.value);
            all.push(figure);
        }
    }
    all
}

/// A row for what was measured, and a column for each world, with the growth from the one before.
pub(super) fn table(figures: &[Figure]) -> String {
    let mut cases: Vec<&str> = figures.iter().map(|figure| figure.case.as_str()).collect();
    cases.dedup();
    let mut text = format!("\n{:26}", "");
    for case in &cases {
        let _ = write!(text, "{case:>26}");
    }
    for first in figures.iter().filter(|figure| figure.case == cases[0]) {
        let _ = write!(text, "\n{:26}", format!("{}, {}", first.what, first.quantity));
        let row = figures.iter().filter(|of| (&of.what, &of.quantity) == (&first.what, &first.quantity));
        for figure in row {
            let growth = figure.ratio.map_or_else(String::new, |ratio| format!(" (x{ratio:.2})"));
            let _ = write!(text, "{:>26}", format!("{figure}{growth}"));
        }
    }
    text
}

/// What a figure is to be at most, in every world.
pub(super) struct Limit {
    pub(super) what: &'static str,
    pub(super) quantity: &'static str,
    pub(super) most: f64,
}

/// Whether each is, told of the world where it is highest.
pub(super) fn verdicts(figures: &[Figure], limits: &[Limit]) -> String {
    let mut text = String::new();
    for Limit { what, quantity, most } in limits {
        let of = figures.iter().filter(|figure| figure.what == *what && figure.quantity == *quantity);
        let Some(highest) = of.max_by(|a, b| a.value.total_cmp(&b.value)) else { continue };
        let most = Figure { value: *most, ..highest.clone() };
        let met = if highest.value <= most.value { "met" } else { "MISSED" };
        let _ = writeln!(
            text,
            "target: {what}, {quantity}: {highest} with {}, at most {most} {met}",
            highest.case
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_of_the_world_where_they_are_hardest() {
        let of = |services, value| figure(services, "one endpoint", "p99", value, Unit::Seconds);
        let told = |values: [f64; 2]| verdicts(&[of(1, values[0]), of(10, values[1])], LIMITS);
        assert_eq!(
            told([0.02, 0.03]),
            "target: one endpoint, p99: 30 ms with 100 workloads, at most 50 ms met\n"
        );
        assert_eq!(
            told([0.06, 0.03]),
            "target: one endpoint, p99: 60 ms with 10 workloads, at most 50 ms MISSED\n"
        );
    }

    #[test]
    fn growth_is_from_the_world_before() {
        let world = |services, value| vec![figure(services, "agent", "RSS", value, Unit::Bytes)];
        let figures = with_growth(vec![world(1, 1e6), world(10, 2e6), world(100, 8e6)]);
        assert_eq!(
            figures.iter().map(|figure| figure.ratio).collect::<Vec<_>>(),
            [None, Some(2.0), Some(4.0)]
        );
        let table = table(&figures);
        assert!(table.contains("1000 workloads") && table.contains("8.0 MB (x4.00)"), "{table}");
    }
}
