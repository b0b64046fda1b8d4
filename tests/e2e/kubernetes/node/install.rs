use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use orlop_tests::wait_for;
use serde_json::{Value, json};

use super::cli::people_ask_the_agents;
use super::cluster::{Cluster, LONG};
use crate::kubernetes::install::SYSTEM;

/// From `helm install` to the first request by mutual TLS.
const MOST: Duration = Duration::from_secs(60);

fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

/// Whether a flow is of a connection of the client to the server's HTTP that went through a tunnel.
fn is_mutual(flow: &Value) -> bool {
    flow["src_identity"] == identity("client")
        && flow["dst_identity"] == identity("server")
        && flow["tunnel"].as_str().is_some_and(|tunnel| tunnel.ends_with(":15008"))
}

#[test]
fn the_readme_s_three_commands_make_running_pods_talk_by_mutual_tls_and_helm_takes_it_back() {
    let cluster = Cluster::start();
    cluster.shop("shop", &json!({}));
    let server = cluster.address("shop", "server");
    assert!(cluster.gets("shop", "client", &server), "{}", cluster.state());

    let start = Instant::now();
    cluster.install(&[]);
    cluster.label("shop");
    let mutual = || {
        cluster.gets("shop", "client", &server)
            && cluster.flows(1).iter().any(|flow| flow["direction"] == "inbound" && is_mutual(flow))
    };
    assert!(wait_for(LONG, mutual), "{}", cluster.state());
    // Also where the output of tests that pass is kept back.
    let took = start.elapsed();
    writeln!(io::stderr(), "from `helm install` to the first request by mutual TLS: {took:.1?}").unwrap();
    assert!(took < MOST, "{took:.1?}: {}", cluster.state());
    let told = || cluster.flows(0).iter().any(|flow| flow["direction"] == "outbound" && is_mutual(flow));
    assert!(wait_for(LONG, told), "{}", cluster.state());
    for role in ["daemonset/orlop-node", "deployment/orlop-controller"] {
        cluster.wait_rollout(role);
    }

    policy_holds(&cluster, &server);
    kubelet_s_probes_pass_under_strict(&cluster);
    people_ask_the_agents(&cluster);
    no_agent_s_end_costs_a_connection(&cluster, &server);
    nothing_stays(&cluster, &server);
}

fn policy_holds(cluster: &Cluster, server: &str) {
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "lock", "namespace": "shop"},
        "spec": {"action": "DENY", "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/client"]}}]}]},
    });
    cluster.kubernetes.apply(&policy);
    cluster.wait_gets("shop", "client", server, false);
    cluster.kubectl(&["delete", "authorizationpolicy", "lock", "--namespace", "shop"]);
    cluster.wait_gets("shop", "client", server, true);
}

fn kubelet_s_probes_pass_under_strict(cluster: &Cluster) {
    cluster.kubernetes.apply(&json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "strict", "namespace": "shop"}, "spec": {"mtls": {"mode": "STRICT"}},
    }));
    cluster.kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "outside"},
    }));
    cluster.wait("serviceaccount/default", &["--for=create", "--namespace=outside"]);
    cluster.pod("outside", "stranger", &json!({"serviceAccountName": "default"}), &json!({}));
    cluster.wait("pod/stranger", &["--for=condition=Ready", "--namespace=outside"]);
    cluster.server("shop", "probed");
    cluster.wait("pod/probed", &["--for=condition=Ready", "--namespace=shop"]);
    let probed = cluster.address("shop", "probed");
    // It is enrolled, and refuses whoever shows no certificate, and is ready all the same.
    cluster.wait_gets("outside", "stranger", &probed, false);
    cluster.wait_gets("shop", "client", &probed, true);
    let ready = ["get", "pod", "probed", "--namespace=shop"];
    let ready =
        cluster.kubectl(&[&ready[..], &["--output=jsonpath={.status.containerStatuses[0]}"]].concat());
    let ready: Value = serde_json::from_str(&ready).unwrap();
    assert!(ready["ready"] == true && ready["restartCount"] == 0, "{ready}");
}

fn no_agent_s_end_costs_a_connection(cluster: &Cluster, server: &str) {
    // It makes one connection after the other.
    let busybox = "/bin/busybox";
    let talk = format!(
        "(while [ ! -e /stop ]; do \
             [ \"$(echo word | {busybox} nc {server} 7)\" = word ] && echo served || echo lost; \
         done) >/said 2>&1 </dev/null &"
    );
    cluster.shell("shop", "client", &talk);
    let said = |word: &str| {
        let count = cluster.shell("shop", "client", &format!("{busybox} grep -c {word} /said"));
        count.lines().next().and_then(|line| line.trim().parse::<u32>().ok()).unwrap_or(0)
    };
    let goes_on = || {
        let before = said("served");
        assert!(wait_for(LONG, || said("served") > before), "{}", cluster.state());
    };
    goes_on();
    cluster.kubectl(&["rollout", "restart", "daemonset/orlop-node", "--namespace", SYSTEM]);
    cluster.wait_rollout("daemonset/orlop-node");
    goes_on();
    assert_eq!(said("lost"), 0, "{}", cluster.state());

    // One that dies takes with it what it carries just then; who dials meanwhile waits.
    let restarts = || {
        let count =
            "--output=jsonpath={.items[*].status.containerStatuses[?(@.name==\"orlop\")].restartCount}";
        let agents = "--selector=app.kubernetes.io/name=orlop-node";
        let on = format!("--field-selector=spec.nodeName={}", cluster.nodes[0].node().name());
        cluster.kubectl(&["get", "pods", agents, &on, count, "--namespace", SYSTEM])
    };
    // The one before is gone somewhat later, once it has drained.
    assert!(wait_for(LONG, || restarts() == "0"), "{}", cluster.state());
    kill(cluster.agent(0), Signal::SIGKILL).unwrap();
    assert!(wait_for(LONG, || restarts() == "1"), "{}", cluster.state());
    goes_on();
    cluster.shell("shop", "client", ">/stop");
    assert!(said("lost") <= 1, "{} lost: {}", said("lost"), cluster.state());
}

fn nothing_stays(cluster: &Cluster, server: &str) {
    cluster.kubectl(&["delete", "peerauthentication", "strict", "--namespace=shop"]);
    cluster.kubectl(&["label", "namespace", "shop", "orlop.dev/mesh-"]);
    // Nobody refuses who shows no certificate any more.
    cluster.wait_gets("outside", "stranger", server, true);
    cluster.helm(&["uninstall", "orlop", "--wait"]);
    // An agent that drains is gone somewhat later.
    let pods = || cluster.kubectl(&["get", "pods", "--output=name", "--namespace", SYSTEM]);
    assert!(wait_for(LONG, || pods().is_empty()), "{}", cluster.state());
    assert!(cluster.gets("shop", "client", server), "{}", cluster.state());
    // Also of a pod that no agent has ever seen.
    cluster.pod("shop", "late", &json!({"serviceAccountName": "default"}), &json!({}));
    cluster.wait("pod/late", &["--for=condition=Ready", "--namespace=shop"]);
    assert!(cluster.gets("shop", "late", server), "{}", cluster.state());

    let kinds = "daemonsets,deployments,services,pods,serviceaccounts,secrets,configmaps,leases,roles,rolebindings,\
                 clusterroles,clusterrolebindings,networkpolicies,poddisruptionbudgets,csidrivers,\
                 mutatingadmissionpolicies";
    let left = cluster.kubectl(&["get", kinds, "--all-namespaces", "--output=name"]);
    let mut left: Vec<_> =
        left.lines().filter(|line| line.contains("orlop") || line.contains("istio")).collect();
    left.sort_unstable();
    left.dedup();
    // As docs/kubernetes.md says.
    let stays = [
        "configmap/istio-ca-root-cert",
        "configmap/orlop-ca-root",
        "lease.coordination.k8s.io/orlop-controller",
    ];
    assert_eq!(left, [&stays[..], &["secret/orlop-ca"]].concat());
}
