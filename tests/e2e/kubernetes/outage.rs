//! The API server is down for a while, and agents start anew meanwhile. The world is theirs from disk, and certificates
//! are from a controller that goes by what it knew.

use std::fs;
use std::time::{Duration, Instant};

use kube::Api;
use kube::api::DeleteParams;
use orlop_tests::{Pod, Testbed, wait_for};
use serde_json::json;

use super::api::Kubernetes;
use super::controller::{agent, ask, certificate};
use super::install::{AUDIENCE, NODE_ACCOUNT, SYSTEM, roots};
use super::kubelet::Kubelet;
use super::replica::{LONG, Replica};
use crate::mesh::TIMEOUT;

const ENABLED: (&str, &str) = ("orlop.dev/mesh", "enabled");
/// How often each client dials after an agent has started anew.
const DIALS: usize = 25;

/// `ORLOP_OUTAGE_MINUTES`, or a moment.
fn outage() -> Duration {
    let minutes = std::env::var("ORLOP_OUTAGE_MINUTES").ok().and_then(|minutes| minutes.parse::<f32>().ok());
    Duration::from_secs_f32(minutes.map_or(20.0, |minutes| minutes * 60.0))
}

#[test]
fn agents_that_start_while_the_api_server_is_down_lose_no_connection_that_policy_allows() {
    let kubernetes = Kubernetes::own();
    kubernetes.define_istio();
    let testbed = Testbed::new().unwrap();
    let nodes = ["n1", "n2"].map(|name| Kubelet::start(&kubernetes, &testbed, name));
    let controller = Replica::start(&kubernetes, "signs", &[]);
    controller.wait_ready();
    let _ways = nodes.each_ref().map(|node| node.way_to(controller.listen));
    let [buys, sells] = ["buys", "sells"].map(|prefix| kubernetes.namespace(prefix, &[ENABLED]));
    kubernetes.apply(&json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "buyers", "namespace": sells},
        "spec": {"rules": [{"from": [{"source": {"namespaces": [buys]}}]}]},
    }));
    let client = nodes[0].run(&buys, "client", &[]);
    let stranger = nodes[0].run(&sells, "stranger", &[]);
    let server = nodes[1].run(&sells, "server", &[]);
    let mut agents = nodes.each_ref().map(agent);
    agents[0].wait_enrolled([&client, &stranger]).unwrap();
    agents[1].wait_enrolled([&server]).unwrap();
    let _http = server.serve_http(8080).unwrap();
    let get = |pod: &Pod| pod.http_get(server.addr(8080), "/", TIMEOUT).map(|answer| answer.status).ok();
    assert!(wait_for(LONG, || get(&client) == Some(200)), "{}", agents[0].log().unwrap());
    assert!(wait_for(LONG, || get(&stranger).is_none()), "{}", agents[1].log().unwrap());
    for node in &nodes {
        let kept = || {
            let kept = fs::read_to_string(node.node.run_dir().join("state/world")).unwrap_or_default();
            let pods = [&client, &stranger, &server].map(|pod| format!("\"{}\"", pod.ipv4()));
            pods.iter().all(|address| kept.contains(address)) && kept.contains("buyers")
        };
        assert!(wait_for(LONG, kept), "the world is not on disk");
    }
    // Of a pod that is gone by then, and others that nobody should take.
    let gone = nodes[0].bind(&buys, "gone", &[]);
    let lasting = |seconds| kubernetes.lasting_token(&buys, "default", "client", AUDIENCE, seconds);
    let a_day = lasting(86_400);
    let tokens = [
        (kubernetes.bound_token(&buys, "default", "gone", AUDIENCE), "which it did not know"),
        (nodes[0].agent_token("https://kubernetes.default.svc.cluster.local"), "none of the audiences"),
        (kubernetes.token(SYSTEM, NODE_ACCOUNT), "none of the audiences"),
        (lasting(2 * 86_400), "good for more than 1day"),
        ("no.token.atall".to_owned(), "base64url"),
    ];
    let pods = Api::<k8s_openapi::api::core::v1::Pod>::namespaced(kubernetes.client.clone(), &buys);
    kubernetes.wait(pods.delete("gone", &DeleteParams::default().grace_period(0))).unwrap();
    assert!(!gone.is_empty());
    let token = nodes[0].agent_token(AUDIENCE);
    let root = testbed.dir().join("root.pem");
    fs::write(&root, roots(&kubernetes, SYSTEM)).unwrap();

    kubernetes.plane.stop_api();
    let ask = |token: &str, namespace: &str| ask(&nodes[0], &root, token, namespace);
    let start = Instant::now();
    let (mut dials, mut rounds) = (0, 0);
    while rounds < 2 || start.elapsed() < outage() {
        for index in 0..agents.len() {
            agents[index].restart().unwrap();
            agents[0].wait_enrolled([&client, &stranger]).unwrap();
            agents[1].wait_enrolled([&server]).unwrap();
            let (log, signs) = (|| agents.each_ref().map(|agent| agent.log().unwrap()).concat(), &controller);
            // An agent that asks in vain at first asks again.
            let first = wait_for(LONG, || get(&client) == Some(200));
            assert!(first, "{}\n{}", log(), signs.log());
            for _ in 0..DIALS {
                assert_eq!(get(&client), Some(200), "{}", log());
                assert_eq!(get(&stranger), None, "{}", log());
                dials += 2;
            }
            assert_eq!(certificate(&agents[0], &buys)["state"], "valid");
            assert_eq!(certificate(&agents[1], &sells)["state"], "valid");
        }
        rounds += 1;
    }
    println!("API server down for {:.0?}: {} agents started, {dials} dials", start.elapsed(), rounds * 2);
    assert!(controller.log().contains("going by what it said before"), "{}", controller.log());
    ask(&token, &buys).unwrap();
    ask(&a_day, &buys).unwrap();
    for (token, why) in &tokens {
        let refused = ask(token, &buys).unwrap_err();
        assert!(refused.contains("the API server is away") && refused.contains(why), "{refused}");
    }

    kubernetes.plane.start_api().unwrap();
    // What it says counts again: no is no.
    let refused = || ask(&tokens[0].0, &buys).is_err_and(|why| why.contains("does not accept the token"));
    assert!(wait_for(LONG, refused), "{}", controller.log());
    assert_eq!(get(&client), Some(200));
}
