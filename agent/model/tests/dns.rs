//! Holds `Snapshot::resolve` against an obvious reference that writes the whole zone down and looks the name up.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use orlop_model::world::security::IpBlock;
use orlop_model::world::{
    Backend, BackendAddress, EndpointSlice, Exports, Labels, Namespace, Phase, Pod, Port, Protocol,
    Resolution, Service, ServiceEntry, ServicePort, SliceEndpoint, TargetPort,
};
use orlop_model::{Answer, NamespacedName, Record, RecordData, RecordType, Settings, Text, World, compile};
use proptest::prelude::*;

const DOMAIN: &str = "cluster.local";
const NAMESPACES: [&str; 2] = ["shop", "dev"];
const LABELS: [&str; 16] = [
    "web", "db", "shop", "dev", "svc", "pod", "cluster", "local", "web-0", "web-1", "_http", "_tcp", "_udp",
    "10-0-0-1", "fd00--2", "example",
];
const PODS: usize = 4;

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn resolve_agrees_with_the_zone_written_down(
        world in world(),
        names in prop::collection::vec(name(), 8),
        client in prop::sample::select(&NAMESPACES[..]),
        kind in kind(),
    ) {
        let snapshot = compile(&world, &settings(), 1);
        let zone = Zone::of(&world);
        let known = zone.records.keys().cloned();
        for name in names.into_iter().chain(known.clone()).chain(known.filter_map(|name| parent(&name))) {
            let got = snapshot.resolve(client, &name, kind);
            prop_assert_eq!(plain(got), zone.answer(client, &name, kind), "{} {:?}", name, kind);
        }
    }

    #[test]
    fn every_host_of_an_srv_answer_comes_with_its_addresses(world in world(), client in prop::sample::select(&NAMESPACES[..])) {
        let snapshot = compile(&world, &settings(), 1);
        for name in Zone::of(&world).records.keys() {
            let Answer::Records { answers, additional } = snapshot.resolve(client, name, RecordType::Srv) else { continue };
            let mut want = BTreeSet::new();
            for record in answers {
                let RecordData::Service { target, .. } = record.data else { panic!("not SRV: {record:?}") };
                let found = snapshot.resolve(client, &target, RecordType::Any);
                for data in plain(found).unwrap().unwrap() {
                    want.insert((Some(target.clone()), data));
                }
            }
            let got: BTreeSet<_> = additional.into_iter().map(|record| (record.owner, record.data)).collect();
            prop_assert_eq!(got, want);
        }
    }
}

#[test]
fn a_search_path_ends_in_the_cluster_and_outside_names_do_not_begin_there() {
    let snapshot = compile(&World::default(), &settings(), 1);
    let resolve = |name: &str| snapshot.resolve("shop", name, RecordType::A);
    for form in ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"] {
        assert_eq!(resolve(&format!("example.com.{form}")), Answer::NoSuchName);
    }
    for outside in
        ["example.com", "example.com.corp.example", "cluster.locals", "example", "a.svc", "web.shop", ""]
    {
        assert_eq!(resolve(outside), Answer::Forward, "{outside}");
    }
}

#[test]
fn the_hosts_of_service_entries_are_answered_to_those_who_may_see_them() {
    let entry = |name: &str, hosts: &[&str], address: &str, exports| ServiceEntry {
        name: name.parse().unwrap(),
        hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
        addresses: vec![IpBlock::single(ip(address))],
        exports,
        ..ServiceEntry::default()
    };
    let mut backends = entry("shop/backends", &["backends.example"], "198.51.100.1", Exports::All);
    backends.addresses.clear();
    backends.ports = vec![ServicePort { number: 80, ..ServicePort::default() }];
    let listed = |address| Backend {
        address: BackendAddress::Ip(ip(address)),
        service_account: "default".into(),
        ..Backend::default()
    };
    backends.endpoints = vec![listed("192.0.2.8"), listed("192.0.2.9")];
    let given = ServiceEntry {
        name: "shop/given".parse().unwrap(),
        hosts: vec!["given.example".into()],
        allocated: [("given.example".to_owned(), vec![ip("240.240.0.1")])].into(),
        ..backends.clone()
    };
    let label = ("networking.istio.io/enable-autoallocate-ip", "false");
    backends.labels = [label].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let dns = ServiceEntry { resolution: Resolution::Dns, ..backends.clone() };
    let dns = ServiceEntry { name: "shop/dns".parse().unwrap(), hosts: vec!["dns.example".into()], ..dns };
    let entries = [
        entry("dev/api", &["api.example"], "198.51.100.2", Exports::All),
        entry("dev/own", &["own.example"], "198.51.100.3", Exports::To(["dev".to_owned()].into())),
        entry("dev/wild", &["*.wild.example", "*.b.wild.example"], "198.51.100.4", Exports::All),
        entry("dev/wilder", &["*.a.wild.example"], "198.51.100.5", Exports::All),
        entry("shop/api", &["api.example"], "198.51.100.6", Exports::All),
        backends,
        dns,
        given,
    ];
    let mut world = World::default();
    world.service_entries.extend(entries.map(|entry| (entry.name.clone(), entry)));
    let snapshot = compile(&world, &settings(), 1);
    let resolve = |client, name: &str| match snapshot.resolve(client, name, RecordType::A) {
        Answer::Records { answers, .. } => Some(answers),
        Answer::NoSuchName => Some(Vec::new()),
        Answer::Forward | Answer::Alias(_) => None,
    };
    let address = |text| vec![Record { owner: None, data: RecordData::Address(ip(text)) }];
    assert_eq!(resolve("dev", "api.example"), Some(address("198.51.100.2")), "of the own namespace");
    assert_eq!(resolve("shop", "api.example"), Some(address("198.51.100.6")), "of the own namespace");
    assert_eq!(resolve("else", "api.example"), Some(address("198.51.100.2")), "the first by name");
    assert_eq!(resolve("dev", "own.example"), Some(address("198.51.100.3")));
    assert_eq!(resolve("shop", "own.example"), None, "not exported");
    assert_eq!(resolve("shop", "x.wild.example"), Some(address("198.51.100.4")));
    assert_eq!(resolve("shop", "x.y.wild.example"), Some(address("198.51.100.4")));
    assert_eq!(resolve("shop", "x.a.wild.example"), Some(address("198.51.100.5")), "the longest");
    assert_eq!(resolve("shop", "wild.example"), None, "a * stands for one label at least");
    let both = [address("192.0.2.8"), address("192.0.2.9")].concat();
    assert_eq!(resolve("shop", "backends.example"), Some(both), "without an address, those of the endpoints");
    assert_eq!(resolve("shop", "dns.example"), None, "DNS knows");
    assert_eq!(resolve("shop", "given.example"), Some(address("240.240.0.1")));

    // The first form of a search path has the answer already.
    let searched = resolve("shop", "x.wild.example.shop.svc.cluster.local").unwrap();
    let name = "x.wild.example".to_owned();
    let alias = Record { owner: None, data: RecordData::Alias(name.clone()) };
    let data = RecordData::Address(ip("198.51.100.4"));
    assert_eq!(searched, [alias, Record { owner: Some(name), data }]);
    assert_eq!(
        resolve("shop", "x.wild.example.dev.svc.cluster.local"),
        Some(Vec::new()),
        "another's search path"
    );
    assert_eq!(resolve("shop", "own.example.shop.svc.cluster.local"), Some(Vec::new()));
}

#[test]
fn an_external_name_stands_for_another() {
    let external = |name: &str, other: &str| {
        let name = NamespacedName::new("shop", name);
        Service { name, external_name: Some(other.to_owned()), ..Service::default() }
    };
    let web = NamespacedName::new("dev", "web");
    let web = Service { name: web, cluster_ips: vec![ip("10.96.0.1")], ..Service::default() };
    let services = [
        web,
        external("out", "API.example."),
        external("in", "web.dev.svc.cluster.local"),
        external("nowhere", "none.dev.svc.cluster.local"),
        external("one", "two.shop.svc.cluster.local"),
        external("two", "one.shop.svc.cluster.local"),
    ];
    let mut world = World::default();
    world.services.extend(services.map(|service| (service.name.clone(), service)));
    let snapshot = compile(&world, &settings(), 1);
    let resolve =
        |name: &str| snapshot.resolve("shop", &format!("{name}.shop.svc.cluster.local"), RecordType::A);
    assert_eq!(resolve("out"), Answer::Alias("api.example".into()));
    let data = |answer| match answer {
        Answer::Records { answers, .. } => answers.into_iter().map(|record| record.data).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let alias = |name: &str| RecordData::Alias(name.to_owned());
    let want = [alias("web.dev.svc.cluster.local"), RecordData::Address(ip("10.96.0.1"))];
    assert_eq!(data(resolve("in")), want);
    assert_eq!(data(resolve("nowhere")), [alias("none.dev.svc.cluster.local")]);
    assert!(data(resolve("one")).len() < 20, "a circle ends");
    assert_eq!(resolve("x.out"), Answer::NoSuchName);
}

/// `None` to forward, `Some(None)` for no such name.
type Plain = Option<Option<BTreeSet<RecordData>>>;

fn plain(answer: Answer) -> Plain {
    match answer {
        Answer::Forward | Answer::Alias(_) => None,
        Answer::NoSuchName => Some(None),
        Answer::Records { answers, .. } => {
            Some(Some(answers.into_iter().map(|record| record.data).collect()))
        }
    }
}

/// Every name there is.
#[derive(Default)]
struct Zone {
    records: BTreeMap<String, BTreeSet<RecordData>>,
    /// Of these and what is below them others know.
    elsewhere: Vec<String>,
}

struct Host {
    label: String,
    address: IpAddr,
    ready: bool,
    ports: Vec<(Protocol, Port)>,
}

impl Zone {
    fn of(world: &World) -> Self {
        let mut zone = Self::default();
        let mut add =
            |name: String, data: Option<RecordData>| zone.records.entry(name).or_default().extend(data);
        let of_pods = world.pods.values().filter(|pod| live(pod)).map(|pod| &pod.name.namespace);
        let namespaces: BTreeSet<_> = world
            .namespaces
            .keys()
            .chain(world.services.keys().map(|name| &name.namespace))
            .chain(of_pods)
            .collect();
        for kind in ["svc", "pod"] {
            add(format!("{kind}.{DOMAIN}"), None);
            namespaces.iter().for_each(|namespace| add(format!("{namespace}.{kind}.{DOMAIN}"), None));
        }
        for pod in world.pods.values().filter(|pod| live(pod) && !pod.host_network) {
            for &ip in &pod.addresses {
                let name = format!("{}.{}.pod.{DOMAIN}", dashed(ip), pod.name.namespace);
                add(name, Some(RecordData::Address(ip)));
            }
        }
        let mut pointers = BTreeMap::new();
        for service in world.services.values() {
            let host = format!("{}.{}.svc.{DOMAIN}", service.name.name, service.name.namespace);
            let hosts = hosts(world, service);
            if hosts.is_none() && service.cluster_ips.is_empty() {
                zone.elsewhere.push(host);
                continue;
            }
            add(host.clone(), None);
            for &vip in &service.cluster_ips {
                add(host.clone(), Some(RecordData::Address(vip)));
                pointers.entry(vip).or_insert(host.clone());
            }
            let headless = service.cluster_ips.is_empty();
            let named = service.ports.iter().filter(|port| !port.name.is_empty());
            for port in named.clone() {
                let data = RecordData::Service { port: port.number, target: host.clone() };
                add(
                    format!("_{}.{}.{host}", port.name, label_of(port.protocol)),
                    (!headless).then_some(data),
                );
            }
            let hosts = hosts.unwrap_or_default();
            for one in &hosts {
                let data = one.ready.then_some(RecordData::Address(one.address));
                let label = format!("{}.{host}", one.label);
                if headless || one.label != dashed(one.address) {
                    add(label.clone(), data.clone());
                }
                if !headless || !one.ready {
                    continue;
                }
                add(host.clone(), data);
                // By whatever name the address is listed with the port.
                let same = hosts.iter().filter(|other| other.ready && other.address == one.address);
                for (protocol, own) in same.flat_map(|other| &other.ports) {
                    if named.clone().any(|port| port.name == own.name && port.protocol == *protocol) {
                        let data = RecordData::Service { port: own.number, target: label.clone() };
                        add(format!("_{}.{}.{host}", own.name, label_of(*protocol)), Some(data));
                    }
                }
            }
        }
        for service in world.services.values().filter(|service| service.cluster_ips.is_empty()) {
            let host = format!("{}.{}.svc.{DOMAIN}", service.name.name, service.name.namespace);
            let mut hosts = hosts(world, service).unwrap_or_default();
            hosts.sort_by(|a, b| a.label.cmp(&b.label));
            for one in hosts.into_iter().filter(|one| one.ready) {
                pointers.entry(one.address).or_insert(format!("{}.{host}", one.label));
            }
        }
        for (address, host) in pointers {
            add(reverse(address), Some(RecordData::Pointer(host)));
        }
        zone
    }

    fn answer(&self, client: &str, name: &str, kind: RecordType) -> Plain {
        let is_below = |name: &str, of: &str| name == of || name.ends_with(&format!(".{of}"));
        let ours = is_below(name, DOMAIN);
        let full = match name.rsplit_once('.') {
            _ if ours || is_below(name, "arpa") => name.to_owned(),
            None => format!("{name}.{client}.svc.{DOMAIN}"),
            Some((_, "svc")) => format!("{name}.{DOMAIN}"),
            _ => return None,
        };
        if self.elsewhere.iter().any(|of| is_below(&full, of)) {
            return None;
        }
        let below = self.records.keys().any(|known| is_below(known, &full));
        match self.records.get(&full) {
            Some(records) => {
                Some(Some(records.iter().filter(|data| asked_for(data, kind)).cloned().collect()))
            }
            None if below && !is_below(&full, "arpa") => Some(Some(BTreeSet::new())),
            None if ours => Some(None),
            None => None,
        }
    }
}

fn asked_for(data: &RecordData, kind: RecordType) -> bool {
    let own = match data {
        RecordData::Address(IpAddr::V4(_)) => RecordType::A,
        RecordData::Address(IpAddr::V6(_)) => RecordType::Aaaa,
        RecordData::Service { .. } => RecordType::Srv,
        RecordData::Pointer(_) => RecordType::Ptr,
        RecordData::Alias(_) => unreachable!("no service has another name here"),
    };
    kind == own || kind == RecordType::Any
}

fn label_of(protocol: Protocol) -> &'static str {
    if protocol == Protocol::Udp { "_udp" } else { "_tcp" }
}

fn hosts(world: &World, service: &Service) -> Option<Vec<Host>> {
    let same = |name: &NamespacedName| name.namespace == service.name.namespace;
    let slices = || {
        let all = world.endpoint_slices.values();
        all.filter(|slice| same(&slice.name) && slice.service.as_ref() == Some(&service.name.name))
    };
    if slices().next().is_some() {
        let mut hosts = Vec::new();
        for (slice, endpoint) in slices().flat_map(|slice| slice.endpoints.iter().map(move |e| (slice, e))) {
            for &address in &endpoint.addresses {
                let owner = endpoint.target.as_ref().map(|name| world.pods.get(name));
                let valid =
                    owner.is_none_or(|pod| pod.is_some_and(|p| live(p) && p.addresses.contains(&address)));
                if valid {
                    hosts.push(Host {
                        label: endpoint
                            .hostname
                            .as_ref()
                            .map(ToString::to_string)
                            .unwrap_or_else(|| dashed(address)),
                        address,
                        ready: service.publish_not_ready || (endpoint.ready && !endpoint.terminating),
                        ports: [(Protocol::Tcp, &slice.ports), (Protocol::Udp, &slice.udp_ports)]
                            .into_iter()
                            .flat_map(|(protocol, ports)| {
                                ports.iter().map(move |port| (protocol, port.clone()))
                            })
                            .collect(),
                    });
                }
            }
        }
        return Some(hosts);
    }
    if service.selector.is_empty() {
        return None;
    }
    let selected = world.pods.values().filter(|pod| {
        same(&pod.name) && live(pod) && service.selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v))
    });
    let mut hosts = Vec::new();
    for pod in selected {
        let own = pod.hostname.clone().filter(|_| pod.subdomain.as_ref() == Some(&service.name.name));
        let port = |port: &ServicePort| {
            let number = if let TargetPort::Number(number) = port.target { number } else { port.number };
            (port.protocol, Port { name: port.name.as_str().into(), number })
        };
        for &address in &pod.addresses {
            hosts.push(Host {
                label: own.as_ref().map(ToString::to_string).unwrap_or_else(|| dashed(address)),
                address,
                ready: (pod.ready && !pod.terminating) || service.publish_not_ready,
                ports: service.ports.iter().map(port).collect(),
            });
        }
    }
    Some(hosts)
}

fn live(pod: &Pod) -> bool {
    pod.phase == Phase::Running
}

fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(ip) => {
            let hex = format!("{:032x}", ip.to_bits());
            hex.chars().rev().map(|nibble| format!("{nibble}.")).collect::<String>() + "ip6.arpa"
        }
    }
}

fn parent(name: &str) -> Option<String> {
    name.split_once('.').map(|(_, rest)| rest.to_owned())
}

fn name() -> impl Strategy<Value = String> {
    let labels = prop::collection::vec(prop::sample::select(&LABELS[..]), 1..4);
    let suffix = prop::sample::select(vec![
        "",
        ".svc",
        ".shop.svc",
        ".shop.svc.cluster.local",
        ".svc.cluster.local",
        ".pod.cluster.local",
        ".cluster.local",
    ]);
    (labels, suffix).prop_map(|(labels, suffix)| labels.join(".") + suffix)
}

fn kind() -> impl Strategy<Value = RecordType> {
    use RecordType::{A, Aaaa, Any, Other, Ptr, Srv};
    prop::sample::select(vec![A, Aaaa, Srv, Ptr, Any, Other])
}

fn world() -> impl Strategy<Value = World> {
    let slices = prop::collection::vec(slice(), 0..4);
    (any::<bool>(), prop::collection::vec(pod(), PODS), prop::collection::vec(service(), 0..4), slices)
        .prop_map(|(empty, pods, services, slices)| {
            let mut world = World::default();
            if empty {
                world.namespaces.insert("dev".into(), Namespace::default());
            }
            for (index, pod) in pods.into_iter().enumerate() {
                let name = pod_name(index);
                let number = index + 1;
                let addresses = vec![ip(&format!("10.0.0.{number}")), ip(&format!("fd00::{number}"))];
                world.pods.insert(name.clone(), Pod { name, addresses: addresses.into(), ..pod });
            }
            world.services.extend(services.into_iter().map(|service| (service.name.clone(), service)));
            for (index, slice) in slices.into_iter().enumerate() {
                let name = NamespacedName::new(slice.name.namespace.clone(), format!("slice-{index}"));
                world.endpoint_slices.insert(name.clone(), EndpointSlice { name, ..slice });
            }
            world
        })
}

fn pod() -> impl Strategy<Value = Pod> {
    let flags = (prop::bool::weighted(0.8), prop::bool::weighted(0.2), prop::bool::weighted(0.15));
    let hostname = prop::option::of(prop::sample::select(vec!["web-0", "web-1"]));
    let phase = prop::sample::select(vec![Phase::Running, Phase::Running, Phase::Succeeded]);
    (flags, hostname, prop::option::of(service_name()), phase).prop_map(
        |((ready, terminating, host_network), hostname, subdomain, phase)| Pod {
            hostname: hostname.map(Text::from),
            subdomain: subdomain.map(Text::from),
            ready,
            terminating,
            host_network,
            phase,
            labels: labels(),
            service_account: "default".into(),
            ..Pod::default()
        },
    )
}

fn service() -> impl Strategy<Value = Service> {
    let name = (prop::sample::select(&NAMESPACES[..]), service_name());
    let vips = prop::sample::select(vec![vec![], vec!["10.96.0.1"], vec!["10.96.0.2", "fd00:96::2"]]);
    let port = |number| {
        let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp]);
        let target = prop::sample::select(vec![TargetPort::Unset, TargetPort::Number(8080)]);
        (prop::sample::select(vec!["http", "metrics", ""]), protocol, target).prop_map(
            move |(name, protocol, target)| ServicePort {
                name: name.to_owned(),
                number,
                protocol,
                target,
                app_protocol: None,
            },
        )
    };
    (name, vips, port(80), prop::option::of(port(81)), any::<bool>(), any::<bool>()).prop_map(
        |((namespace, name), vips, one, other, selects, publish_not_ready)| Service {
            name: NamespacedName::new(namespace, name),
            cluster_ips: vips.into_iter().map(ip).collect(),
            ports: [Some(one), other].into_iter().flatten().collect(),
            selector: if selects { labels() } else { Labels::new() },
            publish_not_ready,
            ..Service::default()
        },
    )
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let hostname = prop::option::of(prop::sample::select(vec!["web-0", "web-1"]));
    let address = prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "fd00::2", "192.0.2.1"]);
    let endpoint = (prop::option::of(0..PODS), hostname, address, any::<bool>(), prop::bool::weighted(0.2))
        .prop_map(|(target, hostname, address, ready, terminating)| SliceEndpoint {
            addresses: [ip(address)].into(),
            hostname: hostname.map(Text::from),
            target: target.map(pod_name),
            ready,
            terminating,
            ..SliceEndpoint::default()
        });
    let port = (prop::sample::select(vec!["http", "metrics"]), prop::sample::select(vec![8080, 9090]))
        .prop_map(|(name, number)| Port { name: name.into(), number });
    let place = (prop::sample::select(&NAMESPACES[..]), service_name());
    let ports = || prop::collection::vec(port.clone(), 0..3);
    (place, ports(), ports(), prop::collection::vec(endpoint, 0..4)).prop_map(
        |((namespace, service), ports, udp_ports, endpoints)| EndpointSlice {
            name: NamespacedName::new(namespace, ""),
            service: Some(service.into()),
            ports,
            udp_ports,
            endpoints,
        },
    )
}

fn service_name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["web".to_owned(), "db".to_owned()])
}

fn pod_name(index: usize) -> NamespacedName {
    NamespacedName::new(NAMESPACES[index % 2], format!("pod-{index}"))
}

fn labels() -> Labels {
    [("app".to_owned(), "web".to_owned())].into()
}

fn settings() -> Settings {
    Settings {
        node: "one".into(),
        trust_domain: DOMAIN.parse().unwrap(),
        trust_domain_aliases: Vec::new(),
        root_namespace: "istio-system".into(),
        cluster: "Kubernetes".into(),
        cluster_domain: DOMAIN.into(),
        network: None,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
