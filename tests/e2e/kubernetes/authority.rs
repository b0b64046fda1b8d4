//! Roots that are changed for others under traffic: those that somebody plugs in, and the controller's own.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams};
use orlop_tests::{Agent, Pod, Relay, Testbed, wait_for};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};

use super::api::Kubernetes;
use super::controller::certificate;
use super::install::{SYSTEM, install, roots};
use super::kubelet::Kubelet;
use super::replica::{LONG, Replica};
use crate::pair::dial;

const ENABLED: (&str, &str) = ("orlop.dev/mesh", "enabled");
/// How long a new root spreads, and how long certificates last.
const TIMING: [&str; 4] = ["--rotation-spread", "6s", "--certificate-lifetime", "20s"];
/// How much later the second node hears of new roots.
const LATER: Duration = Duration::from_secs(3);

/// An authority, with what leads from it to a root.
struct Authority {
    certificate: Certificate,
    key: KeyPair,
    chain: String,
    root: String,
}

impl Authority {
    fn root(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params(name, Duration::from_secs(86_400)).self_signed(&key).unwrap();
        let root = certificate.pem();
        Self { certificate, key, chain: root.clone(), root }
    }

    fn intermediate(&self, name: &str, lasts: Duration) -> Self {
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_ca_cert_der(self.certificate.der(), &self.key).unwrap();
        let certificate = params(name, lasts).signed_by(&key, &issuer).unwrap();
        let chain = certificate.pem() + &self.chain;
        Self { certificate, key, chain, root: self.root.clone() }
    }

    /// As somebody plugs it in.
    fn secret(&self) -> Value {
        json!({
            "ca-cert.pem": self.certificate.pem(), "ca-key.pem": self.key.serialize_pem(),
            "cert-chain.pem": self.chain, "root-cert.pem": self.root,
        })
    }
}

fn params(name: &str, lasts: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let from = SystemTime::now() - Duration::from_secs(3600);
    params.not_before = from.into();
    params.not_after = (from + Duration::from_secs(3600) + lasts).into();
    params
}

const DAY: Duration = Duration::from_secs(86_400);

fn plug_in(kubernetes: &Kubernetes, data: &Value) {
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "cacerts", "namespace": SYSTEM}, "stringData": data,
    }));
}

/// A field of the Secret that the controller signs by.
fn held(kubernetes: &Kubernetes, name: &str) -> Option<String> {
    let secrets = Api::<Secret>::namespaced(kubernetes.client.clone(), SYSTEM);
    let secret = kubernetes.wait(secrets.get_opt("orlop-ca")).unwrap()?;
    Some(String::from_utf8(secret.data?.remove(name)?.0).unwrap())
}

/// Two nodes with an agent and a pod each, that dial each other all the time.
struct Stage<'a> {
    kubernetes: &'a Kubernetes,
    nodes: [Kubelet<'a>; 2],
    agents: [Agent; 2],
    pods: [Pod; 2],
    namespace: String,
    testbed: Testbed,
}

impl<'a> Stage<'a> {
    /// Starts them; `controller` signs.
    fn new(kubernetes: &'a Kubernetes, controller: &Replica) -> (Self, [Relay; 2]) {
        let testbed = Testbed::new().unwrap();
        let namespace = kubernetes.namespace("talks", &[ENABLED]);
        let nodes = ["n1", "n2"].map(|name| Kubelet::start(kubernetes, &testbed, name));
        let ways = nodes.each_ref().map(|node| node.way_to(controller.listen));
        let pods =
            [("one", &nodes[0]), ("two", &nodes[1])].map(|(name, node)| node.run(&namespace, name, &[]));
        let agents = nodes.each_ref().map(|node| {
            let mut arguments = node.mount_authority().to_vec();
            // A tunnel lives for one connection, so that each one shakes hands.
            arguments.extend(["--tunnel-idle-timeout", "1ms"].map(str::to_owned));
            node.agent(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
        });
        for (agent, pod) in agents.iter().zip(&pods) {
            agent.wait_enrolled([pod]).unwrap();
        }
        (Self { kubernetes, nodes, agents, pods, namespace, testbed }, ways)
    }

    /// Runs `change` while the pods talk both ways and nodes are told of new roots, one of them later. No connection may
    /// fail. Gives the roots that were told, one after the other.
    fn under_traffic(&self, change: impl FnOnce(&dyn Fn())) -> Vec<String> {
        let servers = self.pods.each_ref().map(|pod| pod.serve_echo(80).unwrap());
        let addresses = servers.each_ref().map(|server| server.addr());
        let ways = [(&self.pods[0], addresses[1]), (&self.pods[1], addresses[0])];
        for (from, to) in ways {
            assert!(wait_for(LONG, || dial(from, to).is_ok()), "{}", self.logs());
        }
        let (stop, made) = (AtomicBool::new(false), [(); 2].map(|()| AtomicUsize::new(0)));
        let (failures, told) = thread::scope(|scope| {
            let ended = Ended(&stop);
            let load = [0, 1].map(|way| {
                let (stop, made, (from, to)) = (&stop, &made[way], ways[way]);
                scope.spawn(move || {
                    let mut failures = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        made.fetch_add(1, Ordering::Relaxed);
                        failures
                            .extend(dial(from, to).err().map(|error| format!("{}: {error}", from.name())));
                        // Long enough for the tunnel to end.
                        thread::sleep(Duration::from_millis(25));
                    }
                    failures
                })
            });
            let told = scope.spawn(|| self.mount(&stop));
            change(&|| {
                let before = made.each_ref().map(|made| made.load(Ordering::Relaxed));
                let more = || {
                    made.iter().zip(before).all(|(made, before)| made.load(Ordering::Relaxed) > before + 20)
                };
                assert!(wait_for(LONG, more), "the load stands still");
            });
            drop(ended);
            (load.map(|load| load.join().unwrap()).concat(), told.join().unwrap())
        });
        let made: usize = made.iter().map(|made| made.load(Ordering::Relaxed)).sum();
        println!("{made} connections made, {} failed", failures.len());
        assert!(failures.is_empty(), "{failures:#?}\n{}", self.logs());
        told
    }

    /// Keeps the roots that nodes mount in step with the bundle, and gives what these were.
    fn mount(&self, stop: &AtomicBool) -> Vec<String> {
        let mut told: Vec<(Instant, String)> = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let now = roots(self.kubernetes, SYSTEM);
            if told.last().is_none_or(|(_, last)| *last != now) {
                told.push((Instant::now(), now));
            }
            for (node, lag) in self.nodes.iter().zip([Duration::ZERO, LATER]) {
                let known = told.iter().rev().find(|(since, _)| since.elapsed() >= lag);
                let Some((_, roots)) = known else { continue };
                let file = node.node.run_dir().join("root-cert.pem");
                if fs::read_to_string(&file).unwrap() != *roots {
                    let new = file.with_extension("new");
                    fs::write(&new, roots).unwrap();
                    fs::rename(new, file).unwrap();
                }
            }
            thread::sleep(Duration::from_millis(100));
        }
        told.into_iter().map(|(_, roots)| roots).collect()
    }

    fn serials(&self) -> [Value; 2] {
        self.agents.each_ref().map(|agent| certificate(agent, &self.namespace)["serial"].clone())
    }

    /// Waits until both agents trust so many roots.
    #[track_caller]
    fn wait_trusted(&self, count: usize) {
        let trusted = |agent: &Agent| {
            let dump: Value = serde_json::from_str(&agent.config_dump().unwrap()).unwrap();
            dump["trust"]["roots"].as_array().unwrap().len()
        };
        let all = || self.agents.iter().all(|agent| trusted(agent) == count);
        assert!(wait_for(LONG, all), "not {count} roots:\n{}", self.logs());
    }

    /// Waits until both agents have other certificates than these.
    #[track_caller]
    fn wait_renewed(&self, before: &[Value; 2]) {
        let renewed = || self.serials().iter().zip(before).all(|(now, before)| now != before);
        assert!(wait_for(LONG, renewed), "not renewed:\n{}", self.logs());
    }

    fn logs(&self) -> String {
        let access = |line: &&str| !line.contains("\"target\":\"access\"") || line.contains("reason");
        let log = |agent: &Agent| {
            agent.log().unwrap().lines().filter(access).map(|line| format!("{line}\n")).collect::<String>()
        };
        format!("{}\n{}", self.testbed.id(), self.agents.each_ref().map(log).concat())
    }
}

/// Ends the load also where something fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_is_plugged_in_is_replaced_under_traffic_and_no_connection_fails() {
    let kubernetes = Kubernetes::own();
    install(&kubernetes);
    let (old, new) = (Authority::root("old"), Authority::root("new"));
    let first = old.intermediate("old, first", DAY);
    plug_in(&kubernetes, &first.secret());
    let controller = Replica::start(&kubernetes, "first", &TIMING);
    controller.wait_ready();
    // From the start nothing else signs.
    assert_eq!(roots(&kubernetes, SYSTEM), old.root);
    assert_eq!(held(&kubernetes, "ca-cert.pem").unwrap(), first.certificate.pem());
    let (stage, ways) = Stage::new(&kubernetes, &controller);

    // Another intermediate of the same root signs at once, and nobody trusts anything else.
    let second = old.intermediate("old, second", DAY);
    stage.under_traffic(|more| {
        plug_in(&kubernetes, &second.secret());
        let signs = || held(&kubernetes, "ca-cert.pem") == Some(second.certificate.pem());
        assert!(wait_for(LONG, signs), "{}", controller.log());
        stage.wait_renewed(&stage.serials());
        more();
    });
    assert_eq!(roots(&kubernetes, SYSTEM), old.root);
    stage.wait_trusted(1);

    // What can't be used is refused, and what signed goes on.
    let third = new.intermediate("new, first", DAY);
    let with = |key: &str, value: &str| {
        let mut data = third.secret();
        data[key] = value.into();
        data
    };
    let (expired, other) = (new.intermediate("expired", Duration::ZERO), Authority::root("other"));
    stage.under_traffic(|more| {
        for (broken, why) in [
            (with("ca-key.pem", &other.key.serialize_pem()), "its key is not its certificate's"),
            (with("root-cert.pem", &other.root), "leads to none of the roots"),
            (with("ca-cert.pem", "garbage"), "its certificate can't be read"),
            (with("root-cert.pem", ""), "root-cert.pem is missing"),
            (expired.secret(), "expired"),
        ] {
            plug_in(&kubernetes, &broken);
            let told = || {
                controller.log().lines().any(|line| line.contains("is not taken up") && line.contains(why))
            };
            assert!(wait_for(LONG, told), "{why}:\n{}", controller.log());
        }
        stage.wait_renewed(&stage.serials());
        more();
    });
    let events = || {
        let events =
            kubernetes.wait(kubernetes.get(&format!("/apis/events.k8s.io/v1/namespaces/{SYSTEM}/events")));
        let notes = events["items"].as_array().unwrap().iter();
        let of_secret = notes.filter(|event| event["regarding"]["name"] == "cacerts");
        of_secret.map(|event| event["note"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    assert!(wait_for(LONG, || events().len() == 5), "{:#?}", events());
    assert_eq!(held(&kubernetes, "ca-cert.pem").unwrap(), second.certificate.pem());
    assert_eq!(roots(&kubernetes, SYSTEM), old.root);

    // Another root, while the controller dies and another takes over.
    stage.under_traffic(|more| {
        // It signs, and does not lead yet: certificates are short, and nobody may be without one meanwhile.
        let successor = Replica::start(&kubernetes, "second", &TIMING);
        successor.wait_ready();
        plug_in(&kubernetes, &third.secret());
        stage.wait_trusted(2);
        let mut controller = controller;
        controller.process.kill().unwrap();
        drop(ways);
        let _ways = stage.nodes.each_ref().map(|node| node.way_to(successor.listen));
        let signs = || held(&kubernetes, "ca-cert.pem") == Some(third.certificate.pem());
        assert!(wait_for(LONG, signs), "{}", successor.log());
        let both = roots(&kubernetes, SYSTEM);
        assert!(both.contains(&new.root) && both.contains(&old.root), "{both}");
        let before = stage.serials();
        stage.wait_renewed(&before);
        more();
        // The last certificate of the old one has expired.
        let alone = || roots(&kubernetes, SYSTEM) == new.root;
        assert!(wait_for(2 * LONG, alone), "{}", successor.log());
        stage.wait_trusted(1);
        more();
    });
    assert_eq!(held(&kubernetes, "previous-cert.pem"), None);
}

#[test]
fn the_controllers_own_root_is_rotated_under_traffic_and_no_connection_fails() {
    let kubernetes = Kubernetes::own();
    install(&kubernetes);
    let controller = Replica::start(&kubernetes, "rotates", &TIMING);
    controller.wait_ready();
    let (stage, _ways) = Stage::new(&kubernetes, &controller);
    let old = roots(&kubernetes, SYSTEM);
    let told = stage.under_traffic(|more| {
        let secrets = Api::<Secret>::namespaced(kubernetes.client.clone(), SYSTEM);
        let asked = Patch::Merge(json!({"metadata": {"annotations": {"orlop.dev/rotate": "once"}}}));
        kubernetes.wait(secrets.patch("orlop-ca", &PatchParams::default(), &asked)).unwrap();
        stage.wait_trusted(2);
        let signs = || held(&kubernetes, "root-cert.pem").is_some_and(|root| root.trim() != old.trim());
        assert!(wait_for(LONG, signs), "{}", controller.log());
        stage.wait_renewed(&stage.serials());
        more();
        let alone = || !roots(&kubernetes, SYSTEM).contains(old.trim());
        assert!(wait_for(2 * LONG, alone), "{}", controller.log());
        stage.wait_trusted(1);
        more();
    });
    // Whoever signs comes first.
    let next = told.iter().find(|roots| **roots != old).unwrap();
    assert!(next.starts_with(&old) && next.len() > old.len(), "it signs before all know it: {told:#?}");
}

#[test]
fn where_what_is_plugged_in_cannot_be_used_from_the_start_nothing_signs_until_it_can() {
    let kubernetes = Kubernetes::own();
    install(&kubernetes);
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let mut broken = root.secret();
    broken["ca-key.pem"] = other.key.serialize_pem().into();
    plug_in(&kubernetes, &broken);
    let controller = Replica::start(&kubernetes, "waits", &[]);
    let told = || controller.log().contains("its key is not its certificate's");
    assert!(wait_for(LONG, told), "{}", controller.log());
    assert_eq!(held(&kubernetes, "ca-cert.pem"), None);

    // As cert-manager has it.
    let secrets = Api::<Secret>::namespaced(kubernetes.client.clone(), SYSTEM);
    let mended = Patch::Merge(json!({
        "data": {"ca-cert.pem": null, "ca-key.pem": null, "cert-chain.pem": null, "root-cert.pem": null},
        "stringData": {"tls.crt": root.root, "tls.key": root.key.serialize_pem(), "ca.crt": root.root},
    }));
    kubernetes.wait(secrets.patch("cacerts", &PatchParams::default(), &mended)).unwrap();
    controller.wait_ready();
    assert_eq!(roots(&kubernetes, SYSTEM), root.root);
}
