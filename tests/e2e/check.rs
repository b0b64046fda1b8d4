//! `orlop check`, and `orlop node` where it can't run.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};

use orlop_tests::{AgentOptions, PodSpec, Process, Testbed, binary, wait_for};

use crate::kubernetes::install::manifests;
use crate::pair::TIMEOUT;

#[test]
fn this_kernel_has_everything_and_nothing_stays_behind() {
    let testbed = Testbed::new().unwrap();
    let bpffs = format!("/sys/fs/bpf/{}", testbed.id());
    let (code, text) = run(&["check", "--bpffs", &bpffs]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("ok       program orlop_inbound"), "{text}");
    assert!(!Path::new(&bpffs).exists(), "a check pins nothing");
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
    let (code, text) = output(with_capabilities(&[], &["check"]));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("CAP_SYS_ADMIN: without it no program can be loaded"), "{text}");
    assert!(text.contains("run this as root"), "{text}");
    assert!(!text.contains("bpf(2)") && !text.contains("MISSING  program type"), "{text}");
}

#[test]
fn what_the_daemon_set_may_do_is_enough_and_each_missing_capability_is_named() {
    let given = capabilities_of_the_daemon_set();
    // Without it a limit may stay as it is.
    let needed: Vec<_> = given.iter().map(String::as_str).filter(|name| *name != "SYS_RESOURCE").collect();
    assert_eq!(needed.len() + 1, given.len());
    let (code, text) = output(with_capabilities(&needed, &["check", "--bpffs", "/sys/fs/bpf"]));
    assert_eq!(code, Some(0), "{text}");

    let testbed = Testbed::new().unwrap();
    let (world, ca) = (testbed.world().dir().display().to_string(), testbed.ca_dir().display().to_string());
    let node = ["node", "--world", &world, "--node", "n1", "--ca-dir", &ca, "--bpffs", "/sys/fs/bpf/none"];
    for missing in &needed {
        let others: Vec<_> = needed.iter().copied().filter(|name| name != missing).collect();
        let (code, text) = output(with_capabilities(&others, &["check", "--bpffs", "/sys/fs/bpf"]));
        let named = format!("MISSING  capability CAP_{missing}");
        assert_eq!((code, text.matches("MISSING").count()), (Some(2), 1), "{text}");
        assert!(text.contains(&named), "{text}");
        let refused = with_capabilities(&others, &node);
        let error = String::from_utf8(refused.stderr).unwrap();
        assert!(
            !refused.status.success() && error.contains(&format!("CAP_{missing}: without it")),
            "{error}"
        );
    }
    let gated = with_capabilities(&needed, &[&node[..], &["--boot-gate"]].concat());
    let error = String::from_utf8(gated.stderr).unwrap();
    assert!(!gated.status.success() && error.contains("CAP_DAC_READ_SEARCH: without it"), "{error}");
}

/// The agent's own word is not all that tells what it is for.
#[test]
fn what_each_capability_of_the_daemon_set_is_for_cannot_be_done_without_it() {
    let needed = capabilities_of_the_daemon_set();
    let other =
        Process::spawn(Command::new("setpriv").args(["--reuid=65534", "--clear-groups", "sleep", "600"]));
    let other = other.unwrap();
    let netns = format!("/proc/{}/ns/net", other.pid());
    let is_other =
        || fs::read_to_string(format!("/proc/{}/comm", other.pid())).is_ok_and(|name| name == "sleep\n");
    assert!(wait_for(TIMEOUT, is_other));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let port = client.local_addr().unwrap().port();
    let close = format!(
        "ss --kill --tcp state established sport = :{port} >/dev/null; ! ss -Htn sport = :{port} | grep -q ."
    );
    let operations = [
        ("SYS_ADMIN", "nsenter --net=/proc/self/ns/net true".to_owned()),
        ("SYS_PTRACE", format!("readlink {netns}")),
        ("SYS_RESOURCE", "ulimit -n 100 && ulimit -Hn 200".to_owned()),
        ("NET_ADMIN", close),
    ];
    let mut named: Vec<_> = operations.iter().map(|(capability, _)| (*capability).to_owned()).collect();
    named.sort();
    let mut sorted = needed.clone();
    sorted.sort();
    assert_eq!(named, sorted);
    for (capability, operation) in operations {
        let rest: Vec<_> = needed.iter().map(|name| &**name).filter(|name| *name != capability).collect();
        let shell = ["sh", "-c", &operation];
        let without = run_with_capabilities(&rest, &shell);
        assert!(!without.status.success(), "{operation} needs no CAP_{capability}");
        // Which some machines keep from root, too.
        if capability == "SYS_RESOURCE"
            && !Command::new("sh").args(["-c", &operation]).status().unwrap().success()
        {
            continue;
        }
        let with = run_with_capabilities(&[&rest[..], &[capability]].concat(), &shell);
        assert!(with.status.success(), "{operation}: {}", String::from_utf8_lossy(&with.stderr));
    }
    drop(client);
}

/// Those that the plain manifests give the agents, without `CAP_`.
fn capabilities_of_the_daemon_set() -> Vec<String> {
    let objects = manifests();
    let agents = objects.iter().find(|object| object["kind"] == "DaemonSet").unwrap();
    let context = &agents["spec"]["template"]["spec"]["containers"][0]["securityContext"];
    let names = context["capabilities"]["add"].as_array().unwrap().iter();
    names.map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// Runs `orlop` as root with these capabilities and no others.
fn with_capabilities(capabilities: &[&str], args: &[&str]) -> Output {
    run_with_capabilities(capabilities, &[&[binary().unwrap().to_str().unwrap()], args].concat())
}

/// Runs a command as root with these capabilities and no others.
fn run_with_capabilities(capabilities: &[&str], command_line: &[&str]) -> Output {
    let set = capabilities.iter().map(|name| format!(",+{}", name.to_lowercase()));
    let set = format!("--bounding-set=-all{}", set.collect::<String>());
    let mut command = Command::new("setpriv");
    command.args([&set, "--inh-caps=-all"]).args(command_line);
    command.output().unwrap()
}

fn run(args: &[&str]) -> (Option<i32>, String) {
    output(Command::new(binary().unwrap()).args(args).output().unwrap())
}

fn output(output: Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}
