use std::collections::BTreeMap;

use orlop_model::world::gateway::{
    CertificateRef, FromNamespaces, Gateway, LabelTest, Listener, ListenerTls, Requirement, RouteGroupKind,
};
use orlop_model::world::gateway_api::GROUP;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::in_namespace;
use crate::field::{FieldError, FieldPath, port};
use crate::metadata::namespaced;
use crate::read::Metadata;

/// A Gateway as it is written, of whatever controller: what is not known of it is left to that.
#[derive(Debug, Deserialize)]
pub(crate) struct Object {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    gateway_class_name: String,
    listeners: Vec<ListenerObject>,
    tls: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListenerObject {
    name: String,
    port: i32,
    protocol: String,
    hostname: Option<String>,
    tls: Option<TlsObject>,
    allowed_routes: Option<AllowedObject>,
}

/// What is not known of it may be there for safety, and is kept.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TlsObject {
    mode: Option<String>,
    certificate_refs: Vec<CertificateObject>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
struct CertificateObject {
    #[serde(default)]
    group: String,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AllowedObject {
    namespaces: Option<NamespacesObject>,
    kinds: Vec<KindObject>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NamespacesObject {
    from: Option<String>,
    selector: Option<SelectorObject>,
}

/// `metav1.LabelSelector`. A misspelt field would let in more, so none is let pass.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SelectorObject {
    match_labels: BTreeMap<String, String>,
    match_expressions: Vec<ExpressionObject>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ExpressionObject {
    key: String,
    operator: String,
    values: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct KindObject {
    group: Option<String>,
    kind: String,
}

/// Converts a Gateway.
pub(crate) fn convert(object: Object) -> Result<Gateway, FieldError> {
    let Spec { gateway_class_name: class, listeners, tls } = object.spec;
    let name = namespaced(&object.metadata)?;
    let listeners = listeners.into_iter().enumerate().map(|(index, of)| {
        let path = FieldPath::from("spec.listeners").index(index);
        of.convert(&name.namespace, &path)
    });
    let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
    Ok(Gateway { name, class, listeners, tls: tls.is_some() })
}

impl ListenerObject {
    fn convert(self, namespace: &str, path: &FieldPath) -> Result<Listener, FieldError> {
        let allowed = self.allowed_routes.unwrap_or_default();
        let at = || path.clone().key("allowedRoutes").key("namespaces").key("selector");
        let hostname = self.hostname.filter(|hostname| !hostname.is_empty());
        let kinds = allowed.kinds.into_iter().map(|KindObject { group, kind }| RouteGroupKind {
            group: group.unwrap_or_else(|| GROUP.to_owned()),
            kind,
        });
        Ok(Listener {
            name: self.name,
            port: port(self.port, || path.clone().key("port"))?,
            protocol: self.protocol,
            hostname: hostname.map(|hostname| hostname.to_ascii_lowercase()),
            tls: self.tls.map(|tls| tls.convert(namespace)),
            namespaces: from(allowed.namespaces.unwrap_or_default(), at)?,
            kinds: kinds.collect(),
        })
    }
}

impl TlsObject {
    fn convert(self, namespace: &str) -> ListenerTls {
        let certificates = self.certificate_refs.into_iter().map(|of| CertificateRef {
            group: of.group,
            kind: of.kind.unwrap_or_else(|| "Secret".to_owned()),
            name: in_namespace(of.namespace, of.name, namespace),
        });
        // What is empty asks for nothing.
        let is_empty = |value: &Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
        let unread = self.others.into_iter().find(|(_, value)| !is_empty(value)).map(|(field, _)| field);
        ListenerTls { mode: self.mode, certificates: certificates.collect(), unread }
    }
}

fn from(of: NamespacesObject, path: impl Fn() -> FieldPath) -> Result<FromNamespaces, FieldError> {
    Ok(match of.from.as_deref() {
        None | Some("Same") => FromNamespaces::Same,
        Some("All") => FromNamespaces::All,
        // Without a selector none is selected.
        Some("Selector") => match of.selector {
            Some(selector) => FromNamespaces::Selector(selector.convert(path)?),
            None => FromNamespaces::None,
        },
        Some(_) => FromNamespaces::None,
    })
}

impl SelectorObject {
    fn convert(self, path: impl Fn() -> FieldPath) -> Result<Vec<Requirement>, FieldError> {
        let labels = self.match_labels.into_iter();
        let labels = labels.map(|(key, value)| Ok(Requirement { key, test: LabelTest::In(vec![value]) }));
        let expressions = self.match_expressions.into_iter().enumerate().map(|(index, of)| {
            let ExpressionObject { key, operator, values } = of;
            let test = match operator.as_str() {
                "In" => LabelTest::In(values),
                "NotIn" => LabelTest::NotIn(values),
                "Exists" => LabelTest::Exists,
                "DoesNotExist" => LabelTest::DoesNotExist,
                other => {
                    let path = path().key("matchExpressions").index(index).key("operator");
                    let problem = format!("{other:?} is none of In, NotIn, Exists, DoesNotExist");
                    return Err(FieldError::new(path, problem));
                }
            };
            Ok(Requirement { key, test })
        });
        labels.chain(expressions).collect()
    }
}
