//! Where a connection goes in which no HTTP is read, and the way there.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use http::HeaderMap;
use orlop_model::{
    Behind, Endpoint, Reason, Service, Snapshot,
    http::Target,
    world::{
        Resolution,
        routing::{Balancer, ConnectionPool},
    },
};
use tokio::time::{Instant, timeout};

use super::{
    alike::hash_on, authorize, connections::Place, dial, forward, forward::tell, hosts::ClusterState, io::Io,
    outlier::Outcome, session::Session, unanswered::is_of_endpoint,
};
use crate::{pool::Slot, record::Record, refusal::Refusal, shared::InFlightGuard};

/// At so many endpoints a connection is tried, as long as nothing of it has been sent.
const ATTEMPTS: usize = 3;

/// The connection to a server.
pub(super) struct Connected {
    pub(super) io: Io,
    pub(super) slot: Option<Slot>,
    pub(super) in_flight: InFlightGuard,
    /// As one of its cluster's.
    pub(super) place: Option<Place>,
    /// The service that a rule has led to, if that is another than was dialled, and its port.
    pub(super) elsewhere: Option<(Arc<Service>, u16)>,
    pub(super) endpoint: Endpoint,
    pub(super) bounds: Bounds,
}

/// How long a connection may be, and be idle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) idle: Duration,
    pub(super) whole: Option<Duration>,
}

impl Bounds {
    /// As the waypoint has it, or shorter where the destination's policy wants that.
    pub(super) fn new(session: &Session, pool: Option<&ConnectionPool>) -> Self {
        let own = session.local.worker.shared.config.idle_timeout;
        let idle = pool.and_then(|pool| pool.stream_idle_timeout).map_or(own, |idle| idle.min(own));
        Self { idle, whole: pool.and_then(|pool| pool.max_duration) }
    }
}

/// Asks policies, chooses by the rules, and connects.
pub(super) async fn connect(session: &Rc<Session>, record: &mut Record) -> Result<Connected, Refusal> {
    let snapshot = session.local.worker.shared.snapshot.load_full();
    record.judgement = Some(authorize::connection(session, &snapshot, None)?);
    let destination = Destination::of(session, &snapshot)?;
    let elsewhere = destination.elsewhere(session);
    if elsewhere.is_some() {
        record.judgement = Some(authorize::connection(session, &snapshot, elsewhere.as_ref())?);
    }
    let target = match destination {
        Destination::Endpoint(endpoint, target) => {
            session.check(&snapshot, &endpoint)?;
            let (io, slot, in_flight) = once(session, &endpoint, target.as_ref(), None, record).await?;
            let bounds = Bounds::new(session, target.as_ref().and_then(pool_of));
            return Ok(Connected { io, slot, in_flight, place: None, elsewhere, endpoint, bounds });
        }
        Destination::Service(target) => target,
    };
    record.service = Some(Arc::clone(target.service));
    let cluster = session.local.host_cache.cluster(&session.local.own.hosts, &target);
    let limit = pool_of(&target).and_then(|pool| pool.max_connections);
    let place = cluster.connections.open(limit).ok_or(Reason::Overflow)?;
    let ((io, slot, in_flight), endpoint) = attempts(session, &snapshot, target, &cluster, record).await?;
    let bounds = Bounds::new(session, pool_of(&target));
    Ok(Connected { io, slot, in_flight, place: Some(place), elsewhere, endpoint, bounds })
}

fn pool_of<'t>(target: &Target<'t>) -> Option<&'t ConnectionPool> {
    target.policy?.pool.as_ref()
}

enum Destination<'s> {
    /// One of these.
    Service(Target<'s>),
    /// As it was dialled, and what is said of that.
    Endpoint(Endpoint, Option<Target<'s>>),
}

impl<'s> Destination<'s> {
    fn of(session: &Session, snapshot: &'s Snapshot) -> Result<Self, Refusal> {
        let Behind::Service { service, port, dialled } = &session.target else {
            return Ok(Self::Endpoint(session.endpoint(snapshot)?, None));
        };
        let routes = snapshot.routes();
        if let Some(rule) = routes.select_stream(service, &session.stream())? {
            let split = rule.split.as_ref();
            let split = split.map_err(|problem| {
                Refusal::new(Reason::InvalidRoute, format!("{} {} {problem}", rule.kind, rule.resource))
            })?;
            let choice = split.pick(session.local.draws.split.next()).ok_or(Reason::NoSuchDestination)?;
            return forward::target(session, snapshot, &choice.cluster).map(Self::Service);
        }
        let passes_on = service.resolution == Resolution::None && dialled.is_some();
        let (current, client) = (snapshot.current_service(service), session.client());
        let target = match current.filter(|service| service.port(*port).is_some()) {
            Some(service) => Some(routes.target_of(service, *port, &client)?),
            None => {
                current.map_or(Ok(()), |service| routes.pass_unlisted(service, &client))?;
                None
            }
        };
        match target {
            Some(target) if !passes_on => Ok(Self::Service(target)),
            target => Ok(Self::Endpoint(session.endpoint(snapshot)?, target)),
        }
    }

    fn elsewhere(&self, session: &Session) -> Option<(Arc<Service>, u16)> {
        let Self::Service(target) = self else { return None };
        let (service, port) = (target.service, target.port.number);
        let is_dialled = session.has_dialled(service) && session.port() == port;
        (!is_dialled).then(|| (Arc::clone(service), port))
    }
}

/// Tries several endpoints within the time that there is for a connection: each of those that are left gets the same
/// part of what is left of it.
async fn attempts(
    session: &Rc<Session>,
    snapshot: &Snapshot,
    target: Target<'_>,
    cluster: &ClusterState,
    record: &mut Record,
) -> Result<((Io, Option<Slot>, InFlightGuard), Endpoint), Refusal> {
    let local = &session.local;
    let hash = match target.policy.and_then(|policy| policy.balancer.as_ref()) {
        Some(Balancer::Hash(on, _)) => hash_on(on, session, &HeaderMap::new(), None).0,
        _ => None,
    };
    let pool = pool_of(&target);
    let limit = pool.and_then(|pool| pool.connect_timeout);
    let deadline = Instant::now() + limit.unwrap_or(local.worker.shared.config.connect_timeout);
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut left = forward::choosing(session, snapshot, target, cluster, hash).candidates().min(ATTEMPTS);
    loop {
        let endpoint = forward::endpoint(session, snapshot, target, cluster, hash, tried[..].into())?;
        tried.push(endpoint.address);
        let part = share(deadline.saturating_duration_since(Instant::now()), left);
        let began = Instant::now();
        let result = match session.check(snapshot, &endpoint) {
            Ok(_) => once(session, &endpoint, Some(&target), Some(part), record).await,
            Err(refusal) => Err(refusal),
        };
        left = left.saturating_sub(1);
        let tell = |outcome| tell(session, &target, cluster, endpoint.address, outcome, began.elapsed());
        match &result {
            Ok(_) => tell(Outcome::Answered(200)),
            Err(refusal) => {
                if is_of_endpoint(refusal) {
                    tell(Outcome::Failed);
                }
                if left > 0 && !is_everywhere(refusal) {
                    continue;
                }
            }
        }
        return result.map(|connected| (connected, endpoint));
    }
}

/// Whether it would be the same with another endpoint. Whom one refuses another may take: policies are of endpoints.
fn is_everywhere(refusal: &Refusal) -> bool {
    matches!(
        refusal.reason,
        Reason::CertificateUnavailable
            | Reason::DescriptorLimit
            | Reason::MemoryLimit
            | Reason::Draining
            | Reason::Internal
    )
}

/// The part of the time that one of so many attempts gets.
fn share(rest: Duration, left: usize) -> Duration {
    rest / u32::try_from(left.max(1)).unwrap_or(u32::MAX)
}

async fn once(
    session: &Rc<Session>,
    endpoint: &Endpoint,
    target: Option<&Target<'_>>,
    limit: Option<Duration>,
    record: &mut Record,
) -> Result<(Io, Option<Slot>, InFlightGuard), Refusal> {
    record.destination.address = Some(endpoint.address);
    record.destination.workload = endpoint.workload.clone();
    let key = session.key(endpoint, target, None)?;
    record.destination.identity = key.destination.clone();
    record.tunnel = key.tunnel();
    let in_flight = session.local.worker.shared.in_flight.enter(endpoint.address);
    let pool = target.and_then(pool_of);
    let connecting = dial::connect(session, &key, pool);
    let connected = match limit {
        None => connecting.await,
        Some(limit) => timeout(limit, connecting).await.unwrap_or_else(|_| {
            Err(Refusal::new(
                Reason::ConnectTimeout,
                format!("no connection to {} in time", endpoint.address),
            ))
        }),
    };
    let (io, slot) = connected?;
    Ok((io, slot, in_flight))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_share_the_time_that_there_is() {
        let whole = Duration::from_secs(9);
        assert_eq!(share(whole, 3), whole / 3);
        // What one of them has left the others get.
        assert_eq!(share(whole - Duration::from_secs(1), 2), Duration::from_secs(4));
        assert_eq!(share(whole, 1), whole);
        assert_eq!(share(whole, 0), whole);
    }
}
