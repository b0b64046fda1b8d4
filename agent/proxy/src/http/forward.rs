//! Forwards a request: chooses an endpoint, sends it, and tries again where that helps.

use std::{
    cell::Cell,
    future::pending,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use http::{HeaderName, Method, Response};
use hyper::body::Incoming;
use orlop_model::{
    Behind, Declared, Endpoint, Reason, Service, Snapshot,
    http::{Answered, Choice, Cluster, MirrorTo, Reach, Rule, Target},
    world::{
        Resolution,
        gateway_api::RouteKind,
        routing::{Balancer, Retries, TrafficPolicy},
    },
};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    alike::hash_on,
    balance::{Choosing, Tried},
    body::grpc_status,
    exchange::Template,
    flags::Flag,
    grpc::{self, DEADLINE_EXCEEDED},
    hosts::ClusterState,
    key::Key,
    outlier::Outcome,
    record::RequestRecord,
    replay::Replay,
    session::{Moment, Session},
    trace::Attempt,
    unanswered::{Unanswered, is_of_endpoint},
    upstream::{Lane, Lease, Upstreams},
};
use crate::refusal::Refusal;

/// The kind of the routes whose servers speak HTTP/2, whatever their ports say.
const GRPC_ROUTE: &str = RouteKind::Grpc.name();
/// In the answers of whoever limits how much is asked.
pub(super) const ENVOY_RATELIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
/// Who does not answer before the client's own deadline is no worse than others, unless it had this long.
const UNHURRIED: Duration = Duration::from_secs(1);
/// An endpoint that does not answer is taken for one that takes at least this long.
const FAILURE: Duration = Duration::from_secs(1);

/// Where a request goes, and how often it is tried.
pub(super) struct Plan<'s> {
    destination: Destination<'s>,
    /// A GRPCRoute leads there.
    pub(super) grpc: bool,
    retries: Retries,
    /// The rule's, from the request's end on.
    timeout: Option<Duration>,
    /// The client's own, of a call of gRPC.
    pub(super) deadline: Option<Instant>,
    pub(super) mirrors: &'s [MirrorTo],
    pub(super) snapshot: &'s Arc<Snapshot>,
    /// The endpoint that has the request and has not answered.
    asked: Cell<Option<(SocketAddr, Instant)>>,
}

enum Destination<'s> {
    /// One of these.
    Service(Target<'s>),
    /// This one, by the waypoint before it.
    Waypoint(Target<'s>),
    /// As it was dialled.
    Endpoint(Endpoint),
}

impl<'s> Plan<'s> {
    /// For a request that no rule speaks of.
    pub(super) fn unrouted(session: &Session, snapshot: &'s Arc<Snapshot>) -> Result<Self, Refusal> {
        let (routes, client) = (snapshot.routes(), session.client());
        let destination = match &session.target {
            Behind::Service { service, port, .. } => match snapshot.current_service(service) {
                Some(service) if service.port(*port).is_some() => {
                    Destination::Service(routes.target_of(service, *port, &client)?)
                }
                current => {
                    current.map_or(Ok(()), |service| routes.pass_unlisted(service, &client))?;
                    Destination::Endpoint(session.endpoint(snapshot)?)
                }
            },
            Behind::Workload { .. } | Behind::Gateway { .. } => {
                Destination::Endpoint(session.endpoint(snapshot)?)
            }
        };
        let retries = Retries::default();
        let asked = Cell::default();
        Ok(Self {
            destination,
            grpc: false,
            retries,
            timeout: None,
            deadline: None,
            mirrors: &[],
            snapshot,
            asked,
        })
    }

    /// The service that it is for, and the port of it; `None` where it goes as it was dialled.
    pub(super) fn service(&self) -> Option<(&'s Arc<Service>, u16)> {
        match &self.destination {
            Destination::Service(target) | Destination::Waypoint(target) => {
                Some((target.service, target.port.number))
            }
            Destination::Endpoint(_) => None,
        }
    }

    /// For one that follows a rule to this destination.
    pub(super) fn routed(
        session: &Session,
        snapshot: &'s Arc<Snapshot>,
        choice: &'s Choice,
        rule: &'s Rule,
    ) -> Result<Self, Refusal> {
        let target = target(session, snapshot, &choice.cluster)?;
        Ok(Self {
            destination: Destination::of(session, target),
            grpc: rule.kind == GRPC_ROUTE,
            retries: rule.retries.clone(),
            timeout: rule.timeout,
            deadline: None,
            mirrors: choice.own.as_ref().map_or(&rule.mirrors, |own| &own.mirrors),
            snapshot,
            asked: Cell::default(),
        })
    }
}

impl<'s> Destination<'s> {
    /// A waypoint does not ask another one; for a gateway there is no way past it.
    fn of(session: &Session, target: Target<'s>) -> Self {
        if session.is_from_outside() && target.service.waypoint.is_some() {
            Self::Waypoint(target)
        } else {
            Self::Service(target)
        }
    }
}

/// A connection for a copy of a request, which is sent once.
pub(super) async fn lease_of_copy(
    session: &Rc<Session>,
    snapshot: &Arc<Snapshot>,
    (target, grpc): (Target<'_>, bool),
    authority: &str,
) -> Result<(Key, Lease), Refusal> {
    let destination = Destination::of(session, target);
    let (retries, asked) = (Retries::default(), Cell::default());
    let (timeout, deadline) = (None, None);
    let plan = Plan { destination, grpc, retries, timeout, deadline, mirrors: &[], snapshot, asked };
    let cluster = plan.cluster(session);
    let endpoint = plan.endpoint(session, cluster.as_deref(), None, &[])?;
    let key = plan.key(session, &endpoint, authority)?;
    let pool = plan.policy().and_then(|policy| policy.pool.as_ref());
    let limit = pool.and_then(|pool| pool.max_requests);
    let counted = cluster.as_ref().map(|cluster| cluster.enter(limit).ok_or(Reason::Overflow)).transpose()?;
    let lane = Lane { cluster: cluster.as_ref(), pool };
    let mut lease = Upstreams::lease(session, &key, lane, false).await?;
    lease.counted = counted;
    Ok((key, lease))
}

/// Where a rule's destination is for this client.
pub(super) fn target<'s>(
    session: &Session,
    snapshot: &'s Snapshot,
    cluster: &'s Cluster,
) -> Result<Target<'s>, Refusal> {
    let dialled = session.service_port().map_or(0, |(_, port)| port);
    let target = snapshot.routes().target(cluster, dialled, &session.client());
    target.map_err(|reason| {
        let subset = cluster.subset.as_ref().map(|subset| format!(", subset {subset}"));
        Refusal::new(reason, format!("{}{}", cluster.host, subset.unwrap_or_default()))
    })
}

/// Sends the request until it is answered, or there is no use in trying again. With the answer come its connection and
/// the time by which it must have ended.
pub(super) async fn send(
    session: &Rc<Session>,
    plan: &Plan<'_>,
    template: &Template,
    replay: &Replay,
    record: &mut RequestRecord,
) -> Result<(Response<Incoming>, Lease, Option<Instant>), Refusal> {
    let late = async {
        let Some(limit) = plan.timeout else { return pending().await };
        // The time runs from the request's end on.
        replay.ended().await;
        sleep(limit).await;
        limit
    };
    let given_up = async {
        let Some(deadline) = plan.deadline else { return pending().await };
        sleep_until(deadline).await;
    };
    tokio::select! {
        biased;
        answer = attempts(session, plan, template, replay, record) => {
            let (response, lease) = answer?;
            // By the rule, an answer that comes before the request has ended takes as long as it wants.
            let by_rule = plan.timeout.and_then(|limit| Some(replay.ended_at()? + limit));
            Ok((response, lease, by_rule.into_iter().chain(plan.deadline).min()))
        }
        limit = late => {
            plan.is_late(session, limit);
            Err(Reason::RequestTimeout.into())
        }
        () = given_up => {
            let waited = plan.asked.get().map_or(Duration::ZERO, |(_, since)| since.elapsed());
            if waited >= UNHURRIED {
                plan.is_late(session, waited);
            }
            record.grpc_status = Some(DEADLINE_EXCEEDED);
            Err(Refusal::new(Reason::RequestTimeout, "the client's own deadline"))
        }
    }
}

async fn attempts(
    session: &Rc<Session>,
    plan: &Plan<'_>,
    template: &Template,
    replay: &Replay,
    record: &mut RequestRecord,
) -> Result<(Response<Incoming>, Lease), Refusal> {
    if plan.retries.attempts == 0 {
        replay.forget();
    }
    let mut tried = Vec::new();
    let cluster = plan.cluster(session);
    let pool = plan.policy().and_then(|policy| policy.pool.as_ref());
    let lane = Lane { cluster: cluster.as_ref(), pool };
    let counted = match &cluster {
        Some(cluster) => {
            let limit = pool.and_then(|pool| pool.max_requests);
            Some(cluster.enter(limit).ok_or(Reason::Overflow)?)
        }
        None => None,
    };
    let hash = plan.hash(session, template, record);
    let mut retrying = None;
    loop {
        let attempt = u32::try_from(tried.len()).unwrap_or(u32::MAX);
        let endpoint = plan.endpoint(session, cluster.as_deref(), hash, &tried)?;
        tried.push(endpoint.address);
        let span = record.trace.as_ref().map(|trace| trace.attempt(endpoint.address, attempt));
        let began = Instant::now();
        let tried_once = once(session, plan, template, replay, (&endpoint, lane, span.as_ref()), record);
        let too_long = async {
            let Some(limit) = plan.retries.per_try else { return pending().await };
            // As Envoy has it, what the client takes to send its request is not the server's.
            sleep_until(replay.ended().await.max(began) + limit).await;
        };
        let result = tokio::select! {
            biased;
            result = tried_once => result,
            () = too_long => {
                // Without an endpoint that has it, it waited for a connection.
                let reach = plan.asked.get().map_or(Reach::NotConnected, |_| Reach::Sent);
                Err(Unanswered::new(Refusal::new(Reason::RequestTimeout, "of one attempt"), reach))
            }
        };
        if let Some(span) = span {
            span.end(result.as_ref().map(|(response, _)| response.status()).map_err(|error| &error.refusal));
        }
        if let Some(cluster) = &cluster {
            plan.tell(session, cluster, (endpoint.address, record.grpc), &result, began.elapsed());
        }
        plan.asked.set(None);
        let wanted = plan.wants_again(&result);
        let again = wanted && attempt < plan.retries.attempts && replay.is_whole();
        if again && let Some(cluster) = &cluster {
            let budget = plan.policy().and_then(|policy| policy.retry_budget);
            // The one before is over.
            drop(retrying.take());
            retrying = cluster.retry(budget, pool.and_then(|pool| pool.max_retries));
        }
        if !again || retrying.is_none() {
            // Another would have been one too many at once.
            record.flags.add((again && cluster.is_some()).then_some(Flag::UpstreamOverflow));
            let may_help = result.as_ref().err().is_none_or(|failed| is_of_endpoint(&failed.refusal));
            let used_up = wanted && may_help && attempt > 0 && attempt == plan.retries.attempts;
            record.flags.add(used_up.then_some(Flag::UpstreamRetryLimitExceeded));
            let (response, mut lease) = result.map_err(|unanswered| {
                record.flags.add(unanswered.flag);
                unanswered.refusal
            })?;
            lease.counted = counted;
            replay.forget();
            return Ok((response, lease));
        }
        record.attempts += 1;
        drop(result);
        sleep(plan.retries.pause(attempt, fastrand::f64())).await;
    }
}

/// One attempt. A connection that has died unnoticed costs none.
async fn once(
    session: &Rc<Session>,
    plan: &Plan<'_>,
    template: &Template,
    replay: &Replay,
    (endpoint, lane, span): (&Endpoint, Lane<'_>, Option<&Attempt>),
    record: &mut RequestRecord,
) -> Result<(Response<Incoming>, Lease), Unanswered> {
    let authority = template.destined().authority.host();
    let mut key = plan.key(session, endpoint, authority).map_err(Unanswered::refused_here)?;
    if let Some(goes_on) = &mut record.goes_on {
        goes_on.at = Some(endpoint.clone());
    }
    // Nobody switches protocols in HTTP/2 in this way.
    key.http2 &= !(record.goes_on.is_some() && lane.pool.is_some_and(|pool| pool.to_http2));
    record.went_to(endpoint, &key);
    if let Some((service, _)) = plan.service() {
        record.service = Some(Arc::clone(service));
    }
    let lease = async |fresh| {
        Upstreams::lease(session, &key, lane, fresh).await.map_err(Unanswered::without_connection)
    };
    let mut leased = lease(false).await?;
    plan.asked.set(Some((endpoint.address, Instant::now())));
    let anew = || {
        let mut request = template.request(&key, replay.attempt())?;
        if let Some(span) = span {
            span.tell(request.headers_mut());
        }
        if let Some(deadline) = plan.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            grpc::tell_deadline(request.headers_mut(), left);
        }
        Ok::<_, Refusal>(request)
    };
    let mut request = anew().map_err(Unanswered::refused_here)?;
    loop {
        match leased.send(request).await {
            Ok(response) => return Ok((response, leased)),
            Err(Unanswered { request: Some(unsent), .. }) if leased.reused => request = unsent,
            // RFC 9110, section 9.2.2: the server may have closed it just before it came.
            Err(Unanswered { reach: Reach::Sent, severed: true, .. })
                if leased.reused && plan.may_send_again(template.method(), replay) =>
            {
                request = anew().map_err(Unanswered::refused_here)?;
            }
            Err(unanswered) => return Err(unanswered),
        }
        // Its place may be the only one.
        drop(leased);
        leased = lease(true).await?;
    }
}

impl Plan<'_> {
    /// Whether to send once more what a server may have acted upon.
    fn may_send_again(&self, method: &Method, replay: &Replay) -> bool {
        self.retries.attempts > 0 && method.is_idempotent() && replay.is_whole()
    }

    /// Whose DestinationRules count here: before those of a service behind a waypoint that stands.
    fn target(&self) -> Option<&Target<'_>> {
        match &self.destination {
            Destination::Service(target) => Some(target),
            Destination::Waypoint(_) | Destination::Endpoint(_) => None,
        }
    }

    /// The connections to an endpoint that may be used; `authority` is the host that is asked there.
    fn key(&self, session: &Session, endpoint: &Endpoint, authority: &str) -> Result<Key, Refusal> {
        let mut key = match &self.destination {
            // What is wanted of the service's own connections is its waypoint's affair.
            Destination::Waypoint(target) => Key {
                destination: endpoint.workload.as_ref().map(|waypoint| waypoint.identity.clone()),
                through: Some(format!("{}:{}", target.service.hostname, target.port.number).into()),
                http2: target.port.declared() == Declared::Http2,
                preface: None,
                tls: None,
                ..session.key(endpoint, None, None)?
            },
            _ => {
                session.check(self.snapshot, endpoint)?;
                session.key(endpoint, self.target(), Some(authority))?
            }
        };
        key.http2 |= self.grpc && session.is_from_outside();
        Ok(key)
    }

    fn policy(&self) -> Option<&TrafficPolicy> {
        self.target()?.policy.map(|policy| &**policy)
    }

    /// What counts its requests and retries.
    fn cluster(&self, session: &Session) -> Option<Arc<ClusterState>> {
        let local = &session.local;
        let (Destination::Service(target) | Destination::Waypoint(target)) = &self.destination else {
            return None;
        };
        Some(local.host_cache.cluster(&local.own.hosts, target))
    }

    /// What endpoints are chosen by, if that is something of the request. A cookie is made where one is wanted.
    fn hash(&self, session: &Session, template: &Template, record: &mut RequestRecord) -> Option<u64> {
        let Some(Balancer::Hash(on, _)) = &self.policy()?.balancer else { return None };
        let (hash, cookie) = hash_on(on, session, template.headers(), template.query());
        record.cookie = cookie;
        hash
    }

    fn endpoint(
        &self,
        session: &Session,
        cluster: Option<&ClusterState>,
        hash: Option<u64>,
        tried: &[SocketAddr],
    ) -> Result<Endpoint, Refusal> {
        match (&self.destination, cluster) {
            (Destination::Service(target), Some(cluster)) => {
                let tried = Tried { endpoints: tried, localities: self.retries.remote_localities };
                endpoint(session, self.snapshot, *target, cluster, hash, tried)
            }
            (Destination::Endpoint(endpoint), _) => Ok(endpoint.clone()),
            (Destination::Waypoint(target), _) => {
                let own = &session.local.own.workload;
                let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
                let mut moment = Moment { in_flight: &session.local.worker.shared.in_flight, tried };
                let hop = self.snapshot.waypoint_of_service(own, target.service, any, &mut moment)?;
                let hop = hop.ok_or(Reason::NoReadyWaypoint)?;
                Ok(Endpoint::at(hop.address, Some(hop.workload)))
            }
            (Destination::Service(_), None) => Err(Reason::NoHealthyEndpoint.into()),
        }
    }

    /// Tells of how an attempt has ended, which may have been a call of gRPC.
    fn tell(
        &self,
        session: &Session,
        cluster: &ClusterState,
        (host, grpc): (SocketAddr, bool),
        result: &Result<(Response<Incoming>, Lease), Unanswered>,
        took: Duration,
    ) {
        let outcome = match result {
            Ok((response, _)) => {
                let grpc = grpc_status(response.headers()).filter(|_| grpc);
                Outcome::answered(response.status().as_u16(), grpc)
            }
            // It waited for a connection.
            Err(late)
                if late.refusal.reason == Reason::RequestTimeout && late.reach == Reach::NotConnected =>
            {
                return;
            }
            Err(unanswered) if !unanswered.by_client && is_of_endpoint(&unanswered.refusal) => {
                Outcome::Failed
            }
            Err(_) => return,
        };
        if let Some(target) = self.target() {
            tell(session, target, cluster, host, outcome, took);
        }
    }

    /// Tells that whoever has the request has not answered in time.
    fn is_late(&self, session: &Session, limit: Duration) {
        let asked = self.asked.get().zip(self.cluster(session)).zip(self.target());
        if let Some((((host, _), cluster), target)) = asked {
            tell(session, target, &cluster, host, Outcome::Failed, limit);
        }
    }

    fn wants_again(&self, result: &Result<(Response<Incoming>, Lease), Unanswered>) -> bool {
        self.retries.wants_again(match result {
            Ok((response, _)) => Ok(Answered {
                status: response.status().as_u16(),
                grpc: grpc_status(response.headers()),
                rate_limited: response.headers().contains_key(ENVOY_RATELIMITED),
            }),
            Err(unanswered) => Err(unanswered.reach),
        })
    }
}

/// Tells of how an endpoint has answered, if at all.
pub(super) fn tell(
    session: &Session,
    target: &Target<'_>,
    cluster: &ClusterState,
    host: SocketAddr,
    outcome: Outcome,
    took: Duration,
) {
    let Some(policy) = target.policy else { return };
    let own = &session.local.own;
    let (all, now) = (target.port.ready().map(|endpoint| endpoint.address), own.hosts.now());
    if policy.balancer == Some(Balancer::PeakEwma) {
        // What fails at once is not quick.
        let took = if outcome == Outcome::Failed { took.max(FAILURE) } else { took };
        cluster.outliers.took(host, took, all.clone(), now);
    }
    let Some(outlier) = &policy.outlier else { return };
    if cluster.outliers.answered(outlier, host, outcome, all, now) {
        own.metrics.ejected.inc();
        tracing::info!(service = target.service.hostname, endpoint = %host, "ejected");
    }
}

/// The endpoint of a destination that a request goes to, if possible none of those that were tried.
pub(super) fn endpoint(
    session: &Session,
    snapshot: &Snapshot,
    target: Target<'_>,
    cluster: &ClusterState,
    hash: Option<u64>,
    tried: Tried<'_>,
) -> Result<Endpoint, Refusal> {
    let by_policy = target.policy.is_some_and(|policy| policy.balancer == Some(Balancer::Passthrough));
    if by_policy || target.service.resolution == Resolution::None {
        // Of another service than was dialled the address says nothing.
        let Some(dialled) = dialled(session).filter(|_| session.has_dialled(target.service)) else {
            return Err(Refusal::new(Reason::NoHealthyEndpoint, "PASSTHROUGH: no address of it was dialled"));
        };
        let passed = target.passed_through(dialled, snapshot.workload_at(dialled.ip()));
        return passed.map_err(|reason| {
            Refusal::new(reason, format!("PASSTHROUGH: {dialled} is the address of no endpoint"))
        });
    }
    Ok(choosing(session, snapshot, target, cluster, hash).choose(tried)?.clone())
}

/// What choosing one depends on.
pub(super) fn choosing<'a>(
    session: &'a Session,
    snapshot: &'a Snapshot,
    target: Target<'a>,
    cluster: &'a ClusterState,
    hash: Option<u64>,
) -> Choosing<'a> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    Choosing {
        target,
        cluster,
        in_flight: &session.local.worker.shared.in_flight,
        hash,
        dialled: dialled(session).unwrap_or(any),
        now: session.local.own.hosts.now(),
        generation: snapshot.generation(),
        routes: snapshot.routes(),
        own: &session.local.own.workload.name,
    }
}

/// The address that was dialled, if it was one.
fn dialled(session: &Session) -> Option<SocketAddr> {
    match &session.target {
        Behind::Service { dialled, .. } => *dialled,
        Behind::Workload { address, .. } => Some(*address),
        Behind::Gateway { .. } => None,
    }
}
