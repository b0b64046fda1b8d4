//! Istio's kinds, as `deploy/crds` defines them.

use std::fs;
use std::path::Path;

use kube::Api;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use super::api::Kubernetes;
use crate::chart::deploy;

/// The definitions.
fn definitions() -> Vec<Value> {
    let files = fs::read_dir(deploy().join("crds")).unwrap().map(|entry| entry.unwrap().path());
    let texts = files.map(|path| fs::read_to_string(path).unwrap());
    let all = texts.map(|text| serde_saphyr::from_str::<Value>(&text).unwrap());
    all.filter(|definition| definition["spec"]["group"].as_str().unwrap().ends_with("istio.io")).collect()
}

fn versions(definition: &Value) -> impl Iterator<Item = &str> {
    definition["spec"]["versions"].as_array().unwrap().iter().map(|version| version["name"].as_str().unwrap())
}

/// Puts the definitions in force.
fn define(kubernetes: &Kubernetes) {
    for definition in definitions() {
        kubernetes.apply(&definition);
        let spec = &definition["spec"];
        let (group, plural) = (spec["group"].as_str().unwrap(), spec["names"]["plural"].as_str().unwrap());
        versions(&definition)
            .for_each(|version| kubernetes.wait_served(&format!("/apis/{group}/{version}/{plural}?limit=1")));
    }
}

/// Where objects of this one's kind are, in this version.
fn api(kubernetes: &Kubernetes, object: &Value, version: &str) -> Api<DynamicObject> {
    let group = object["apiVersion"].as_str().unwrap().split('/').next().unwrap();
    let kind = GroupVersionKind::gvk(group, version, object["kind"].as_str().unwrap());
    let namespace = object["metadata"]["namespace"].as_str().unwrap();
    Api::namespaced_with(kubernetes.client.clone(), namespace, &ApiResource::from_gvk(&kind))
}

/// Applies an object as this version of its kind.
fn apply(kubernetes: &Kubernetes, object: &Value, version: &str, dry_run: bool) -> kube::Result<Value> {
    let api = api(kubernetes, object, version);
    let mut object = object.clone();
    let group = object["apiVersion"].as_str().unwrap().split('/').next().unwrap();
    object["apiVersion"] = format!("{group}/{version}").into();
    let parameters = PatchParams { dry_run, ..PatchParams::apply("tests").force() };
    let name = object["metadata"]["name"].as_str().unwrap();
    let applied = kubernetes.wait(api.patch(name, &parameters, &Patch::Apply(&object)));
    applied.map(|applied| serde_json::to_value(applied).unwrap())
}

/// Objects of Istio's kinds that are in a text of several.
fn objects(text: &str, namespace: &str) -> Vec<Value> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    let of_istio = |object: &Value| object["apiVersion"].as_str().is_some_and(|of| of.contains("istio.io/"));
    let objects = objects.into_iter().filter(of_istio);
    let placed = objects.map(|mut object| {
        object["metadata"]["namespace"] = namespace.into();
        object
    });
    placed.collect()
}

fn whole(namespace: &str) -> Vec<Value> {
    objects(include_str!("whole.yaml"), namespace)
}

/// What documentation shows in blocks of YAML.
fn shown() -> Vec<String> {
    let docs = deploy().join("../docs");
    let files = fs::read_dir(docs).unwrap().map(|entry| entry.unwrap().path());
    let texts = files.filter(|path| path.extension().is_some_and(|of| of == "md"));
    let texts = texts.map(|path| fs::read_to_string(path).unwrap());
    let blocks = texts.flat_map(|text| {
        let after = text.split("```yaml\n").skip(1);
        after.map(|block| block.split("```").next().unwrap().to_owned()).collect::<Vec<_>>()
    });
    blocks.collect()
}

/// What fuzzing begins with.
fn corpus() -> Vec<String> {
    let files =
        fs::read_dir(deploy().join("../fuzz/corpus/world")).unwrap().map(|entry| entry.unwrap().path());
    let is_yaml = |path: &Path| path.extension().is_some_and(|of| of == "yaml");
    let texts = files.filter(|path| is_yaml(path)).map(|path| fs::read_to_string(path).unwrap());
    // Others are there because they can hardly be read.
    texts.filter(|text| text.contains(".istio.io/v1")).collect()
}

#[test]
fn what_can_be_said_is_taken_in_every_version_and_nothing_of_it_is_lost() {
    let kubernetes = Kubernetes::own();
    define(&kubernetes);
    let namespace = kubernetes.namespace("defined", &[]);
    let all = definitions();
    let versions_of = |object: &Value| {
        let mut of_kind = all.iter().filter(|of| of["spec"]["names"]["kind"] == object["kind"]);
        versions(of_kind.next().unwrap()).map(str::to_owned).collect::<Vec<_>>()
    };
    let elsewhere: Vec<_> =
        shown().into_iter().chain(corpus()).flat_map(|text| objects(&text, &namespace)).collect();
    assert!(elsewhere.len() >= 7, "{}", elsewhere.len());
    for object in whole(&namespace).iter().chain(&elsewhere) {
        for version in versions_of(object) {
            if let Err(error) = apply(&kubernetes, object, &version, true) {
                panic!("{version} {object:#}: {error}");
            }
        }
    }
    let kinds: Vec<_> = all.iter().map(|definition| &definition["spec"]["names"]["kind"]).collect();
    let whole = whole(&namespace);
    assert!(kinds.iter().all(|kind| whole.iter().any(|object| object["kind"] == **kind)), "{kinds:?}");
    for object in &whole {
        for version in versions_of(object) {
            let there = apply(&kubernetes, object, &version, false).unwrap();
            assert_eq!(there["spec"], object["spec"], "{version} {}", object["kind"]);
        }
    }
}

#[test]
fn what_can_not_be_right_is_refused_with_what_to_change() {
    let kubernetes = Kubernetes::own();
    define(&kubernetes);
    let namespace = kubernetes.namespace("refused", &[]);
    let refused = |kind: &str, spec: Value, wanted: &str| {
        let mut whole = whole(&namespace).into_iter().filter(|object| object["kind"] == *kind);
        let mut object = whole.next().unwrap();
        object["spec"] = spec;
        let created: DynamicObject = serde_json::from_value(object.clone()).unwrap();
        let parameters = PostParams { dry_run: true, ..PostParams::default() };
        match kubernetes.wait(api(&kubernetes, &object, "v1").create(&parameters, &created)) {
            Err(kube::Error::Api(status)) if status.code == 422 => {
                assert!(status.message.contains(wanted), "{object}: {}", status.message);
            }
            other => panic!("{object}: {other:?}"),
        }
    };
    let together = "selector, targetRef and targetRefs can't be together; keep one of them";
    let both = json!({"selector": {}, "targetRefs": [{"kind": "Service", "name": "web"}]});
    refused("AuthorizationPolicy", both.clone(), together);
    refused("RequestAuthentication", both, together);
    refused("AuthorizationPolicy", json!({"action": "DENNY"}), "spec.action: Unsupported value: \"DENNY\"");
    refused("AuthorizationPolicy", json!({"rules": {}}), "spec.rules");
    let source = json!({"serviceAccounts": ["a"], "namespaces": ["b"]});
    let mixed = json!({"rules": [{"from": [{"source": source}]}]});
    refused("AuthorizationPolicy", mixed, "serviceAccounts can't be together with principals or namespaces");
    refused("PeerAuthentication", json!({"mtls": {"mode": "ON"}}), "spec.mtls.mode");
    let of_port = json!({"80": {"mode": "STRICT"}});
    refused(
        "PeerAuthentication",
        json!({"portLevelMtls": of_port}),
        "portLevelMtls only counts with a selector",
    );
    let of_all =
        json!({"selector": {"matchLabels": {"app": "a"}}, "portLevelMtls": {"0": {"mode": "STRICT"}}});
    refused("PeerAuthentication", of_all, "from 1 to 65535");
    let keys = json!({"jwtRules": [{"issuer": "a", "jwks": "{}", "jwksUri": "https://a"}]});
    refused("RequestAuthentication", keys, "jwks and jwksUri can't be together");
    let file = json!({"jwtRules": [{"issuer": "a", "jwksUri": "file:///etc/passwd"}]});
    refused("RequestAuthentication", file, "write it as https://HOST/PATH");
    let nowhere = json!({"http": [{"route": [{"destination": {"subset": "v1"}}]}]});
    refused("VirtualService", nowhere, "spec.http[0].route[0].destination.host: Required value");
    for time in ["soon", "5", "-1s"] {
        refused("VirtualService", json!({"http": [{"timeout": time}]}), "spec.http[0].timeout");
    }
    refused("DestinationRule", json!({}), "spec.host: Required value");
    let both = json!({"simple": "RANDOM", "consistentHash": {"useSourceIp": true}});
    let both = json!({"host": "web", "trafficPolicy": {"loadBalancer": both}});
    refused("DestinationRule", both, "simple and consistentHash can't be together");
    let subset = json!({"host": "web", "subsets": [{"labels": {"a": "b"}}]});
    refused("DestinationRule", subset, "spec.subsets[0].name: Required value");
    refused("ServiceEntry", json!({"hosts": ["*"]}), "name a host: '*' alone would be all of them");
    let port = json!({"hosts": ["a.example"], "ports": [{"number": 70000, "name": "a"}]});
    refused("ServiceEntry", port, "spec.ports[0].number");
    refused("WorkloadEntry", json!({"labels": {"a": "b"}}), "it needs an address");
}
