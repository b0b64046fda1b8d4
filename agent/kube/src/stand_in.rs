use std::sync::Arc;

use orlop_model::world::security::{Action, AuthorizationPolicy, Mode, PeerAuthentication, Rule, Target};
use orlop_model::world::{Labels, RateLimit, RequestAuthentication};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::destination_rule;
use crate::field::NotNull;
use crate::gateway_api::backend_tls;
use crate::object::{Key, Object};
use crate::target::{self, TargetObject};

/// What is in force in place of an object that can't be understood and was never good: of a policy the strictest
/// that it could be, for the workloads it selects or the targets it names if those can be read, else for its whole scope.
pub(crate) fn stand_in(key: &Key, text: &str) -> Option<Object> {
    #[derive(Deserialize)]
    struct Written {
        spec: Value,
    }
    let spec = serde_json::from_str::<Written>(text).map(|written| written.spec).unwrap_or_default();
    match key {
        Key::AuthorizationPolicy(name) => Some(Object::AuthorizationPolicy(Arc::new(AuthorizationPolicy {
            name: name.clone(),
            selector: selector(&spec),
            targets: targets(&spec, &name.namespace),
            action: Action::Deny,
            // Without conditions: it matches anything.
            rules: vec![Rule::default()],
            ..AuthorizationPolicy::default()
        }))),
        Key::PeerAuthentication(name) => Some(Object::PeerAuthentication(Arc::new(PeerAuthentication {
            name: name.clone(),
            selector: selector(&spec),
            mode: Some(Mode::Strict),
            ..PeerAuthentication::default()
        }))),
        Key::RequestAuthentication(name) => {
            Some(Object::RequestAuthentication(Arc::new(RequestAuthentication {
                name: name.clone(),
                targets: targets(&spec, &name.namespace),
                unreadable: true,
                ..RequestAuthentication::default()
            })))
        }
        Key::RateLimit(name) => Some(Object::RateLimit(Arc::new(RateLimit {
            name: name.clone(),
            targets: targets(&spec, &name.namespace),
            unreadable: true,
            ..RateLimit::default()
        }))),
        Key::DestinationRule(name) => {
            destination_rule::stand_in(name, &spec).map(|rule| Object::DestinationRule(Arc::new(rule)))
        }
        Key::BackendTls(name) => Some(Object::BackendTls(Arc::new(backend_tls::stand_in(name, &spec)))),
        _ => None,
    }
}

fn selector(spec: &Value) -> Labels {
    let labels = spec.pointer("/selector/matchLabels");
    labels.and_then(|labels| Labels::deserialize(labels).ok()).unwrap_or_default()
}

/// What it is for; nothing where one of them can't be read, or where it also selects workloads, so that it is for its
/// whole scope.
fn targets(spec: &Value, namespace: &str) -> Vec<Target> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        selector: Option<IgnoredAny>,
        #[serde(default)]
        target_refs: NotNull<Vec<TargetObject>>,
        #[serde(default)]
        target_ref: NotNull<TargetObject>,
    }
    match Spec::deserialize(spec) {
        Ok(Spec { selector: None, target_refs, target_ref }) => {
            target::targets(target_refs, target_ref, namespace).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}
