//! What the suites of redirection, world, failing closed and seeing start from, and what they all ask.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use orlop_tests::{Agent, AgentOptions, Frames, Node, Pod, PodSpec, Testbed, World};
use serde_json::Value;

/// Bounds every wait; what takes this long hangs.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// A refusal that takes this long is none: something timed out. On a busy machine a packet may be lost, and
/// sent again after a second.
pub const AT_ONCE: Duration = Duration::from_secs(3);

/// Two nodes with an agent each; `shop/client` is enrolled on the first, `shop/server` on the second.
///
/// The agents come first, so that they end before their testbed goes.
pub struct Pair {
    pub near: Agent,
    pub far: Agent,
    pub client: Pod,
    pub server: Pod,
    pub testbed: Testbed,
}

impl Pair {
    pub fn new() -> Self {
        Self::with(AgentOptions::default())
    }

    /// The agents log in JSON, for [`record`], unless told otherwise.
    pub fn with(mut options: AgentOptions) -> Self {
        if options.args.is_empty() {
            options.args = ["--log-format", "json"].map(str::to_owned).into();
        }
        let testbed = Testbed::new().unwrap();
        testbed.world().enrolled_namespace("shop").unwrap();
        let (n1, n2) = (testbed.node("n1").unwrap(), testbed.node("n2").unwrap());
        let client = n1.pod("shop", "client", PodSpec::new().service_account("buyer")).unwrap();
        let server = n2.pod("shop", "server", PodSpec::new().service_account("seller")).unwrap();
        let near = n1.agent(options.clone()).unwrap();
        let far = n2.agent(options.clone()).unwrap();
        near.wait_enrolled([&client]).unwrap();
        far.wait_enrolled([&server]).unwrap();
        Self { near, far, client, server, testbed }
    }

    /// A pod that is not in the mesh. Both agents know of it.
    pub fn outsider(&self, node: &Node, name: &str) -> Pod {
        let pod = node.pod("street", name, PodSpec::new()).unwrap();
        self.wait_known(&pod, false);
        pod
    }

    /// One more enrolled pod. Both agents know of it, and its own has enrolled it.
    pub fn pod(&self, agent: &Agent, name: &str, spec: PodSpec) -> Pod {
        let pod = agent.node().pod("shop", name, spec).unwrap();
        self.wait_known(&pod, true);
        wait_enrolled(agent, &pod, true);
        pod
    }

    /// Waits until both agents see the pod, and see it in or out of the mesh.
    pub fn wait_known(&self, pod: &Pod, enrolled: bool) {
        let name = full_name(pod);
        self.wait_both(|snapshot| {
            let workloads = snapshot["workloads"].as_array();
            let workload = workloads.and_then(|all| all.iter().find(|workload| workload["name"] == *name));
            workload.is_some_and(|workload| workload["enrolled"] == enrolled)
        });
    }

    /// Waits until both agents have a snapshot in force that is as wanted.
    pub fn wait_both(&self, wanted: impl Fn(&Value) -> bool) {
        let wanted = |dump: &Value| wanted(&dump["snapshot"]) && in_force(dump);
        for agent in [&self.near, &self.far] {
            agent.wait_until(|dump| serde_json::from_str(dump).is_ok_and(|dump| wanted(&dump))).unwrap();
        }
    }

    /// Changes the world, and waits until both agents have it in force.
    pub fn change<T>(&self, change: impl FnOnce(&World) -> anyhow::Result<T>) -> T {
        let result = change(self.testbed.world()).unwrap();
        settle(self.testbed.world(), [&self.near, &self.far]);
        result
    }

    /// What crosses the wire between the nodes meanwhile.
    pub fn captured<T>(&self, f: impl FnOnce() -> T) -> (T, Frames) {
        let capture = self.testbed.capture().unwrap();
        let result = f();
        (result, capture.stop().unwrap())
    }

    /// Asks the echo server at `to`, and says whether the question crossed the wire in clear.
    pub fn in_clear(&self, from: &Pod, to: SocketAddr) -> bool {
        let question = "is anybody listening?\n";
        let (answer, frames) = self.captured(|| from.connect(to, TIMEOUT).and_then(|s| ping(&s, question)));
        answer.unwrap_or_else(|error| panic!("{} to {to}: {error}", from.name()));
        frames.contains(question.as_bytes())
    }
}

/// Waits until these agents have in force whatever was written so far: the last thing is a service to tell by.
pub fn settle(world: &World, agents: [&Agent; 2]) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("mark-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: marks}}\n");
    world.write("mark.yaml", &text).unwrap();
    let name = format!("marks/{name}");
    let wanted = |dump: &Value| {
        let services = dump["snapshot"]["services"].as_array();
        services.is_some_and(|services| services.iter().any(|service| service["name"] == *name))
            && in_force(dump)
    };
    for agent in agents {
        agent.wait_until(|dump| serde_json::from_str(dump).is_ok_and(|dump| wanted(&dump))).unwrap();
    }
}

/// Whether the agent's newest snapshot is in force in the kernel, too.
fn in_force(dump: &Value) -> bool {
    dump["applied_generation"] == dump["snapshot"]["generation"]
}

/// Writes a file of the world and waits until the server's agent has it in force.
pub fn apply(pair: &Pair, file: &str, text: &str) {
    wait_applied(&pair.far, || pair.testbed.world().write(file, text).unwrap());
}

/// Removes a file of the world and waits until the server's agent knows.
pub fn remove(pair: &Pair, file: &str) {
    wait_applied(&pair.far, || pair.testbed.world().remove(file).unwrap());
}

/// Changes the world and waits until the agent has that in force.
pub fn wait_applied(agent: &Agent, change: impl FnOnce()) {
    let before = generation(agent);
    change();
    agent.wait_until(|dump| generation_of(dump, |dump| &dump["applied_generation"]) > before).unwrap();
}

/// Of the newest snapshot, which may not be in force everywhere yet.
fn generation(agent: &Agent) -> u64 {
    generation_of(&agent.config_dump().unwrap(), |dump| &dump["snapshot"]["generation"])
}

fn generation_of(dump: &str, field: impl Fn(&Value) -> &Value) -> u64 {
    serde_json::from_str::<Value>(dump).ok().and_then(|dump| field(&dump).as_u64()).unwrap_or(0)
}

/// `namespace/name`
pub fn full_name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace(), pod.name())
}

/// Waits until the agent has enrolled the pod, or has withdrawn it.
pub fn wait_enrolled(agent: &Agent, pod: &Pod, enrolled: bool) {
    let name = full_name(pod);
    agent.wait_until(|_| agent.enrolled().is_ok_and(|all| all.contains(&name) == enrolled)).unwrap();
}

/// Waits for the access log's line of a connection that has ended.
#[track_caller]
pub fn record(agent: &Agent, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut found = None;
    let waited = agent.wait_log(
        |log| {
            let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            found = lines.find(|line| line["target"] == "access" && wanted(line));
            found.is_some()
        },
        TIMEOUT,
    );
    found.unwrap_or_else(|| panic!("no such record: {}", waited.unwrap_err()))
}

/// Sends a line to an echo server and reads it back, leaving the connection open.
pub fn ping(mut stream: &TcpStream, line: &str) -> io::Result<()> {
    stream.write_all(line.as_bytes())?;
    let mut back = vec![0; line.len()];
    stream.read_exact(&mut back)?;
    if back == line.as_bytes() { Ok(()) } else { Err(io::Error::other(format!("{back:?} came back"))) }
}

/// Dials an echo server and hears of it: the proxy takes a connection before it knows whether it can
/// carry it.
pub fn dial(from: &Pod, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = from.connect(to, TIMEOUT)?;
    ping(&stream, "are you there?\n")?;
    Ok(stream)
}

/// Dials a server that must not be reached: a reset, and soon.
#[track_caller]
pub fn assert_refused(from: &Pod, to: SocketAddr) {
    let start = Instant::now();
    let error = dial(from, to).expect_err("was served");
    assert!(is_refusal(&error), "not refused but: {error}");
    assert!(start.elapsed() < AT_ONCE, "refused only after {:?}", start.elapsed());
}

/// Dials where no proxy is there to take it: the kernel refuses.
#[track_caller]
pub fn assert_kernel_refuses(from: &Pod, to: SocketAddr) {
    let start = Instant::now();
    let error = from.connect(to, TIMEOUT).expect_err("was taken");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    assert!(start.elapsed() < AT_ONCE, "refused only after {:?}", start.elapsed());
}

/// Whether it is the answer to a SYN or a reset later, and not a timeout or an orderly end.
///
/// Ask for it with `read_exact`: a `read` that has a timeout ends early where the machine is frozen and thawed (EINTR).
pub fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// The program that runs as this agent.
pub fn program(agent: &Agent) -> PathBuf {
    fs::read_link(format!("/proc/{}/exe", agent.pid())).unwrap()
}
