//! The webhook, asked by a real API server: what would be wrong with an object is said when it is applied.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use orlop_tests::traffic::ReadUninterrupted;
use orlop_tests::{DeployTools, Process, binary, traffic, wait_for};
use serde_json::{Value, json};

use super::api::Kubernetes;
use super::gateway_api::define;
use super::install::{SYSTEM, install};
use super::replica::LONG;
use crate::chart::deploy;

const NAME: &str = "orlop-webhook";
const CONFIGURATION: &str = "orlop-validation";
const ENABLED: (&str, &str) = ("orlop.dev/mesh", "enabled");

/// A cluster whose API server asks the webhook that the chart installs, run as its service account.
pub struct Stage {
    pub kubernetes: Kubernetes,
    /// What the chart makes.
    pub rendered: Vec<Value>,
    tools: DeployTools,
    /// Where it answers, of an address that nobody else's connections come from or go to.
    address: SocketAddr,
    health: SocketAddr,
}

impl Stage {
    pub fn new() -> Self {
        let kubernetes = Kubernetes::own();
        kubernetes.define_istio();
        define(&kubernetes);
        install(&kubernetes);
        let tools = DeployTools::find().unwrap();
        let rendered = tools.render(&deploy().join("helm/orlop"), &["--set=webhook.enabled=true"]).unwrap();
        let [address, health] = [(); 2].map(|()| free());
        let rendered: Vec<Value> = serde_saphyr::from_multiple(&rendered).unwrap();
        let of_webhook = |object: &&Value| {
            let name = &object["metadata"]["name"];
            object["kind"] != "Deployment" && (name == NAME || name == CONFIGURATION)
        };
        for object in rendered.iter().filter(of_webhook) {
            let mut object = object.clone();
            // No pod runs here: the API server finds it on its loopback, by the same name.
            if object["kind"] == "Service" {
                object["spec"] = json!({"type": "ExternalName", "externalName": address.ip().to_string()});
            }
            for webhook in object.get_mut("webhooks").and_then(Value::as_array_mut).into_iter().flatten() {
                webhook["clientConfig"]["service"]["port"] = address.port().into();
            }
            kubernetes.apply(&object);
        }
        // Authorisers hear of a role's binding somewhat later.
        for attributes in [
            json!({"verb": "update", "resource": "secrets", "namespace": SYSTEM, "name": NAME}),
            json!({"verb": "watch", "resource": "pods"}),
        ] {
            let review = json!({
                "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                "spec": {
                    "user": format!("system:serviceaccount:{SYSTEM}:{NAME}"), "resourceAttributes": attributes,
                },
            });
            let may = || kubernetes.wait(kubernetes.review(&review))["status"]["allowed"] == true;
            assert!(wait_for(LONG, may), "{review}");
        }
        Self { kubernetes, rendered, tools, address, health }
    }

    /// A replica that is ready.
    pub fn start(&self) -> (Process, PathBuf) {
        let directory = self.kubernetes.plane.dir();
        let api = self.kubernetes.plane.address().to_string();
        let kubeconfig = self.kubernetes.kubeconfig(directory, SYSTEM, NAME, &api);
        let log = directory.join("webhook.log");
        let mut command = self.kubernetes.plane.command(&binary().unwrap()).unwrap();
        command.args(["webhook", "--namespace", SYSTEM, "--kubeconfig"]).arg(kubeconfig);
        command.args(["--listen", &self.address.to_string(), "--ready", &self.health.to_string()]);
        let output = File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let process = Process::spawn(&mut command).unwrap();
        let is_ready = || {
            let answer = TcpStream::connect(self.health)
                .and_then(|tcp| traffic::get(tcp, "localhost", "/healthz/ready"));
            answer.is_ok_and(|answer| answer.status == 200)
        };
        assert!(wait_for(LONG, is_ready), "{}", fs::read_to_string(&log).unwrap());
        (process, log)
    }

    fn kubectl(&self, args: &[&str], object: &Value) -> Output {
        let path = self.kubernetes.plane.dir().join("object.json");
        fs::write(&path, object.to_string()).unwrap();
        let mut kubectl = self.tools.kubectl(&self.kubernetes.plane.kubeconfig());
        kubectl.args(args).arg("--filename").arg(path).output().unwrap()
    }

    /// Whether it is taken, and what is said of it.
    pub fn apply(&self, object: &Value) -> (bool, String) {
        let output = self.kubectl(&["apply"], object);
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    }

    /// Waits until the API server asks, and refuses this.
    pub fn wait_refused(&self, bad: &Value) {
        let is_refused = || {
            // What is there already, as it is, nobody is asked about.
            self.delete(bad);
            !self.apply(bad).0
        };
        assert!(wait_for(LONG, is_refused), "nobody is asked");
    }

    /// Removes it if it is there.
    pub fn delete(&self, object: &Value) {
        assert!(self.kubectl(&["delete", "--ignore-not-found"], object).status.success());
    }

    fn configuration(&self) -> Value {
        let path =
            format!("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{CONFIGURATION}");
        self.kubernetes.wait(self.kubernetes.get(&path))
    }
}

/// An address of the loopback that no other test has, with a port that is free.
fn free() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let ip = Ipv4Addr::new(127, 0, 15, NEXT.fetch_add(1, Ordering::Relaxed));
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

fn for_ports(ports: &[&str]) -> Value {
    json!({"action": "DENY", "rules": [{"to": [{"operation": {"ports": ports}}]}]})
}

#[test]
fn what_conditions_would_say_is_said_at_apply() {
    let stage = Stage::new();
    let shop = stage.kubernetes.namespace("shop", &[ENABLED]);
    let outside = stage.kubernetes.namespace("outside", &[]);
    let bad = policy(&shop, "bad", &for_ports(&["x"]));

    // Until there is one that answers, objects are stored unseen.
    let early = policy(&shop, "early", &for_ports(&["x"]));
    assert!(stage.apply(&early).0);
    let (webhook, log) = stage.start();
    stage.wait_refused(&bad);
    let (taken, said) = stage.apply(&bad);
    assert!(!taken && said.contains("spec.rules[0].to[0].operation.ports[0]: \"x\" is not a port"), "{said}");

    // What is not there yet may come; what can be understood is stored.
    let target = json!({"targetRefs": [{"kind": "Service", "group": "", "name": "nobody"}], "rules": [{}]});
    let (taken, said) = stage.apply(&policy(&shop, "target", &target));
    assert!(taken && said.contains("Warning: ") && said.contains("nobody"), "{said}");
    let (taken, said) = stage.apply(&policy(&shop, "good", &for_ports(&["80"])));
    assert!(taken && said.is_empty(), "{said}");
    // What was wrong before is no reason to refuse, what was good stays so.
    let (taken, said) = stage.apply(&policy(&shop, "early", &for_ports(&["y", "z"])));
    assert!(taken && said.contains("Warning: "), "{said}");
    assert!(!stage.apply(&policy(&shop, "good", &for_ports(&["y"]))).0);
    // A dry run is answered as what it tries.
    assert!(!stage.kubectl(&["apply", "--dry-run=server"], &bad).status.success());

    // Outside of the mesh, and where somebody has said so, nobody is asked.
    assert!(stage.apply(&policy(&outside, "bad", &for_ports(&["x"]))).0);
    let mut labelled = bad.clone();
    labelled["metadata"]["labels"] = json!({"orlop.dev/validation": "disabled"});
    assert!(stage.apply(&labelled).0);
    assert!(stage.kubectl(&["delete"], &labelled).status.success());

    // Somebody who does not know the path learns nothing, and what somebody else writes there is put right.
    let path = stage.configuration()["webhooks"][0]["clientConfig"]["service"]["path"].clone();
    assert!(path.as_str().unwrap().len() > 64, "{path}");
    let mut changed = stage.configuration();
    changed["metadata"]["managedFields"] = Value::Null;
    for webhook in changed["webhooks"].as_array_mut().unwrap() {
        webhook["clientConfig"]["service"]["path"] = "/validate/".into();
    }
    stage.kubernetes.apply(&changed);
    let is_back = || stage.configuration()["webhooks"][0]["clientConfig"]["service"]["path"] == path;
    assert!(wait_for(LONG, is_back), "{}", fs::read_to_string(&log).unwrap());

    // Another one has the same authority, so that nothing has to be told anew.
    drop(webhook);
    let before = stage.configuration();
    let (_webhook, log) = stage.start();
    let is_refused = || !stage.apply(&bad).0;
    assert!(wait_for(LONG, is_refused), "{}", fs::read_to_string(&log).unwrap());
    assert_eq!(stage.configuration()["webhooks"], before["webhooks"]);
}

#[test]
fn whoever_does_not_ask_for_a_review_keeps_no_connection() {
    let stage = Stage::new();
    let (_webhook, log) = stage.start();
    let shop = stage.kubernetes.namespace("shop", &[ENABLED]);
    let bad = policy(&shop, "bad", &for_ports(&["x"]));
    stage.wait_refused(&bad);
    let log = || fs::read_to_string(&log).unwrap();
    // More of them than there are places, all silent, and as many again for whoever asks once more: the API server
    // passes over a webhook that is slow.
    let mut strangers = Vec::new();
    let is_refused = || {
        strangers = (0..600).map(|_| TcpStream::connect(stage.address).unwrap()).collect();
        assert!(stage.kubectl(&["delete", "--ignore-not-found"], &bad).status.success());
        !stage.apply(&bad).0
    };
    assert!(wait_for(LONG, is_refused), "others are in the way: {}", log());
    for mut stranger in strangers {
        stranger.set_read_timeout(Some(LONG)).unwrap();
        match stranger.read_uninterrupted(&mut [0; 1]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            ended => panic!("{ended:?}: {}", log()),
        }
    }
}
