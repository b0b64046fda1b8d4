//! Which rule a connection follows in which no HTTP is read: `tls` and `tcp` of VirtualServices, TLSRoutes, TCPRoutes.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Cluster, Split};
use crate::name::NamespacedName;
use crate::service::ServicePort;
use crate::speaks::Declared;
use crate::world::Labels;
use crate::world::stream::{HostPattern, Sni, StreamMatch};

/// A connection, as far as routing asks about it.
#[derive(Clone, Copy, Debug)]
pub struct Stream<'a> {
    /// The service's port that was dialled.
    pub port: u16,
    /// The address that was dialled; `None` where the service was asked for by name.
    pub destination: Option<IpAddr>,
    /// Whom the client's TLS names.
    pub sni: Sni<'a>,
    /// The client, where it is known.
    pub source: Option<&'a NamespacedName>,
    /// The client's namespace.
    pub source_namespace: &'a str,
}

/// What becomes of a connection that follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRule {
    /// The kind of the resource that it is from, such as `TCPRoute`.
    pub kind: &'static str,
    /// The resource itself.
    pub resource: Arc<NamespacedName>,
    /// Where it goes; else what is wrong with the rule.
    pub split: Result<Split, String>,
}

/// The rules for one port, in the order in which they count.
#[derive(Clone, Debug, Default)]
pub(super) struct StreamTable {
    rules: Vec<StreamRule>,
    entries: Vec<(usize, StreamMatch)>,
    /// Whether they are of VirtualServices.
    is_virtual: bool,
}

/// Tables by port.
pub(super) type StreamPorts = HashMap<u16, Arc<StreamTable>>;

/// A rule by the names of servers that it is for.
pub(super) struct Named<'r> {
    pub rule: StreamRule,
    /// None is any.
    pub names: &'r [HostPattern],
    /// When its route was made, and what that is called.
    pub age: (Option<i64>, &'r str),
}

impl StreamTable {
    /// Of VirtualServices. Each rule comes with its alternatives, of which it has at least one.
    pub fn new(of: Vec<(StreamRule, Vec<StreamMatch>)>) -> Self {
        let (mut rules, mut entries) = (Vec::with_capacity(of.len()), Vec::new());
        for (rule, alternatives) in of {
            entries.extend(alternatives.into_iter().map(|of| (rules.len(), of)));
            rules.push(rule);
        }
        Self { rules, entries, is_virtual: true }
    }

    /// That for more of a name comes first, then that of the oldest route.
    pub fn by_name(of: Vec<Named<'_>>) -> Self {
        let (mut rules, mut entries) = (Vec::with_capacity(of.len()), Vec::new());
        for Named { rule, names, age } in of {
            let any = names.is_empty().then_some(((false, 0), Vec::new()));
            let each = names.iter().map(|name| (name.rank(), vec![name.clone()]));
            for (rank, names) in each.chain(any) {
                let of = StreamMatch { names, ..StreamMatch::default() };
                entries.push(((Reverse(rank), age), (rules.len(), of)));
            }
            rules.push(rule);
        }
        entries.sort_by_key(|(order, _)| *order);
        let entries = entries.into_iter().map(|(_, entry)| entry).collect();
        Self { rules, entries, is_virtual: false }
    }

    pub fn select(&self, stream: &Stream<'_>, labels: Option<&Labels>) -> Option<&StreamRule> {
        let (rule, _) = self.entries.iter().find(|(_, of)| holds(of, stream, labels))?;
        self.rules.get(*rule)
    }

    /// Whether a connection that none of them matches goes to the service itself. As Istio has it that is so of `tcp`, whose
    /// rules may be for some clients alone, and not of a client for which there are rules of `tls`.
    pub fn lets_pass(&self, stream: &Stream<'_>, labels: Option<&Labels>) -> bool {
        let mut entries = self.entries.iter();
        self.is_virtual && !entries.any(|(_, of)| !of.names.is_empty() && but_for_name(of, stream, labels))
    }

    pub fn rules(&self) -> &[StreamRule] {
        &self.rules
    }

    /// Where its rules lead.
    pub fn clusters(&self) -> impl Iterator<Item = &Cluster> {
        let splits = self.rules.iter().filter_map(|rule| rule.split.as_ref().ok());
        splits.flat_map(Split::choices).map(|choice| &choice.cluster)
    }

    /// Whether the name in the client's TLS may decide, given all else.
    pub fn wants_sni(&self, stream: &Stream<'_>, labels: Option<&Labels>) -> bool {
        for (_, of) in &self.entries {
            if but_for_name(of, stream, labels) {
                // Those that come after one that matches anyway don't count.
                return !of.names.is_empty();
            }
        }
        false
    }
}

fn holds(of: &StreamMatch, stream: &Stream<'_>, labels: Option<&Labels>) -> bool {
    let named = || match stream.sni {
        Sni::Name(name) => of.names.iter().any(|pattern| pattern.matches(name)),
        Sni::Absent | Sni::Unknown => false,
    };
    but_for_name(of, stream, labels) && (of.names.is_empty() || named())
}

fn but_for_name(of: &StreamMatch, stream: &Stream<'_>, labels: Option<&Labels>) -> bool {
    let is_there = |address: IpAddr| of.destinations.iter().any(|block| block.contains(address));
    of.port.is_none_or(|port| port == stream.port)
        && (of.destinations.is_empty() || stream.destination.is_some_and(is_there))
        && of.source_namespace.as_ref().is_none_or(|namespace| namespace == stream.source_namespace)
        && of
            .source_labels
            .iter()
            .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// Whether a rule of `tls` is for this port: if it says that it speaks TLS, or if the rule names it and it does not say
/// HTTP. So no client is asked for a name whose server speaks first.
pub(super) fn takes_tls(port: &ServicePort, is_named: bool) -> bool {
    let declared = port.declared();
    declared == Declared::Tls || (is_named && !declared.is_http())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(sni: Sni<'_>) -> Stream<'_> {
        Stream { port: 443, destination: None, sni, source: None, source_namespace: "shop" }
    }

    fn rule(name: &str) -> StreamRule {
        let resource = Arc::new(NamespacedName::new("shop", name));
        StreamRule { kind: "TLSRoute", resource, split: Ok(Split::new([])) }
    }

    fn named(names: &[&str]) -> StreamMatch {
        let names = names.iter().map(|name| HostPattern((*name).to_owned())).collect();
        StreamMatch { names, ..StreamMatch::default() }
    }

    #[test]
    fn what_is_not_known_to_be_a_name_matches_none() {
        let table = StreamTable::new(vec![(rule("all"), vec![named(&["*"])])]);
        assert!(table.select(&stream(Sni::Name("a")), None).is_some());
        assert!(table.select(&stream(Sni::Absent), None).is_none());
        assert!(table.select(&stream(Sni::Unknown), None).is_none());
    }

    #[test]
    fn more_of_a_name_has_precedence() {
        let names = [vec!["*.b"], vec!["x.a.b"], vec!["*.a.b"], vec![]];
        let names = names.map(|of| named(&of).names);
        let rules = ["wide", "whole", "narrow", "any"].map(rule);
        let all = rules.into_iter().zip(&names).map(|(rule, names)| Named { rule, names, age: (None, "r") });
        let table = StreamTable::by_name(all.collect());
        let chosen = |sni| table.select(&stream(sni), None).unwrap().resource.name.clone();
        assert_eq!(chosen(Sni::Name("x.a.b")), "whole");
        assert_eq!(chosen(Sni::Name("y.a.b")), "narrow");
        assert_eq!(chosen(Sni::Name("y.b")), "wide");
        assert_eq!(chosen(Sni::Name("y.c")), "any");
        assert_eq!(chosen(Sni::Unknown), "any");
    }

    #[test]
    fn a_name_is_asked_for_only_where_it_may_decide() {
        let port = |of: StreamMatch, port| StreamMatch { port: Some(port), ..of };
        let wants = |of| StreamTable::new(of).wants_sni(&stream(Sni::Unknown), None);
        assert!(wants(vec![(rule("a"), vec![port(named(&["a"]), 443)])]));
        assert!(!wants(vec![(rule("a"), vec![port(named(&["a"]), 25)])]));
        assert!(!wants(vec![(rule("all"), vec![named(&[])]), (rule("a"), vec![named(&["a"])])]));
        assert!(wants(vec![(rule("a"), vec![named(&["a"])]), (rule("all"), vec![named(&[])])]));
    }
}
