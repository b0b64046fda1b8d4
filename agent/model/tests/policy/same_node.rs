//! Which pods of this node may talk without the proxy.

use std::net::SocketAddr;

use orlop_model::world::security::Action;
use orlop_model::world::{Namespace, Pod};
use orlop_model::{World, compile};

use crate::support::{id, labels, policy, principals, settings, world};

const MESH: &str = "orlop.dev/mesh";
const WEB: &str = "10.0.0.1:80";

/// The world of `support`, with every pod enrolled on this node but for what `change` does to `shop/web`.
fn with(change: impl FnOnce(&mut Pod)) -> World {
    let mut world = world([]);
    for namespace in world.namespaces.values_mut() {
        *namespace = Namespace { labels: labels(&[(MESH, "enabled")]) };
    }
    for pod in world.pods.values_mut() {
        pod.node = Some("one".into());
    }
    change(world.pods.get_mut(&id("shop", "web")).unwrap());
    world
}

/// Whether `shop/db` may dial this without the proxy.
fn may_dial(world: &World, address: &str) -> bool {
    let snapshot = compile(world, &settings(), 1);
    let source = snapshot.workload(&id("shop", "db")).unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let found = snapshot.same_node(source, address);
    if let Some(found) = &found {
        assert_eq!(found.source, source.addresses[0]);
        assert!(found.destination.addresses.contains(&address.ip()));
    }
    found.is_some()
}

#[test]
fn enrolled_pods_of_this_node_may() {
    let world = with(|_| {});
    assert!(may_dial(&world, WEB));
    assert!(may_dial(&world, "10.0.0.3:65535"));
}

#[test]
fn a_pod_elsewhere_or_out_of_the_mesh_may_not_be_dialled() {
    assert!(!may_dial(&with(|web| web.node = Some("two".into())), WEB));
    assert!(!may_dial(&with(|web| web.labels = labels(&[(MESH, "disabled")])), WEB));
    assert!(!may_dial(&with(|web| web.host_network = true), WEB));
}

#[test]
fn what_is_no_pods_own_or_the_proxys_goes_another_way() {
    let world = with(|_| {});
    for address in ["10.0.0.1:15008", "10.0.0.1:15001", "10.0.0.1:0", "10.0.0.2:80", "192.0.2.1:80"] {
        assert!(!may_dial(&world, address), "{address}");
    }
}

#[test]
fn a_client_that_is_not_enrolled_here_may_not() {
    let mut world = with(|_| {});
    world.pods.get_mut(&id("shop", "db")).unwrap().node = Some("two".into());
    assert!(!may_dial(&world, WEB));
}

#[test]
fn an_address_of_the_clients_other_family_is_not_its_own() {
    let mut world = with(|web| web.addresses = [web.addresses[0], "fd00::1".parse().unwrap()].into());
    assert!(!may_dial(&world, "[fd00::1]:80"), "the client has no IPv6 address");
    let db = world.pods.get_mut(&id("shop", "db")).unwrap();
    db.addresses = ["fd00::2".parse().unwrap(), db.addresses[0]].into();
    assert!(may_dial(&world, "[fd00::1]:80"));
}

#[test]
fn policy_decides() {
    let mut world = with(|_| {});
    let mut add = |policy: orlop_model::world::security::AuthorizationPolicy| {
        world.authorization_policies.insert(policy.name.clone(), policy);
        may_dial(&world, WEB)
    };
    assert!(add(policy("db", Action::Allow, [principals(&["td1/ns/shop/sa/default"])])));
    assert!(!add(policy("nobody", Action::Deny, [principals(&["*"])])));
}
