//! `orlop gate`, from a node's start on.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use orlop_tests::{Agent, Pod, Process, Testbed, wait_for};
use serde_json::json;

use crate::boot_gate::inside::{HELD, Inside, Said};
use crate::boot_gate::kubelet::Kubelet as Asks;
use crate::kubernetes::api::Kubernetes;
use crate::kubernetes::kubelet::Kubelet;
use crate::kubernetes::last_world::wait_kept;
use crate::mesh::TIMEOUT;

/// Nobody answers within this, who would at once.
const SILENCE: Duration = Duration::from_millis(300);

/// The node's systemd.
struct Units {
    directory: PathBuf,
}

impl Units {
    fn new(testbed: &Testbed) -> Self {
        let directory = testbed.dir().join("units");
        fs::create_dir(&directory).unwrap();
        Self { directory }
    }

    /// The words of the command that the unit says, once an agent has written it.
    fn command(&self) -> Vec<String> {
        let unit = self.directory.join("multi-user.target.wants/orlop-gate.service");
        assert!(wait_for(TIMEOUT, || unit.exists()), "there is no {}", unit.display());
        let unit = fs::read_to_string(unit).unwrap();
        assert!(unit.contains("\nType=notify\n") && unit.contains("\nBefore=kubelet.service "), "{unit}");
        let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        command.split(' ').map(|word| word.trim_matches('"').to_owned()).collect()
    }

    /// Starts it, and waits until it says that it is ready.
    fn start(&self, node: &Kubelet<'_>) -> Process {
        let notify = self.directory.join("notify");
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).unwrap();
        let words = self.command();
        let mut command = node.node.command(&words[0]).unwrap();
        command.args(&words[1..]).env("NOTIFY_SOCKET", &notify).stdin(Stdio::null());
        let process = Process::spawn(&mut command).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut said = [0; 16];
        assert!(wait_for(TIMEOUT, || socket.recv(&mut said).is_ok()), "it is not ready");
        assert!(said.starts_with(b"READY=1\0"), "{said:?}");
        process
    }
}

#[test]
fn from_the_nodes_start_on_a_pod_without_the_volume_is_held_until_an_agent_serves() {
    let kubernetes = Kubernetes::shared();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("gate-start", &[("orlop.dev/mesh", "enabled")]);
    let node = Kubelet::start(&kubernetes, &testbed, "n1");
    let asks = Asks::new(&testbed, &node.node);
    let units = Units::new(&testbed);
    let echo_pod = node.sandbox("elsewhere", "free", "f0000000-0000-0000-0000-000000000001");
    let echo = echo_pod.serve_echo(80).unwrap();
    let [old, left] = ["old", "left"].map(|name| node.run(&namespace, name, &[]));
    let uids = [&old, &left].map(Pod::uid);

    let kubelet = asks.directory.to_str().unwrap();
    let options = ["--boot-gate", "--kubelet-dir", kubelet];
    let with_unit = [&options[..], &["--boot-gate-unit", units.directory.to_str().unwrap()]].concat();
    let mut agent = node.agent(&with_unit);
    agent.wait_enrolled([&old, &left]).unwrap();
    says(&agent, true);
    wait_kept(&node, &[&old, &left]);

    agent.kill().unwrap();
    reboot(&node, &[old, left]);
    let mut gate = units.start(&node);
    let old = node.sandbox(&namespace, "old", &uids[0]);
    let mut inside = Inside::of(&old);
    // kubelet makes the cgroup long before anything runs in it.
    assert!(wait_for(TIMEOUT, || inside.dial(echo.addr()) == HELD));
    assert_eq!(inside.tell("listen 8080"), Said::Ok);
    for to in [echo.addr(), echo.addr6()] {
        for command in ["dial", "associate", "send"] {
            assert_eq!(inside.to(command, to), HELD, "{command} {to}");
        }
    }
    echo_pod.connect(old.addr(8080), SILENCE).expect_err("was let in");
    // Nobody knows it, so it is outside; and one that was outside is still so.
    let other = node.sandbox("elsewhere", "other", "f0000000-0000-0000-0000-000000000002");
    assert_eq!(Inside::of(&other).dial(echo.addr()), Said::Ok);
    // It has left meanwhile, which an agent alone can know.
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "left", "namespace": namespace, "labels": {"orlop.dev/mesh": "disabled"}},
    }));
    let left = node.sandbox(&namespace, "left", &uids[1]);
    let mut outside = Inside::of(&left);
    assert!(wait_for(TIMEOUT, || outside.dial(echo.addr()) == HELD));
    assert!(gate.is_running());

    agent.start_again().unwrap();
    agent.wait_ready().unwrap();
    node.report(&old);
    agent.wait_enrolled([&old]).unwrap();
    for inside in [&mut inside, &mut outside] {
        assert!(wait_for(TIMEOUT, || inside.dial(echo.addr()) == Said::Ok));
    }
    says(&agent, true);
    // Nor is it held again.
    agent.kill().unwrap();
    thread::sleep(SILENCE);
    assert_eq!(outside.dial(echo.addr()), Said::Ok, "it is held again");
    assert!(gate.is_running());
    gate.kill().unwrap();

    // Where it does not run, the agent does not say that it will.
    drop(inside);
    reboot(&node, &[old]);
    let old = node.sandbox(&namespace, "old", &uids[0]);
    node.report(&old);
    agent.start_again().unwrap();
    agent.wait_ready().unwrap();
    agent.wait_enrolled([&old]).unwrap();
    says(&agent, false);
    agent.wait_log(|log| log.contains("orlop gate has not run"), TIMEOUT).unwrap();

    // An agent without it undoes it.
    let program = PathBuf::from(&units.command()[0]);
    assert!(program.exists());
    agent.kill().unwrap();
    let _agent = node.agent(&options);
    assert!(wait_for(TIMEOUT, || !program.exists()), "{} is left", program.display());
}

#[test]
fn static_pods_of_the_mesh_are_held_from_their_first_start_on_whether_an_agent_knows_of_them_or_not() {
    let kubernetes = Kubernetes::shared();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("gate-static", &[("orlop.dev/mesh", "enabled")]);
    let outside = kubernetes.namespace("gate-outside", &[]);
    let node = Kubelet::start(&kubernetes, &testbed, "n1");
    let asks = Asks::new(&testbed, &node.node);
    let units = Units::new(&testbed);
    let echo = node.sandbox("elsewhere", "free", "f0000000-0000-0000-0000-000000000001");
    let echo = echo.serve_echo(80).unwrap();
    let known = node.run(&namespace, "known", &[]);
    let [manifests, logs] = ["manifests", "logs"].map(|name| testbed.dir().join(name));
    for directory in [&manifests, &logs] {
        fs::create_dir(directory).unwrap();
    }
    let mut agent = node.agent(&[
        "--boot-gate",
        "--kubelet-dir",
        asks.directory.to_str().unwrap(),
        "--boot-gate-unit",
        units.directory.to_str().unwrap(),
        "--static-pod-path",
        manifests.to_str().unwrap(),
        "--pod-logs-dir",
        logs.to_str().unwrap(),
    ]);
    agent.wait_enrolled([&known]).unwrap();
    wait_kept(&node, &[&known]);
    says(&agent, true);
    let mut gate = units.start(&node);

    // As kubelet starts one, which no object tells of yet.
    let start = |namespace: &str, name: &str, label: &str, hash: char| {
        let labels = if label.is_empty() { json!({}) } else { json!({"orlop.dev/mesh": label}) };
        let manifest = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": labels}, "spec": {},
        });
        fs::write(manifests.join(format!("{name}.json")), manifest.to_string()).unwrap();
        let (name, uid) = (format!("{name}-{}", node.node.name()), hash.to_string().repeat(32));
        fs::create_dir(logs.join(format!("{namespace}_{name}_{uid}"))).unwrap();
        node.sandbox(namespace, &name, &uid)
    };
    let free = start(&outside, "free", "", 'a');
    let left = start(&namespace, "left", "disabled", 'b');
    let first = start(&namespace, "first", "", 'c');
    let is_held = |pod: &Pod| wait_for(TIMEOUT, || Inside::of(pod).dial(echo.addr()) == HELD);
    assert!(is_held(&first), "an agent serves");
    agent.kill().unwrap();
    let joined = start(&outside, "joined", "enabled", 'd');
    let second = start(&namespace, "second", "", 'e');
    for pod in [&joined, &second, &first] {
        assert!(is_held(pod), "{}", pod.name());
    }
    for pod in [&free, &left] {
        assert_eq!(Inside::of(pod).dial(echo.addr()), Said::Ok, "{}", pod.name());
    }

    // The API server hears of it.
    node.mirror(&namespace, second.name(), &second.uid());
    node.report(&second);
    agent.start_again().unwrap();
    agent.wait_enrolled([&known, &second]).unwrap();
    assert!(wait_for(TIMEOUT, || Inside::of(&second).dial(echo.addr()) == Said::Ok));
    assert!(is_held(&first), "nobody knows what it is");

    // Another version of it.
    let program = PathBuf::from(&units.command()[0]);
    let new = program.with_extension("other");
    fs::copy(&program, &new).unwrap();
    fs::rename(&new, &program).unwrap();
    assert!(!gate.wait(TIMEOUT).unwrap().success(), "systemd would not start it again");
    let mut gate = units.start(&node);
    fs::remove_file(&program).unwrap();
    assert!(gate.wait(TIMEOUT).unwrap().success());
}

#[test]
fn the_gate_holds_on_while_the_agent_dies_as_soon_as_it_serves() {
    let kubernetes = Kubernetes::shared();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("gate-dies", &[("orlop.dev/mesh", "enabled")]);
    let node = Kubelet::start(&kubernetes, &testbed, "n1");
    let asks = Asks::new(&testbed, &node.node);
    let units = Units::new(&testbed);
    let echo = node.sandbox("elsewhere", "free", "f0000000-0000-0000-0000-000000000001");
    let echo = echo.serve_echo(80).unwrap();
    let old = node.run(&namespace, "old", &[]);
    let uid = old.uid();
    let mut agent = node.agent(&[
        "--boot-gate",
        "--kubelet-dir",
        asks.directory.to_str().unwrap(),
        "--boot-gate-unit",
        units.directory.to_str().unwrap(),
    ]);
    agent.wait_enrolled([&old]).unwrap();
    wait_kept(&node, &[&old]);
    says(&agent, true);
    agent.kill().unwrap();
    reboot(&node, &[old]);
    let mut gate = units.start(&node);
    agent.start_again().unwrap();
    agent.wait_ready().unwrap();
    agent.kill().unwrap();
    let old = node.sandbox(&namespace, "old", &uid);
    let mut inside = Inside::of(&old);
    assert!(wait_for(TIMEOUT, || inside.dial(echo.addr()) == HELD));
    // What is held stays so without it.
    gate.signal(Signal::SIGTERM).unwrap();
    assert!(gate.wait(TIMEOUT).unwrap().success());
    assert_eq!(inside.dial(echo.addr()), HELD);
}

#[test]
fn where_nothing_is_known_of_the_mesh_a_node_starts_as_without_it() {
    let kubernetes = Kubernetes::shared();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let node = Kubelet::start(&kubernetes, &testbed, "n1");
    let asks = Asks::new(&testbed, &node.node);
    let units = Units::new(&testbed);
    let kubelet = asks.directory.to_str().unwrap();
    let mut agent = node.agent(&[
        "--boot-gate",
        "--kubelet-dir",
        kubelet,
        "--boot-gate-unit",
        units.directory.to_str().unwrap(),
    ]);
    let words = units.command();
    wait_kept(&node, &[]);
    agent.kill().unwrap();
    fs::remove_dir_all(node.node.bpffs_dir()).unwrap();
    for kept in [true, false] {
        if !kept {
            fs::remove_file(node.node.run_dir().join("state/world")).unwrap();
        }
        units.start(&node).kill().unwrap();
        assert!(!node.node.bpffs_dir().exists(), "hooks are in force for nobody");
    }
    // What can't be read is told, and no reason to believe that there is nobody to hold.
    fs::write(node.node.run_dir().join("state/world"), "nonsense").unwrap();
    let output = node.node.command(&words[0]).unwrap().args(&words[1..]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("state/world"), "{said}");
}

/// Waits until the agent says whether its pods are held after a reboot.
#[track_caller]
fn says(agent: &Agent, gated: bool) {
    let gated = format!("\"gated\": {gated}");
    agent.wait_until(|dump| dump.contains(&gated)).unwrap();
}

/// Forgets what a machine forgets: the pods' processes, networks and cgroups, the eBPF programs, and what is in `/run`.
fn reboot(node: &Kubelet<'_>, pods: &[Pod]) {
    pods.iter().for_each(|pod| pod.delete().unwrap());
    fs::remove_dir_all(node.node.bpffs_dir()).unwrap();
    let _ = fs::remove_file(node.node.run_dir().join("gate"));
}
