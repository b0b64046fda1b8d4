//! Two pods of two nodes.

use anyhow::{Context, Result};
use orlop_tests::{Node, Pod, Testbed, Ztunnel};

use super::loads::{
    BULK_1_STREAM, BULK_4_STREAMS, Load, NEW_CONNECTIONS, REQUESTS_1_CONNECTION, REQUESTS_32_CONNECTIONS,
};
use super::measure::{Options, compare, prepare};
use super::report::{Bound, CPU, MEMORY, P50, RATE, RSS, Report, Target};
use super::rig::{Case, Programs, Proxies, Rig, ZtunnelPrograms, agent, server};

const LOADS: [Load; 5] =
    [BULK_1_STREAM, BULK_4_STREAMS, REQUESTS_1_CONNECTION, REQUESTS_32_CONNECTIONS, NEW_CONNECTIONS];

/// ztunnel's shares of what there is without a mesh, as they were measured first; and by the ztunnel of the same run.
const TARGETS: [Target; 10] = [
    target("no mesh", BULK_1_STREAM.name, RATE, Bound::AtLeast(0.40)),
    target("no mesh", REQUESTS_32_CONNECTIONS.name, RATE, Bound::AtLeast(0.22)),
    target("no mesh", NEW_CONNECTIONS.name, RATE, Bound::AtLeast(0.25)),
    target(ZTUNNEL, BULK_1_STREAM.name, RATE, Bound::AtLeast(1.2)),
    target(ZTUNNEL, BULK_1_STREAM.name, CPU, Bound::AtMost(0.8)),
    target(ZTUNNEL, REQUESTS_1_CONNECTION.name, P50, Bound::AtMost(0.85)),
    target(ZTUNNEL, REQUESTS_32_CONNECTIONS.name, RATE, Bound::AtLeast(1.3)),
    target(ZTUNNEL, REQUESTS_32_CONNECTIONS.name, CPU, Bound::AtMost(0.75)),
    target(ZTUNNEL, NEW_CONNECTIONS.name, RATE, Bound::AtLeast(1.5)),
    target(ZTUNNEL, MEMORY, RSS, Bound::AtMost(1.0)),
];

const ZTUNNEL: &str = "ztunnel";

const fn target(by: &'static str, what: &'static str, quantity: &'static str, bound: Bound) -> Target {
    Target { case: "orlop", by, what, quantity, bound }
}

pub(super) fn run(options: &Options) -> Result<()> {
    let rig = rig(&prepare()?).context("setting up the bench")?;
    compare("nodes", options, &rig, &LOADS, Report::new(rig.names(), &TARGETS))
}

/// For each case a client on one node and a server on the other.
fn rig(programs: &Programs) -> Result<Rig> {
    let testbed = Testbed::new()?;
    testbed.world().namespace("bare", &[])?;
    testbed.world().enrolled_namespace("mesh")?;
    let nodes = [testbed.node("node-1")?, testbed.node("node-2")?];
    let bare = case("no mesh", "bare", &nodes)?;
    let mut orlop = case("orlop", "mesh", &nodes)?;
    let pods = [&orlop.client, &orlop.server];
    let agents = nodes.iter().zip(pods).map(|(node, pod)| agent(node, &[pod], programs, &[]));
    orlop.proxies = Proxies::Orlop(agents.collect::<Result<_>>()?);
    let mut cases = vec![bare, orlop];
    if let Some(programs) = &programs.ztunnel {
        let mut case = case(ZTUNNEL, "ambient", &nodes)?;
        case.proxies = Proxies::Ztunnel(ztunnels(programs, &testbed, &case)?);
        cases.push(case);
    }
    Ok(Rig::new(cases, testbed))
}

fn case(name: &'static str, namespace: &str, [near, far]: &[Node; 2]) -> Result<Case> {
    Case::new(name, namespace, near, server(namespace, far)?)
}

/// One for each node, on nodes of their own: the ports that Orlop's agents hold are theirs too.
fn ztunnels(programs: &ZtunnelPrograms, testbed: &Testbed, case: &Case) -> Result<Vec<Ztunnel>> {
    let mesh = [&case.client, &case.server];
    let start = |pod: &Pod| {
        let host = testbed.node(&format!("{}-ztunnel", pod.node().name()))?;
        Ztunnel::start(&programs.ztunnel, &programs.authority, &host, &[pod], &mesh)
    };
    mesh.map(start).into_iter().collect::<Result<_>>().context("starting the ztunnels")
}
