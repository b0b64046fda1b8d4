//! What of the Gateway API's definitions the controller reads and writes: defaults, lists that are merged by a key,
//! and a status that is written by itself.

use serde_json::{Value, json};

use super::api::Kubernetes;

/// Makes the kinds, and waits until there can be objects of them.
pub fn define(kubernetes: &Kubernetes) {
    let listener = object(&json!({
        "name": {"type": "string"},
        "port": {"type": "integer", "minimum": 1, "maximum": 65535},
        "protocol": {"type": "string"},
        "hostname": {"type": "string"},
        "tls": anything(),
        "allowedRoutes": anything(),
    }));
    let gateway = object(&json!({
        "gatewayClassName": {"type": "string"},
        "listeners": map_by("name", &listener),
        "addresses": {"type": "array", "items": anything()},
        "infrastructure": object(&json!({
            "labels": strings(), "annotations": strings(), "parametersRef": anything(),
        })),
    }));
    let listener_status = object(&json!({
        "name": {"type": "string"},
        "attachedRoutes": {"type": "integer"},
        "supportedKinds": {"type": "array", "items": anything()},
        "conditions": map_by("type", &condition()),
    }));
    let mut conditions = map_by("type", &condition());
    conditions["default"] = json!(["Accepted", "Programmed"].map(waits));
    let status = object(&json!({
        "addresses": {"type": "array", "items": object(&json!({
            "type": {"type": "string"}, "value": {"type": "string"},
        }))},
        "conditions": conditions,
        "listeners": map_by("name", &listener_status),
    }));
    kind(kubernetes, "Gateway", "gateways", "Namespaced", &gateway, status);

    let class = object(&json!({
        "controllerName": {"type": "string"},
        "description": {"type": "string", "maxLength": 64},
        "parametersRef": anything(),
    }));
    let mut conditions = map_by("type", &condition());
    conditions["default"] = json!([waits("Accepted")]);
    let status = object(&json!({"conditions": conditions}));
    kind(kubernetes, "GatewayClass", "gatewayclasses", "Cluster", &class, status);
}

fn kind(kubernetes: &Kubernetes, kind: &str, plural: &str, scope: &str, spec: &Value, status: Value) {
    let mut status = status;
    status["default"] = json!({});
    let mut schema = object(&json!({"spec": spec, "status": status}));
    schema["required"] = json!(["spec"]);
    kubernetes.apply(&json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.gateway.networking.k8s.io"),
            "annotations": {
                "api-approved.kubernetes.io": "unapproved, made by tests",
                "gateway.networking.k8s.io/bundle-version": "v1.4.0",
            },
        },
        "spec": {
            "group": "gateway.networking.k8s.io", "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    }));
    kubernetes.wait_served(&format!("/apis/gateway.networking.k8s.io/v1/{plural}"));
}

fn object(properties: &Value) -> Value {
    json!({"type": "object", "properties": properties})
}

fn anything() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

fn strings() -> Value {
    json!({"type": "object", "additionalProperties": {"type": "string"}})
}

fn map_by(key: &str, items: &Value) -> Value {
    let mut items = items.clone();
    items["required"] = json!([key]);
    json!({
        "type": "array", "items": items,
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key],
    })
}

fn condition() -> Value {
    object(&json!({
        "type": {"type": "string"},
        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
        "reason": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
        "message": {"type": "string", "maxLength": 32768},
        "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
        "lastTransitionTime": {"type": "string", "format": "date-time"},
    }))
}

/// What a condition is before a controller has seen the object.
fn waits(kind: &str) -> Value {
    json!({
        "type": kind, "status": "Unknown", "reason": "Pending", "message": "Waiting for controller",
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    })
}
