use orlop_model::world::security::Target;
use serde::Deserialize;

use crate::field::{FieldError, FieldPath, NotNull};

/// Gateway API's and Istio's PolicyTargetReference.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct TargetObject {
    /// The API group of what is meant; empty for a Service.
    #[serde(default)]
    group: String,
    /// Service, ServiceEntry, Gateway or GatewayClass.
    kind: Option<String>,
    /// Its name.
    name: Option<String>,
    /// Its namespace: the policy's own, which is also meant if it is left out.
    namespace: Option<String>,
}

/// What a policy is for: `spec.targetRefs`, and `spec.targetRef` for one.
pub(crate) fn targets(
    several: NotNull<Vec<TargetObject>>,
    single: NotNull<TargetObject>,
    own_namespace: &str,
) -> Result<Vec<Target>, FieldError> {
    let path = FieldPath::from("spec.targetRefs");
    let mut targets = Vec::new();
    if let Some(several) = several.0 {
        if several.is_empty() {
            return Err(FieldError::new(path, "is an empty list; fill it, or leave it out to mean any"));
        }
        for (index, entry) in several.into_iter().enumerate() {
            targets.push(target(entry, own_namespace, &path.clone().index(index))?);
        }
    }
    if let Some(single) = single.0 {
        targets.push(target(single, own_namespace, &"spec.targetRef".into())?);
    }
    Ok(targets)
}

fn target(target: TargetObject, own_namespace: &str, path: &FieldPath) -> Result<Target, FieldError> {
    let TargetObject { group, kind: Some(kind), name: Some(name), namespace } = target else {
        return Err(FieldError::new(path.clone(), "needs a kind and a name"));
    };
    if namespace.is_some_and(|namespace| namespace != own_namespace) {
        let problem = format!("must be the policy's own, {own_namespace}, or left out");
        return Err(FieldError::new(path.clone().key("namespace"), problem));
    }
    match (group.as_str(), kind.as_str()) {
        ("" | "core", "Service") => Ok(Target::Service(name)),
        ("networking.istio.io", "ServiceEntry") => Ok(Target::ServiceEntry(name)),
        ("gateway.networking.k8s.io", "Gateway") => Ok(Target::Gateway(name)),
        ("gateway.networking.k8s.io", "GatewayClass") => Ok(Target::GatewayClass(name)),
        _ => {
            let problem = format!(
                "kind {kind} of group {group:?} has no policies; write Service with group \"\", ServiceEntry with \
                 networking.istio.io, or Gateway or GatewayClass with gateway.networking.k8s.io"
            );
            Err(FieldError::new(path.clone(), problem))
        }
    }
}
