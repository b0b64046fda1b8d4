//! Two pods of one node.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use orlop_tests::{Testbed, Ztunnel, wait_for};

use super::loads::{BULK_1_STREAM, Load, NEW_CONNECTIONS, REQUESTS_1_CONNECTION, REQUESTS_32_CONNECTIONS};
use super::measure::{Options, compare, prepare};
use super::report::{Bound, RATE, Report, Target};
use super::rig::{Case, HTTP_PORT, IPERF_PORT, Programs, Proxies, Rig, agent, server};

const LOADS: [Load; 4] = [BULK_1_STREAM, REQUESTS_1_CONNECTION, REQUESTS_32_CONNECTIONS, NEW_CONNECTIONS];

const KERNEL: &str = "orlop";

const TARGETS: [Target; 4] = [
    target(&BULK_1_STREAM, 0.95),
    target(&REQUESTS_1_CONNECTION, 0.95),
    target(&REQUESTS_32_CONNECTIONS, 0.95),
    target(&NEW_CONNECTIONS, 0.90),
];

const fn target(load: &Load, least: f64) -> Target {
    Target { case: KERNEL, by: "no mesh", what: load.name, quantity: RATE, bound: Bound::AtLeast(least) }
}

const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn run(options: &Options) -> Result<()> {
    let rig = rig(&prepare()?).context("setting up the bench")?;
    compare("samenode", options, &rig, &LOADS, Report::new(rig.names(), &TARGETS))
}

/// A node for each case, so that no agent's programs see another case's packets.
fn rig(programs: &Programs) -> Result<Rig> {
    let testbed = Testbed::new()?;
    testbed.world().namespace("bare", &[])?;
    for namespace in ["kernel", "hbone"] {
        testbed.world().enrolled_namespace(namespace)?;
    }
    let mut cases = vec![
        case(&testbed, "no mesh", "bare")?,
        orlop(&testbed, programs, KERNEL, "kernel", &[])?,
        orlop(&testbed, programs, "orlop, hbone", "hbone", &["--same-node", "hbone"])?,
    ];
    warm(&cases[1])?;
    if let Some(programs) = &programs.ztunnel {
        let mut case = case(&testbed, "ztunnel", "ambient")?;
        let host = testbed.node("ambient-ztunnel")?;
        let pods = [&case.client, &case.server];
        let ztunnel = Ztunnel::start(&programs.ztunnel, &programs.authority, &host, &pods, &pods);
        case.proxies = Proxies::Ztunnel(vec![ztunnel.context("starting ztunnel")?]);
        cases.push(case);
    }
    Ok(Rig::new(cases, testbed))
}

fn case(testbed: &Testbed, name: &'static str, namespace: &str) -> Result<Case> {
    let node = testbed.node(namespace)?;
    Case::new(name, namespace, &node, server(namespace, &node)?)
}

fn orlop(
    testbed: &Testbed,
    programs: &Programs,
    name: &'static str,
    namespace: &str,
    args: &[&str],
) -> Result<Case> {
    let mut case = case(testbed, name, namespace)?;
    let pods = [&case.client, &case.server];
    case.proxies = Proxies::Orlop(vec![agent(case.client.node(), &pods, programs, args)?]);
    Ok(case)
}

/// The first connection to each port goes through the proxy, and allows the next ones to do without.
fn warm(case: &Case) -> Result<()> {
    let Proxies::Orlop(agents) = &case.proxies else { bail!("{} has no agent", case.name) };
    for port in [HTTP_PORT, IPERF_PORT] {
        case.client.connect(case.server.addr(port), TIMEOUT)?;
    }
    let allowed = |agent| wait_for(TIMEOUT, || pairs(agent).is_ok_and(|pairs| pairs >= 2.0));
    if !agents.iter().all(allowed) {
        bail!("the agent does not let the pods talk without it");
    }
    Ok(())
}

fn pairs(agent: &orlop_tests::Agent) -> Result<f64> {
    agent.metric("orlop_same_node_pairs", &[])
}
