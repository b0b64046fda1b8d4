//! How long until a change has effect for requests through a waypoint, which stands before more and more services: each
//! with ten endpoints and routes of its own, and all behind the one waypoint.

use std::fmt::Write as _;
use std::io::BufReader;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use orlop_tests::traffic::request;
use orlop_tests::{Pod, PodSpec, ServiceSpec, TargetPort, Testbed, Waypoint, World};

use super::figure::{Figure, Unit};
use super::measure::prepare;
use super::record::Output;
use super::rig::{Programs, agent};
use super::scale::{Limit, figure, large, table, verdicts, with_growth};

const NAMESPACE: &str = "mesh";
const HBONE_PORT: u16 = 15008;
const HTTP_PORT: u16 = 80;
/// Changes that nothing is told of.
const WARM_UP: usize = 6;
/// Between two changes, so that none is seen as part of another.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two looks where requests go.
const LOOK_AGAIN: Duration = Duration::from_micros(300);
const PATIENCE: Duration = Duration::from_secs(60);

const LIMITS: &[Limit] = &[
    Limit { what: "one route", quantity: "p99", most: 0.05 },
    Limit { what: "one endpoint", quantity: "p99", most: 0.05 },
];

#[derive(Args)]
pub(super) struct Options {
    /// So many services, of ten endpoints each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1000])]
    services: Vec<usize>,
    /// How often each is changed.
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// Measure this program instead of a release build.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(options: &Options) -> Result<()> {
    let programs = match &options.program {
        Some(program) => {
            let orlop = program.canonicalize().with_context(|| format!("finding {}", program.display()))?;
            Programs { orlop, ztunnel: None }
        }
        None => prepare()?,
    };
    let mut worlds = Vec::new();
    for &services in &options.services {
        eprintln!("  {services} services");
        let figures = measure(&programs, services, options.changes);
        worlds.push(figures.with_context(|| format!("a world of {services} services"))?);
    }
    let figures = with_growth(worlds);
    println!("{}\n{}", table(&figures), verdicts(&figures, LIMITS));
    options.output.finish("changes", &figures)
}

fn measure(programs: &Programs, services: usize, changes: usize) -> Result<Vec<Figure>> {
    let testbed = Testbed::new()?;
    let world = testbed.world();
    let behind = [
        ("orlop.dev/mesh", "enabled"),
        ("istio.io/use-waypoint", "gate"),
        ("istio.io/use-waypoint-namespace", NAMESPACE),
    ];
    large::fill(world, services, &behind)?;
    for service in 0..services {
        world.write(&format!("routes.{service}.yaml"), &routes(service))?;
    }
    world.enrolled_namespace(NAMESPACE)?;
    let node = testbed.node("n1")?;
    let pod = |name: &str| node.pod(NAMESPACE, name, PodSpec::new().label("version", name));
    let (client, v1, v2) = (pod("client")?, pod("v1")?, pod("v2")?);
    let _servers = [v1.serve_http(HTTP_PORT)?, v2.serve_http(HTTP_PORT)?];
    let gate = node.pod(NAMESPACE, "gate", PodSpec::new().service_account("gate").opt_out())?;
    let service = ServiceSpec::new(NAMESPACE, "gate", HBONE_PORT, TargetPort::Number(HBONE_PORT));
    world.service(&service.cluster_ips(testbed.vip()).endpoints([&gate]))?;
    let vip = testbed.vip();
    let web = ServiceSpec::new(NAMESPACE, "web", HTTP_PORT, TargetPort::Number(HTTP_PORT));
    let web = web.cluster_ips(vip.clone()).label("istio.io/use-waypoint", "gate");
    let lead_to = |pods: &[&Pod]| world.service(&web.clone().endpoints(pods.iter().copied()));
    lead_to(&[&v1, &v2])?;
    world.write("rule.yaml", RULE)?;
    route_to(world, &v1)?;

    let waypoint = Waypoint::of(&programs.orlop, &gate, &["--log", "warn"])?;
    let _agent = agent(&node, &[&client, &v1, &v2], programs, &[])?;
    let to = SocketAddr::new(*vip.first().context("the testbed gave no address")?, HTTP_PORT);
    let mut stream = BufReader::new(client.connect(to, PATIENCE)?);
    let both = [&v2, &v1];
    let of_routes = times(changes, |nth| {
        let pod = both[nth % 2];
        route_to(world, pod)?;
        wait_until_at(&mut stream, pod)
    })?;
    world.remove("route.yaml")?;
    let of_endpoints = times(changes, |nth| {
        let pod = both[nth % 2];
        lead_to(&[pod])?;
        wait_until_at(&mut stream, pod)
    })?;
    let rss = waypoint.process().rss()? as f64;
    let mut figures = vec![figure(services, "waypoint", "RSS", rss, Unit::Bytes)];
    for (what, times) in [("one route", of_routes), ("one endpoint", of_endpoints)] {
        for (quantity, hundredth) in [("p50", 50), ("p99", 99)] {
            let time = times[times.len() * hundredth / 100].as_secs_f64();
            figures.push(figure(services, what, quantity, time, Unit::Seconds));
        }
    }
    Ok(figures)
}

/// How long each change took, sorted.
fn times(changes: usize, mut change: impl FnMut(usize) -> Result<()>) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(changes);
    for nth in 0..WARM_UP + changes {
        thread::sleep(PAUSE);
        let start = Instant::now();
        change(nth)?;
        if nth >= WARM_UP {
            times.push(start.elapsed());
        }
    }
    times.sort();
    Ok(times)
}

/// Asks until the answer is from this pod.
fn wait_until_at(stream: &mut BufReader<TcpStream>, pod: &Pod) -> Result<()> {
    let wanted = format!("{}/{}", pod.namespace(), pod.name());
    let start = Instant::now();
    loop {
        let answer = request(stream, "GET / HTTP/1.1\r\nhost: web\r\n\r\n").context("a request")?;
        // For a moment there may be no endpoint.
        if answer.field("pod").as_ref() == Some(&wanted) {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            bail!("requests did not come to {wanted}");
        }
        thread::sleep(LOOK_AGAIN);
    }
}

const RULE: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: mesh}\n\
    spec:\n  host: web\n  subsets:\n  - {name: v1, labels: {version: v1}}\n  - {name: v2, labels: {version: v2}}\n";

fn route_to(world: &World, pod: &Pod) -> Result<()> {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: {NAMESPACE}}}\n\
         spec:\n  hosts: [web]\n  http:\n  - route: [{{destination: {{host: web, subset: {}}}}}]\n",
        pod.name()
    );
    world.write("route.yaml", &text)
}

/// Of one of many services: by path to one subset, the rest to two by weight.
fn routes(service: usize) -> String {
    let (name, namespace) = (format!("service-{service}"), large::namespace_of(service));
    let to = |subset: &str| format!("destination: {{host: {name}, subset: {subset}}}");
    let mut text = String::new();
    let _ = write!(
        text,
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: \
         {namespace}}}\nspec:\n  hosts: [{name}]\n  http:\n  - match: [{{uri: {{prefix: /admin/}}}}]\n    route: \
         [{{{}}}]\n  - route: [{{{}, weight: 90}}, {{{}, weight: 10}}]\n",
        to("v2"),
        to("v1"),
        to("v2")
    );
    let _ = write!(
        text,
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: \
         {namespace}}}\nspec:\n  host: {name}\n  subsets:\n  - {{name: v1, labels: {{version: v1}}}}\n  - {{name: v2, \
         labels: {{version: v2}}}}\n"
    );
    text
}
