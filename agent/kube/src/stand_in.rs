use std::sync::Arc;

use orlop_model::world::Labels;
use orlop_model::world::security::{Action, AuthorizationPolicy, Mode, PeerAuthentication, Rule};
use serde::Deserialize;
use serde_json::Value;

use crate::object::{Key, Object};

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
