//! A Gateway of the Gateway API (`gateway.networking.k8s.io`), as far as it is read.

use super::Labels;
use crate::name::NamespacedName;

/// A Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateway {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `spec.gatewayClassName`
    pub class: String,
    /// `spec.listeners`, in their order.
    pub listeners: Vec<Listener>,
    /// Whether there is anything in `spec.tls`, such as which certificates clients must show.
    pub tls: bool,
}

/// An entry of `spec.listeners`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    /// `name`
    pub name: String,
    /// `port`
    pub port: u16,
    /// `protocol`
    pub protocol: String,
    /// `hostname`, in lower case, which may begin with `*.`; `None` is any.
    pub hostname: Option<String>,
    /// `tls`, if there is anything in it.
    pub tls: Option<ListenerTls>,
    /// `allowedRoutes.namespaces`
    pub namespaces: FromNamespaces,
    /// `allowedRoutes.kinds`; empty is all that the protocol can have.
    pub kinds: Vec<RouteGroupKind>,
}

/// What a listener that speaks TLS shows, and asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerTls {
    /// `mode`; `None` is `Terminate`.
    pub mode: Option<String>,
    /// `certificateRefs`
    pub certificates: Vec<CertificateRef>,
    /// A field that is not read.
    pub unread: Option<String>,
}

/// An entry of `certificateRefs`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateRef {
    /// `group`, empty for Kubernetes' own.
    pub group: String,
    /// `kind`
    pub kind: String,
    /// Namespace and name.
    pub name: NamespacedName,
}

/// An entry of `allowedRoutes.kinds`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteGroupKind {
    /// `group`
    pub group: String,
    /// `kind`
    pub kind: String,
}

/// Routes of which namespaces may be attached: `allowedRoutes.namespaces`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FromNamespaces {
    /// `Same`: the Gateway's own.
    #[default]
    Same,
    /// `All`
    All,
    /// `Selector`: those whose labels meet each of these.
    Selector(Vec<Requirement>),
    /// `None`, and what is not known.
    None,
}

/// What a selector wants of labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What is to hold of its value.
    pub test: LabelTest,
}

/// What a selector wants of one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelTest {
    /// It is one of these.
    In(Vec<String>),
    /// It is none of these, or not there.
    NotIn(Vec<String>),
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl Requirement {
    /// Whether labels meet it.
    pub fn met_by(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let is_one = |of: &[String]| value.is_some_and(|value| of.iter().any(|one| *value == **one));
        match &self.test {
            LabelTest::In(of) => is_one(of),
            LabelTest::NotIn(of) => !is_one(of),
            LabelTest::Exists => value.is_some(),
            LabelTest::DoesNotExist => value.is_none(),
        }
    }
}
