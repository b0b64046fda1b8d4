use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use orlop_model::NamespacedName;
use orlop_model::world::routing::{DestinationRule, VirtualService};
use orlop_model::world::security::{AuthorizationPolicy, PeerAuthentication};
use orlop_model::world::{
    EndpointSlice, Namespace, Node as ClusterNode, Pod, Service, ServiceEntry, WorkloadEntry,
};
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use super::node::{Node, parse};
use crate::error::{Place, WorldError};
use crate::field::{FieldError, FieldPath};
use crate::{
    authorization_policy, destination_rule, endpoint_slice, namespace, node, peer_authentication, pod,
    service, service_entry, virtual_service, workload_entry,
};

/// What one file holds, with the line of each object.
#[derive(Debug, Default)]
pub(super) struct Objects(pub BTreeMap<Key, (Object, u64)>);

/// Kind and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Namespace(String),
    Node(String),
    Pod(NamespacedName),
    Service(NamespacedName),
    EndpointSlice(NamespacedName),
    ServiceEntry(NamespacedName),
    WorkloadEntry(NamespacedName),
    AuthorizationPolicy(NamespacedName),
    PeerAuthentication(NamespacedName),
    VirtualService(NamespacedName),
    DestinationRule(NamespacedName),
}

#[derive(Clone, Debug)]
pub(super) enum Object {
    Namespace(String, Namespace),
    Node(String, ClusterNode),
    Pod(Box<Pod>),
    Service(Service),
    EndpointSlice(EndpointSlice),
    ServiceEntry(Box<ServiceEntry>),
    WorkloadEntry(Box<WorkloadEntry>),
    /// At the same place in every world for as long as its file doesn't change.
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    PeerAuthentication(PeerAuthentication),
    VirtualService(Arc<VirtualService>),
    DestinationRule(Arc<DestinationRule>),
}

impl Object {
    fn key(&self) -> Key {
        match self {
            Object::Namespace(name, _) => Key::Namespace(name.clone()),
            Object::Node(name, _) => Key::Node(name.clone()),
            Object::Pod(pod) => Key::Pod(pod.name.clone()),
            Object::Service(service) => Key::Service(service.name.clone()),
            Object::EndpointSlice(slice) => Key::EndpointSlice(slice.name.clone()),
            Object::ServiceEntry(entry) => Key::ServiceEntry(entry.name.clone()),
            Object::WorkloadEntry(entry) => Key::WorkloadEntry(entry.name.clone()),
            Object::AuthorizationPolicy(policy) => Key::AuthorizationPolicy(policy.name.clone()),
            Object::PeerAuthentication(policy) => Key::PeerAuthentication(policy.name.clone()),
            Object::VirtualService(of) => Key::VirtualService(of.name.clone()),
            Object::DestinationRule(of) => Key::DestinationRule(of.name.clone()),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Namespace(name) => write!(f, "Namespace {name}"),
            Key::Node(name) => write!(f, "Node {name}"),
            Key::Pod(name) => write!(f, "Pod {name}"),
            Key::Service(name) => write!(f, "Service {name}"),
            Key::EndpointSlice(name) => write!(f, "EndpointSlice {name}"),
            Key::ServiceEntry(name) => write!(f, "ServiceEntry {name}"),
            Key::WorkloadEntry(name) => write!(f, "WorkloadEntry {name}"),
            Key::AuthorizationPolicy(name) => write!(f, "AuthorizationPolicy {name}"),
            Key::PeerAuthentication(name) => write!(f, "PeerAuthentication {name}"),
            Key::VirtualService(name) => write!(f, "VirtualService {name}"),
            Key::DestinationRule(name) => write!(f, "DestinationRule {name}"),
        }
    }
}

/// Parses a file's text. One bad object spoils the file, so that nobody acts on half of a change.
pub(super) fn read(path: &Arc<PathBuf>, text: &str) -> Result<Objects, WorldError> {
    let documents = parse(text).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let place = Place { path: path.clone(), line };
        WorldError::Syntax { place, problem: syntax_problem(&error) }
    })?;
    let mut file = File { path: path.clone(), objects: Objects::default() };
    for document in &documents {
        file.take(document, None)?;
    }
    Ok(file.objects)
}

struct File {
    path: Arc<PathBuf>,
    objects: Objects,
}

impl File {
    /// Takes in a document, or an item of a typed list (`PodList`), whose items leave out version and kind.
    fn take(&mut self, node: &Node, inherited: Option<(&str, &str)>) -> Result<(), WorldError> {
        let inherited = inherited.filter(|_| node.is_mapping());
        let text = |key: &str| node.get(key).and_then(Node::string);
        let kind = text("kind").or(inherited.map(|(_, kind)| kind));
        let version = text("apiVersion").or(inherited.map(|(version, _)| version));
        let (Some(kind), Some(version)) = (kind, version) else {
            let field = if kind.is_none() { "kind" } else { "apiVersion" };
            let problem = "is missing; every document must be a Kubernetes object";
            return Err(self.wrong(node, kind.unwrap_or("object"), FieldError::new(field, problem)));
        };
        if let (Some(of), Some(items)) = (kind.strip_suffix("List"), node.get("items")) {
            let inherited = (!of.is_empty()).then_some((version, of));
            let items = items.items().ok_or_else(|| {
                self.wrong(node, kind, FieldError::new("items", "is not a sequence of objects"))
            })?;
            return items.iter().try_for_each(|item| self.take(item, inherited));
        }
        self.object(node, kind, version)
    }

    fn object(&mut self, node: &Node, kind: &str, version: &str) -> Result<(), WorldError> {
        let group = |version: &str| version.split_once('/').map_or("", |(group, _)| group).to_owned();
        let known: &[&str] = match kind {
            "AuthorizationPolicy" | "PeerAuthentication" => {
                &["security.istio.io/v1", "security.istio.io/v1beta1"]
            }
            "ServiceEntry" | "WorkloadEntry" => &["networking.istio.io/v1", "networking.istio.io/v1beta1"],
            "VirtualService" | "DestinationRule" => {
                &["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"]
            }
            "EndpointSlice" => &["discovery.k8s.io/v1"],
            "Namespace" | "Node" | "Pod" | "Service" => &["v1"],
            _ => return self.ignore(node, kind, version),
        };
        let want = known[0];
        if !known.contains(&version) {
            // Someone else's kind of the same name, such as Knative's Service.
            let (theirs, ours) = (group(version), group(want));
            if theirs != ours && theirs.contains('.') && !theirs.ends_with("k8s.io") {
                return self.ignore(node, kind, version);
            }
            let problem = format!("{version:?} has no {kind} that Orlop reads; write {want}");
            return Err(self.wrong(node, kind, FieldError::new("apiVersion", problem)));
        }
        let object = match kind {
            "Namespace" => {
                let (name, namespace) = self.convert(node, kind, want, namespace::convert)?;
                Object::Namespace(name, namespace)
            }
            "Pod" => Object::Pod(Box::new(self.convert(node, kind, want, pod::convert_trusted)?)),
            "Node" => {
                let (name, of) = self.convert(node, kind, want, node::convert)?;
                Object::Node(name, of)
            }
            "ServiceEntry" => {
                Object::ServiceEntry(Box::new(self.convert(node, kind, want, service_entry::convert)?))
            }
            "WorkloadEntry" => {
                Object::WorkloadEntry(Box::new(self.convert(node, kind, want, workload_entry::convert)?))
            }
            "Service" => Object::Service(self.convert(node, kind, want, service::convert)?),
            "AuthorizationPolicy" => {
                let policy = self.convert(node, kind, want, authorization_policy::convert)?;
                Object::AuthorizationPolicy(Arc::new(policy))
            }
            "PeerAuthentication" => {
                Object::PeerAuthentication(self.convert(node, kind, want, peer_authentication::convert)?)
            }
            "VirtualService" => {
                Object::VirtualService(Arc::new(self.convert(node, kind, want, virtual_service::convert)?))
            }
            "DestinationRule" => Object::DestinationRule(Arc::new(self.convert(
                node,
                kind,
                want,
                destination_rule::convert,
            )?)),
            _ => Object::EndpointSlice(self.convert(node, kind, want, endpoint_slice::convert)?),
        };
        let key = object.key();
        if let Some((_, line)) = self.objects.0.get(&key) {
            let place = Place { path: self.path.clone(), line: node.line() };
            let other = Place { path: self.path.clone(), line: *line };
            return Err(WorldError::Duplicate { place, object: key.to_string(), other });
        }
        self.objects.0.insert(key, (object, node.line()));
        Ok(())
    }

    fn ignore(&self, node: &Node, kind: &str, version: &str) -> Result<(), WorldError> {
        let place = Place { path: self.path.clone(), line: node.line() };
        tracing::debug!(%place, kind, version, "ignoring an object of a kind Orlop doesn't read");
        Ok(())
    }

    fn convert<T: DeserializeOwned, U>(
        &self,
        node: &Node,
        kind: &str,
        version: &str,
        convert: impl FnOnce(T) -> Result<U, FieldError>,
    ) -> Result<U, WorldError> {
        let mut value = node.to_value();
        value["kind"] = kind.into();
        value["apiVersion"] = version.into();
        let object = serde_path_to_error::deserialize(value).map_err(|error| {
            let path = field_path(error.path());
            FieldError::new(path, type_problem(error.inner()))
        });
        object.and_then(convert).map_err(|source| self.wrong(node, kind, source))
    }

    fn wrong(&self, node: &Node, kind: &str, source: FieldError) -> WorldError {
        let metadata = |key: &str| node.get("metadata")?.get(key)?.string();
        let object = match (metadata("name"), kind) {
            (None, _) => kind.to_owned(),
            (Some(name), "Namespace" | "Node") => format!("{kind} {name}"),
            (Some(name), _) => format!("{kind} {}/{name}", metadata("namespace").unwrap_or("default")),
        };
        let place = Place { path: self.path.clone(), line: node.line_of(&source.path) };
        WorldError::Object { place, object, source }
    }
}

fn syntax_problem(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    // The place is said already, in the form that editors and terminals can jump to.
    let text = text.split(" at line ").next().unwrap_or(&text);
    format!("not valid YAML: {}", text.lines().next().unwrap_or_default().trim_end())
}

fn type_problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let scalar = ["integer", "floating point", "boolean"];
    let unquoted = text.ends_with("expected a string") && scalar.iter().any(|kind| text.contains(kind));
    if unquoted { format!("{text}; put it in quotes") } else { text }
}

fn field_path(path: &serde_path_to_error::Path) -> FieldPath {
    path.iter().fold(FieldPath::default(), |found, segment| match segment {
        Segment::Seq { index } => found.index(*index),
        Segment::Map { key } => found.key(key),
        Segment::Enum { variant } => found.key(variant),
        Segment::Unknown => found,
    })
}
