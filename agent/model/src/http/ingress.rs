use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::gateway_api::Attaching;
use super::made::Made;
use super::rule::Cluster;
use super::table::Table;
use super::{Request, Selected};
use crate::behind::Entrance;
use crate::gateway::{ANY, Attachments, HostMap};
use crate::name::NamespacedName;
use crate::policy::Finding;
use crate::reason::Reason;
use crate::world::gateway_api::Route;

/// The rules of a gateway: by port, by the listener's hostname, and by what that and the routes' hostnames have in
/// common.
#[derive(Clone, Debug, Default)]
pub(super) struct Ingress {
    ports: BTreeMap<u16, Port>,
    /// Each of these once, by where its routes are kept.
    tables: HashMap<Vec<usize>, Arc<Made<Route, Arc<Table>>>>,
}

#[derive(Clone, Debug, Default)]
struct Port {
    is_tls: bool,
    listeners: HostMap<Listening>,
}

#[derive(Clone, Debug)]
struct Listening {
    id: ListenerId,
    tables: HostMap<Arc<Table>>,
    certificates: Vec<NamespacedName>,
}

/// Which of a gateway's listeners: no other that is open has the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId {
    /// Its port.
    pub port: u16,
    /// Its hostname; `*` is any.
    pub hostname: String,
}

impl Ingress {
    /// Of the listeners that can be opened. `before` is of an earlier state of the world.
    pub fn after(
        before: Option<&Self>,
        attaching: &Attaching<'_>,
        attachments: &Attachments<'_>,
        findings: &mut Vec<Finding>,
    ) -> Self {
        let mut found = Self::default();
        for at in attachments.listeners.iter().filter(|at| at.problem.is_none()) {
            let mut tables = HostMap::default();
            for (host, routes) in &at.hosts {
                // Most often all hosts have the same routes.
                let key: Vec<usize> = routes.iter().map(|of| Arc::as_ptr(of.route).addr()).collect();
                let before = before.and_then(|of| of.tables.get(&key));
                let made = found.tables.entry(key).or_insert_with(|| {
                    let routes: Vec<&Arc<Route>> = routes.iter().map(|of| of.route).collect();
                    let made = attaching.made_at_gateway(before, &routes);
                    findings.extend_from_slice(&made.findings);
                    made
                });
                tables.insert(host, Arc::clone(&made.made));
            }
            let port = found.ports.entry(at.listener.port).or_default();
            // Those of one port that speak something else are in conflict.
            port.is_tls = at.listener.is_tls();
            let certificates = at.listener.certificates().cloned().collect();
            let host = at.listener.hostname.as_deref().unwrap_or(ANY);
            let id = ListenerId { port: at.listener.port, hostname: host.to_owned() };
            port.listeners.insert(host, Listening { id, tables, certificates });
        }
        found
    }

    /// Where its rules lead.
    pub fn clusters(&self) -> impl Iterator<Item = &Cluster> {
        self.tables.values().flat_map(|of| of.made.clusters())
    }

    /// The ports to listen on.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.ports.keys().copied()
    }

    /// Whether TLS is spoken on this port.
    pub fn is_tls(&self, port: u16) -> bool {
        self.ports.get(&port).is_some_and(|port| port.is_tls)
    }

    /// The listeners that speak TLS, with the Secrets that their certificates are in.
    pub fn certificates(&self) -> impl Iterator<Item = (&ListenerId, &[NamespacedName])> {
        let tls = self.ports.values().filter(|port| port.is_tls);
        tls.flat_map(|port| port.listeners.all()).map(|of| (&of.id, &*of.certificates))
    }

    /// The listener whose certificate a client is shown that names this host on this port, or none.
    pub fn tls_listener(&self, port: u16, sni: Option<&str>) -> Option<&ListenerId> {
        let port = self.ports.get(&port).filter(|port| port.is_tls)?;
        port.of(sni).map(|listener| &listener.id)
    }

    /// The rule that a request on this port follows. The listener whose hostname is the most specific has it to itself, and
    /// of its routes those of the most specific hostname: what they don't match must not be answered by somebody else. In
    /// TLS it must be the listener whose certificate the client has seen.
    pub fn select(&self, request: &Request<'_>, entrance: &Entrance) -> Result<Selected<'_>, Reason> {
        let host = host(request.authority);
        let port = self.ports.get(&request.port).ok_or(Reason::NoRoute)?;
        let listener = port.of(Some(&host)).ok_or(Reason::NoRoute)?;
        let is_same = match entrance {
            Entrance::Plain => !port.is_tls,
            Entrance::Tls(sni) => {
                port.is_tls && port.of(sni.as_deref()).is_some_and(|of| std::ptr::eq(of, listener))
            }
        };
        if !is_same {
            return Err(Reason::Misdirected);
        }
        let table = listener.tables.of(&host).next();
        table.and_then(|table| table.select(request, None)).ok_or(Reason::NoRoute)
    }
}

impl Port {
    /// The listener for a host; without one that which is for any.
    fn of(&self, host: Option<&str>) -> Option<&Listening> {
        self.listeners.of(host.unwrap_or_default()).next()
    }
}

/// The host of an authority, in lower case, without its port and without a dot at the end.
fn host(authority: &str) -> String {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !ends_within(host) => host,
        _ => authority,
    };
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Whether this ends amid an address of IPv6.
fn ends_within(host: &str) -> bool {
    host.starts_with('[') && !host.ends_with(']')
}

#[cfg(test)]
mod tests {
    use super::host;

    #[test]
    fn a_host_is_the_same_in_every_spelling() {
        for (authority, wanted) in [
            ("Example.com", "example.com"),
            ("example.com.", "example.com"),
            ("example.com:8080", "example.com"),
            ("example.com.:80", "example.com"),
            ("example.com:", "example.com"),
            ("[fd00::1]", "[fd00::1]"),
            ("[fd00::1]:80", "[fd00::1]"),
        ] {
            assert_eq!(host(authority), wanted, "{authority}");
        }
    }
}
