//! Waypoints that are gone without a word: nobody resets what is open to them, and nothing answers.

use std::thread;

use nix::sys::signal::Signal;
use orlop_tests::traffic::request;
use orlop_tests::{Pod, PodSpec, ServiceSpec, TargetPort, Waypoint};

use super::{Stage, settle_with};
use crate::hbone::HBONE_PORT;
use crate::mesh::{NAMESPACE, TIMEOUT, await_value};

/// Each meets one waypoint or the other.
const CONNECTIONS: usize = 16;

#[test]
fn a_waypoint_that_hangs_costs_no_connection() {
    goes_without_a_word(|waypoint, _| waypoint.process().signal(Signal::SIGSTOP).unwrap());
}

#[test]
fn a_waypoint_whose_node_is_gone_costs_no_connection() {
    goes_without_a_word(|_, pod| {
        let down = pod.command("ip").unwrap().args(["link", "set", "eth0", "down"]).status().unwrap();
        assert!(down.success());
    });
}

fn goes_without_a_word(go: impl FnOnce(&Waypoint, &Pod)) {
    let stage = Stage::new();
    let Stage { waypoint, gate, gate_vip, mesh, .. } = &stage;
    let _server = mesh.server.serve_http(80).unwrap();
    let spec = PodSpec::new().service_account("gate").opt_out();
    let other_pod = mesh.nodes[1].pod(NAMESPACE, "gate-2", spec).unwrap();
    let other = Waypoint::named(&other_pod, "gate", &[]).unwrap();
    let gates = ServiceSpec::new(NAMESPACE, "gate", HBONE_PORT, TargetPort::Number(HBONE_PORT));
    mesh.testbed.world().service(&gates.cluster_ips(gate_vip.clone()).endpoints([gate, &other_pod])).unwrap();
    settle_with(mesh, [waypoint, &other]);
    let counted = |waypoint: &Waypoint| waypoint.metric("istio_requests_total", &[]).unwrap();
    let ask = || {
        let mut stream = stage.connect();
        // How long it takes to notice is for other tests.
        stream.get_ref().set_read_timeout(Some(3 * TIMEOUT)).unwrap();
        let answer = request(&mut stream, "GET / HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    // Tunnels to both are open, on each worker that carries any. A request is counted after its answer has gone.
    for asked in 1.. {
        ask();
        await_value(f64::from(asked), || counted(waypoint) + counted(&other));
        if counted(waypoint) >= 8.0 && counted(&other) >= 8.0 {
            break;
        }
    }
    let before = counted(&other);
    go(waypoint, gate);
    thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(ask);
        }
    });
    await_value(before + CONNECTIONS as f64, || counted(&other));
}
