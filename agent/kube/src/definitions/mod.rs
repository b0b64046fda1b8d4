//! The CustomResourceDefinitions of the kinds that Istio has, and of what it has in its mesh configuration, made from
//! the types which read them.
//!
//! Istio's are for clusters where its own are not, so they take whatever those take: what is not read is kept, and
//! what is wrong is told in conditions. `deploy/crds` holds them; `cargo xtask crds` writes them.

mod rules;
mod structural;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde_json::{Value, json};

use crate::object::Kind;
use crate::{
    authorization_policy, destination_rule, extension_provider, peer_authentication, rate_limit,
    request_authentication, service_entry, telemetry, virtual_service, workload_entry,
};

/// Set by `cargo xtask crds`: the files are written, and not compared.
const WRITE: &str = "ORLOP_WRITE_CRDS";

/// What is known of a kind besides its schema.
struct Definition {
    kind: Kind,
    plural: &'static str,
    short: &'static str,
    /// All that Istio serves of its own, the one that is stored first.
    versions: &'static [&'static str],
    about: &'static str,
    /// What `kubectl get` shows: headings, and where the value is.
    columns: &'static [(&'static str, &'static str)],
    spec: Value,
}

const NETWORKING: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const SECURITY: &[&str] = &["v1", "v1beta1"];

fn definitions() -> Vec<Definition> {
    vec![
        Definition {
            kind: Kind::AuthorizationPolicy,
            plural: "authorizationpolicies",
            short: "ap",
            versions: SECURITY,
            about: "Says who may call what. Without any policy that applies to a workload, everybody may.",
            columns: &[("Action", ".spec.action")],
            spec: spec::<authorization_policy::SpecObject>(),
        },
        Definition {
            kind: Kind::PeerAuthentication,
            plural: "peerauthentications",
            short: "pa",
            versions: SECURITY,
            about: "Says whether workloads take connections without mutual TLS.",
            columns: &[("Mode", ".spec.mtls.mode")],
            spec: spec::<peer_authentication::Spec>(),
        },
        Definition {
            kind: Kind::RequestAuthentication,
            plural: "requestauthentications",
            short: "ra",
            versions: SECURITY,
            about: "Says whose JSON Web Tokens are taken, and how they are verified.",
            columns: &[],
            spec: spec::<request_authentication::SpecObject>(),
        },
        Definition {
            kind: Kind::VirtualService,
            plural: "virtualservices",
            short: "vs",
            versions: NETWORKING,
            about: "Says where requests for some hosts go, and what is done with them on the way.",
            columns: &[("Gateways", ".spec.gateways"), ("Hosts", ".spec.hosts")],
            spec: spec::<virtual_service::Spec>(),
        },
        Definition {
            kind: Kind::DestinationRule,
            plural: "destinationrules",
            short: "dr",
            versions: NETWORKING,
            about: "Says how the servers of a host are treated, and which of them are a subset.",
            columns: &[("Host", ".spec.host")],
            spec: spec::<destination_rule::Spec>(),
        },
        Definition {
            kind: Kind::ServiceEntry,
            plural: "serviceentries",
            short: "se",
            versions: NETWORKING,
            about: "Makes a service known that Kubernetes does not know.",
            columns: &[
                ("Hosts", ".spec.hosts"),
                ("Location", ".spec.location"),
                ("Resolution", ".spec.resolution"),
            ],
            spec: spec::<service_entry::Spec>(),
        },
        Definition {
            kind: Kind::WorkloadEntry,
            plural: "workloadentries",
            short: "we",
            versions: NETWORKING,
            about: "Makes a workload known that is no pod.",
            columns: &[("Address", ".spec.address")],
            spec: spec::<workload_entry::BackendObject>(),
        },
        Definition {
            kind: Kind::ExtensionProvider,
            plural: "extensionproviders",
            short: "extp",
            versions: &["v1alpha1"],
            about: "Says whom AuthorizationPolicies with action CUSTOM ask, as extensionProviders of Istio's mesh \
                    configuration do.",
            columns: &[],
            spec: spec::<extension_provider::SpecObject>(),
        },
        Definition {
            kind: Kind::RateLimit,
            plural: "ratelimits",
            short: "rl",
            versions: &["v1alpha1"],
            about: "Says how many requests waypoints let pass.",
            columns: &[],
            spec: spec::<rate_limit::SpecObject>(),
        },
        Definition {
            kind: Kind::Telemetry,
            plural: "telemetries",
            short: "telemetry",
            versions: &["v1", "v1alpha1"],
            about: "Says what is told of requests: by metrics, spans and the access log.",
            columns: &[],
            spec: spec::<telemetry::SpecObject>(),
        },
    ]
}

fn spec<T: JsonSchema>() -> Value {
    structural::of::<T>()
}

impl Definition {
    fn group(&self) -> &'static str {
        self.kind.api_versions()[0].split('/').next().unwrap()
    }

    fn name(&self) -> String {
        format!("{}.{}", self.plural, self.group())
    }

    fn object(&self) -> Value {
        let (kind, group) = (self.kind.name(), self.group());
        let versions = self.versions.iter().enumerate().map(|(index, version)| {
            json!({
                "name": version, "served": true, "storage": index == 0,
                "schema": {"openAPIV3Schema": self.schema()},
                "subresources": {"status": {}},
                "additionalPrinterColumns": self.columns(),
            })
        });
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.name(), "labels": {"app.kubernetes.io/part-of": "orlop"}},
            "spec": {
                "group": group,
                "names": {
                    "kind": kind, "listKind": format!("{kind}List"), "plural": self.plural,
                    "singular": kind.to_lowercase(), "shortNames": [self.short],
                    "categories": self.categories(),
                },
                "scope": "Namespaced",
                "versions": versions.collect::<Vec<_>>(),
            },
        })
    }

    fn categories(&self) -> Vec<String> {
        match self.group().strip_suffix(".istio.io") {
            Some(part) => vec!["istio-io".to_owned(), format!("{part}-istio-io")],
            None => vec!["orlop".to_owned()],
        }
    }

    fn schema(&self) -> Value {
        let mut spec = self.spec.clone();
        spec["description"] = "What is asked for.".into();
        let mut schema = json!({
            "description": self.about,
            "type": "object",
            "properties": {"spec": spec, "status": status()},
        });
        for rule in rules::of(self.kind) {
            rule.add_to(&mut schema);
        }
        schema
    }

    fn columns(&self) -> Vec<Value> {
        let own = self.columns.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned()));
        let conditions = ["Accepted", "Programmed"].map(|kind| {
            (kind.to_owned(), format!(".status.conditions[?(@.type==\"orlop.dev/{kind}\")].status"))
        });
        let age = ("Age".to_owned(), ".metadata.creationTimestamp".to_owned());
        let columns = own.chain(conditions).chain([age]);
        columns
            .map(|(name, path)| {
                let is_time = path.ends_with("Timestamp");
                json!({"name": name, "jsonPath": path, "type": if is_time { "date" } else { "string" }})
            })
            .collect()
    }
}

/// Of any controller: each condition has an owner of its own.
fn status() -> Value {
    let text = |about: &str| json!({"description": about, "type": "string"});
    json!({
        "description": "What has become of it.",
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"conditions": {
            "description": "What is to be said of it; those of orlop.dev are Orlop's.",
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
            "items": {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": true,
                "required": ["type"],
                "properties": {
                    "type": text("orlop.dev/Accepted, orlop.dev/ResolvedRefs, orlop.dev/Programmed, or another's."),
                    "status": text("True, False or Unknown."),
                    "reason": text("Why, in one word."),
                    "message": text("Why, and what to change."),
                    // Istio writes it as text.
                    "observedGeneration": {
                        "description": "The generation that it is about.", "x-kubernetes-int-or-string": true,
                    },
                    "lastTransitionTime": text("Since when the status is this."),
                },
            },
        }},
    })
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds")
}

const HEAD: &str = "# Made from the types of agent/kube by `cargo xtask crds`.\n";

/// What the files of the directory are, by their names.
fn files() -> BTreeMap<String, String> {
    let file = |definition: Definition| {
        let name = format!("{}_{}.yaml", definition.group(), definition.plural);
        (name, format!("{HEAD}{}", serde_saphyr::to_string(&definition.object()).unwrap()))
    };
    definitions().into_iter().map(file).collect()
}

#[test]
fn those_in_deploy_are_made_from_the_types() {
    let write = std::env::var_os(WRITE).is_some();
    for (name, made) in files() {
        let path = directory().join(&name);
        let there = fs::read_to_string(&path).unwrap_or_default();
        if there != made && write {
            fs::create_dir_all(directory()).unwrap();
            fs::write(&path, &made).unwrap();
        } else {
            assert!(there == made, "{name} is not what the types say: run `cargo xtask crds`");
        }
        // Written as YAML, it is the same.
        let read: Value = serde_saphyr::from_str(&made).unwrap();
        assert_eq!(read["apiVersion"], "apiextensions.k8s.io/v1", "{name}");
    }
}

#[test]
fn every_version_that_is_read_is_defined() {
    for definition in definitions() {
        let mut read =
            definition.kind.api_versions().iter().map(|version| version.split('/').nth(1).unwrap());
        assert!(read.all(|version| definition.versions.contains(&version)), "{}", definition.name());
    }
    let conditions = Kind::all_with_conditions();
    let defined: Vec<_> = definitions().iter().map(|definition| definition.kind).collect();
    assert!(conditions.iter().all(|kind| defined.contains(kind)), "{conditions:?}");
}

#[test]
fn every_field_is_explained_and_nothing_is_cut_off() {
    fn check(schema: &Value, path: &str) {
        let is_object = schema["type"] == "object" && schema.get("properties").is_some();
        if is_object && !path.is_empty() {
            assert_eq!(schema["x-kubernetes-preserve-unknown-fields"], true, "{path}");
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            let said = field["description"].as_str().unwrap_or_default();
            assert!(said.ends_with('.'), "{path} says {said:?}");
            check(field, &path);
        }
        for (inner, name) in [("items", "[]"), ("additionalProperties", "{}")] {
            if schema[inner].is_object() {
                check(&schema[inner], &format!("{path}{name}"));
            }
        }
    }
    definitions().iter().for_each(|definition| check(&definition.schema(), ""));
}
