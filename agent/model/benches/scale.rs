//! What the size of the world costs the pure parts: compiling it, compiling it again after an endpoint or a policy has
//! changed, and one decision, which is to choose an endpoint of a service and to judge the connection there.
//!
//! `cargo bench -p orlop-model --bench scale -- SERVICES`, for `cargo xtask bench scale`: prints JSON, in seconds.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on should stop")]

mod generated;
mod harness;

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use generated::{ENDPOINTS, ON_A_NODE, pod_address, policy, settings, slice, vip, world};
use harness::{median, shares, times};
use orlop_model::world::security::{Action, AuthorizationPolicy};
use orlop_model::{Balance, Connection, Hosts, Service as Compiled, Snapshot, compile, compile_after};

const COMPILATIONS: usize = 5;
const CHANGES: usize = 50;
const DECISIONS: usize = 100_000;

fn main() {
    // cargo adds arguments of its own.
    let services = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(1000);
    let mut world = world(services);
    let (settings, hosts) = (settings(), Hosts::new());
    let mut snapshot = compile(&world, &settings, 1);
    let compile = median(&times(COMPILATIONS, |_| drop(black_box(compile(&world, &settings, 1)))));
    let change = median(&times(CHANGES, |nth| {
        let mut slice = slice(0);
        if nth % 2 == 0 {
            slice.endpoints.pop();
        }
        world.endpoint_slices.insert(slice.name.clone(), slice);
        snapshot = compile_after(Some(&snapshot), &world, &hosts, &settings, 2);
    }));
    let policy_change = median(&times(CHANGES, |nth| {
        let action = if nth % 2 == 0 { Action::Deny } else { Action::Allow };
        let policy = AuthorizationPolicy { action, ..policy(0) };
        world.authorization_policies.insert(policy.name.clone(), policy);
        snapshot = compile_after(Some(&snapshot), &world, &hosts, &settings, 3);
    }));
    let decision = median(&shares(DECISIONS, |nth| decide(&snapshot, services, nth)));
    println!(
        "{{\"compile\": {}, \"change\": {}, \"policy_change\": {}, \"decision\": {}}}",
        compile.as_secs_f64(),
        change.as_secs_f64(),
        policy_change.as_secs_f64(),
        decision.as_secs_f64()
    );
}

/// A pod of this node dials any service, and is dialled by that endpoint: where does the one go, and may the other?
fn decide(snapshot: &Snapshot, services: usize, nth: usize) {
    let own = snapshot.workload_at(pod_address(nth % ON_A_NODE.min(services * ENDPOINTS))).unwrap();
    let dialled = SocketAddr::new(vip(nth * 7919 % services), 80);
    let route = snapshot.route(own, dialled, &mut Turn(nth)).unwrap();
    let other = route.workload.as_ref().unwrap();
    let connection = Connection {
        source_identity: Some(&other.identity),
        source: other.addresses[0],
        destination: own,
        address: SocketAddr::new(own.addresses[0], 8080),
    };
    _ = black_box(snapshot.authorize(black_box(&connection)));
}

/// Chooses endpoints in turn.
struct Turn(usize);

impl Balance for Turn {
    fn random(&mut self, bound: usize) -> usize {
        self.0 += 1;
        self.0 % bound
    }

    fn in_flight(&self, _: SocketAddr) -> usize {
        0
    }

    fn last(&mut self, _: &Arc<Compiled>, _: u16, _: Duration) -> Option<SocketAddr> {
        None
    }
}
