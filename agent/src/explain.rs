//! `orlop explain`: what would become of a connection, from a world directory alone.

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use orlop_model::{
    Balance, Connection, Mode, NamespacedName, Reason, Route, Service, Snapshot, Transport, Workload,
    WorkloadKind, compile, world::Resolution,
};

use crate::cli::ExplainArguments;

/// Says where the connection would go and whether it would be let in; fails with 2 if it would not.
pub fn run(arguments: &ExplainArguments) -> anyhow::Result<ExitCode> {
    let world = orlop_kube::read_world(&arguments.world).map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", lines.join("\norlop: "))
    })?;
    // As the node of the client sees it.
    let node = world.pods.get(&arguments.from).and_then(|pod| pod.node.clone()).unwrap_or_default();
    let settings = arguments.names.settings(&node);
    let snapshot = compile(&world, &settings, 1);
    let source = snapshot.workload(&arguments.from).with_context(|| {
        format!("there is no live pod {} in {}", arguments.from, arguments.world.display())
    })?;
    let dialled = SocketAddr::new(address_of(&snapshot, &arguments.to)?, arguments.port);
    println!("{} → {}:{}", arguments.from, arguments.to, arguments.port);
    describe("from", source);

    if let Some(service) = snapshot.service_to(&source.name.namespace, dialled.ip())
        && matches!(service.resolution, Resolution::Dns | Resolution::DnsRoundRobin)
    {
        println!("  to        {}, whose endpoints DNS gives: none is looked up here", service.hostname);
        return Ok(ExitCode::SUCCESS);
    }
    let routes = match routes(&snapshot, source, dialled) {
        Ok(routes) => routes,
        Err(reason) => {
            println!("  refused   {reason}, at the client's node");
            return Ok(ExitCode::from(2));
        }
    };
    let refused = routes.iter().filter(|route| !judge(&snapshot, source, route)).count();
    Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// A pod's or a service's first address.
fn address_of(snapshot: &Snapshot, name: &NamespacedName) -> anyhow::Result<IpAddr> {
    let entry = || snapshot.service_entries().find(|entry| entry.name == *name);
    if let Some(service) = snapshot.service(name).or_else(entry) {
        return service.vips.first().copied().with_context(|| {
            format!(
                "the service {name} has no address of its own: name one of its pods, as clients dial them"
            )
        });
    }
    match snapshot.workload(name) {
        Some(workload) => {
            workload.addresses.first().copied().with_context(|| format!("the pod {name} has no address yet"))
        }
        None => bail!("there is neither a live pod nor a Service or ServiceEntry {name}"),
    }
}

/// Every way that a connection there may take.
fn routes(snapshot: &Snapshot, source: &Workload, dialled: SocketAddr) -> Result<Vec<Route>, Reason> {
    let service = snapshot.service_to(&source.name.namespace, dialled.ip());
    let endpoints = match service.and_then(|service| service.port(dialled.port())) {
        Some(port) => port.eligible(dialled.ip()).len(),
        None => 1,
    };
    (0..endpoints.max(1)).map(|index| snapshot.route(source, dialled, &mut Nth(index))).collect()
}

/// Picks endpoints in their order instead of at random.
struct Nth(usize);

impl Balance for Nth {
    fn random(&mut self, bound: usize) -> usize {
        self.0.min(bound - 1)
    }

    fn in_flight(&self, _: SocketAddr) -> usize {
        0
    }

    fn last(&mut self, _: &Arc<Service>, _: u16, _: Duration) -> Option<SocketAddr> {
        None
    }
}

/// Prints what becomes of a connection on this way. True if it is let in.
fn judge(snapshot: &Snapshot, source: &Workload, route: &Route) -> bool {
    // A client in the mesh is carried in a tunnel to a server in the mesh; any other way is in clear.
    let tunnelled = source.enrolled && route.transport == Transport::Hbone;
    let Some(destination) = &route.workload else {
        println!("  to        {}, which is no workload: passed on in clear", route.upstream);
        return true;
    };
    describe("to", destination);
    println!("            {} {}", route.upstream, if tunnelled { "by HBONE" } else { "in clear" });
    if !destination.enrolled {
        println!("  allowed   it is not in the mesh, so that no policy is asked");
        return true;
    }
    if destination.kind == WorkloadKind::WorkloadEntry {
        println!("  allowed   as far as known here: it is for the workload's own proxy to judge");
        return true;
    }
    let port = route.upstream.port();
    if !tunnelled && snapshot.mutual_tls(destination, port) == Mode::Strict {
        println!("  refused   {}: a PeerAuthentication asks for mutual TLS", Reason::PlaintextRefused);
        return false;
    }
    let Some(address) = source.addresses.iter().find(|ip| ip.is_ipv4() == route.upstream.is_ipv4()) else {
        println!("  refused   the client has no address of the server's family");
        return false;
    };
    let connection = Connection {
        source_identity: tunnelled.then_some(&source.identity),
        source: *address,
        destination,
        address: route.upstream,
    };
    match snapshot.authorize(&connection) {
        Ok(allowed) => {
            match allowed.policy {
                Some(policy) => println!("  allowed   by AuthorizationPolicy {policy}"),
                None => println!("  allowed   no AuthorizationPolicy applies to the pod"),
            }
            true
        }
        Err(denied) => {
            println!("  refused   {}: {}", denied.reason(), denied.explain(&connection));
            false
        }
    }
}

fn describe(role: &str, workload: &Workload) {
    let membership = if workload.enrolled { "in the mesh" } else { "not in the mesh" };
    println!("  {role:8}  {} as {}, {membership}", workload.name, workload.identity);
}
