use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use orlop_tests::{
    Agent, AgentOptions, Iperf3Server, Node, Pod, PodSpec, Process, Testbed, Ztunnel, wait_for,
};

use crate::cargo::OWN_PROGRAM;

/// Where the HTTP server listens.
pub(super) const HTTP_PORT: u16 = 8080;
/// Where iperf3 does.
pub(super) const IPERF_PORT: u16 = 5201;

/// Two nodes; for each case a client on one and a server on the other.
pub(super) struct Rig {
    cases: Vec<Case>,
    _testbed: Testbed,
}

/// One way from a client to a server.
pub(super) struct Case {
    pub(super) name: &'static str,
    // Dropped in this order: what runs, before what it runs in.
    proxies: Proxies,
    _servers: (Process, Iperf3Server),
    pub(super) client: Pod,
    pub(super) server: Pod,
}

/// What stands between client and server: one on each node, or none.
enum Proxies {
    None,
    Orlop(Vec<Agent>),
    Ztunnel(Vec<Ztunnel>),
}

/// A ztunnel that somebody built, and the CA it asks.
pub(super) struct ZtunnelPrograms {
    pub(super) ztunnel: PathBuf,
    pub(super) authority: PathBuf,
}

impl Rig {
    pub(super) fn new(binary: PathBuf, ztunnel: Option<&ZtunnelPrograms>) -> Result<Self> {
        let testbed = Testbed::new()?;
        testbed.world().namespace("bare", &[])?;
        testbed.world().enrolled_namespace("mesh")?;
        let nodes = [testbed.node("node-1")?, testbed.node("node-2")?];
        let bare = Case::new("no mesh", "bare", &nodes)?;
        let mut orlop = Case::new("orlop", "mesh", &nodes)?;
        let agents = nodes.iter().map(|node| agent(node, &orlop, &binary));
        orlop.proxies = Proxies::Orlop(agents.collect::<Result<_>>()?);
        let mut cases = vec![bare, orlop];
        if let Some(programs) = ztunnel {
            let mut case = Case::new("ztunnel", "ambient", &nodes)?;
            case.proxies =
                Proxies::Ztunnel(ztunnels(programs, &testbed, &case).context("starting the ztunnels")?);
            cases.push(case);
        }
        Ok(Self { cases, _testbed: testbed })
    }

    pub(super) fn cases(&self) -> &[Case] {
        &self.cases
    }
}

impl Case {
    fn new(name: &'static str, namespace: &str, [near, far]: &[Node; 2]) -> Result<Self> {
        let client = near.pod(namespace, "client", PodSpec::new().service_account("client"))?;
        let server = far.pod(namespace, "server", PodSpec::new().service_account("server"))?;
        let servers = (serve(&server)?, Iperf3Server::start(&server, IPERF_PORT)?);
        Ok(Self { name, proxies: Proxies::None, _servers: servers, client, server })
    }

    /// What the proxies have used so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        match &self.proxies {
            Proxies::None => Ok(Duration::ZERO),
            Proxies::Orlop(agents) => agents.iter().map(Agent::cpu_time).sum(),
            Proxies::Ztunnel(ztunnels) => ztunnels.iter().map(Ztunnel::cpu_time).sum(),
        }
    }

    /// Memory of the larger proxy, if there are any.
    pub(super) fn rss(&self) -> Result<Option<u64>> {
        let sizes: Result<Vec<_>> = match &self.proxies {
            Proxies::None => Ok(Vec::new()),
            Proxies::Orlop(agents) => agents.iter().map(Agent::rss).collect(),
            Proxies::Ztunnel(ztunnels) => ztunnels.iter().map(Ztunnel::rss).collect(),
        };
        Ok(sizes?.into_iter().max())
    }
}

fn agent(node: &Node, case: &Case, binary: &Path) -> Result<Agent> {
    let agent = node.agent(AgentOptions {
        binary: Some(binary.to_owned()),
        args: vec!["--log".into(), "warn".into()],
        ..Default::default()
    })?;
    let pod = if node.name() == case.client.node().name() { &case.client } else { &case.server };
    agent.wait_enrolled([pod])?;
    Ok(agent)
}

/// One for each node, on nodes of their own: the ports that Orlop's agents hold are theirs too.
fn ztunnels(programs: &ZtunnelPrograms, testbed: &Testbed, case: &Case) -> Result<Vec<Ztunnel>> {
    let mesh = [&case.client, &case.server];
    let start = |pod: &Pod| {
        let host = testbed.node(&format!("{}-ztunnel", pod.node().name()))?;
        Ztunnel::start(&programs.ztunnel, &programs.authority, &host, &[pod], &mesh)
    };
    mesh.map(start).into_iter().collect()
}

fn serve(pod: &Pod) -> Result<Process> {
    let server = pod.spawn(OWN_PROGRAM, &["serve-bench", &HTTP_PORT.to_string()])?;
    let answers = || pod.node().connect(pod.addr(HTTP_PORT), Duration::from_secs(1)).is_ok();
    if !wait_for(Duration::from_secs(5), answers) {
        bail!("the server in {}/{} does not answer", pod.namespace(), pod.name());
    }
    Ok(server)
}
