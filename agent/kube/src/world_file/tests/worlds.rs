//! Worlds of all kinds of objects, with whatever may be in them.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use orlop_model::world::security::{
    Action, AuthorizationPolicy, Condition, IpBlock, Match, Mode, Operation, Pattern, PeerAuthentication,
    Rule, ServiceAccount, Source, Target,
};
use orlop_model::world::{
    Backend, BackendAddress, Distribution, EndpointSlice, Exports, Labels, Locality, Namespace, Node, Owner,
    PathPattern, Phase, Pod, Port, Protocol, Resolution, Segment, Service, ServiceEntry, ServicePort,
    SliceEndpoint, TargetPort, WorkloadEntry, World,
};
use orlop_model::{Map, NamespacedName, Text};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

pub(super) fn world() -> impl Strategy<Value = World> {
    (
        btree_map(name(), labels().prop_map(|labels| Namespace { labels }), 0..3),
        btree_map(name(), node(), 0..3),
        vec(pod(), 0..5),
        vec(service(), 0..3),
        vec(slice(), 0..3),
        (vec(service_entry(), 0..3), vec((full_name(), backend()), 0..3)),
        (vec(authorization_policy(), 0..3), vec(peer_authentication(), 0..3)),
    )
        .prop_map(|(namespaces, nodes, pods, services, slices, entries, policies)| World {
            namespaces: namespaces.into_iter().map(|(name, of)| (Text::from(name), of)).collect(),
            nodes: nodes.into_iter().map(|(name, of)| (Text::from(name), of)).collect(),
            pods: by(pods, |pod| &pod.name),
            services: by(services, |service| &service.name),
            endpoint_slices: by(slices, |slice| &slice.name),
            service_entries: by(entries.0, |entry| &entry.name),
            workload_entries: by(
                entries.1.into_iter().map(|(name, backend)| WorkloadEntry { name, backend }).collect(),
                |entry| &entry.name,
            ),
            authorization_policies: by(policies.0, |policy| &policy.name),
            peer_authentications: by(policies.1, |policy| &policy.name),
            ..World::default()
        })
}

fn by<T>(objects: Vec<T>, name: impl Fn(&T) -> &NamespacedName) -> Map<NamespacedName, T> {
    objects.into_iter().map(|object| (name(&object).clone(), object)).collect()
}

fn node() -> impl Strategy<Value = Node> {
    (vec(address(), 0..3), labels()).prop_map(|(addresses, labels)| Node { addresses, labels })
}

fn pod() -> impl Strategy<Value = Pod> {
    let phases = [Phase::Pending, Phase::Running, Phase::Succeeded, Phase::Failed, Phase::Unknown];
    let texts = (text(), option::of(name()), option::of(name()), option::of(name()), name());
    let owner =
        option::of((text(), text()).prop_map(|(kind, name)| Owner { kind: kind.into(), name: name.into() }));
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), select(phases.to_vec()));
    let ports = (vec(port(), 0..3), option::of(btree_set(any::<u16>(), 0..3)));
    (full_name(), labels(), labels(), texts, vec(address(), 0..3), flags, owner, ports).prop_map(
        |(name, labels, annotations, texts, addresses, flags, owner, ports)| Pod {
            name,
            uid: texts.0.into(),
            claim: texts.2.clone().map(Text::from),
            labels,
            annotations,
            node: texts.1.map(Text::from),
            hostname: texts.2.map(Text::from),
            subdomain: texts.3.map(Text::from),
            service_account: texts.4.into(),
            addresses: addresses.into(),
            host_network: flags.0,
            windows: flags.1,
            phase: flags.3,
            ready: flags.1,
            terminating: flags.2,
            owner,
            container_ports: ports.0.into(),
            probed: ports.1,
        },
    )
}

fn port() -> impl Strategy<Value = Port> {
    (text(), 1..=u16::MAX).prop_map(|(name, number)| Port { name: name.into(), number })
}

fn service() -> impl Strategy<Value = Service> {
    let addresses = (vec(address(), 0..3), vec(address(), 0..3));
    let affinity = option::of((0..100_000_u64).prop_map(Duration::from_secs));
    let rest = (option::of(text()), affinity, distribution(), any::<bool>(), any::<bool>());
    (full_name(), labels(), labels(), addresses, vec(service_port(), 0..3), rest).prop_map(
        |(name, labels, selector, addresses, ports, rest)| Service {
            name,
            labels,
            cluster_ips: addresses.0,
            external_ips: addresses.1,
            external_name: rest.0,
            ports,
            selector,
            publish_not_ready: rest.3,
            affinity: rest.1,
            distribution: rest.2,
            node_local: rest.4,
        },
    )
}

fn service_port() -> impl Strategy<Value = ServicePort> {
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let target = prop_oneof![
        Just(TargetPort::Unset),
        any::<u16>().prop_map(TargetPort::Number),
        text().prop_map(TargetPort::Name),
    ];
    (text(), 1..=u16::MAX, select(protocols.to_vec()), target).prop_map(|(name, number, protocol, target)| {
        ServicePort { name, number, protocol, target, app_protocol: None }
    })
}

fn distribution() -> impl Strategy<Value = Distribution> {
    select(vec![Distribution::Any, Distribution::Zone, Distribution::Node])
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let ports = (vec(port(), 0..3), vec(port(), 0..3));
    (full_name(), option::of(name()), ports, vec(endpoint(), 0..4)).prop_map(
        |(name, service, (ports, udp_ports), endpoints)| EndpointSlice {
            name,
            service: service.map(Text::from),
            ports,
            udp_ports,
            endpoints,
        },
    )
}

fn endpoint() -> impl Strategy<Value = SliceEndpoint> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let texts = (option::of(text()), option::of(name()), option::of(name()));
    (vec(address(), 0..3), flags, texts, option::of(full_name())).prop_map(
        |(addresses, (ready, serving, terminating), (hostname, node, zone), target)| SliceEndpoint {
            addresses: addresses.into(),
            hostname: hostname.map(Text::from),
            ready,
            serving,
            terminating,
            node: node.map(Text::from),
            zone: zone.map(Text::from),
            target,
        },
    )
}

fn service_entry() -> impl Strategy<Value = ServiceEntry> {
    let resolutions = [Resolution::None, Resolution::Static, Resolution::Dns, Resolution::DnsRoundRobin];
    let exports = prop_oneof![Just(Exports::All), btree_set(name(), 0..3).prop_map(Exports::To)];
    let places = (vec(name(), 0..3), vec(block(), 0..3), btree_map(name(), vec(address(), 0..2), 0..2));
    let rest = (any::<bool>(), select(resolutions.to_vec()), exports, distribution());
    let found = (vec(service_port(), 0..3), vec(backend(), 0..3), labels());
    (full_name(), labels(), places, rest, found).prop_map(|(name, labels, places, rest, found)| {
        ServiceEntry {
            name,
            labels,
            hosts: places.0,
            addresses: places.1,
            allocated: places.2,
            ports: found.0,
            external: rest.0,
            resolution: rest.1,
            endpoints: found.1,
            selector: found.2,
            exports: rest.2,
            distribution: rest.3,
        }
    })
}

fn backend() -> impl Strategy<Value = Backend> {
    let address = prop_oneof![address().prop_map(BackendAddress::Ip), name().prop_map(BackendAddress::Host)];
    let part = || option::of(name().prop_map(|name| name.as_str().into()));
    let locality = (part(), part(), part());
    let rest = (name(), option::of(any::<NonZeroU32>()), option::of(text()));
    (address, btree_map(text(), 1..=u16::MAX, 0..3), labels(), locality, rest).prop_map(
        |(address, ports, labels, (region, zone, subzone), (service_account, weight, network))| Backend {
            address,
            ports,
            labels,
            locality: Locality { region, zone, subzone },
            service_account,
            weight,
            network,
        },
    )
}

fn authorization_policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let actions = select(vec![Action::Allow, Action::Deny, Action::Audit, Action::Custom]);
    let actions = (actions, option::of(name()));
    let rules = (vec(source(), 0..2), vec(operation(), 0..2), vec(condition(), 0..3))
        .prop_map(|(from, to, when)| Rule { from, to, when });
    let targets = prop_oneof![
        name().prop_map(Target::Gateway),
        name().prop_map(Target::Service),
        name().prop_map(Target::ServiceEntry),
        name().prop_map(Target::GatewayClass),
    ];
    (full_name(), labels(), vec(targets, 0..2), actions, vec(rules, 0..3), any::<bool>()).prop_map(
        |(name, selector, targets, (action, provider), rules, dry_run)| AuthorizationPolicy {
            name,
            selector,
            targets,
            action,
            provider,
            rules,
            dry_run,
        },
    )
}

fn source() -> impl Strategy<Value = Source> {
    let who = (matching(pattern()), matching(pattern()), matching(account()));
    (who, matching(block()), matching(block()), matching(pattern())).prop_map(
        |(who, ip_blocks, remote_ip_blocks, request_principals)| Source {
            principals: who.0,
            namespaces: who.1,
            service_accounts: who.2,
            ip_blocks,
            remote_ip_blocks,
            request_principals,
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    (matching(1..=u16::MAX), matching(pattern()), matching(pattern()), matching(path()))
        .prop_map(|(ports, hosts, methods, paths)| Operation { ports, hosts, methods, paths })
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        matching(block()).prop_map(Condition::SourceIp),
        matching(pattern()).prop_map(Condition::SourceNamespace),
        matching(pattern()).prop_map(Condition::SourcePrincipal),
        matching(account()).prop_map(Condition::SourceServiceAccount),
        matching(block()).prop_map(Condition::DestinationIp),
        matching(1..=u16::MAX).prop_map(Condition::DestinationPort),
        matching(block()).prop_map(Condition::RemoteIp),
        matching(pattern()).prop_map(Condition::Host),
        matching(pattern()).prop_map(Condition::Method),
        (text(), matching(pattern())).prop_map(|(name, value)| Condition::Header(name, value)),
        matching(pattern()).prop_map(Condition::RequestPrincipal),
        matching(pattern()).prop_map(Condition::RequestAudience),
        matching(pattern()).prop_map(Condition::RequestPresenter),
        (vec(text(), 1..3), matching(pattern())).prop_map(|(claim, value)| Condition::Claim(claim, value)),
        text().prop_map(Condition::Unread),
    ]
}

fn matching<T: Clone + std::fmt::Debug>(one: impl Strategy<Value = T>) -> impl Strategy<Value = Match<T>> {
    vec((any::<bool>(), one), 0..3).prop_map(|entries| {
        let (values, not_values): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(not, _)| !not);
        let only = |entries: Vec<(bool, T)>| entries.into_iter().map(|(_, value)| value).collect();
        Match { values: only(values), not_values: only(not_values) }
    })
}

fn pattern() -> impl Strategy<Value = Pattern> {
    prop_oneof![
        text().prop_map(Pattern::Exact),
        text().prop_map(Pattern::Prefix),
        text().prop_map(Pattern::Suffix),
        Just(Pattern::Present),
    ]
}

fn path() -> impl Strategy<Value = PathPattern> {
    let segment = prop_oneof![text().prop_map(Segment::Literal), Just(Segment::Any)];
    let template = (vec(segment, 0..3), option::of(vec(text(), 0..2)))
        .prop_map(|(before, after)| PathPattern::Template { before, after });
    prop_oneof![pattern().prop_map(PathPattern::Text), template]
}

fn account() -> impl Strategy<Value = ServiceAccount> {
    (name(), name()).prop_map(|(namespace, name)| ServiceAccount { namespace, name })
}

fn peer_authentication() -> impl Strategy<Value = PeerAuthentication> {
    let mode = || option::of(select(vec![Mode::Permissive, Mode::Strict, Mode::Disable]));
    (full_name(), any::<Option<i64>>(), labels(), mode(), btree_map(any::<u16>(), mode(), 0..3)).prop_map(
        |(name, created, selector, mode, ports)| PeerAuthentication { name, created, selector, mode, ports },
    )
}

fn block() -> impl Strategy<Value = IpBlock> {
    (any::<IpAddr>(), 0_u8..=128)
        .prop_map(|(address, length)| IpBlock::new(address, length).unwrap_or(IpBlock::single(address)))
}

fn address() -> impl Strategy<Value = IpAddr> {
    // Often the same, so that objects lead to each other.
    prop_oneof![any::<IpAddr>(), (1..5_u8).prop_map(|last| [10, 0, 0, last].into())]
}

fn labels() -> impl Strategy<Value = Labels> {
    let enabled = Labels::from([("orlop.dev/mesh", "enabled")]);
    prop_oneof![btree_map(text(), text(), 0..3).prop_map(Labels::from_iter), Just(enabled)]
}

fn full_name() -> impl Strategy<Value = NamespacedName> {
    (name(), name()).prop_map(|(namespace, name)| NamespacedName::new(namespace, name))
}

/// Such as the API server lets be.
fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-c]", "[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?"]
}

/// Anything at all.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["web", any::<String>()]
}
