use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use orlop_tests::{Agent, AgentOptions, Iperf3Server, Node, Pod, PodSpec, Process, Testbed, wait_for};

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
    agents: Vec<Agent>,
    _servers: (Process, Iperf3Server),
    pub(super) client: Pod,
    pub(super) server: Pod,
}

impl Rig {
    pub(super) fn new(binary: PathBuf) -> Result<Self> {
        let testbed = Testbed::new()?;
        testbed.world().namespace("bare", &[])?;
        testbed.world().enrolled_namespace("mesh")?;
        let nodes = [testbed.node("node-1")?, testbed.node("node-2")?];
        let bare = Case::new("no mesh", "bare", &nodes)?;
        let mut orlop = Case::new("orlop", "mesh", &nodes)?;
        for node in &nodes {
            let agent = node.agent(AgentOptions {
                binary: Some(binary.clone()),
                args: vec!["--log".into(), "warn".into()],
                ..Default::default()
            })?;
            let pod = if node.name() == orlop.client.node().name() { &orlop.client } else { &orlop.server };
            agent.wait_enrolled([pod])?;
            orlop.agents.push(agent);
        }
        Ok(Self { cases: vec![bare, orlop], _testbed: testbed })
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
        Ok(Self { name, agents: Vec::new(), _servers: servers, client, server })
    }

    /// What the proxies have used so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        self.agents.iter().map(Agent::cpu_time).sum()
    }

    /// Memory of the larger proxy, if there are any.
    pub(super) fn rss(&self) -> Result<Option<u64>> {
        let sizes = self.agents.iter().map(Agent::rss).collect::<Result<Vec<_>>>()?;
        Ok(sizes.into_iter().max())
    }
}

fn serve(pod: &Pod) -> Result<Process> {
    let me = std::env::current_exe().context("finding this program's own path")?;
    let server = pod.spawn(&me.to_string_lossy(), &["serve-bench", &HTTP_PORT.to_string()])?;
    let answers = || pod.node().connect(pod.addr(HTTP_PORT), Duration::from_secs(1)).is_ok();
    if !wait_for(Duration::from_secs(5), answers) {
        bail!("the server in {}/{} does not answer", pod.namespace(), pod.name());
    }
    Ok(server)
}
