//! `remoteIpBlocks`: for whom a gateway asks.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use orlop_model::http::{NoTokens, Request};
use orlop_model::world::gateway::{Gateway, Listener};
use orlop_model::world::security::{Action, AuthorizationPolicy, Match, Rule, Source, Target};
use orlop_model::world::{Counting, KeyPart, Limit, Rate, RateLimit, Unit};
use orlop_model::{Behind, Identity, NamespacedName, Snapshot, World};

use crate::support::{Map, compiled, get, settings, world};

const CLIENT: &str = "192.0.2.7";
const DIALS: &str = "10.0.0.9";

/// With a gateway `edge/gate`, a waypoint `edge/way`, and a policy for those of this block.
fn world_of(action: Action, block: &str) -> World {
    let mut world = world();
    for (name, protocol) in [("gate", "HTTPS"), ("way", "HBONE")] {
        let name = NamespacedName::new("edge", name);
        let listener = Listener { protocol: protocol.to_owned(), port: 443, ..Listener::default() };
        let gateway = Gateway { name: name.clone(), listeners: vec![listener], ..Gateway::default() };
        world.gateways.insert(name, gateway);
    }
    let remote_ip_blocks = Match { values: vec![block.parse().unwrap()], not_values: Vec::new() };
    let rule = Rule { from: vec![Source { remote_ip_blocks, ..Source::default() }], ..Rule::default() };
    let name = NamespacedName::new("shop", "web");
    let targets = vec![Target::Service("web".to_owned())];
    let policy =
        AuthorizationPolicy { name: name.clone(), targets, action, rules: vec![rule], ..Default::default() };
    world.authorization_policies.insert(name, Arc::new(policy));
    world
}

fn web(snapshot: &Snapshot) -> Behind {
    let service = snapshot.service(&NamespacedName::new("shop", "web")).unwrap().clone();
    let dialled: SocketAddr = "10.96.0.1:80".parse().unwrap();
    Behind::Service { service, port: 80, dialled: Some(dialled) }
}

fn from(values: &[&str]) -> Map {
    let values: Vec<_> = values.iter().map(|value| (*value).to_owned()).collect();
    if values.is_empty() { Map::default() } else { Map([("x-forwarded-for".to_owned(), values)].into()) }
}

fn identity(text: &str) -> Identity {
    let parts: Vec<_> = text.split('/').collect();
    Identity::new(&parts[0].parse().unwrap(), parts[1], parts[2])
}

/// Whether a policy of this action for this block lets in a request of this client with these addresses.
fn passes(action: Action, block: &str, client: Option<&str>, forwarded: Option<&[&str]>) -> bool {
    let snapshot = compiled(&world_of(action, block));
    let headers = from(forwarded.unwrap_or_default());
    let request = forwarded.map(|_| Request { headers: &headers, ..get("/") });
    let client = client.map(identity);
    let dials: IpAddr = DIALS.parse().unwrap();
    let routes = snapshot.routes();
    routes.authorize(&web(&snapshot), client.as_ref(), dials, request.as_ref(), &NoTokens, &[]).is_ok()
}

#[test]
fn a_gateway_alone_says_for_whom_it_asks() {
    let own = settings().trust_domain;
    let at = |name: &str| format!("{own}/edge/{name}");
    let named: &[&str] = &[CLIENT];
    for (client, forwarded, is) in [
        (Some(at("gate")), Some(named), Some(CLIENT)),
        // What the client has said comes first, and counts for nothing.
        (Some(at("gate")), Some(&["10.0.0.9, ::1,192.0.2.7"]), Some(CLIENT)),
        (Some(at("gate")), Some(&["::ffff:192.0.2.7"]), Some(CLIENT)),
        // Nobody can tell.
        (Some(at("gate")), Some(&[]), None),
        (Some(at("gate")), Some(&["192.0.2.7, nobody"]), None),
        (Some(at("gate")), Some(&["192.0.2.7,"]), None),
        (Some(at("gate")), Some(&["192.0.2.7:80"]), None),
        (Some(at("gate")), Some(&[CLIENT, CLIENT]), None),
        (Some(at("gate")), None, None),
        // These are no gateways.
        (Some(at("way")), Some(named), Some(DIALS)),
        (Some(at("other")), Some(named), Some(DIALS)),
        (Some(format!("{own}/shop/gate")), Some(named), Some(DIALS)),
        (Some("elsewhere.example/edge/gate".to_owned()), Some(named), Some(DIALS)),
        (None, Some(named), Some(DIALS)),
    ] {
        for block in [CLIENT, DIALS] {
            let [allowed, let_pass] =
                [Action::Allow, Action::Deny].map(|of| passes(of, block, client.as_deref(), forwarded));
            let (allows, denies) = match is {
                Some(address) => (address == block, address == block),
                None => (false, true),
            };
            assert_eq!((allowed, !let_pass), (allows, denies), "{client:?} {forwarded:?}: {block}");
        }
    }
}

#[test]
fn requests_can_be_counted_by_the_client_of_a_gateway() {
    let mut world = world_of(Action::Deny, "198.51.100.1");
    let many = NonZeroU32::MIN;
    let counting = Counting::Local(Rate::new(many, Unit::Minute, many).unwrap());
    let by = vec![KeyPart::Address, KeyPart::Remote];
    let limit = Limit { name: "each".to_owned(), counting, by, matches: Vec::new() };
    let name = NamespacedName::new("shop", "web");
    let targets = vec![Target::Service("web".to_owned())];
    let limits = vec![Arc::new(limit)];
    let limits = RateLimit { name: name.clone(), targets, limits, unreadable: false };
    world.rate_limits.insert(name, Arc::new(limits));
    let snapshot = compiled(&world);
    let gate = Identity::new(&settings().trust_domain, "edge", "gate");
    for (forwarded, wanted) in [(&[CLIENT][..], Some(CLIENT)), (&[], None)] {
        let headers = from(forwarded);
        let request = Request { headers: &headers, ..get("/") };
        let dials = DIALS.parse().unwrap();
        let counted =
            snapshot.routes().limits(&web(&snapshot), Some(&gate), dials, &request, &NoTokens).unwrap();
        assert_eq!(counted[0].key, [Some(DIALS.to_owned()), wanted.map(str::to_owned)]);
    }
}
