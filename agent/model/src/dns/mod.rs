//! What a pod's DNS questions are answered with. The names are those of Kubernetes' DNS specification 1.1.0
//! (github.com/kubernetes/dns, docs/specification.md), and nothing but the snapshot is asked.

mod zone;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::name::NamespacedName;
use crate::service::{Service, ServicePort};
use crate::snapshot::Snapshot;
use crate::world::Resolution;
use zone::Host;
pub(crate) use zone::{ServiceHosts, Zone};

/// Of ExternalNames that name each other.
const MAX_ALIASES: u32 = 8;

/// The types of record that the cluster has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordType {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Ports and hosts of a service (RFC 2782).
    Srv,
    /// Names of addresses.
    Ptr,
    /// All of them.
    Any,
    /// Something else: names exist, and have none.
    Other,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Not a name of the cluster: the resolver that the pod asked knows.
    Forward,
    /// The name exists, with these records of the type that was asked for, if any.
    Records {
        /// What was asked for.
        answers: Vec<Record>,
        /// The addresses of the hosts in `answers`, each host once.
        additional: Vec<Record>,
    },
    /// The name is another one's, and that is to be forwarded.
    Alias(String),
    /// The name would be the cluster's, and is not there.
    NoSuchName,
}

/// A record of class IN.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Whose it is; `None` for the name that was asked for.
    pub owner: Option<String>,
    /// What it says.
    pub data: RecordData,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordData {
    /// A or AAAA
    Address(IpAddr),
    /// SRV, of priority 0 and all with the same weight.
    Service {
        /// The port.
        port: u16,
        /// The host.
        target: String,
    },
    /// PTR
    Pointer(String),
    /// CNAME; what follows it is the other name's.
    Alias(String),
}

impl Snapshot {
    /// The suffix of all names in the cluster, such as `cluster.local`.
    pub fn cluster_domain(&self) -> &str {
        self.zone.domain()
    }

    /// Answers a pod of the namespace `client` that asks for `name`, in lower case and without the final dot.
    ///
    /// Names below the cluster's domain are answered here in any case, so that the forms that a search path makes
    /// of an outside name end here. Shorter names are if they are a service's: `web` in the pod's own namespace,
    /// and `web.shop.svc`. `web.shop` is left to the search path, as it could be somebody's real domain.
    ///
    /// The hosts of ServiceEntries are answered to those who may see them, in the forms of the search path too.
    pub fn resolve(&self, client: &str, name: &str, kind: RecordType) -> Answer {
        self.resolve_within(client, name, kind, MAX_ALIASES)
    }

    fn resolve_within(&self, client: &str, name: &str, kind: RecordType, aliases: u32) -> Answer {
        if let Some(address) = reverse(name) {
            return self.pointer(client, address).map_or(Answer::Forward, |host| pointer(host, kind));
        }
        let below = below(name, self.zone.domain());
        let found = match (below, name.rsplit_once('.')) {
            (Some(relative), _) => self.in_zone(relative, kind),
            (None, None) => self.in_zone(&format!("{name}.{client}.svc"), kind),
            (None, Some((_, "svc"))) => self.in_zone(name, kind),
            (None, Some(_)) => Answer::NoSuchName,
        };
        match found {
            Answer::NoSuchName => {}
            Answer::Alias(other) => return self.follow(client, other, kind, aliases),
            found => return found,
        }
        if let Some(answer) = self.external(client, name, kind) {
            return answer;
        }
        let Some(relative) = below else { return Answer::Forward };
        let own = format!(".{client}.svc");
        let asked_for = [own.as_str(), ".svc", ""].into_iter().find_map(|path| relative.strip_suffix(path));
        match asked_for.and_then(|name| Some((name, self.external(client, name, kind)?))) {
            Some((name, Answer::Records { answers, additional })) => {
                alias(name.to_owned(), answers, additional)
            }
            _ => Answer::NoSuchName,
        }
    }

    /// `None` if there is none, or if it leaves its addresses to DNS.
    fn external(&self, client: &str, name: &str, kind: RecordType) -> Option<Answer> {
        let entry = self.zone.external(client, name)?;
        if !entry.vips.is_empty() {
            return Some(addresses(entry.vips.iter().copied(), kind));
        }
        if entry.resolution != Resolution::Static {
            return None;
        }
        let endpoints = entry.ports.iter().flat_map(|port| port.ready());
        let distinct: BTreeSet<_> = endpoints.map(|endpoint| endpoint.address.ip()).collect();
        Some(addresses(distinct, kind))
    }

    /// What another name has, where that is known here; chains end somewhere.
    fn follow(&self, client: &str, other: String, kind: RecordType, aliases: u32) -> Answer {
        if aliases == 0 {
            return Answer::empty();
        }
        match self.resolve_within(client, &other, kind, aliases - 1) {
            Answer::Records { answers, additional } => alias(other, answers, additional),
            Answer::NoSuchName => alias(other, Vec::new(), Vec::new()),
            Answer::Forward | Answer::Alias(_) => Answer::Alias(other),
        }
    }

    fn in_zone(&self, relative: &str, kind: RecordType) -> Answer {
        let labels: Vec<_> = relative.rsplit('.').collect();
        match *labels.as_slice() {
            ["" | "svc" | "pod"] => Answer::empty(),
            ["svc" | "pod", namespace] if self.has_namespace(namespace) => Answer::empty(),
            ["pod", namespace, dashed] => self.pod(namespace, dashed, kind),
            ["svc", namespace, service, ref rest @ ..] => {
                let name = NamespacedName::known(namespace, service);
                let service = name.and_then(|name| self.service(&name));
                service.map_or(Answer::NoSuchName, |service| self.in_service(service, rest, kind))
            }
            _ => Answer::NoSuchName,
        }
    }

    fn in_service(&self, service: &Service, rest: &[&str], kind: RecordType) -> Answer {
        let hosts = self.zone.hosts(&service.name);
        if let Some(other) = &service.external_name {
            let other = other.trim_end_matches('.').to_ascii_lowercase();
            return if rest.is_empty() { Answer::Alias(other) } else { Answer::NoSuchName };
        }
        // Without an address and without endpoints of its own, it is defined elsewhere.
        let Some(hosts) = hosts.or(if service.vips.is_empty() { None } else { Some(&[]) }) else {
            return Answer::Forward;
        };
        match *rest {
            [] if service.vips.is_empty() => addresses(ready(hosts).map(|host| host.address), kind),
            [] => addresses(service.vips.iter().copied(), kind),
            ["_sctp", ..] => Answer::Forward,
            [protocol @ ("_tcp" | "_udp"), ref rest @ ..] => {
                let all = if protocol == "_udp" { &service.udp_ports } else { &service.ports };
                match *rest {
                    [] if all.iter().any(|port| !port.name.is_empty()) => Answer::empty(),
                    [port] => match port.strip_prefix('_') {
                        Some(port) if !port.is_empty() => ports(service, all, hosts, port, kind),
                        _ => Answer::NoSuchName,
                    },
                    _ => Answer::NoSuchName,
                }
            }
            [label] if hosts.iter().any(|host| host.label == label) => {
                let named = ready(hosts).filter(|host| host.label == label);
                addresses(named.map(|host| host.address), kind)
            }
            _ => Answer::NoSuchName,
        }
    }

    /// `10-1-0-2.shop.pod`: only what is a pod's address, of that namespace.
    fn pod(&self, namespace: &str, dashed: &str, kind: RecordType) -> Answer {
        let address = dashed.replace('-', ".").parse().or_else(|_| dashed.replace('-', ":").parse());
        let pod = address.ok().and_then(|address| Some((address, self.workload_at(address)?)));
        match pod {
            Some((address, pod)) if pod.name.namespace == namespace => addresses([address], kind),
            _ => Answer::NoSuchName,
        }
    }

    /// The host that has this address.
    fn pointer(&self, client: &str, address: IpAddr) -> Option<String> {
        // The address of a pod is no service's, whatever some ServiceEntry says.
        if let Some(service) =
            self.service_to(client, address).filter(|service| service.vips.contains(&address))
        {
            return (!service.hostname.starts_with('*')).then(|| service.hostname.clone());
        }
        let (service, label) = self.zone.host_at(address)?;
        Some(format!("{label}.{}", self.service(service)?.hostname))
    }
}

impl Answer {
    fn empty() -> Self {
        Self::Records { answers: Vec::new(), additional: Vec::new() }
    }
}

fn ready(hosts: &[Host]) -> impl Iterator<Item = &Host> {
    hosts.iter().filter(|host| host.ready)
}

fn addresses(all: impl IntoIterator<Item = IpAddr>, kind: RecordType) -> Answer {
    let of_kind = |address: &IpAddr| match kind {
        RecordType::A => address.is_ipv4(),
        RecordType::Aaaa => address.is_ipv6(),
        RecordType::Any => true,
        _ => false,
    };
    let answers = all.into_iter().filter(of_kind);
    let answers = answers.map(|address| Record { owner: None, data: RecordData::Address(address) });
    Answer::Records { answers: answers.collect(), additional: Vec::new() }
}

fn pointer(host: String, kind: RecordType) -> Answer {
    let asked = matches!(kind, RecordType::Ptr | RecordType::Any);
    let answers = asked.then_some(Record { owner: None, data: RecordData::Pointer(host) });
    Answer::Records { answers: answers.into_iter().collect(), additional: Vec::new() }
}

/// What `other` has, as an answer to the name that stands for it.
fn alias(other: String, mut answers: Vec<Record>, additional: Vec<Record>) -> Answer {
    for record in &mut answers {
        record.owner.get_or_insert_with(|| other.clone());
    }
    answers.insert(0, Record { owner: None, data: RecordData::Alias(other) });
    Answer::Records { answers, additional }
}

/// `_NAME._tcp` or `_NAME._udp` of a service: the service's own address and port, or each of its endpoints'.
fn ports(service: &Service, all: &[ServicePort], hosts: &[Host], name: &str, kind: RecordType) -> Answer {
    let mut named = all.iter().filter(|port| port.name == name).peekable();
    if named.peek().is_none() {
        return Answer::NoSuchName;
    }
    if !matches!(kind, RecordType::Srv | RecordType::Any) {
        return Answer::empty();
    }
    let mut found: Vec<(u16, String, Vec<IpAddr>)> = Vec::new();
    for port in named {
        if !service.vips.is_empty() {
            found.push((port.number, service.hostname.clone(), service.vips.clone()));
            continue;
        }
        for endpoint in port.ready() {
            let address = endpoint.address.ip();
            for host in ready(hosts).filter(|host| host.address == address) {
                let target = format!("{}.{}", host.label, service.hostname);
                let same = ready(hosts).filter(|other| other.label == host.label);
                found.push((endpoint.address.port(), target, same.map(|host| host.address).collect()));
            }
        }
    }
    found.sort();
    let mut additional: Vec<_> = found
        .iter()
        .flat_map(|(_, target, addresses)| {
            let owner = Some(target.clone());
            addresses.iter().map(move |&ip| Record { owner: owner.clone(), data: RecordData::Address(ip) })
        })
        .collect();
    additional.sort();
    additional.dedup();
    let mut answers: Vec<_> = found
        .into_iter()
        .map(|(port, target, _)| Record { owner: None, data: RecordData::Service { port, target } })
        .collect();
    // Both addresses of a dual-stack host.
    answers.dedup();
    Answer::Records { answers, additional }
}

/// What is left of `name` without `domain`; empty if they are the same.
fn below<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let rest = name.strip_suffix(domain)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_suffix('.') }
}

/// The address that a name of `in-addr.arpa` (RFC 1035, 3.5) or `ip6.arpa` (RFC 3596, 2.5) stands for.
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<_> = octets.rsplit('.').collect();
        return octets.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    let nibbles = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0u128;
    let mut count = 0;
    for nibble in nibbles.rsplit('.') {
        let digit = u128::from_str_radix(nibble, 16).ok().filter(|_| nibble.len() == 1)?;
        bits = bits << 4 | digit;
        count += 1;
    }
    (count == 32).then(|| IpAddr::V6(Ipv6Addr::from_bits(bits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_names_are_read() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(reverse("4.3.2.10.in-addr.arpa"), Some(address("10.2.3.4")));
        let nibbles = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(reverse(nibbles), Some(address("fd00::1")));
        for other in ["3.2.10.in-addr.arpa", "in-addr.arpa", "x.3.2.10.in-addr.arpa", "1.ip6.arpa", "web", ""]
        {
            assert_eq!(reverse(other), None, "{other}");
        }
        assert_eq!(reverse(&nibbles.replacen("1.", "+1.", 1)), None);
    }

    #[test]
    fn a_domain_ends_at_a_dot() {
        assert_eq!(below("web.cluster.local", "cluster.local"), Some("web"));
        assert_eq!(below("cluster.local", "cluster.local"), Some(""));
        assert_eq!(below("mycluster.local", "cluster.local"), None);
    }
}
