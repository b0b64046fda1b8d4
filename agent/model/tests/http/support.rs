use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use orlop_model::http::{Action, Client, Grants, Headers, Request, Rule, is_alike};
use orlop_model::world::routing::{
    Destination, DestinationRule, HttpMatch, HttpRule, RuleAction, StringMatch, VirtualService,
    WeightedDestination,
};
use orlop_model::world::{EndpointSlice, Namespace, Pod, Port, Service, ServicePort, SliceEndpoint};
use orlop_model::{NamespacedName, Reason, Settings, Snapshot, World, compile};

/// Headers of a request, in lower case.
#[derive(Clone, Debug, Default)]
pub struct Map(pub BTreeMap<String, Vec<String>>);

impl Headers for Map {
    fn values(&self, name: &str) -> Vec<Cow<'_, str>> {
        self.0.get(name).into_iter().flatten().map(|value| Cow::Borrowed(value.as_str())).collect()
    }

    fn alike(&self, name: &str) -> Vec<Cow<'_, str>> {
        let others = self.0.keys().filter(|other| *other != name && is_alike(other, name));
        others.flat_map(|other| self.values(other)).collect()
    }
}

pub static NONE: Map = Map(BTreeMap::new());

/// A GET of this path by a client of the namespace `shop`.
pub fn get(path: &str) -> Request<'_> {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    Request {
        method: "GET",
        scheme: "http",
        authority: "web",
        path,
        query,
        headers: &NONE,
        port: 80,
        source: None,
        source_namespace: "shop",
        claims: &[],
    }
}

/// A client of this namespace that is no pod.
pub fn client(namespace: &str) -> Client<'_> {
    Client { namespace, pod: None }
}

/// A world of the services `shop/web`, `shop/other` and `far/web`, behind the waypoint `shop/gate`. Of `shop/web` the
/// pods `v1` and `v2` are endpoints, labelled so.
pub fn world() -> World {
    let mut world = World::default();
    for namespace in ["shop", "far"] {
        let labels = [("istio.io/use-waypoint", "gate"), ("istio.io/use-waypoint-namespace", "shop")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        world.namespaces.insert(namespace.into(), Namespace { labels });
    }
    for (namespace, service, ports) in
        [("shop", "web", &[80_u16, 81][..]), ("shop", "other", &[80]), ("far", "web", &[80])]
    {
        let name = NamespacedName::new(namespace, service);
        let ports = ports.iter().map(|&number| ServicePort {
            name: format!("p{number}"),
            number,
            ..ServicePort::default()
        });
        let service = Service { name: name.clone(), ports: ports.collect(), ..Service::default() };
        world.services.insert(name, service);
    }
    for (version, address) in [("v1", "10.0.0.1"), ("v2", "10.0.0.2")] {
        let name = NamespacedName::new("shop", version);
        let labels = [("version".to_owned(), version.to_owned())].into();
        let pod = Pod {
            name: name.clone(),
            labels,
            addresses: [address.parse().unwrap()].into(),
            service_account: "default".into(),
            ready: true,
            ..Pod::default()
        };
        world.pods.insert(name.clone(), pod);
        let endpoint = SliceEndpoint {
            addresses: [address.parse().unwrap()].into(),
            ready: true,
            serving: true,
            target: Some(name),
            ..SliceEndpoint::default()
        };
        let slice = EndpointSlice {
            udp_ports: Vec::new(),
            name: NamespacedName::new("shop", format!("web-{version}")),
            service: Some("web".into()),
            ports: [80, 81]
                .map(|number| Port { name: format!("p{number}").into(), number: 8000 + number })
                .into(),
            endpoints: vec![endpoint],
        };
        world.endpoint_slices.insert(slice.name.clone(), slice);
    }
    world
}

pub fn add(world: &mut World, service: VirtualService) {
    world.virtual_services.insert(service.name.clone(), Arc::new(service));
}

pub fn add_destination(world: &mut World, rule: DestinationRule) {
    world.destination_rules.insert(rule.name.clone(), Arc::new(rule));
}

/// A VirtualService of `shop` for the host `web`.
pub fn routes(name: &str, http: impl Into<Vec<HttpRule>>) -> VirtualService {
    let name = NamespacedName::new("shop", name);
    VirtualService { name, hosts: vec!["web".to_owned()], http: http.into(), ..VirtualService::default() }
}

/// A rule of this name to `web`.
pub fn rule(name: &str, matches: impl Into<Vec<HttpMatch>>) -> HttpRule {
    HttpRule { name: name.to_owned(), matches: matches.into(), action: to("web"), ..HttpRule::default() }
}

pub fn to(host: &str) -> RuleAction {
    let destination = Destination { host: host.to_owned(), ..Destination::default() };
    RuleAction::Route(vec![WeightedDestination { destination, weight: 1, ..WeightedDestination::default() }])
}

pub fn prefix(text: &str) -> HttpMatch {
    HttpMatch { uri: Some(StringMatch::Prefix(text.to_owned())), ..HttpMatch::default() }
}

pub fn exact(text: &str) -> HttpMatch {
    HttpMatch { uri: Some(StringMatch::Exact(text.to_owned())), ..HttpMatch::default() }
}

pub fn regex(text: &str) -> HttpMatch {
    HttpMatch { uri: Some(StringMatch::Regex(text.parse().unwrap())), ..HttpMatch::default() }
}

pub fn compiled(world: &World) -> Snapshot {
    let settings = settings();
    compile(world, &settings, 1).with_routes(
        &NamespacedName::new("shop", "gate"),
        world,
        &settings,
        Grants::Optional,
    )
}

/// The name of the rule that a request to `shop/web` follows; `None` where there is no VirtualService.
pub fn selected(snapshot: &Snapshot, request: &Request<'_>) -> Result<Option<String>, Reason> {
    let service = snapshot.service(&NamespacedName::new("shop", "web")).unwrap();
    let found = snapshot.routes().select(service, request)?;
    Ok(found.map(|selected| selected.rule.name.clone()))
}

/// The rule itself.
pub fn chosen<'s>(snapshot: &'s Snapshot, request: &Request<'_>) -> &'s Rule {
    let service = snapshot.service(&NamespacedName::new("shop", "web")).unwrap();
    snapshot.routes().select(service, request).unwrap().unwrap().rule
}

/// The host of the rule's only destination.
pub fn host(rule: &Rule) -> &str {
    let Action::Route(split) = &rule.action else { panic!("{:?}", rule.action) };
    &split.pick(0).unwrap().cluster.host
}

pub fn settings() -> Settings {
    Settings {
        network: None,
        node: String::new(),
        trust_domain: "cluster.local".parse().unwrap(),
        trust_domain_aliases: Vec::new(),
        root_namespace: "istio-system".to_owned(),
        cluster: "Kubernetes".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
    }
}
