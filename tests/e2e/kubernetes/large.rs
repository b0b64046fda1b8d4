//! What an agent costs where there are many pods, of which few are its own: `ORLOP_PODS` says how many.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use orlop_tests::{Testbed, wait_for};
use serde_json::json;
use tokio::task::JoinSet;

use super::api::Kubernetes;
use super::kubelet::Kubelet;
use crate::pair::is_refusal;

const ENABLED: (&str, &str) = ("orlop.dev/mesh", "enabled");
/// On each of the other nodes.
const PODS_PER_NODE: usize = 50;
/// Requests to the API server at once.
const AT_ONCE: usize = 32;
/// How many pods change each second while the load is measured, and for how long.
const CHANGES: u32 = 10;
const MEASURED: Duration = Duration::from_secs(10);
const TRIES: usize = 100;
/// Of a label that the API has taken, 99 times of 100.
const EFFECT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);
const HBONE: u16 = 15008;

#[test]
fn an_agent_is_small_and_quick_where_there_are_many_pods() {
    let pods = std::env::var("ORLOP_PODS").ok().and_then(|pods| pods.parse().ok()).unwrap_or(200);
    let kubernetes = Kubernetes::own();
    let testbed = Testbed::new().unwrap();
    let node = Kubelet::start(&kubernetes, &testbed, "n1");
    let namespace = kubernetes.namespace("large", &[ENABLED]);
    let objects = Api::<PodObject>::namespaced(kubernetes.client.clone(), &namespace);
    for first in (0..pods).step_by(AT_ONCE) {
        let mut made = JoinSet::new();
        kubernetes.wait(async {
            for number in first..pods.min(first + AT_ONCE) {
                let objects = objects.clone();
                made.spawn(async move { run(&objects, number).await });
            }
            made.join_all().await
        });
    }
    let own = node.run(&namespace, "own", &[]);
    let outside = testbed.node("other").unwrap().pod("street", "outside", Default::default()).unwrap();
    let agent = node.agent(&["--log", "warn"]);
    agent.wait_enrolled([&own]).unwrap();

    let (from, start, changed) = (node.relay.carried(), Instant::now(), AtomicU64::new(0));
    let change = async {
        while start.elapsed() < MEASURED {
            let number = changed.fetch_add(1, Ordering::Relaxed) as usize;
            let status = json!({"status": {"message": format!("change {number}")}});
            let name = name(number * 7 % pods);
            objects.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1) / CHANGES).await;
        }
    };
    kubernetes.wait(change);
    let load = (node.relay.carried() - from) as f64 / start.elapsed().as_secs_f64() / 1e3;
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident: f64 = resident.trim_end_matches("kB").trim().parse().unwrap();

    let mut times: Vec<_> = (0..TRIES)
        .map(|index| {
            let wanted = index % 2 == 1;
            let value = if wanted { "enabled" } else { "disabled" };
            let label = json!({"metadata": {"labels": {"orlop.dev/mesh": value}}});
            kubernetes.wait(objects.patch("own", &PatchParams::default(), &Patch::Merge(label))).unwrap();
            let start = Instant::now();
            // Nobody else listens there. A packet that is lost says nothing.
            let is_enrolled = || match outside.connect(own.addr(HBONE), Duration::from_millis(50)) {
                Ok(_) => Some(true),
                Err(error) => is_refusal(&error).then_some(false),
            };
            assert!(wait_for(LONG, || is_enrolled() == Some(wanted)), "{}", agent.log().unwrap());
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    let (median, slow) = (times[TRIES / 2], times[TRIES * 99 / 100 - 1]);
    println!(
        "{pods} pods, {} of them changing: {:.0} MB resident, {load:.1} KB/s from the API server; label to effect \
         p50 {median:.0?}, p99 {slow:.0?}",
        changed.into_inner(),
        resident / 1e3,
    );
    assert!(slow < EFFECT, "{times:?}");
}

fn name(number: usize) -> String {
    format!("far-{number}")
}

/// Makes a pod of another node, which runs.
async fn run(objects: &Api<PodObject>, number: usize) {
    let name = name(number);
    let object = json!({
        "metadata": {"name": name, "labels": {"app": format!("app-{}", number % 100)}},
        "spec": {
            "nodeName": format!("far-{}", number / PODS_PER_NODE),
            "containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 8080}]}],
        },
    });
    let object: PodObject = serde_json::from_value(object).unwrap();
    objects.create(&PostParams::default(), &object).await.unwrap();
    let address = format!("10.{}.{}.{}", 200 + number / 65536, number / 256 % 256, number % 256);
    let status = json!({"status": {
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    objects.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}
