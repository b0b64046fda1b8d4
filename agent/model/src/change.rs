//! Compiles a world of which little has changed: what was made of the rest is shared with the snapshot before.
//!
//! What a pod, a Service or an EndpointSlice means is seen in few places: in what it is itself, and in the services that
//! it may be an endpoint of. Those are made again, by the same functions as for a whole world. A namespace's labels are
//! as if its pods had changed, a node's place is that of its endpoints, and policies are seen in the pods of this node.
//! Whatever reaches further, such as a waypoint's label, a ServiceEntry or an address that two pods claim, is not for
//! this file: it leaves all of it to a compilation of the whole.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::compile::{Services, Settings, workload};
use crate::dns::ServiceHosts;
use crate::endpoints::{Endpoints, selects};
use crate::hosts::Hosts;
use crate::local::{Local, is_local};
use crate::locality::place;
use crate::map::Map;
use crate::name::NamespacedName;
use crate::policy::Prepared;
use crate::service::ServiceIndex;
use crate::snapshot::Snapshot;
use crate::text::Text;
use crate::waypoint::wish;
use crate::workloads::{Workloads, addresses_of, in_namespace, mentions};
use crate::world::{EndpointSlice, Labels, Namespace, Pod, Service, World};

/// With more changes at once, to begin anew is as quick.
const FEW: usize = 1000;

/// An object that has changed: its name, what it was and what it is.
type Changed<'a, T> = (&'a NamespacedName, Option<&'a Arc<T>>, Option<&'a Arc<T>>);

/// The snapshot of a world that differs from the one before in a few pods, Services and EndpointSlices; `None` where it
/// takes a compilation of the whole.
pub(crate) fn after(
    previous: &Snapshot,
    world: &World,
    hosts: &Hosts,
    settings: &Settings,
    generation: u64,
) -> Option<Snapshot> {
    let input = previous.input.as_ref()?;
    if input.settings != *settings || input.hosts != *hosts || reaches_further(&previous.world, world) {
        return None;
    }
    let mut pods = few(&previous.world.pods, &world.pods)?;
    add_pods_of_namespaces(&mut pods, &previous.world, world)?;
    let services = few(&previous.world.services, &world.services)?;
    let slices = few(&previous.world.endpoint_slices, &world.endpoint_slices)?;
    let relabelled =
        pods.iter().any(|(name, then, now)| names_another_waypoint(name, *then, *now, |of| &of.labels))
            || services
                .iter()
                .any(|(name, then, now)| names_another_waypoint(name, *then, *now, |of| &of.labels));
    if relabelled {
        return None;
    }

    let mut affected: BTreeSet<NamespacedName> = services.iter().map(|(name, ..)| (*name).clone()).collect();
    let mut workloads = previous.workloads.clone();
    for (_, then, now) in &slices {
        workloads.put_slice(*then, *now);
        affected.extend(then.iter().chain(now).filter_map(|slice| service_of(slice)));
    }
    for &(name, then, now) in &pods {
        put_pod(&mut workloads, world, settings, name, then, now)?;
    }
    for (name, then, now) in &pods {
        let states = [*then, *now].into_iter().flatten();
        affected.extend(served_by(world, &workloads, &name.namespace, states));
    }
    affected.extend(of_moved_nodes(&previous.world, world, &workloads, settings)?);

    let mut snapshot = Snapshot {
        generation,
        world: world.clone(),
        route_findings: Vec::new(),
        routes: Arc::default(),
        findings: Default::default(),
        workloads,
        ..previous.clone()
    };
    put_services(&mut snapshot, hosts, settings, &affected);
    let is_other = put_policies(&mut snapshot, previous, settings);
    put_local(&mut snapshot, previous, settings, &pods, is_other);
    let names = affected.iter().chain(pods.iter().map(|(name, ..)| *name));
    let mut waypoints = snapshot.waypoints.clone();
    waypoints.look_again(&snapshot, names.map(|name| &name.namespace).collect());
    snapshot.waypoints = waypoints;
    Some(snapshot)
}

/// Whether something else is not the same that a compilation looks at.
fn reaches_further(then: &World, now: &World) -> bool {
    let World {
        as_of,
        namespaces: _,
        nodes: _,
        pods: _,
        services: _,
        endpoint_slices: _,
        service_entries,
        workload_entries,
        authorization_policies: _,
        peer_authentications: _,
        // Only a waypoint's routes are made of these.
        request_authentications: _,
        rate_limits: _,
        telemetries: _,
        extension_providers: _,
        virtual_services: _,
        destination_rules: _,
        gateways: _,
        http_routes: _,
        grpc_routes: _,
        tls_routes: _,
        tcp_routes: _,
        reference_grants: _,
        backend_tls: _,
        config_maps: _,
    } = now;
    then.as_of != *as_of
        || then.service_entries != *service_entries
        || then.workload_entries != *workload_entries
}

/// Of namespaces that have changed, the other pods: their labels decide which of them are enrolled. `None` where they
/// say more than that.
fn add_pods_of_namespaces<'a>(
    pods: &mut Vec<Changed<'a, Pod>>,
    before: &'a World,
    world: &'a World,
) -> Option<()> {
    let itself: BTreeSet<_> = pods.iter().map(|(name, ..)| *name).collect();
    let mut others = Vec::new();
    for (name, then, now) in before.namespaces.differences(&world.namespaces) {
        let wished = |of: Option<&Arc<Namespace>>| wish(&of?.labels, name);
        if wished(then) != wished(now) {
            return None;
        }
        let all = in_namespace(&world.pods, name).filter(|(name, _)| !itself.contains(name));
        others.extend(all.map(|(name, pod)| (name, Some(pod), Some(pod))).take(FEW));
    }
    pods.extend(others);
    (pods.len() < FEW).then_some(())
}

/// The services that may have an endpoint on a node which is not where it was. `None` if that is this node, or one of a
/// ServiceEntry's endpoints.
fn of_moved_nodes(
    before: &World,
    world: &World,
    workloads: &Workloads,
    settings: &Settings,
) -> Option<BTreeSet<NamespacedName>> {
    let differ = before.nodes.differences(&world.nodes);
    let moved = differ.filter(|(_, then, now)| place(then.map(|of| &**of)) != place(now.map(|of| &**of)));
    let moved: BTreeSet<&str> = moved.map(|(name, ..)| name.as_str()).collect();
    if moved.contains(settings.node.as_str()) {
        return None;
    }
    let is_there = |node: &Option<Text>| node.as_deref().is_some_and(|node| moved.contains(node));
    let mut affected = BTreeSet::new();
    if !moved.is_empty() {
        for (name, pod) in world.pods.iter().filter(|(_, pod)| is_there(&pod.node)) {
            if is_of_an_entry(world, pod) {
                return None;
            }
            affected.extend(served_by(world, workloads, &name.namespace, [pod].into_iter()));
        }
        let slices = world.endpoint_slices.values();
        let there = slices.filter(|slice| slice.endpoints.iter().any(|of| is_there(&of.node)));
        affected.extend(there.filter_map(|slice| service_of(slice)));
    }
    Some(affected)
}

fn few<'a, T>(
    then: &'a Map<NamespacedName, T>,
    now: &'a Map<NamespacedName, T>,
) -> Option<Vec<Changed<'a, T>>> {
    let found: Vec<_> = then.differences(now).take(FEW).collect();
    (found.len() < FEW).then_some(found)
}

fn names_another_waypoint<T>(
    name: &NamespacedName,
    then: Option<&Arc<T>>,
    now: Option<&Arc<T>>,
    labels: fn(&T) -> &Labels,
) -> bool {
    let wished = |of: Option<&Arc<T>>| wish(labels(of?), &name.namespace)?;
    wished(then) != wished(now)
}

fn service_of(slice: &EndpointSlice) -> Option<NamespacedName> {
    Some(NamespacedName::new(&*slice.name.namespace, slice.service.as_deref()?))
}

/// Puts a pod in the place of the one that had its name. `None` where that is not only about this pod.
fn put_pod(
    workloads: &mut Workloads,
    world: &World,
    settings: &Settings,
    name: &NamespacedName,
    then: Option<&Arc<Pod>>,
    now: Option<&Arc<Pod>>,
) -> Option<()> {
    if [then, now].into_iter().flatten().any(|pod| is_of_an_entry(world, pod)) {
        return None;
    }
    if let Some(then) = then {
        for ip in addresses_of(then) {
            is_own(workloads, name, then, ip)?;
            match then.host_network {
                true => workloads.of_nodes.subtract(ip),
                false => drop(workloads.pod_by_address.remove(&ip)),
            }
        }
    }
    let Some(now) = now.filter(|now| !now.phase.is_terminal()) else {
        workloads.pods.remove(name);
        return Some(());
    };
    let workload = Arc::new(workload(world, settings, now));
    // Where nothing of it is new, what was made of it before serves as well.
    let workload =
        workloads.pods.get(name).filter(|before| **before == workload).cloned().unwrap_or(workload);
    for &ip in &workload.addresses {
        is_own(workloads, name, now, ip)?;
        match now.host_network {
            true => workloads.of_nodes.add(ip),
            false => drop(workloads.pod_by_address.insert(ip, Arc::clone(&workload))),
        }
    }
    workloads.pods.insert(name.clone(), workload);
    Some(())
}

/// Whether a ServiceEntry selects the pod.
fn is_of_an_entry(world: &World, pod: &Pod) -> bool {
    in_namespace(&world.service_entries, &pod.name.namespace)
        .any(|(_, entry)| selects(&entry.selector, &pod.labels))
}

/// `None` where somebody else has a say on a pod's address.
fn is_own(workloads: &Workloads, name: &NamespacedName, pod: &Pod, ip: IpAddr) -> Option<()> {
    let others = workloads.pod_by_address.get(&ip).is_some_and(|owner| owner.name != *name);
    let of_node = !pod.host_network && workloads.of_nodes.contains_key(&ip);
    (!others && !of_node && !workloads.contested.contains(&ip)).then_some(())
}

/// The services that a pod of this namespace, in any of these states, may be an endpoint of.
fn served_by<'a>(
    world: &World,
    workloads: &Workloads,
    namespace: &str,
    states: impl Iterator<Item = &'a Arc<Pod>> + Clone,
) -> Vec<NamespacedName> {
    let addresses: Vec<_> = states.clone().flat_map(|pod| addresses_of(pod)).collect();
    let selecting = |service: &Service| states.clone().any(|pod| selects(&service.selector, &pod.labels));
    let services = in_namespace(&world.services, namespace).filter(|(_, service)| selecting(service));
    let slices = in_namespace(&world.endpoint_slices, namespace).chain(&workloads.foreign);
    let naming = slices.filter(|(_, slice)| mentions(slice, &addresses));
    let of_slices = naming.filter_map(|(_, slice)| service_of(slice));
    services.map(|(name, _)| name.clone()).chain(of_slices).collect()
}

/// Makes these services again.
fn put_services(
    snapshot: &mut Snapshot,
    hosts: &Hosts,
    settings: &Settings,
    affected: &BTreeSet<NamespacedName>,
) {
    let Snapshot { world, workloads, used_waypoints, .. } = &snapshot.clone();
    let Snapshot { services, service_entries, service_index, zone, .. } = snapshot;
    let endpoints = Endpoints::new(world, hosts, settings, workloads);
    let making = Services { world, settings, endpoints: &endpoints, used_waypoints };
    let mut is_indexed = true;
    for name in affected {
        let then = services.get(name).cloned();
        let Some(of) = world.services.get(name) else {
            zone.put(name, None);
            services.remove(name);
            is_indexed &= then.is_none();
            continue;
        };
        let now = Arc::new(making.of(of));
        zone.put(name, ServiceHosts::of(world, workloads, of, &now));
        match then {
            Some(then) if then == now => {}
            then => {
                is_indexed &= then.is_some_and(|then| service_index.replace(&then, &now));
                services.insert(name.clone(), now);
            }
        }
    }
    if !is_indexed {
        *service_index = ServiceIndex::new(services, service_entries);
    }
}

/// Makes ready what is new of policies. Says whether anything is.
fn put_policies(snapshot: &mut Snapshot, previous: &Snapshot, settings: &Settings) -> bool {
    let (before, world) = (&previous.world, &snapshot.world);
    // What was made ready of a policy is known by its place.
    let differ = before.authorization_policies.differences(&world.authorization_policies).next().is_some();
    if differ {
        snapshot.policies = Arc::new(Prepared::new(Some(&previous.policies), world, settings));
    }
    differ || before.peer_authentications != world.peer_authentications
}

/// Takes over what has changed of this node's own pods, or what applies to all of them.
fn put_local(
    snapshot: &mut Snapshot,
    previous: &Snapshot,
    settings: &Settings,
    pods: &[Changed<'_, Pod>],
    all: bool,
) {
    let here = |snapshot: &Snapshot, name: &NamespacedName| {
        snapshot.workload(name).is_some_and(|workload| is_local(workload, settings))
    };
    if !all && !pods.iter().any(|(name, ..)| here(previous, name) || here(snapshot, name)) {
        return;
    }
    let mut names: BTreeSet<_> = previous.local.pods.iter().map(|of| of.workload.name.clone()).collect();
    for (name, ..) in pods {
        match here(snapshot, name) {
            true => drop(names.insert((*name).clone())),
            false => drop(names.remove(*name)),
        }
    }
    let names: Vec<_> = names.into_iter().collect();
    let Snapshot { world, workloads, policies, .. } = &*snapshot;
    let (local, prepared) = Local::new(world, settings, workloads, policies, &names);
    snapshot.local = Arc::new(local);
    snapshot.policies = Arc::new(prepared);
}

#[cfg(test)]
mod tests;
