//! Two pods of two nodes.

use anyhow::{Context, Result};
use orlop_tests::{Node, Pod, Testbed, Ztunnel};

use super::loads::{
    BULK_1_STREAM, BULK_4_STREAMS, Load, NEW_CONNECTIONS, REQUESTS_1_CONNECTION, REQUESTS_32_CONNECTIONS,
};
use super::measure::{Options, compare, prepare};
use super::report::{Report, Target};
use super::rig::{Case, Programs, Proxies, Rig, ZtunnelPrograms, agent, server};

const LOADS: [Load; 5] =
    [BULK_1_STREAM, BULK_4_STREAMS, REQUESTS_1_CONNECTION, REQUESTS_32_CONNECTIONS, NEW_CONNECTIONS];

/// ztunnel's shares, as they were measured first.
const TARGETS: [Target; 3] = [
    Target { case: "orlop", load: &BULK_1_STREAM, ratio: 0.40 },
    Target { case: "orlop", load: &REQUESTS_32_CONNECTIONS, ratio: 0.22 },
    Target { case: "orlop", load: &NEW_CONNECTIONS, ratio: 0.25 },
];

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
        let mut case = case("ztunnel", "ambient", &nodes)?;
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
