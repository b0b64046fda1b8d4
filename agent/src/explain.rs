//! `orlop explain`: what would become of a connection, from the objects of a directory or a cluster alone.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use orlop_kube::{ClusterWorld, Kinds};
use orlop_model::{
    Balance, Connection, Judgement, NamespacedName, Reason, Route, Service, Snapshot, Transport, Workload,
    WorkloadKind, World, compile, http::Grants, world::Resolution,
};

use crate::{
    cli::{ConnectionArguments, ExplainArguments, WorldArguments},
    logging, replay, request,
};

/// Says where the connection would go and whether it would be let in, and fails with 2 if it would not; or does so
/// for recorded flows, and fails with 2 if any fares differently.
pub fn run(arguments: &ExplainArguments) -> anyhow::Result<ExitCode> {
    let world = read(&arguments.world, arguments.context.as_deref())?;
    let good = match (&arguments.connection, &arguments.replay) {
        (Some(connection), _) => {
            // As the node of the client sees it.
            let node = world.pods.get(&connection.from).and_then(|pod| pod.node.clone()).unwrap_or_default();
            let settings = arguments.names.settings(&node);
            let snapshot = compile(&world, &settings, 1);
            explain(&snapshot, connection, |waypoint| {
                compile(&world, &settings, 1).with_routes(waypoint, &world, &settings, Grants::Optional)
            })
            .with_context(|| match &arguments.world.directory {
                Some(directory) => format!("in the world of {}", directory.display()),
                None => "in the cluster".to_owned(),
            })?
        }
        (None, Some(flows)) => replay::run(&world, &arguments.names, flows)?,
        (None, None) => bail!("give either --from, --to and --port, or --replay"),
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// The world as it is now. What is wrong with a directory's objects is an error, since nothing is in force in their
/// place; of a cluster's it is said, and the rest goes by what nodes would put in their place.
fn read(source: &WorldArguments, context: Option<&str>) -> anyhow::Result<World> {
    if let Some(directory) = &source.directory {
        return orlop_kube::read_world(directory).map_err(|errors| {
            let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("{}", lines.join("\norlop: "))
        });
    }
    logging::start_for_people();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(ClusterWorld::read(source.kubeconfig.as_deref(), context, Kinds::OfWaypoints))?)
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is let in: by this policy, where any applies.
    LetIn(Judgement),
    /// It is for nobody whom the mesh protects: no policy is asked.
    PassedOn,
    /// It is for the workload's own proxy to judge.
    JudgedElsewhere,
    /// It is for this waypoint to judge.
    JudgedByWaypoint(NamespacedName),
    /// It is refused.
    Refused { reason: Reason, detail: String },
}

impl Fate {
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LetIn(judgement) => match &judgement.policy {
                Some(policy) => write!(f, "allowed by AuthorizationPolicy {policy}"),
                None => f.write_str("allowed, as no ALLOW policy applies to it"),
            },
            Self::PassedOn => f.write_str("allowed, as it is not in the mesh, so that no policy is asked"),
            Self::JudgedElsewhere => {
                f.write_str("allowed as far as known here: it is for the workload's own proxy to judge")
            }
            Self::JudgedByWaypoint(name) => {
                write!(f, "allowed as far as known here: it is for the waypoint {name} to judge")
            }
            Self::Refused { reason, detail } if detail.is_empty() => write!(f, "refused ({reason})"),
            Self::Refused { reason, detail } => write!(f, "refused ({reason}): {detail}"),
        }
    }
}

/// What becomes of a connection from a pod that takes this way.
pub fn fate(snapshot: &Snapshot, source: &Workload, route: &Route) -> Fate {
    if let Some(hop) = &route.waypoint {
        let waypoint = hop.workload.name.clone();
        if source.enrolled {
            return Fate::JudgedByWaypoint(waypoint);
        }
        let detail = format!("the client is not in the mesh, and so goes past the waypoint {waypoint}");
        return Fate::Refused { reason: Reason::NotThroughWaypoint, detail };
    }
    let Some(destination) = route.workload.as_deref().filter(|workload| workload.enrolled) else {
        return Fate::PassedOn;
    };
    if destination.kind == WorkloadKind::WorkloadEntry {
        return Fate::JudgedElsewhere;
    }
    let Some(&address) = source.addresses.iter().find(|ip| ip.is_ipv4() == route.upstream.is_ipv4()) else {
        let detail = "the client has no address of the server's family".to_owned();
        return Fate::Refused { reason: Reason::ConnectFailed, detail };
    };
    let connection = Connection {
        source_identity: is_tunnelled(source, route).then_some(&source.identity),
        source: address,
        destination,
        address: route.upstream,
    };
    match snapshot.admit(&connection) {
        Ok(judgement) => Fate::LetIn(judgement),
        Err(refused) => Fate::Refused { reason: refused.reason, detail: refused.detail },
    }
}

/// A client in the mesh is carried in a tunnel to a server in the mesh; any other way is in clear.
pub fn is_tunnelled(source: &Workload, route: &Route) -> bool {
    source.enrolled && route.transport == Transport::Hbone
}

/// Whether DNS says where this leads: nobody asks it here.
pub fn needs_dns(snapshot: &Snapshot, source: &Workload, dialled: SocketAddr) -> bool {
    let service = snapshot.service_to(&source.name.namespace, dialled.ip());
    service.is_some_and(|service| matches!(service.resolution, Resolution::Dns | Resolution::DnsRoundRobin))
}

/// Every way that a connection there may take.
pub fn routes(snapshot: &Snapshot, source: &Workload, dialled: SocketAddr) -> Result<Vec<Route>, Reason> {
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

/// Prints what becomes of a connection that nobody has made. True if it is let in.
fn explain(
    snapshot: &Snapshot,
    connection: &ConnectionArguments,
    seen_by: impl Fn(&NamespacedName) -> Snapshot,
) -> anyhow::Result<bool> {
    let ConnectionArguments { from, to, port, .. } = connection;
    let source = snapshot.workload(from).with_context(|| format!("there is no live pod {from}"))?;
    let dialled = SocketAddr::new(address_of(snapshot, to)?, *port);
    println!("{from} → {to}:{port}");
    describe("from", source);
    if needs_dns(snapshot, source, dialled) {
        println!("  to        {to}, whose endpoints DNS gives: none is looked up here");
        return Ok(true);
    }
    let routes = match routes(snapshot, source, dialled) {
        Ok(routes) => routes,
        Err(reason) => {
            println!("  refused ({reason}), at the client's node");
            return Ok(false);
        }
    };
    let mut good = true;
    for route in routes {
        match (&route.waypoint, &route.workload) {
            (Some(hop), _) => describe("through", &hop.workload),
            (None, Some(destination)) => describe("to", destination),
            (None, None) => println!("  to        {}, which is no workload", route.upstream),
        }
        let how = if is_tunnelled(source, &route) { "by HBONE" } else { "in clear" };
        let fate = fate(snapshot, source, &route);
        println!("            {} {how}\n  {fate}", route.upstream);
        good &= !fate.is_refused();
        if let (Fate::JudgedByWaypoint(_), Some(hop)) = (&fate, &route.waypoint) {
            good &= request::explain(snapshot, source, hop, dialled, connection, &seen_by)?;
        }
    }
    Ok(good)
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

fn describe(role: &str, workload: &Workload) {
    let membership = if workload.enrolled { "in the mesh" } else { "not in the mesh" };
    println!("  {role:8}  {} as {}, {membership}", workload.name, workload.identity);
}
