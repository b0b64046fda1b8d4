//! What the suites of tunnels, peers and attacks start from: two nodes, and what their agents recorded.

use std::sync::Mutex;
use std::time::Duration;

use orlop_tests::{Agent, AgentOptions, Node, Pod, PodSpec, Testbed, wait_for};
use serde_json::Value;

/// For anything that should take no time at all.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// Held by a test that opens so many sockets that another such one has to wait: all run in one process.
pub static MANY_DESCRIPTORS: Mutex<()> = Mutex::new(());
/// The namespace of the pods, which is in the mesh.
pub const NAMESPACE: &str = "shop";

/// Two nodes with a pod each, and an agent on each node that was asked for.
///
/// The agents come first, so that they end before their testbed goes.
pub struct Mesh {
    agents: [Option<Agent>; 2],
    pub nodes: [Node; 2],
    /// On the first node, service account `client`.
    pub client: Pod,
    /// On the second node, service account `server`.
    pub server: Pod,
    pub testbed: Testbed,
}

impl Mesh {
    /// Agents on both nodes, with one worker each: what one pod sends to another goes through one tunnel
    /// as long as it has room.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// More arguments for both agents.
    pub fn with(args: &[&str]) -> Self {
        Self::on([Some(args), Some(args)])
    }

    /// An agent on the first node alone: port 15008 of the second node's pods is nobody's.
    pub fn first_only(args: &[&str]) -> Self {
        Self::on([Some(args), None])
    }

    /// An agent on the second node alone.
    pub fn second_only(args: &[&str]) -> Self {
        Self::on([None, Some(args)])
    }

    fn on(args: [Option<&[&str]>; 2]) -> Self {
        let testbed = Testbed::new().unwrap();
        testbed.world().enrolled_namespace(NAMESPACE).unwrap();
        let nodes = ["n1", "n2"].map(|name| testbed.node(name).unwrap());
        let account = |name| PodSpec::new().service_account(name);
        let client = nodes[0].pod(NAMESPACE, "client", account("client")).unwrap();
        let server = nodes[1].pod(NAMESPACE, "server", account("server")).unwrap();
        let mut agents = [None, None];
        for ((agent, node), (args, pod)) in
            agents.iter_mut().zip(&nodes).zip(args.into_iter().zip([&client, &server]))
        {
            *agent = args.map(|args| {
                let agent = node.agent(options(args)).unwrap();
                agent.wait_enrolled([pod]).unwrap();
                agent
            });
        }
        Self { agents, nodes, client, server, testbed }
    }

    /// Both.
    pub fn agents(&self) -> [&Agent; 2] {
        [self.client_agent(), self.server_agent()]
    }

    /// The first node's.
    pub fn client_agent(&self) -> &Agent {
        self.agents[0].as_ref().unwrap()
    }

    /// The second node's.
    pub fn server_agent(&self) -> &Agent {
        self.agents[1].as_ref().unwrap()
    }

    /// The second node's, to end it and start it again.
    pub fn server_agent_mut(&mut self) -> &mut Agent {
        self.agents[1].as_mut().unwrap()
    }
}

/// One worker and a log in JSON, and more arguments.
pub fn options(args: &[&str]) -> AgentOptions {
    let args = ["--workers", "1", "--log-format", "json"].iter().chain(args);
    AgentOptions { args: args.map(|arg| (*arg).to_owned()).collect(), ..AgentOptions::default() }
}

/// Open tunnels, as the agent counts them: `outbound` or `inbound`.
pub fn tunnels(agent: &Agent, direction: &str) -> f64 {
    agent.metric("orlop_tunnels_active", &[&format!("direction=\"{direction}\"")]).unwrap()
}

/// Connections refused or cut short for `reason`, as the agent counts them.
pub fn failed(agent: &Agent, reason: &str) -> f64 {
    agent.metric("orlop_connections_failed_total", &[&format!("reason=\"{reason}\"")]).unwrap()
}

/// Waits for a line of the access log whose fields have these values, and gives it.
#[track_caller]
pub fn record(agent: &Agent, fields: &[(&str, &str)]) -> Value {
    let mut found = None;
    wait_for(TIMEOUT, || {
        found = records(agent).into_iter().find(|record| {
            fields.iter().all(|(name, value)| record[*name].as_str().is_some_and(|field| field == *value))
        });
        found.is_some()
    });
    found.unwrap_or_else(|| panic!("no record with {fields:?} in:\n{:#?}", records(agent)))
}

/// The lines of the access log.
pub fn records(agent: &Agent) -> Vec<Value> {
    let log = agent.log().unwrap();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "access").collect()
}

/// Waits until `value` gives `wanted`.
#[track_caller]
pub fn await_value<T: PartialEq + std::fmt::Debug>(wanted: T, mut value: impl FnMut() -> T) {
    wait_for(TIMEOUT, || value() == wanted);
    assert_eq!(value(), wanted);
}
