//! Certificates come from an authority in another process: Istio's certificate service.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use orlop_tests::{Agent, AgentOptions, Node, Pod, PodSpec, Process, Testbed, wait_for};
use serde_json::Value;

use crate::pair::{TIMEOUT, dial, ping, record};
use crate::upgrade::PATIENCE;

const PORT: u16 = 15012;

/// Two nodes, whose agents have no key of the root: each asks the service in its node's network namespace.
struct Remote {
    agents: [Agent; 2],
    services: [Process; 2],
    client: Pod,
    server: Pod,
    testbed: Testbed,
}

impl Remote {
    fn new() -> Self {
        let testbed = Testbed::new().unwrap();
        testbed.world().enrolled_namespace("shop").unwrap();
        let nodes = ["n1", "n2"].map(|name| testbed.node(name).unwrap());
        let client = nodes[0].pod("shop", "client", PodSpec::new().service_account("buyer")).unwrap();
        let server = nodes[1].pod("shop", "server", PodSpec::new().service_account("seller")).unwrap();
        let services = [0, 1].map(|n| service(&testbed, &nodes[n]));
        let root = testbed.dir().join("root.pem").to_string_lossy().into_owned();
        let token = testbed.dir().join("token");
        fs::write(&token, "a token").unwrap();
        let address = format!("https://localhost:{PORT}");
        let token = token.to_string_lossy().into_owned();
        let args =
            ["--log-format", "json", "--ca-address", &address, "--ca-root", &root, "--ca-token", &token];
        let options = AgentOptions { args: args.map(str::to_owned).into(), ..AgentOptions::default() };
        let agents = [0, 1].map(|n| nodes[n].agent(options.clone()).unwrap());
        agents[0].wait_enrolled([&client]).unwrap();
        agents[1].wait_enrolled([&server]).unwrap();
        Self { agents, services, client, server, testbed }
    }
}

fn service(testbed: &Testbed, node: &Node) -> Process {
    let me = std::env::current_exe().unwrap();
    // Tests are in target/PROFILE/deps, examples in target/PROFILE/examples.
    let program = me.ancestors().nth(2).unwrap().join("examples/istio-ca");
    let root: PathBuf = testbed.dir().join("root.pem");
    let mut command = node.command(&program.to_string_lossy()).unwrap();
    command.arg(testbed.ca_dir()).arg(PORT.to_string()).arg(&root).stdin(Stdio::null());
    let process = Process::spawn(&mut command).unwrap();
    let listens = || node.connect(([127, 0, 0, 1], PORT).into(), TIMEOUT).is_ok() && root.exists();
    assert!(wait_for(PATIENCE, listens), "the service does not start");
    process
}

fn state(agent: &Agent, account: &str) -> (String, String) {
    let dump: Value = serde_json::from_str(&agent.config_dump().unwrap()).unwrap();
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{account}");
    let certificates = dump["certificates"].as_array().unwrap();
    let one = certificates.iter().find(|one| one["identity"] == *identity);
    let text = |key: &str| one.and_then(|one| one[key].as_str()).unwrap_or_default().to_owned();
    (text("state"), text("last_error"))
}

#[test]
fn pods_that_have_just_come_wait_for_their_certificates() {
    let remote = Remote::new();
    let server = remote.server.serve_echo(80).unwrap();
    // Whether or not the first answers were there when the agents said that they had enrolled them.
    ping(&dial(&remote.client, server.addr()).unwrap(), "hello\n").unwrap();
    let record =
        record(&remote.agents[1], |record| record["result"] == "ok" || record["source_identity"].is_string());
    assert!(record.to_string().contains("spiffe://cluster.local/ns/shop/sa/buyer"), "{record}");
    assert!(!remote.testbed.dir().join("root.pem").to_string_lossy().is_empty());
}

#[test]
fn without_its_authority_what_is_in_hand_goes_on_and_what_is_not_is_refused_with_the_reason() {
    let mut remote = Remote::new();
    let server = remote.server.serve_echo(80).unwrap();
    ping(&dial(&remote.client, server.addr()).unwrap(), "hello\n").unwrap();

    remote.services.iter_mut().for_each(|service| service.kill().unwrap());
    ping(&dial(&remote.client, server.addr6()).unwrap(), "still here?\n").unwrap();
    let node = remote.client.node().clone();
    let late = node.pod("shop", "late", PodSpec::new().service_account("late")).unwrap();
    remote.agents[0].wait_enrolled([&remote.client, &late]).unwrap();
    assert!(dial(&late, server.addr()).is_err());
    let refused = record(&remote.agents[0], |record| record["reason"] == "certificate_unavailable");
    assert_eq!(refused["result"], "refused", "{refused}");
    let (held, error) = state(&remote.agents[0], "late");
    assert_eq!(held, "pending");
    assert!(error.contains("no answer from the certificate authority"), "{error}");

    remote.services[0] = service(&remote.testbed, &node);
    assert!(wait_for(4 * TIMEOUT, || state(&remote.agents[0], "late").0 == "valid"), "no certificate");
    ping(&dial(&late, server.addr()).unwrap(), "here at last\n").unwrap();
}

#[test]
fn an_agent_that_takes_over_has_its_certificates_first() {
    let mut remote = Remote::new();
    let server = remote.server.serve_echo(80).unwrap();
    let open = dial(&remote.client, server.addr()).unwrap();
    ping(&open, "before\n").unwrap();
    let _old = remote.agents[0].upgrade().unwrap();
    ping(&dial(&remote.client, server.addr()).unwrap(), "after\n").unwrap();
    ping(&open, "still open\n").unwrap();
    assert_eq!(state(&remote.agents[0], "buyer").0, "valid");
}
