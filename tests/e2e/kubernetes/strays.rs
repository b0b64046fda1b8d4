//! Pods that go, or leave the mesh, while no agent runs.

use std::fs;

use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::Api;
use kube::api::DeleteParams;
use orlop_tests::{Testbed, wait_for};
use serde_json::json;

use super::api::Kubernetes;
use super::kubelet::Kubelet;
use super::replica::LONG;
use crate::mesh::TIMEOUT;
use crate::pair::assert_kernel_refuses;

const ENABLED: (&str, &str) = ("orlop.dev/mesh", "enabled");

#[test]
fn pods_that_left_while_no_agent_ran_are_let_go_beside_one_that_waits() {
    are_let_go(false);
}

#[test]
fn pods_that_left_while_no_agent_ran_are_let_go_by_one_of_another_layout() {
    are_let_go(true);
}

fn are_let_go(by_another_layout: bool) {
    let kubernetes = Kubernetes::shared();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let [namespace, street] = [("strays", &[ENABLED][..]), ("street", &[])]
        .map(|(prefix, labels)| kubernetes.namespace(prefix, labels));
    let node = Kubelet::start(&kubernetes, &testbed, "n1");
    let outsider = node.run(&street, "server", &[]);
    let server = outsider.serve_echo(80).unwrap();
    let [left, gone, unknown] = ["left", "gone", "unknown"].map(|name| node.run(&namespace, name, &[]));
    let mut agent = node.agent(&[]);
    agent.wait_enrolled([&left, &gone, &unknown]).unwrap();
    let cookie = gone.netns_cookie().unwrap().to_string();
    agent.kill().unwrap();

    let mut pins = node.node.pins_dir().unwrap();
    if by_another_layout {
        let other = pins.with_file_name("v1000");
        fs::rename(&pins, &other).unwrap();
        pins = other;
    }
    let pin = pins.join("pods").join(cookie);
    assert!(pin.exists());
    node.delete(&gone);
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "left", "namespace": namespace, "labels": {"orlop.dev/mesh": "disabled"}},
    }));
    let pods = Api::<PodObject>::namespaced(kubernetes.client.clone(), &namespace);
    let forget = |name: &str| {
        kubernetes.wait(pods.delete(name, &DeleteParams::default().grace_period(0))).unwrap();
    };
    // Its processes stay.
    forget("unknown");
    node.bind(&namespace, "waiting", &[]);
    agent.restart().unwrap();
    agent.wait_until(|dump| dump.contains("nothing of it runs yet")).unwrap();
    let reaches = |pod: &orlop_tests::Pod| wait_for(LONG, || pod.connect(server.addr(), TIMEOUT).is_ok());
    assert!(reaches(&left), "still refused: {}", agent.log().unwrap());
    assert!(wait_for(LONG, || !pin.exists()), "{} is left", pin.display());
    // For all that the agent can tell it is the pod that waits.
    assert_kernel_refuses(&unknown, server.addr());
    assert!(pins.exists());

    forget("waiting");
    assert!(reaches(&unknown), "still refused: {}", agent.log().unwrap());
    assert!(!by_another_layout || wait_for(LONG, || !pins.exists()), "{} is left", pins.display());
}
