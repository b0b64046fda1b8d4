//! Gateways: which of their listeners can be had, and which routes are attached to them.

mod attach;
mod hostname;

pub use attach::{AtListener, Attachments, NotAttached};
pub(crate) use hostname::{ANY, HostMap};

use crate::ports::is_own;
use crate::world::gateway::{Gateway, Listener};
use crate::world::gateway_api::{GROUP, RouteKind};

const HTTP: &str = "HTTP";

/// Why a listener is not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerProblem {
    /// The proxy needs the port for itself.
    PortUnavailable(u16),
    /// Nobody speaks that here.
    UnsupportedProtocol(String),
    /// `tls` is of no use here.
    Tls,
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
            Self::Tls | Self::Hostname(_) => "UnsupportedValue",
            Self::ProtocolConflict(_) => "ProtocolConflict",
            Self::HostnameConflict(_) => "HostnameConflict",
        }
    }

    /// Whether it is another listener's fault as well.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::ProtocolConflict(_) | Self::HostnameConflict(_))
    }

    /// What to change.
    pub fn message(&self) -> String {
        match self {
            Self::PortUnavailable(port) => {
                format!("choose another port: {port} is one that the proxy needs for itself, or none")
            }
            Self::UnsupportedProtocol(protocol) => {
                format!("make its protocol HTTP: a gateway speaks no {protocol}")
            }
            Self::Tls => "remove its tls: with protocol HTTP it would not be used".to_owned(),
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
    /// Whether each of the listeners can be opened, in their order. Of those that can't be told apart none is; the
    /// others go on.
    pub fn judge_listeners(&self) -> Vec<Result<(), ListenerProblem>> {
        let own: Vec<_> = self.listeners.iter().map(judge).collect();
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
}

fn judge(listener: &Listener) -> Result<(), ListenerProblem> {
    let Listener { port, protocol, hostname, tls, .. } = listener;
    if protocol != HTTP {
        return Err(ListenerProblem::UnsupportedProtocol(protocol.clone()));
    }
    if *port == 0 || is_own(*port) {
        return Err(ListenerProblem::PortUnavailable(*port));
    }
    if *tls {
        return Err(ListenerProblem::Tls);
    }
    match hostname {
        Some(hostname) if !hostname::is_hostname(hostname) => {
            Err(ListenerProblem::Hostname(hostname.clone()))
        }
        _ => Ok(()),
    }
}

impl Listener {
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
