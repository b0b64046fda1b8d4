use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use orlop_tests::{
    Agent, AgentOptions, Node, Pod, PodSpec, Process, ServiceSpec, TargetPort, Testbed, wait_for,
};

use crate::cargo::OWN_PROGRAM;

/// Where the pods serve.
pub(super) const PORT: u16 = 8080;
/// Where the service does.
pub(super) const SERVICE_PORT: u16 = 80;

/// Everything the checks work on.
///
/// `client` and `web_1` are on one node, `web_2` and `plain` on another; `plain` is not in the mesh.
pub(super) struct Stage {
    // Dropped in this order: what runs, before what it runs in.
    pub(super) agents: Vec<Agent>,
    servers: Vec<Process>,
    pub(super) client: Pod,
    pub(super) web_1: Pod,
    pub(super) web_2: Pod,
    pub(super) plain: Pod,
    pub(super) vip: SocketAddr,
    /// Each pod's network state before any agent ran.
    pub(super) before: Vec<String>,
    pub(super) testbed: Testbed,
}

impl Stage {
    pub(super) fn new(binary: PathBuf) -> Result<Self> {
        let testbed = Testbed::new()?;
        testbed.world().enrolled_namespace("shop")?;
        testbed.world().namespace("legacy", &[])?;
        let (node_1, node_2) = (testbed.node("node-1")?, testbed.node("node-2")?);
        let web = || PodSpec::new().label("app", "web").service_account("web").port("http", PORT);
        let client =
            node_1.pod("shop", "client", PodSpec::new().label("app", "client").service_account("client"))?;
        let web_1 = node_1.pod("shop", "web-1", web())?;
        let web_2 = node_2.pod("shop", "web-2", web())?;
        let plain = node_2.pod("legacy", "plain", PodSpec::new().label("app", "plain"))?;
        let ips = testbed.vip();
        let vip = ips.first().map(|ip| SocketAddr::new(*ip, SERVICE_PORT)).context("no service address")?;
        let target = TargetPort::Name("http".to_owned(), PORT);
        let service = ServiceSpec::new("shop", "web", SERVICE_PORT, target).cluster_ips(ips);
        testbed.world().service(&service.endpoints([&web_1, &web_2]))?;

        let servers = [&web_1, &web_2, &plain].into_iter().map(serve).collect::<Result<Vec<_>>>()?;
        let pods = [&client, &web_1, &web_2, &plain];
        let before = pods.into_iter().map(Pod::network_state).collect::<Result<Vec<_>>>()?;
        let start =
            |node: &Node| node.agent(AgentOptions { binary: Some(binary.clone()), ..Default::default() });
        let agents = vec![start(&node_1)?, start(&node_2)?];
        let stage = Self { agents, servers, client, web_1, web_2, plain, vip, before, testbed };
        stage.wait_enrolled()?;
        Ok(stage)
    }

    pub(super) fn pods(&self) -> [&Pod; 4] {
        [&self.client, &self.web_1, &self.web_2, &self.plain]
    }

    /// Waits until the agents have enrolled the pods that belong to the mesh, and only them.
    pub(super) fn wait_enrolled(&self) -> Result<()> {
        for agent in &self.agents {
            let of_node = |pod: &&Pod| pod.node().name() == agent.node().name() && pod.namespace() == "shop";
            agent.wait_enrolled(self.pods().into_iter().filter(of_node))?;
        }
        Ok(())
    }

    /// The agent of the client's node.
    pub(super) fn client_agent(&mut self) -> Result<&mut Agent> {
        self.agents.first_mut().context("the client's node has no agent")
    }

    /// The pods in a table.
    pub(super) fn describe(&self) -> String {
        let mut table = String::new();
        for pod in self.pods() {
            let mesh = if pod.namespace() == "shop" { "in the mesh" } else { "not in the mesh" };
            let name = format!("{}/{}", pod.namespace(), pod.name());
            let [v4, v6] = pod.ips().map(|ip: IpAddr| ip.to_string());
            table += &format!("  {:8} {name:14} {v4:10} {v6:16} {mesh}\n", pod.node().name());
        }
        table + &format!("  service  {:14} {:10}\n", "shop/web", self.vip.ip())
    }

    /// Leaves everything up, and gives commands to look around with.
    pub(super) fn keep(mut self) -> String {
        self.testbed.keep();
        let mut text = "Everything stays up. To look around:\n".to_owned();
        let mut add = |what: &str, command: String| text += &format!("\n  # {what}\n  {command}\n");
        let client = format!("nsenter --net={}", self.client.netns_path().display());
        add("from the client to the service", format!("{client} curl http://{}/", self.vip));
        for agent in &self.agents {
            let node = agent.node();
            let enter = format!("nsenter --net={}", node.netns_path().display());
            let name = node.name();
            add(&format!("{name}: what is in force"), format!("{enter} curl -s 127.0.0.1:15000/config_dump"));
            add(&format!("{name}: metrics"), format!("{enter} curl -s 127.0.0.1:15020/metrics"));
            add(&format!("{name}: log"), format!("tail -f {}", agent.log_path().display()));
            add(&format!("{name}: kernel maps"), format!("ls -R {}", node.bpffs_dir().display()));
        }
        add("any of those maps", "bpftool map dump pinned FILE".to_owned());
        add("the world: edit a label and see", format!("ls {}", self.testbed.world().dir().display()));
        add("remove it all", "cargo xtask sweep".to_owned());
        self.agents.drain(..).for_each(std::mem::forget);
        self.servers.drain(..).for_each(std::mem::forget);
        text
    }
}

/// Serves HTTP in the pod, as a process of its own in the pod's cgroup, and waits until it answers.
fn serve(pod: &Pod) -> Result<Process> {
    let name = format!("{}/{}", pod.namespace(), pod.name());
    let server = pod.spawn(OWN_PROGRAM, &["serve", &name, &PORT.to_string()])?;
    let answers = || pod.node().connect(pod.addr(PORT), Duration::from_secs(1)).is_ok();
    if !wait_for(Duration::from_secs(5), answers) {
        bail!("the server in {name} does not answer");
    }
    Ok(server)
}
