//! BackendTLSPolicy.

use std::collections::BTreeMap;
use std::sync::Arc;

use orlop_model::NamespacedName;
use orlop_model::world::gateway_api::{BackendProblem, BackendTarget, BackendTls};
use orlop_model::world::routing::{CertificateRef, Roots, ServerCheck};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::field::{FieldError, FieldPath, host};
use crate::metadata::namespaced;
use crate::read::Metadata;

/// A BackendTLSPolicy as it is written. A misspelt field could be the one that says whom to believe, so none is let pass.
#[derive(Debug, Deserialize)]
pub(crate) struct Object {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Spec {
    target_refs: Vec<TargetObject>,
    validation: ValidationObject,
    options: BTreeMap<String, IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct TargetObject {
    group: String,
    kind: String,
    name: String,
    section_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ValidationObject {
    ca_certificate_refs: Vec<ReferenceObject>,
    #[serde(rename = "wellKnownCACertificates")]
    well_known: Option<String>,
    hostname: String,
    subject_alt_names: Vec<NameObject>,
}

/// How many `caCertificateRefs` there may be, as the Gateway API defines it.
const MAX_REFS: usize = 8;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReferenceObject {
    group: String,
    kind: String,
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NameObject {
    #[serde(rename = "type")]
    kind: String,
    hostname: String,
    uri: String,
}

/// Converts a BackendTLSPolicy.
pub(crate) fn convert(object: Object) -> Result<BackendTls, FieldError> {
    let name = namespaced(&object.metadata)?;
    let spec = object.spec;
    let unread = if spec.options.is_empty() { Vec::new() } else { vec!["options".to_owned()] };
    Ok(BackendTls {
        created: object.metadata.creation_timestamp.map(|time| time.0.as_second()),
        targets: spec.target_refs.into_iter().filter_map(TargetObject::service).collect(),
        anything: false,
        check: spec.validation.convert(&"spec.validation".into())?,
        unread,
        name,
    })
}

/// In place of one that can't be understood and was never good: nothing goes there in clear.
pub(crate) fn stand_in(name: &NamespacedName, spec: &Value) -> BackendTls {
    let targets = Vec::<TargetObject>::deserialize(&spec["targetRefs"]);
    BackendTls {
        name: name.clone(),
        created: None,
        anything: targets.is_err(),
        targets: targets.into_iter().flatten().filter_map(TargetObject::service).collect(),
        check: Err(BackendProblem::Invalid("it can't be understood".to_owned())),
        unread: Vec::new(),
    }
}

/// What an entry of `targetRefs` names, if that is a Service.
pub(crate) fn target(entry: &Value) -> Option<BackendTarget> {
    TargetObject::deserialize(entry).ok()?.service()
}

impl TargetObject {
    /// `None` if it is something else, which is nobody's concern here.
    fn service(self) -> Option<BackendTarget> {
        let is_service = (self.group.is_empty() || self.group == "core") && self.kind == "Service";
        let port = self.section_name.filter(|section| !section.is_empty());
        is_service.then_some(BackendTarget { service: self.name, port })
    }
}

impl ValidationObject {
    fn convert(self, path: &FieldPath) -> Result<Result<Arc<ServerCheck>, BackendProblem>, FieldError> {
        let at = |key: &str| path.clone().key(key);
        let sni = host(&self.hostname, || at("hostname"))?;
        let names = self.subject_alt_names.iter().enumerate().map(|(index, of)| {
            let path = at("subjectAltNames").index(index);
            match of.kind.as_str() {
                "Hostname" => of.name(&of.hostname, path.key("hostname")),
                "URI" => of.name(&of.uri, path.key("uri")),
                other => Err(FieldError::new(path.key("type"), format!("{other:?} is not Hostname or URI"))),
            }
        });
        let names = names.collect::<Result<_, _>>()?;
        Ok(self
            .roots(path)
            .map(|roots| Arc::new(ServerCheck { sni: Some(sni), names, roots, credential: None })))
    }

    /// Whose signatures are believed.
    fn roots(&self, path: &FieldPath) -> Result<Roots, BackendProblem> {
        let at = |key: &str, why: &str| format!("{}: {why}", path.clone().key(key));
        let invalid = |why: &str| Err(BackendProblem::Invalid(at("wellKnownCACertificates", why)));
        let refs = &self.ca_certificate_refs;
        match self.well_known.as_deref().filter(|name| !name.is_empty()) {
            Some(_) if !refs.is_empty() => invalid("leave it out, or caCertificateRefs"),
            None if refs.len() > MAX_REFS => Err(BackendProblem::Invalid(at(
                "caCertificateRefs",
                &format!("there may be {MAX_REFS}, and are {}", refs.len()),
            ))),
            None if !refs.is_empty() => Ok(Roots::Named(refs.iter().map(ReferenceObject::convert).collect())),
            Some("System") => Ok(Roots::Public),
            Some(other) => invalid(&format!("{other:?} is not System")),
            None => invalid("nothing says whose certificates are believed"),
        }
    }
}

impl ReferenceObject {
    fn convert(&self) -> CertificateRef {
        let Self { group, kind, name } = self;
        match (group.as_str(), kind.as_str()) {
            ("" | "core", "ConfigMap") => CertificateRef::ConfigMap(name.as_str().into()),
            ("", kind) => CertificateRef::Other(format!("{kind} {name}")),
            (group, kind) => CertificateRef::Other(format!("{kind}.{group} {name}")),
        }
    }
}

impl NameObject {
    fn name(&self, name: &str, path: FieldPath) -> Result<String, FieldError> {
        if name.is_empty() {
            return Err(FieldError::new(path, "is missing"));
        }
        Ok(name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn converted(spec: Value) -> Result<BackendTls, FieldError> {
        let object = json!({"metadata": {"name": "t", "namespace": "shop"}, "spec": spec});
        convert(serde_json::from_value(object).unwrap())
    }

    fn validated(validation: Value) -> Result<Result<Arc<ServerCheck>, BackendProblem>, FieldError> {
        converted(json!({"validation": validation})).map(|of| of.check)
    }

    #[test]
    fn what_a_waypoint_can_do_is_carried_over() {
        let of = converted(json!({
            "targetRefs": [
                {"group": "", "kind": "Service", "name": "web", "sectionName": "https"},
                {"group": "", "kind": "Service", "name": "api"},
                {"group": "example.com", "kind": "Bucket", "name": "b"},
            ],
            "validation": {
                "hostname": "Web.example", "wellKnownCACertificates": "System",
                "subjectAltNames": [
                    {"type": "Hostname", "hostname": "a.example"}, {"type": "URI", "uri": "spiffe://a/b"},
                ],
            },
        }))
        .unwrap();
        let target = |name: &str, port: Option<&str>| BackendTarget {
            service: name.to_owned(),
            port: port.map(str::to_owned),
        };
        assert_eq!(of.targets, [target("web", Some("https")), target("api", None)]);
        let check = ServerCheck {
            sni: Some("web.example".into()),
            names: vec!["a.example".into(), "spiffe://a/b".into()],
            roots: Roots::Public,
            credential: None,
        };
        assert_eq!(of.check, Ok(Arc::new(check)));
    }

    #[test]
    fn references_to_certificates_are_kept_as_they_are() {
        let refs = json!([
            {"group": "", "kind": "ConfigMap", "name": "ca"}, {"group": "", "kind": "Secret", "name": "s"},
            {"group": "example.com", "kind": "ConfigMap", "name": "c"},
        ]);
        let check = validated(json!({"hostname": "a.example", "caCertificateRefs": refs})).unwrap().unwrap();
        let other = |text: &str| CertificateRef::Other(text.to_owned());
        let refs =
            [CertificateRef::ConfigMap("ca".into()), other("Secret s"), other("ConfigMap.example.com c")];
        assert_eq!(check.roots, Roots::Named(refs.to_vec()));
    }

    #[test]
    fn what_it_can_not_do_is_refused() {
        let reference = json!({"group": "", "kind": "ConfigMap", "name": "ca"});
        let many = vec![&reference; MAX_REFS + 1];
        for validation in [
            json!({"hostname": "a.example"}),
            json!({"hostname": "a.example", "wellKnownCACertificates": ""}),
            json!({"hostname": "a.example", "wellKnownCACertificates": "Mine"}),
            json!({"hostname": "a.example", "caCertificateRefs": many}),
            json!({
                "hostname": "a.example", "wellKnownCACertificates": "System", "caCertificateRefs": [reference],
            }),
        ] {
            let problem = validated(validation).unwrap().unwrap_err();
            assert!(matches!(problem, BackendProblem::Invalid(_)), "{problem}");
        }
        assert!(validated(json!({"wellKnownCACertificates": "System"})).is_err());
        let odd = json!({"targetRefs": [{"group": "", "kind": "Service", "name": "web"}], "validation": 7});
        let of = stand_in(&NamespacedName::new("shop", "t"), &odd);
        assert_eq!((of.anything, of.targets.len()), (false, 1));
        assert!(of.check.is_err());
        assert!(stand_in(&NamespacedName::new("shop", "t"), &json!({"targetRefs": 7})).anything);
        assert!(stand_in(&NamespacedName::new("shop", "t"), &Value::Null).anything);
    }
}
