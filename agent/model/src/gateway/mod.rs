//! Gateways: which of their listeners can be had, and which routes are attached to them.

mod attach;
mod hostname;

pub use attach::{AtListener, Attachments, NotAttached};
pub(crate) use hostname::{ANY, HostMap};

use std::collections::BTreeSet;

use crate::name::{NamespacedName, is_object_name};
use crate::ports::is_own;
use crate::world::gateway::{CertificateRef, Gateway, Listener, ListenerTls};
use crate::world::gateway_api::{GROUP, RouteKind};

const HTTP: &str = "HTTP";
const HTTPS: &str = "HTTPS";
/// The Secrets that a gateway's pods may have.
const MAX_CERTIFICATES: usize = 64;

/// Why a listener is not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerProblem {
    /// The proxy needs the port for itself.
    PortUnavailable(u16),
    /// Nobody speaks that here.
    UnsupportedProtocol(String),
    /// `tls` is of no use here.
    Tls,
    /// This, which its TLS is to be like, can't be had.
    UnsupportedTls(String),
    /// It names no certificate, or something that is none.
    InvalidCertificate(String),
    /// It names a Secret of another namespace.
    ForeignCertificate(NamespacedName),
    /// With its Secrets there would be more than pods can have.
    TooManyCertificates,
    /// The hostname is none.
    Hostname(String),
    /// Another one of the port speaks something else.
    ProtocolConflict(u16),
    /// Another one of the port has the same hostname.
    HostnameConflict(u16),
}

impl ListenerProblem {
    /// The condition's reason, as the Gateway API has it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PortUnavailable(_) => "PortUnavailable",
            Self::UnsupportedProtocol(_) => "UnsupportedProtocol",
            Self::Tls | Self::UnsupportedTls(_) | Self::TooManyCertificates | Self::Hostname(_) => {
                "UnsupportedValue"
            }
            Self::InvalidCertificate(_) => "InvalidCertificateRef",
            Self::ForeignCertificate(_) => "RefNotPermitted",
            Self::ProtocolConflict(_) => "ProtocolConflict",
            Self::HostnameConflict(_) => "HostnameConflict",
        }
    }

    /// Whether it is another listener's fault as well.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::ProtocolConflict(_) | Self::HostnameConflict(_))
    }

    /// Whether what it refers to is wrong, rather than it.
    pub fn is_reference(&self) -> bool {
        matches!(self, Self::InvalidCertificate(_) | Self::ForeignCertificate(_))
    }

    /// What to change.
    pub fn message(&self) -> String {
        match self {
            Self::PortUnavailable(port) => {
                format!("choose another port: {port} is one that the proxy needs for itself, or none")
            }
            Self::UnsupportedProtocol(protocol) => {
                format!("make its protocol HTTP or HTTPS: a gateway speaks no {protocol}")
            }
            Self::Tls => "remove its tls: with protocol HTTP it would not be used".to_owned(),
            Self::UnsupportedTls(what) => {
                format!("remove {what}: it can't be had, and may be there for safety")
            }
            Self::InvalidCertificate(problem) => problem.clone(),
            Self::ForeignCertificate(name) => {
                format!(
                    "a pod can use Secrets of its own namespace alone: copy {name} to that of the Gateway"
                )
            }
            Self::TooManyCertificates => {
                format!(
                    "all listeners together may have {MAX_CERTIFICATES} Secrets, as all are mounted into each pod: \
                     name some of the others'"
                )
            }
            Self::Hostname(hostname) => {
                format!("{hostname:?} is no hostname, such as example.com or *.example.com")
            }
            Self::ProtocolConflict(port) => {
                format!("another listener has port {port} with another protocol: give each a port of its own")
            }
            Self::HostnameConflict(port) => {
                format!("another listener has port {port} with the same hostname: leave one of them")
            }
        }
    }
}

impl Gateway {
    /// Whether clients from outside the mesh come in by it, rather than that it stands before services.
    pub fn is_entrance(&self) -> bool {
        self.listeners.iter().any(|of| of.protocol == HTTP || of.protocol == HTTPS)
    }

    /// Whether each of the listeners can be opened, in their order. Of those that can't be told apart none is; the
    /// others go on.
    pub fn judge_listeners(&self) -> Vec<Result<(), ListenerProblem>> {
        let mounted = self.certificates();
        let own = self.listeners.iter().map(|listener| self.judge(listener, &mounted));
        let own: Vec<_> = own.collect();
        let others = |index: usize| {
            let all = self.listeners.iter().zip(&own).enumerate();
            all.filter(move |(other, (_, own))| *other != index && own.is_ok()).map(|(_, (other, _))| other)
        };
        let conflict = |(index, listener): (usize, &Listener)| {
            own[index].clone()?;
            let Listener { port, protocol, hostname, .. } = listener;
            let mut of_port = others(index).filter(|other| other.port == *port);
            match of_port.find(|other| other.protocol != *protocol || other.hostname == *hostname) {
                Some(other) if other.protocol != *protocol => Err(ListenerProblem::ProtocolConflict(*port)),
                Some(_) => Err(ListenerProblem::HostnameConflict(*port)),
                None => Ok(()),
            }
        };
        self.listeners.iter().enumerate().map(conflict).collect()
    }

    /// The Secrets that its pods have to have: of all listeners that may show them, also of those that can't be opened for
    /// another reason, which is put right without new pods then.
    pub fn certificates(&self) -> BTreeSet<&NamespacedName> {
        let mut found = BTreeSet::new();
        let tls =
            self.listeners.iter().filter(|of| of.is_tls() && !self.tls).filter_map(|of| of.tls.as_ref());
        for tls in tls.filter(|tls| tls.judge(&self.name.namespace).is_ok()) {
            let more: BTreeSet<_> =
                tls.certificates.iter().map(|of| &of.name).filter(|name| !found.contains(name)).collect();
            if found.len() + more.len() <= MAX_CERTIFICATES {
                found.extend(more);
            }
        }
        found
    }

    fn judge(&self, listener: &Listener, mounted: &BTreeSet<&NamespacedName>) -> Result<(), ListenerProblem> {
        let Listener { port, protocol, hostname, tls, .. } = listener;
        if protocol != HTTP && protocol != HTTPS {
            return Err(ListenerProblem::UnsupportedProtocol(protocol.clone()));
        }
        if *port == 0 || is_own(*port) {
            return Err(ListenerProblem::PortUnavailable(*port));
        }
        match hostname {
            Some(hostname) if !hostname::is_hostname(hostname) => {
                return Err(ListenerProblem::Hostname(hostname.clone()));
            }
            _ => {}
        }
        match tls {
            None if protocol == HTTP => Ok(()),
            Some(_) if protocol == HTTP => Err(ListenerProblem::Tls),
            _ if self.tls => Err(ListenerProblem::UnsupportedTls("spec.tls".to_owned())),
            None => Err(no_certificate()),
            Some(tls) => {
                tls.judge(&self.name.namespace)?;
                if tls.certificates.iter().all(|of| mounted.contains(&of.name)) {
                    Ok(())
                } else {
                    Err(ListenerProblem::TooManyCertificates)
                }
            }
        }
    }
}

fn no_certificate() -> ListenerProblem {
    ListenerProblem::InvalidCertificate("name a Secret in its tls.certificateRefs".to_owned())
}

impl ListenerTls {
    /// Whether it can be had by pods of this namespace.
    fn judge(&self, namespace: &str) -> Result<(), ListenerProblem> {
        match (&self.mode, &self.unread) {
            (Some(mode), _) if mode != "Terminate" => {
                return Err(ListenerProblem::UnsupportedTls(format!("its tls.mode {mode}")));
            }
            (_, Some(unread)) => return Err(ListenerProblem::UnsupportedTls(format!("its tls.{unread}"))),
            _ => {}
        }
        if self.certificates.is_empty() {
            return Err(no_certificate());
        }
        for CertificateRef { group, kind, name } in &self.certificates {
            if !group.is_empty() || kind != "Secret" {
                let problem = format!("{kind} {} is no certificate: name a Secret", name.name);
                return Err(ListenerProblem::InvalidCertificate(problem));
            }
            if !is_object_name(&name.name) {
                let problem = format!("{:?} is no name of a Secret", &*name.name);
                return Err(ListenerProblem::InvalidCertificate(problem));
            }
            if name.namespace != *namespace {
                return Err(ListenerProblem::ForeignCertificate(name.clone()));
            }
        }
        Ok(())
    }
}

impl Listener {
    /// Whether it speaks TLS.
    pub fn is_tls(&self) -> bool {
        self.protocol == HTTPS
    }

    /// The Secrets whose certificates it shows.
    pub fn certificates(&self) -> impl Iterator<Item = &NamespacedName> {
        let tls = self.tls.as_ref().filter(|_| self.is_tls());
        tls.into_iter().flat_map(|tls| &tls.certificates).map(|of| &of.name)
    }

    /// The kinds of routes that it takes, and whether it asks for others too, which can't be attached.
    pub fn supported_kinds(&self) -> (Vec<RouteKind>, bool) {
        let all = [RouteKind::Http, RouteKind::Grpc];
        if self.kinds.is_empty() {
            return (all.to_vec(), false);
        }
        let named =
            |kind: &RouteKind| self.kinds.iter().any(|of| of.group == GROUP && of.kind == kind.name());
        let known: Vec<_> = all.into_iter().filter(named).collect();
        let is_unknown =
            self.kinds.iter().any(|of| of.group != GROUP || !all.iter().any(|kind| of.kind == kind.name()));
        (known, is_unknown)
    }
}

#[cfg(test)]
mod tests;
