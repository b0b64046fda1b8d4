use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::gateway_api::Attaching;
use super::rule::Cluster;
use super::table::Table;
use super::{Request, Selected};
use crate::gateway::{ANY, Attachments, HostMap};
use crate::policy::Finding;
use crate::reason::Reason;
use crate::world::gateway_api::Route;

/// The rules of a gateway: by port, by the listener's hostname, and by what that and the routes' hostnames have in
/// common.
#[derive(Clone, Debug, Default)]
pub(super) struct Ingress {
    ports: BTreeMap<u16, HostMap<HostMap<Arc<Table>>>>,
    /// Each of these once.
    tables: Vec<Arc<Table>>,
}

impl Ingress {
    /// Of the listeners that can be opened.
    pub fn new(
        attaching: &Attaching<'_>,
        attachments: &Attachments<'_>,
        findings: &mut Vec<Finding>,
    ) -> Self {
        let mut found = Self::default();
        // Most often all hosts have the same routes, which the attachments keep where they are.
        let mut made: HashMap<Vec<usize>, Arc<Table>> = HashMap::new();
        for at in attachments.listeners.iter().filter(|at| at.problem.is_none()) {
            let mut tables = HostMap::default();
            for (host, routes) in &at.hosts {
                let key = routes.iter().map(|of| Arc::as_ptr(of.route).addr()).collect();
                let table = made.entry(key).or_insert_with(|| {
                    let routes: Vec<&Route> = routes.iter().map(|of| &**of.route).collect();
                    Arc::new(attaching.table(&routes, findings))
                });
                tables.insert(host, Arc::clone(table));
            }
            let listeners = found.ports.entry(at.listener.port).or_default();
            listeners.insert(at.listener.hostname.as_deref().unwrap_or(ANY), tables);
        }
        found.tables = made.into_values().collect();
        found
    }

    /// Where its rules lead.
    pub fn clusters(&self) -> impl Iterator<Item = &Cluster> {
        self.tables.iter().flat_map(|table| table.clusters())
    }

    /// The ports to listen on.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.ports.keys().copied()
    }

    /// The rule that a request on this port follows. The listener whose hostname is the most specific has it to itself, and
    /// of its routes those of the most specific hostname: what they don't match must not be answered by somebody else.
    pub fn select(&self, request: &Request<'_>) -> Result<Selected<'_>, Reason> {
        let host = host(request.authority);
        let listener = self.ports.get(&request.port).and_then(|listeners| listeners.of(&host).next());
        let table = listener.and_then(|tables| tables.of(&host).next());
        table.and_then(|table| table.select(request, None)).ok_or(Reason::NoRoute)
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
