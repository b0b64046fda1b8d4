use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use orlop_tests::{
    Agent, AgentOptions, Iperf3Server, Node, Pod, PodSpec, Process, Testbed, Waypoint, Ztunnel, wait_for,
};

use crate::cargo::OWN_PROGRAM;

/// Where the HTTP server listens.
pub(super) const HTTP_PORT: u16 = 8080;
/// Where one does that speaks HTTP/2 alone, in clear.
pub(super) const HTTP2_PORT: u16 = 8081;
/// Where iperf3 does.
pub(super) const IPERF_PORT: u16 = 5201;

/// What is measured.
pub(super) struct Programs {
    pub(super) orlop: PathBuf,
    pub(super) ztunnel: Option<ZtunnelPrograms>,
}

/// A ztunnel that somebody built, and the CA it asks.
pub(super) struct ZtunnelPrograms {
    pub(super) ztunnel: PathBuf,
    pub(super) authority: PathBuf,
}

/// The cases, and what they run on.
pub(super) struct Rig {
    // Dropped in this order: what runs, before what it runs in.
    cases: Vec<Case>,
    _testbed: Testbed,
}

/// One way from a client to a server.
pub(super) struct Case {
    pub(super) name: &'static str,
    // Dropped in this order, as above.
    pub(super) proxies: Proxies,
    _servers: Servers,
    http2: Option<Process>,
    pub(super) client: Pod,
    pub(super) server: Pod,
    /// Where requests go: to the server itself, if nothing reads them on the way.
    pub(super) web: IpAddr,
}

/// What stands between client and server: one on each of their nodes, or none, or what reads requests in between.
pub(super) enum Proxies {
    None,
    Orlop(Vec<Agent>),
    Ztunnel(Vec<Ztunnel>),
    /// With the agents of both nodes, which are not measured.
    Waypoint {
        waypoint: Waypoint,
        _sides: Vec<Agent>,
    },
    /// With what stands in for those.
    Envoy {
        middle: Process,
        _sides: Vec<Process>,
    },
}

type Servers = (Process, Iperf3Server);

impl Rig {
    pub(super) fn new(cases: Vec<Case>, testbed: Testbed) -> Self {
        Self { cases, _testbed: testbed }
    }

    pub(super) fn cases(&self) -> &[Case] {
        &self.cases
    }

    pub(super) fn names(&self) -> Vec<&'static str> {
        self.cases.iter().map(|case| case.name).collect()
    }
}

impl Case {
    /// A client on `node` to this server, and nothing between them yet.
    pub(super) fn new(
        name: &'static str,
        namespace: &str,
        node: &Node,
        (server, servers): (Pod, Servers),
    ) -> Result<Self> {
        let client = node.pod(namespace, "client", PodSpec::new().service_account("client"))?;
        let web = server.ipv4().into();
        Ok(Self { name, proxies: Proxies::None, _servers: servers, http2: None, client, server, web })
    }

    /// Has the server speak HTTP/2 too.
    pub(super) fn serve_http2(&mut self, dir: &Path) -> Result<()> {
        let page = dir.join("index.html");
        fs::write(&page, "Hello, world\n").with_context(|| format!("writing {}", page.display()))?;
        let (port, dir) = (HTTP2_PORT.to_string(), dir.to_string_lossy());
        self.http2 = Some(self.server.spawn("nghttpd", &["--no-tls", "-d", &dir, &port])?);
        await_server(&self.server, HTTP2_PORT)
    }

    /// What the proxies have used so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        match &self.proxies {
            Proxies::None => Ok(Duration::ZERO),
            Proxies::Orlop(agents) => agents.iter().map(Agent::cpu_time).sum(),
            Proxies::Ztunnel(ztunnels) => ztunnels.iter().map(Ztunnel::cpu_time).sum(),
            Proxies::Waypoint { waypoint, .. } => waypoint.process().cpu_time(),
            Proxies::Envoy { middle, .. } => middle.cpu_time(),
        }
    }

    /// Memory of the larger proxy, if there are any.
    pub(super) fn rss(&self) -> Result<Option<u64>> {
        let sizes: Result<Vec<_>> = match &self.proxies {
            Proxies::None => Ok(Vec::new()),
            Proxies::Orlop(agents) => agents.iter().map(Agent::rss).collect(),
            Proxies::Ztunnel(ztunnels) => ztunnels.iter().map(Ztunnel::rss).collect(),
            Proxies::Waypoint { waypoint, .. } => waypoint.process().rss().map(|rss| vec![rss]),
            Proxies::Envoy { middle, .. } => middle.rss().map(|rss| vec![rss]),
        };
        Ok(sizes?.into_iter().max())
    }
}

/// A pod that serves every load.
pub(super) fn server(namespace: &str, node: &Node) -> Result<(Pod, Servers)> {
    let pod = node.pod(namespace, "server", PodSpec::new().service_account("server"))?;
    let http = pod.spawn(OWN_PROGRAM, &["serve-bench", &HTTP_PORT.to_string()])?;
    await_server(&pod, HTTP_PORT)?;
    let iperf3 = Iperf3Server::start(&pod, IPERF_PORT)?;
    Ok((pod, (http, iperf3)))
}

fn await_server(pod: &Pod, port: u16) -> Result<()> {
    let answers = || pod.node().connect(pod.addr(port), Duration::from_secs(1)).is_ok();
    if !wait_for(Duration::from_secs(5), answers) {
        bail!("the server in {}/{} does not answer on port {port}", pod.namespace(), pod.name());
    }
    Ok(())
}

/// Starts the agent of a node that serves these pods.
pub(super) fn agent(node: &Node, pods: &[&Pod], programs: &Programs, args: &[&str]) -> Result<Agent> {
    let args = ["--log", "warn"].iter().chain(args).map(|arg| (*arg).to_owned()).collect();
    let options = AgentOptions { binary: Some(programs.orlop.clone()), args, ..Default::default() };
    let agent = node.agent(options)?;
    agent.wait_enrolled(pods.iter().copied())?;
    Ok(agent)
}
