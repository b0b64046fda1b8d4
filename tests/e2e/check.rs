//! `orlop check`, and `orlop node` where it can't run.

use std::process::{Command, Output};

use orlop_tests::{AgentOptions, PodSpec, Testbed, binary};

#[test]
fn this_kernel_has_everything_and_nothing_stays_behind() {
    let testbed = Testbed::new().unwrap();
    let bpffs = format!("/sys/fs/bpf/{}", testbed.id());
    let (code, text) = run(&["check", "--bpffs", &bpffs]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("ok       program orlop_inbound"), "{text}");
    assert!(!std::path::Path::new(&bpffs).exists(), "a check pins nothing");
}

#[test]
fn that_pods_on_the_nodes_network_pass_for_the_node_is_said() {
    let testbed = Testbed::new().unwrap();
    let said = "pods on the node's network pass for the node";
    let node = testbed.node("n1").unwrap();
    // A hierarchy without one for all pods.
    let pod = node.pod("shop", "a", PodSpec::new()).unwrap();
    let cgroup = pod.cgroup().to_str().unwrap();
    let check = ["check", "--bpffs", "/sys/fs/bpf", "--cgroup", cgroup];
    let (code, text) = run(&check);
    assert!(code == Some(0) && text.contains(said), "{text}");
    let (code, text) = run(&[&check[..], &["--pods-cgroup", cgroup]].concat());
    assert!(code == Some(0) && !text.contains(said), "{text}");

    let args = ["--cgroup", cgroup].map(str::to_owned).into();
    let agent = node.agent(AgentOptions { args, ..AgentOptions::default() }).unwrap();
    assert!(agent.log().unwrap().contains(said));
}

#[test]
fn node_says_what_check_says() {
    let testbed = Testbed::new().unwrap();
    let dir = testbed.dir().join("no-bpffs").display().to_string();
    let (code, checked) = run(&["check", "--bpffs", &dir]);
    assert_eq!(code, Some(2), "{checked}");
    let (_, wanted) = checked.split_once("orlop node can't run here").unwrap();
    assert!(wanted.contains("not on a BPF file system; mount one"), "{checked}");

    let (world, ca) = (testbed.world().dir().display().to_string(), testbed.ca_dir().display().to_string());
    let node = ["node", "--world", &world, "--node", "n1", "--ca-dir", &ca, "--bpffs", &dir];
    let output = Command::new(binary().unwrap()).args(node).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains(wanted.trim_end()), "{error}");
}

/// Root without the rights to load programs, as in a container.
#[test]
fn without_the_rights_nothing_else_is_said_to_be_missing() {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", binary().unwrap().to_str().unwrap(), "check"]);
    let (code, text) = output(command.output().unwrap());
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("bpf(2): Operation not permitted (os error 1): run this as root"), "{text}");
    assert!(!text.contains("MISSING  program type"), "{text}");
}

fn run(args: &[&str]) -> (Option<i32>, String) {
    output(Command::new(binary().unwrap()).args(args).output().unwrap())
}

fn output(output: Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}
