use std::collections::BTreeMap;

use orlop_model::world::security::{Mode, PeerAuthentication};
use serde::Deserialize;

use crate::field::{FieldError, FieldPath, NotNull};
use crate::metadata::namespaced;
use crate::selector::{self, Selector};
use crate::written::Written;

/// A `security.istio.io` PeerAuthentication.
pub(crate) type Object = Written<Spec>;

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Spec {
    /// The workloads that this is for. Without it, all of the namespace, or of the mesh in the root
    /// namespace.
    selector: NotNull<Selector>,
    /// Whether connections must come with mutual TLS.
    mtls: NotNull<Mtls>,
    /// The same by the port of the workload, in quotes. Needs a selector.
    port_level_mtls: NotNull<BTreeMap<String, Mtls>>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct Mtls {
    /// STRICT takes mutual TLS alone, PERMISSIVE takes plain text too, DISABLE no mutual TLS; UNSET is as the
    /// next wider policy says.
    mode: NotNull<String>,
}

/// Converts a PeerAuthentication.
pub(crate) fn convert(object: Object) -> Result<PeerAuthentication, FieldError> {
    let name = namespaced(&object.metadata)?;
    let spec = object.spec.0.unwrap_or_default();
    let selector = selector::convert(spec.selector.0)?;
    let ports = ports(spec.port_level_mtls.0.unwrap_or_default())?;
    if selector.is_empty() && !ports.is_empty() {
        let problem = "only counts with a selector; name the workload's labels in spec.selector.matchLabels";
        return Err(FieldError::new("spec.portLevelMtls", problem));
    }
    Ok(PeerAuthentication {
        name,
        created: object.metadata.creation_timestamp.map(|time| time.0.as_second()),
        selector,
        mode: mode(spec.mtls.0.as_ref(), || "spec.mtls.mode".into())?,
        ports,
    })
}

fn ports(ports: BTreeMap<String, Mtls>) -> Result<BTreeMap<u16, Option<Mode>>, FieldError> {
    let mut found = BTreeMap::new();
    for (number, mtls) in ports {
        let path = || FieldPath::from("spec.portLevelMtls").key(&number);
        let port = number.parse().ok().filter(|&port| port != 0 && !number.starts_with('+'));
        let port = port.ok_or_else(|| {
            FieldError::new(path(), format!("{number:?} is not a port: want 1 to 65535, of the pod"))
        })?;
        found.insert(port, mode(Some(&mtls), || path().key("mode"))?);
    }
    Ok(found)
}

fn mode(mtls: Option<&Mtls>, path: impl FnOnce() -> FieldPath) -> Result<Option<Mode>, FieldError> {
    match mtls.and_then(|mtls| mtls.mode.0.as_deref()) {
        None | Some("UNSET") => Ok(None),
        Some("PERMISSIVE") => Ok(Some(Mode::Permissive)),
        Some("STRICT") => Ok(Some(Mode::Strict)),
        Some("DISABLE") => Ok(Some(Mode::Disable)),
        Some(other) => {
            let problem = format!("{other:?} is not UNSET, DISABLE, PERMISSIVE or STRICT");
            Err(FieldError::new(path(), problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn everything_the_mesh_reads_is_carried_over() {
        let policy = policy(json!({
            "selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": "STRICT"},
            "portLevelMtls": {"8080": {"mode": "DISABLE"}, "9090": {"mode": "UNSET"}, "9091": {}},
        }))
        .unwrap();
        assert_eq!(policy.name.to_string(), "shop/web");
        assert_eq!(policy.created, Some(1_700_000_000));
        assert_eq!(policy.selector["app"], "web");
        assert_eq!(policy.mode, Some(Mode::Strict));
        assert_eq!(policy.ports, [(8080, Some(Mode::Disable)), (9090, None), (9091, None)].into());
    }

    #[test]
    fn without_a_mode_it_is_unset() {
        for spec in [json!({}), json!({"mtls": {}}), json!({"mtls": {"mode": "UNSET"}})] {
            assert_eq!(policy(spec).unwrap().mode, None);
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        let named = |spec| policy(spec).unwrap_err().path.to_string();
        let selector = json!({"matchLabels": {"app": "web"}});
        assert_eq!(named(json!({"mtls": {"mode": "strict"}})), "spec.mtls.mode");
        assert_eq!(named(json!({"portLevelMtls": {"80": {"mode": "STRICT"}}})), "spec.portLevelMtls");
        assert_eq!(named(json!({"selector": selector, "portLevelMtls": {"0": {}}})), "spec.portLevelMtls.0");
        assert_eq!(
            named(json!({"selector": selector, "portLevelMtls": {"http": {}}})),
            "spec.portLevelMtls.http"
        );
        let wrong = json!({"selector": selector, "portLevelMtls": {"80": {"mode": "ON"}}});
        assert_eq!(named(wrong), "spec.portLevelMtls.80.mode");
        assert_eq!(
            named(json!({"selector": {"matchLabels": {"app": "we*"}}})),
            "spec.selector.matchLabels.app"
        );
    }

    #[test]
    fn fields_nobody_reads_and_empty_ones_are_refused() {
        for spec in [
            json!({"mTLS": {"mode": "STRICT"}}),
            json!({"mtls": {"Mode": "STRICT"}}),
            json!({"selector": {"matchExpressions": []}}),
            json!({"selector": {"matchLabels": null}}),
            json!({"mtls": null}),
            json!({"mtls": {"mode": null}}),
            json!(null),
        ] {
            assert!(serde_json::from_value::<Object>(object(&spec)).is_err(), "{spec}");
        }
    }

    fn policy(spec: Value) -> Result<PeerAuthentication, FieldError> {
        convert(serde_json::from_value(object(&spec)).unwrap())
    }

    fn object(spec: &Value) -> Value {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "spec": spec,
            "metadata": {"name": "web", "namespace": "shop", "creationTimestamp": "2023-11-14T22:13:20Z"},
        })
    }
}
