//! The controller and what it gives: a root, bundles of it in every namespace, and certificates to agents.

use std::time::SystemTime;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use orlop_identity::{CertificateAuthority as _, CertificateRequest, Issuing, RemoteCa};
use orlop_model::Identity;
use orlop_tests::{Agent, Testbed, wait_for};
use serde_json::{Value, json};

use super::api::Kubernetes;
use super::install::{AUDIENCE, BUNDLE, NODE_ACCOUNT, ROOTS, SYSTEM, install, roots};
use super::kubelet::{Kubelet, authority_url};
use super::replica::{LONG, Replica};
use crate::mesh::{TIMEOUT, record, records};

const ENABLED: (&str, &str) = ("orlop.dev/mesh", "enabled");

#[test]
fn pods_talk_with_certificates_of_the_controller_whether_it_lives_or_not() {
    let kubernetes = Kubernetes::shared();
    let controller = Replica::shared(&kubernetes);
    let testbed = Testbed::in_shared_cluster().unwrap();
    let [sells, buys, late] =
        ["sells", "buys", "late"].map(|prefix| kubernetes.namespace(prefix, &[ENABLED]));
    let nodes = ["n1", "n2"].map(|name| Kubelet::start(&kubernetes, &testbed, name));
    let mut ways = nodes.each_ref().map(|node| node.way_to(controller.listen));
    let client = nodes[0].run(&buys, "client", &[]);
    let server = nodes[1].run(&sells, "server", &[]);
    let agents = nodes.each_ref().map(agent);
    agents[0].wait_enrolled([&client]).unwrap();
    agents[1].wait_enrolled([&server]).unwrap();
    agents[0].wait_until(|dump| dump.contains(&server.ipv4().to_string())).unwrap();

    let _http = server.serve_http(8080).unwrap();
    let get = |pod: &orlop_tests::Pod| {
        pod.http_get(server.addr(8080), "/", TIMEOUT).map(|answer| answer.status).ok()
    };
    assert_eq!(get(&client), Some(200), "{}", agents[0].log().unwrap());
    let identity = format!("spiffe://cluster.local/ns/{buys}/sa/default");
    let seen = record(&agents[1], &[("src_workload", &format!("{buys}/client")), ("result", "ok")]);
    assert_eq!((seen["src_identity"].as_str(), seen["tunnel"].is_string()), (Some(&*identity), true));
    assert_eq!(certificate(&agents[0], &buys)["state"], "valid");
    // Nobody but the controller has signed anything.
    assert!(!testbed.ca_dir().exists());
    assert!(controller.log().contains(&identity), "{}", controller.log());

    // The controller can't be reached: what has a certificate goes on, what has none is refused and says why.
    ways.iter_mut().for_each(|way| way.cut());
    let newcomer = nodes[0].run(&late, "newcomer", &[]);
    agents[0].wait_enrolled([&client, &newcomer]).unwrap();
    let refused = |record: &Value| record["reason"] == "certificate_unavailable";
    // Before its address is known it is refused for that.
    let is_refused = || get(&newcomer).is_none() && records(&agents[0]).iter().any(refused);
    assert!(wait_for(LONG, is_refused), "{}", agents[0].log().unwrap());
    let held = certificate(&agents[0], &late);
    assert_eq!(held["state"], "pending");
    assert!(held["last_error"].as_str().unwrap().contains("no answer from the certificate authority"));
    agents[0].wait_log(|log| log.contains("no answer from the certificate authority"), TIMEOUT).unwrap();
    assert_eq!(get(&client), Some(200));
    assert_eq!(certificate(&agents[0], &buys)["state"], "valid");

    for way in &mut ways {
        way.mend().unwrap();
    }
    assert!(wait_for(LONG, || get(&newcomer) == Some(200)), "{}", agents[0].log().unwrap());
}

#[test]
fn an_agent_gets_the_identities_of_its_own_nodes_pods_and_no_other() {
    let kubernetes = Kubernetes::shared();
    let controller = Replica::shared(&kubernetes);
    let testbed = Testbed::in_shared_cluster().unwrap();
    let [here, there] = ["here", "there"].map(|prefix| kubernetes.namespace(prefix, &[ENABLED]));
    let nodes = ["n1", "n2"].map(|name| Kubelet::start(&kubernetes, &testbed, name));
    let _way = nodes[0].way_to(controller.listen);
    nodes[0].bind(&here, "web", &[]);
    nodes[1].bind(&there, "web", &[]);
    let root = testbed.dir().join("root.pem");
    std::fs::write(&root, roots(&kubernetes, &here)).unwrap();
    let ask = |token: &str, namespace: &str| ask(&nodes[0], &root, token, namespace);

    let token = nodes[0].agent_token(AUDIENCE);
    ask(&token, &here).unwrap();
    let refused = ask(&token, &there).unwrap_err();
    let wanted = format!("no pod of service account {there}/default runs on node {}", nodes[0].node.name());
    assert!(refused.contains(&wanted), "{refused}");
    // What it asks for can't be had with its name alone, nor with a token that is for somebody else.
    for token in [
        "no.token.atall".to_owned(),
        kubernetes.token(SYSTEM, NODE_ACCOUNT),
        nodes[0].agent_token("https://kubernetes.default.svc.cluster.local"),
    ] {
        let refused = ask(&token, &here).unwrap_err();
        assert!(refused.contains("does not accept the token"), "{refused}");
    }
    // A pod may have its own identity, and none of another.
    let token = kubernetes.bound_token(&there, "default", "web", AUDIENCE);
    ask(&token, &there).unwrap();
    let refused = ask(&token, &here).unwrap_err();
    assert!(refused.contains("it is no node agent's identity"), "{refused}");

    // One that moves here may have it here.
    nodes[0].bind(&there, "moved", &[]);
    ask(&nodes[0].agent_token(AUDIENCE), &there).unwrap();
}

#[test]
fn replicas_make_one_root_and_the_one_that_leads_keeps_it_in_every_namespace() {
    let kubernetes = Kubernetes::own();
    install(&kubernetes);
    let replicas =
        ["first", "second"].map(|name| Replica::start(&kubernetes, name, &["--rotation-spread", "1s"]));
    replicas.iter().for_each(Replica::wait_ready);
    let [made, led] = ["made a new root certificate", "leading lease"].map(|text| {
        let times = || replicas.iter().map(|replica| replica.log().matches(text).count()).sum::<usize>();
        assert!(wait_for(LONG, || times() > 0), "nobody says: {text}");
        times()
    });
    assert_eq!((made, led), (1, 1));

    let root = roots(&kubernetes, SYSTEM);
    assert_eq!(certificates(&root), 1);
    let secrets = Api::<Secret>::namespaced(kubernetes.client.clone(), SYSTEM);
    let secret = kubernetes.wait(secrets.get("orlop-ca")).unwrap();
    let kept = String::from_utf8(secret.data.unwrap().remove("root-cert.pem").unwrap().0).unwrap();
    assert_eq!(kept.trim(), root.trim());
    let namespaces = Api::<Namespace>::all(kubernetes.client.clone());
    for namespace in kubernetes.wait(namespaces.list(&ListParams::default())).unwrap() {
        assert_eq!(roots(&kubernetes, &namespace.metadata.name.unwrap()), root);
    }
    let new = kubernetes.namespace("new", &[]);
    assert_eq!(roots(&kubernetes, &new), root);

    // What somebody changes or deletes comes back.
    let maps = Api::<ConfigMap>::namespaced(kubernetes.client.clone(), &new);
    let changed = Patch::Merge(json!({"data": {ROOTS: "mine"}}));
    kubernetes.wait(maps.patch(BUNDLE, &PatchParams::default(), &changed)).unwrap();
    assert!(wait_for(LONG, || roots(&kubernetes, &new) == root), "it stays changed");
    kubernetes.wait(maps.delete(BUNDLE, &DeleteParams::default())).unwrap();
    assert_eq!(roots(&kubernetes, &new), root);

    // The leader dies, and another leads.
    let leads = leader(&kubernetes);
    let [mut gone, mut left] = replicas;
    if gone.name != leads {
        std::mem::swap(&mut gone, &mut left);
    }
    gone.process.kill().unwrap();
    assert!(wait_for(LONG, || leader(&kubernetes) == left.name), "nobody takes over:\n{}", left.log());
    let late = kubernetes.namespace("late", &[]);
    assert_eq!(roots(&kubernetes, &late), root);

    // It rotates the root when asked to, and the old one stays trusted.
    let asked = Patch::Merge(json!({"metadata": {"annotations": {"orlop.dev/rotate": "once"}}}));
    kubernetes.wait(secrets.patch("orlop-ca", &PatchParams::default(), &asked)).unwrap();
    let rotated = || {
        let now = roots(&kubernetes, &late);
        certificates(&now) == 2 && now.contains(root.trim()) && !now.starts_with(root.trim())
    };
    assert!(wait_for(LONG, rotated), "not rotated:\n{}", left.log());
}

/// The agent of a node, which has its certificates from the controller.
/// An agent with certificates of the controller.
pub fn agent(node: &Kubelet<'_>) -> Agent {
    let arguments = node.mount_authority();
    node.agent(&arguments.each_ref().map(String::as_str))
}

/// What the agent says of the certificate of a namespace's default service account.
pub fn certificate(agent: &Agent, namespace: &str) -> Value {
    let dump: Value = serde_json::from_str(&agent.config_dump().unwrap()).unwrap();
    let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/default");
    let mut certificates = dump["certificates"].as_array().unwrap().iter();
    certificates.find(|one| one["identity"] == *identity).cloned().unwrap_or_default()
}

/// Asks from a node for the identity of a namespace's default service account, as an agent does.
pub fn ask(node: &Kubelet<'_>, root: &std::path::Path, token: &str, namespace: &str) -> Result<(), String> {
    let file = node.node.run_dir().join("asks-with");
    std::fs::create_dir_all(node.node.run_dir()).unwrap();
    std::fs::write(&file, token).unwrap();
    let asked = node.node.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let trust_domain = "cluster.local".parse().unwrap();
            let ca = RemoteCa::open(authority_url().parse().unwrap(), root, &file, &trust_domain).unwrap();
            let identity = Identity::new(&trust_domain, namespace, "default");
            let request = CertificateRequest::new(&identity).unwrap();
            let Issuing::Asked(answer) = ca.issue(&identity, request.der(), LONG, SystemTime::now()) else {
                panic!("it asks nobody")
            };
            let issued = answer.await.map_err(|error| error.to_string())?;
            request.complete(issued, SystemTime::now()).map(drop).map_err(|error| error.to_string())
        })
    });
    asked.unwrap()
}

pub fn leader(kubernetes: &Kubernetes) -> String {
    let leases = Api::<Lease>::namespaced(kubernetes.client.clone(), SYSTEM);
    let lease = kubernetes.wait(leases.get_opt("orlop-controller")).unwrap();
    lease.and_then(|lease| lease.spec?.holder_identity).unwrap_or_default()
}

fn certificates(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}
