use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use orlop_tests::{CgroupDriver, ContainerRuntime, PodCgroups, Testbed};
use serde_json::json;

use super::api::Kubernetes;
use super::kubelet::Kubelet;
use crate::mesh::{TIMEOUT, record};

const ENABLED: (&str, &str) = ("orlop.dev/mesh", "enabled");

#[test]
fn pods_of_a_labelled_namespace_talk_with_mutual_tls() {
    let kubernetes = Kubernetes::shared();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("shop", &[ENABLED]);
    let nodes = ["n1", "n2"].map(|name| Kubelet::start(&kubernetes, &testbed, name));
    let client = nodes[0].run(&namespace, "client", &[]);
    let agents = nodes.each_ref().map(|node| node.agent(&[]));
    agents[0].wait_enrolled([&client]).unwrap();
    // After its agent.
    let server = nodes[1].run(&namespace, "server", &[]);
    agents[1].wait_enrolled([&server]).unwrap();
    agents[0].wait_until(|dump| dump.contains(&server.ipv4().to_string())).unwrap();

    let _http = server.serve_http(8080).unwrap();
    let answer = client.http_get(server.addr(8080), "/", TIMEOUT).unwrap();
    assert_eq!(answer.status, 200);
    let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/default");
    let name = format!("{namespace}/client");
    let found = record(&agents[1], &[("src_workload", &name), ("result", "ok")]);
    assert_eq!((found["src_identity"].as_str(), found["tunnel"].is_string()), (Some(&*identity), true));
}

#[test]
fn labels_take_effect_live() {
    let kubernetes = Kubernetes::shared();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("live", &[]);
    let node = Kubelet::start(&kubernetes, &testbed, "n1");
    let pod = node.run(&namespace, "web", &[]);
    let other = node.run(&namespace, "other", &[("orlop.dev/mesh", "disabled")]);
    let agent = node.agent(&[]);
    let label = |value: &str| {
        kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {"orlop.dev/mesh": value}},
        }));
    };
    agent.wait_enrolled([]).unwrap();
    label("enabled");
    agent.wait_enrolled([&pod]).unwrap();
    label("disabled");
    agent.wait_enrolled([]).unwrap();
    label("enabled");
    agent.wait_enrolled([&pod]).unwrap();
    node.delete(&pod);
    agent.wait_enrolled([]).unwrap();
    drop(other);
}

#[test]
fn a_pod_is_found_whatever_made_its_cgroup() {
    let kubernetes = Kubernetes::shared();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("cgroups", &[ENABLED]);
    let (drivers, runtimes) = (
        [CgroupDriver::Systemd, CgroupDriver::Cgroupfs],
        [ContainerRuntime::Containerd, ContainerRuntime::Crio],
    );
    for (number, driver) in drivers.into_iter().enumerate() {
        let mut node = Kubelet::start(&kubernetes, &testbed, &format!("n{number}"));
        node.cgroups.driver = driver;
        let agent = node.agent(&[]);
        let mut pods = Vec::new();
        for runtime in runtimes {
            for quality in [None, Some("burstable"), Some("besteffort")] {
                node.cgroups = PodCgroups { driver, runtime, quality };
                pods.push(node.run(&namespace, &format!("p{number}-{}", pods.len()), &[]));
            }
        }
        agent.wait_enrolled(&pods).unwrap();
        let dump: serde_json::Value = serde_json::from_str(&agent.config_dump().unwrap()).unwrap();
        for pod in &pods {
            let name = format!("{namespace}/{}", pod.name());
            let cookie = &dump["enrolled"][&name]["netns_cookie"];
            assert_eq!(cookie.as_u64(), Some(pod.netns_cookie().unwrap()), "{name}");
        }
    }
}

#[test]
fn a_pod_that_starts_late_is_enrolled_when_the_kernel_tells_of_it() {
    let kubernetes = Kubernetes::shared();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("late", &[ENABLED]);
    let mut node = Kubelet::start(&kubernetes, &testbed, "n1");
    let agent = node.agent(&[]);
    let uid = node.bind(&namespace, "web", &[]);
    agent.wait_until(|dump| dump.contains("nothing of it runs yet")).unwrap();
    // From here on only the kernel can tell.
    node.relay.cut();
    let pod = node.sandbox(&namespace, "web", &uid);
    agent.wait_enrolled([&pod]).unwrap();
}

#[test]
fn a_pod_whose_sandbox_is_made_anew_is_enrolled_anew() {
    let kubernetes = Kubernetes::shared();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("anew", &[ENABLED]);
    let node = Kubelet::start(&kubernetes, &testbed, "n1");
    let agent = node.agent(&[]);
    let pod = node.run(&namespace, "web", &[]);
    agent.wait_enrolled([&pod]).unwrap();
    let before = pod.netns_cookie().unwrap();
    let pod = pod.restart_as_kubelet(node.cgroups).unwrap();
    node.report(&pod);
    let after = pod.netns_cookie().unwrap();
    assert_ne!(before, after);
    agent.wait_until(|dump| dump.contains(&format!("\"netns_cookie\": {after}"))).unwrap();
}

#[test]
fn what_is_in_force_stays_while_the_api_server_is_away() {
    let kubernetes = Kubernetes::shared();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("away", &[ENABLED]);
    let mut nodes = ["n1", "n2"].map(|name| Kubelet::start(&kubernetes, &testbed, name));
    let pods = nodes.each_ref().map(|node| node.run(&namespace, node.node.name(), &[]));
    let agents = nodes.each_ref().map(|node| node.agent(&[]));
    for (agent, pod) in agents.iter().zip(&pods) {
        agent.wait_enrolled([pod]).unwrap();
        agent.wait_until(|dump| pods.iter().all(|pod| dump.contains(&pod.ipv4().to_string()))).unwrap();
    }
    let _http = pods[1].serve_http(8080).unwrap();
    let get = || pods[0].http_get(pods[1].addr(8080), "/", TIMEOUT).unwrap().status;
    assert_eq!(get(), 200);
    nodes.iter_mut().for_each(|node| node.relay.cut());
    for agent in &agents {
        agent.wait_log(|log| log.contains("the Kubernetes API can't be asked"), TIMEOUT).unwrap();
        agent.wait_enrolled(pods.iter().filter(|pod| pod.node().name() == agent.node().name())).unwrap();
    }
    assert_eq!(get(), 200);
    // It comes back, and what happened meanwhile is seen.
    let late = nodes[0].run(&namespace, "late", &[]);
    nodes[0].relay.mend().unwrap();
    agents[0].wait_enrolled([&pods[0], &late]).unwrap();
}

#[test]
fn a_static_pod_is_found_by_the_uid_that_its_node_knows_and_by_no_other_object() {
    const HASH: &str = "0f3a9c1e5b7d2468ace013579bdf8642";
    let kubernetes = Kubernetes::shared();
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespaces = ["static", "fake"].map(|prefix| kubernetes.namespace(prefix, &[ENABLED]));
    let node = Kubelet::start(&kubernetes, &testbed, "n1");
    let agent = node.agent(&[]);
    let pods = |namespace: &str| Api::<Pod>::namespaced(kubernetes.client.clone(), namespace);
    let mirror = |namespace: &str| node.mirror(namespace, "web-n1", HASH);
    mirror(&namespaces[0]);
    let pod = node.sandbox(&namespaces[0], "web-n1", HASH);
    node.report(&pod);
    agent.wait_enrolled([&pod]).unwrap();

    // Whoever may make pods may make this one, but not write its status.
    mirror(&namespaces[1]);
    let status =
        json!({"status": {"phase": "Running", "podIPs": [{"ip": "192.0.2.9"}], "podIP": "192.0.2.9"}});
    let status = Patch::Merge(status);
    let told = pods(&namespaces[1]);
    kubernetes.wait(told.patch_status("web-n1", &PatchParams::default(), &status)).unwrap();
    agent.wait_until(|dump| dump.contains("claims to be the same static pod")).unwrap();
    let dump: serde_json::Value = serde_json::from_str(&agent.config_dump().unwrap()).unwrap();
    let [own, fake] = namespaces.map(|namespace| dump["enrolled"][format!("{namespace}/web-n1")].clone());
    assert_eq!(own["netns_cookie"].as_u64(), Some(pod.netns_cookie().unwrap()));
    assert!(fake.is_null(), "{fake}");
}
