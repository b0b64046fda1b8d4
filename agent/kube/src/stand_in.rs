use std::sync::Arc;

use orlop_model::world::security::{Action, AuthorizationPolicy, Mode, PeerAuthentication, Rule, Target};
use orlop_model::world::{Labels, RequestAuthentication};
use serde::Deserialize;
use serde_json::Value;

use crate::field::NotNull;
use crate::object::{Key, Object};
use crate::target;

/// What is in force in place of an object that can't be understood and was never good: of a policy the strictest
/// that it could be, for the workloads it selects if that can be read, else for its whole scope.
pub(crate) fn stand_in(key: &Key, text: &str) -> Option<Object> {
    match key {
        Key::AuthorizationPolicy(name) => Some(Object::AuthorizationPolicy(Arc::new(AuthorizationPolicy {
            name: name.clone(),
            selector: selector(text),
            action: Action::Deny,
            // Without conditions: it matches anything.
            rules: vec![Rule::default()],
            ..AuthorizationPolicy::default()
        }))),
        Key::PeerAuthentication(name) => Some(Object::PeerAuthentication(PeerAuthentication {
            name: name.clone(),
            selector: selector(text),
            mode: Some(Mode::Strict),
            ..PeerAuthentication::default()
        })),
        Key::RequestAuthentication(name) => {
            Some(Object::RequestAuthentication(Arc::new(RequestAuthentication {
                name: name.clone(),
                targets: targets(text, &name.namespace),
                unreadable: true,
                ..RequestAuthentication::default()
            })))
        }
        _ => None,
    }
}

fn selector(text: &str) -> Labels {
    #[derive(Deserialize)]
    struct Object {
        spec: Value,
    }
    let object = serde_json::from_str::<Object>(text).ok();
    let labels = object.and_then(|object| object.spec.pointer("/selector/matchLabels").cloned());
    labels.and_then(|labels| serde_json::from_value(labels).ok()).unwrap_or_default()
}

/// What it is for; nothing where one of them can't be read, so that it is for its whole scope.
fn targets(text: &str, namespace: &str) -> Vec<Target> {
    #[derive(Deserialize)]
    struct Object {
        spec: Spec,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        #[serde(default)]
        target_refs: NotNull<Vec<target::TargetObject>>,
        #[serde(default)]
        target_ref: NotNull<target::TargetObject>,
    }
    let object = serde_json::from_str::<Object>(text).ok();
    let targets =
        object.and_then(|Object { spec }| target::targets(spec.target_refs, spec.target_ref, namespace).ok());
    targets.unwrap_or_default()
}
