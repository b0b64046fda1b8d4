//! What every kind says of itself in its status, by a table: that it is good, or what is wrong and what to change.

mod rows;

use std::collections::BTreeSet;

use orlop_tests::{DeployTools, wait_for};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use super::api::Kubernetes;
use super::gateway_api::define;
use super::gateways::condition_of;
use super::install::{CONTROLLER_ACCOUNT, install, manifests};
use super::replica::{LONG, Replica};
use super::webhook;
use crate::chart::deploy;
use rows::{KINDS, Of, Row, Says, rows};

#[test]
fn every_kind_says_that_it_is_good_or_what_to_change() {
    let kubernetes = Kubernetes::own();
    kubernetes.define_istio();
    define(&kubernetes);
    let controller = start(&kubernetes);
    let namespace = kubernetes.namespace("table", &[("istio.io/use-waypoint", "way")]);
    around(&kubernetes, &namespace);
    let rows = rows(&namespace);
    rows.iter().for_each(|row| kubernetes.apply(&object(row, &namespace)));
    await_all(&kubernetes, &namespace, &rows.iter().collect::<Vec<_>>(), &controller);
}

/// As their projects define them, statuses are held against schemas of others, fields have defaults, and some of what
/// is bad never gets that far.
#[test]
fn every_kind_says_it_also_where_it_is_defined_as_its_project_has_it() {
    let kubernetes = Kubernetes::own();
    let kinds = KINDS.iter().map(|(kind, version, _)| (version.split_once('/').unwrap().0, *kind));
    let published = kinds.filter(|(group, _)| *group != "orlop.dev");
    let published: Vec<_> = published.chain([("gateway.networking.k8s.io", "ReferenceGrant")]).collect();
    kubernetes.define_published(&published);
    kubernetes.define_own();
    let controller = start(&kubernetes);
    let namespace = kubernetes.namespace("table", &[("istio.io/use-waypoint", "way")]);
    around(&kubernetes, &namespace);
    let rows = rows(&namespace);
    let (taken, refused): (Vec<_>, Vec<_>) =
        rows.iter().partition(|row| match kubernetes.try_apply(&object(row, &namespace)) {
            Ok(()) => true,
            Err(error) => {
                assert!(!is_good(row), "{} {}: {error}", row.kind, row.name);
                false
            }
        });
    for (kind, ..) in KINDS {
        assert!(taken.iter().any(|row| row.kind == kind && is_good(row)), "{kind}");
    }
    assert!(refused.len() < taken.len() / 2, "{} of {} are refused", refused.len(), rows.len());
    await_all(&kubernetes, &namespace, &taken, &controller);
}

/// A controller that may see Secrets, as the chart has it where that is asked for.
fn start(kubernetes: &Kubernetes) -> Replica {
    install(kubernetes);
    let tools = DeployTools::find().unwrap();
    let rendered = tools.render(&deploy().join("helm/orlop"), &["--set=waypoint.checkSecrets=true"]).unwrap();
    let rendered: Vec<Value> = serde_saphyr::from_multiple(&rendered).unwrap();
    let is_role = |of: &&Value| of["kind"] == "ClusterRole" && of["metadata"]["name"] == CONTROLLER_ACCOUNT;
    kubernetes.apply(rendered.iter().find(is_role).unwrap());
    let controller = Replica::start(kubernetes, "leads", &["--check-secrets"]);
    controller.wait_ready();
    controller
}

/// Waits until each object says what its row has.
#[track_caller]
fn await_all(kubernetes: &Kubernetes, namespace: &str, rows: &[&Row], controller: &Replica) {
    let mut wrong = Vec::new();
    let all_said = wait_for(LONG, || {
        let wrong_of = |row| wrong_of(row, &kubernetes.wait(kubernetes.get(&path(row, namespace))));
        wrong = rows.iter().copied().flat_map(wrong_of).collect();
        wrong.is_empty()
    });
    assert!(all_said, "{}\n{}", wrong.join("\n"), controller.log());
}

/// What a condition would refuse is refused, and what else it would tell is a warning.
#[test]
fn what_the_table_has_is_said_when_it_is_applied() {
    let stage = webhook::Stage::new();
    let labels = [("orlop.dev/mesh", "enabled"), ("istio.io/use-waypoint", "way")];
    let namespace = stage.kubernetes.namespace("table", &labels);
    around(&stage.kubernetes, &namespace);
    let metadata = json!({"name": "orlop-backend-ca", "namespace": namespace});
    let data = json!({"authority": CertificateParams::new(Vec::new()).unwrap().self_signed(&KeyPair::generate().unwrap()).unwrap().pem()});
    // As a controller has copied it.
    stage
        .kubernetes
        .apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}));
    let (_webhook, _log) = stage.start();
    let rows = rows(&namespace);
    stage.wait_refused(&object(&rows[1], &namespace));
    // Classes are nobody's business but the controller's.
    for row in rows.iter().filter(|row| row.kind != "GatewayClass") {
        let object = object(row, &namespace);
        let (mut taken, mut said) = stage.apply(&object);
        // Of what was stored just before the webhook may not have heard yet.
        wait_for(LONG, || {
            if !is_good(row) || (taken && said.is_empty()) {
                return true;
            }
            stage.delete(&object);
            (taken, said) = stage.apply(&object);
            false
        });
        let what = format!("{} {}: {said}", row.kind, row.name);
        match refusal(row) {
            Some(text) => assert!(!taken && said.contains(text), "{what}"),
            None if is_good(row) => assert!(taken && said.is_empty(), "{what}"),
            None if row.name == "second" => assert!(taken, "{what}"),
            None => assert!(taken && said.contains("Warning: "), "{what}"),
        }
    }
}

/// What is told of an object that is not accepted, whatever else there is.
fn refusal(row: &Row) -> Option<&'static str> {
    let refuses = |says: &&Says| {
        let is_accepted = says.condition.ends_with("Accepted") && !matches!(says.of, Of::Listener(_));
        let is_own =
            matches!(says.reason, "Invalid" | "InvalidKeys" | "UnsupportedValue" | "ListenersNotValid");
        is_accepted && is_own && says.status == "False"
    };
    row.says.iter().find(refuses).map(|says| says.text)
}

/// The kinds whose status the controller may write are those of the table.
#[test]
fn the_table_has_a_good_and_a_bad_object_of_each_kind_that_is_written_to() {
    let manifests = manifests();
    let rules = manifests.iter().filter(|object| object["kind"] == "ClusterRole");
    let rules = rules.flat_map(|role| role["rules"].as_array().into_iter().flatten());
    let resources = rules.flat_map(|rule| rule["resources"].as_array().into_iter().flatten());
    let written: BTreeSet<_> =
        resources.filter_map(|resource| resource.as_str()?.strip_suffix("/status")).collect();
    assert_eq!(written, KINDS.iter().map(|(.., plural)| *plural).collect());
    let rows = rows("any");
    for (kind, ..) in KINDS {
        let of_kind = |good: bool| rows.iter().any(|row| row.kind == kind && is_good(row) == good);
        assert!(of_kind(true) && of_kind(false), "{kind}");
    }
}

fn is_good(row: &Row) -> bool {
    row.says.iter().all(|says| says.status == "True" && says.reason != "ListenersNotValid")
}

/// What is there for rows to refer to.
fn around(kubernetes: &Kubernetes, namespace: &str) {
    let metadata = |name: &str| json!({"name": name, "namespace": namespace, "labels": {"app": name}});
    for (name, port) in [
        ("web", "http"),
        ("other", "http"),
        ("third", "http"),
        ("rpc", "grpc"),
        ("tls", "tls"),
        ("tcp", "tcp"),
    ] {
        kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata(name),
            "spec": {"selector": {"app": name}, "ports": [{"name": port, "port": 80}]},
        }));
    }
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata("web"),
        "spec": {"nodeName": "nowhere", "containers": [{"name": "web", "image": "web"}]},
        "status": {"phase": "Running", "podIP": "10.213.0.1", "podIPs": [{"ip": "10.213.0.1"}]},
    }));
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["web.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let other = KeyPair::generate().unwrap();
    for (name, data) in [
        ("sealed", json!({"tls.crt": certificate.pem(), "tls.key": key.serialize_pem()})),
        ("garbage", json!({"tls.crt": certificate.pem(), "tls.key": other.serialize_pem()})),
        ("empty", json!({})),
    ] {
        kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": metadata(name), "stringData": data,
        }));
    }
    for (name, text) in [("authority", certificate.pem()), ("garbage", "nothing".to_owned())] {
        kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(name), "data": {"ca.crt": text},
        }));
    }
}

/// Classes have no namespace, and a name for each test.
fn name(row: &Row, namespace: &str) -> String {
    if row.kind == "GatewayClass" { format!("{namespace}-{}", row.name) } else { row.name.to_owned() }
}

fn object(row: &Row, namespace: &str) -> Value {
    let (_, version, _) = kind_of(row);
    let mut metadata = json!({"name": name(row, namespace)});
    if row.kind != "GatewayClass" {
        metadata["namespace"] = namespace.into();
    }
    json!({"apiVersion": version, "kind": row.kind, "metadata": metadata, "spec": row.spec})
}

fn path(row: &Row, namespace: &str) -> String {
    let (_, version, plural) = kind_of(row);
    let place = if row.kind == "GatewayClass" { String::new() } else { format!("/namespaces/{namespace}") };
    format!("/apis/{version}{place}/{plural}/{}", name(row, namespace))
}

fn kind_of(row: &Row) -> (&'static str, &'static str, &'static str) {
    KINDS.into_iter().find(|(kind, ..)| *kind == row.kind).unwrap()
}

/// What is not said as it should be of an object as it is now.
fn wrong_of(row: &Row, object: &Value) -> Vec<String> {
    let status = &object["status"];
    let generation = &object["metadata"]["generation"];
    let of = |says: &Says| match says.of {
        Of::Object => condition_of(status, says.condition),
        Of::Listener(name) => {
            let listeners = status["listeners"].as_array().into_iter().flatten();
            let listener = listeners.into_iter().find(|listener| listener["name"] == name);
            listener.map(|listener| condition_of(listener, says.condition)).unwrap_or_default()
        }
        Of::Parent => {
            let list = ["parents", "ancestors"].into_iter().find_map(|list| status[list].as_array());
            match list.map(Vec::as_slice) {
                Some([only]) => condition_of(only, says.condition),
                _ => Value::Null,
            }
        }
    };
    let wrong = row.says.iter().filter_map(|says| {
        let found = of(says);
        let message = found["message"].as_str().unwrap_or_default();
        let is_so = found["status"] == says.status
            && found["reason"] == says.reason
            && message.contains(says.text)
            && found["observedGeneration"] == *generation;
        let Says { condition, status, reason, text, .. } = says;
        (!is_so).then(|| {
            format!("{} {}: {condition} is {found}, not {status} {reason} {text:?}", row.kind, row.name)
        })
    });
    wrong.collect()
}
