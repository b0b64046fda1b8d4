use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::field::FieldError;
use crate::object::{Key, Kind, Object, Source};

/// An object as the API server sent it. Only its name is read, so that one that is malformed spoils no other, and of
/// a long list each is converted and gone before the next.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// Name, namespace and version alone.
    metadata: ObjectMeta,
    text: Box<RawValue>,
}

impl Item {
    pub fn key(&self, kind: Kind) -> Key {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Key::new(kind, &text(&self.metadata.namespace), &text(&self.metadata.name))
    }

    pub fn convert(&self, kind: Kind) -> Result<Object, FieldError> {
        let mut text = serde_json::Deserializer::from_str(self.text.get());
        kind.convert(&mut text, Source::Cluster)
    }

    pub fn text(&self) -> &str {
        self.text.get()
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let Head { metadata } = serde_json::from_str(text.get()).map_err(D::Error::custom)?;
        let metadata = ObjectMeta {
            name: metadata.name,
            namespace: metadata.namespace,
            resource_version: metadata.resource_version,
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, text })
    }
}

#[derive(Deserialize)]
struct Head {
    metadata: HeadMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadMetadata {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
}

impl Resource for Item {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        of.kind.as_str().into()
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        of.group.as_str().into()
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        of.version.as_str().into()
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        of.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{ObjectList, WatchEvent};

    use super::*;

    const BAD: &str = r#"{"metadata": {"name": "bad", "namespace": "shop", "resourceVersion": "7"},
                          "spec": {"containers": "none"}}"#;
    const GOOD: &str =
        r#"{"metadata": {"name": "web", "namespace": "shop"}, "status": {"podIP": "10.0.0.1"}}"#;

    #[test]
    fn a_malformed_object_spoils_no_other() {
        let list = format!(
            r#"{{"kind": "PodList", "apiVersion": "v1", "metadata": {{}}, "items": [{BAD}, {GOOD}]}}"#
        );
        let list: ObjectList<Item> = serde_json::from_str(&list).unwrap();
        let error = list.items[0].convert(Kind::Pod).unwrap_err();
        assert_eq!(error.path.to_string(), "spec.containers");
        assert_eq!(list.items[0].key(Kind::Pod).to_string(), "Pod shop/bad");
        assert!(matches!(list.items[1].convert(Kind::Pod), Ok(Object::Pod(pod)) if pod.addresses.len() == 1));
    }

    #[test]
    fn an_event_holds_an_item_too() {
        let event = format!(r#"{{"type": "ADDED", "object": {BAD}}}"#);
        let event: WatchEvent<Item> = serde_json::from_str(&event).unwrap();
        let WatchEvent::Added(item) = event else { panic!("{event:?}") };
        assert_eq!(item.meta().resource_version.as_deref(), Some("7"));
    }
}
