//! How long the waypoint tries to connect to an endpoint that answers nothing.

use std::net::{TcpListener, TcpStream};

use nix::sys::socket::{Backlog, listen};
use orlop_tests::{Pod, PodSpec};

use super::destinations::treat;
use super::routes::Versions;
use super::web;
use crate::mesh::{NAMESPACE, TIMEOUT};

/// A server with a connection that it does not take, so that its kernel answers to no other.
fn full(pod: &Pod, client: &Pod) -> (TcpListener, TcpStream) {
    let listener = pod.listen(false, 80).unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let first = client.connect(pod.addr(80), TIMEOUT).unwrap();
    (listener, first)
}

#[test]
fn a_connect_timeout_counts_as_the_settings_of_the_port_say() {
    const SHORT: &str = "connectionPool: {tcp: {connectTimeout: 200ms}}";
    let versions = Versions::new();
    let stage = &versions.stage;
    let outside = PodSpec::new().service_account("outside").opt_out();
    let outside = stage.mesh.nodes[1].pod(NAMESPACE, "outside", outside).unwrap();
    let _full = full(&outside, &stage.gate);
    stage.change(|| stage.mesh.testbed.world().service(&web(&stage.vip).endpoints([&outside])).unwrap());
    // Without one the waypoint tries for longer than that.
    versions.route("- timeout: 2s\n  retries: {attempts: 0}\n  route: [{destination: {host: web}}]");
    let at = |port: u16, of: &str| format!("portLevelSettings: [{{port: {{number: {port}}}, {of}}}]");
    let long = SHORT.replace("200ms", "60s");
    for (number, (policy, status)) in [
        (String::new(), 504),
        (SHORT.to_owned(), 503),
        (at(81, SHORT), 504),
        (format!("{long}, {}", at(80, SHORT)), 503),
        // A port's settings come instead of all others.
        (format!("{SHORT}, {}", at(80, "loadBalancer: {simple: RANDOM}")), 504),
    ]
    .into_iter()
    .enumerate()
    {
        treat(&versions, &policy);
        let path = format!("/{number}");
        assert_eq!(stage.get(&path).status, status, "{policy}");
        let (reason, flags) =
            if status == 503 { ("connect_timeout", "UF") } else { ("request_timeout", "UT") };
        let record = stage.record(|record| record["path"] == *path);
        assert_eq!((&record["reason"], &record["flags"]), (&reason.into(), &flags.into()), "{policy}");
    }
}
