//! Forwards a request: chooses an endpoint, sends it, and tries again where that helps.

use std::{
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use orlop_model::{
    Behind, Endpoint, Reason, Service, Snapshot,
    http::{Choice, Cluster, MirrorTo, Rule, Target},
    world::routing::{Balancer, Retries, RetryOn},
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    balance::{Choosing, hash_on},
    body::grpc_status,
    exchange::Template,
    hosts::ServiceState,
    record::RequestRecord,
    replay::Replay,
    session::Session,
    trace::Attempt,
    upstream::{Lease, Unanswered, Upstreams},
};
use crate::refusal::Refusal;

/// The longest pause between two attempts is this many times the first.
const MAX_BACKOFF: u32 = 10;

/// Where a request goes, and how often it is tried.
pub(super) struct Plan<'s> {
    destination: Destination<'s>,
    retries: Retries,
    timeout: Option<Duration>,
    pub(super) mirrors: &'s [MirrorTo],
    pub(super) snapshot: &'s Arc<Snapshot>,
}

enum Destination<'s> {
    /// One of these.
    Service(Target<'s>),
    /// As it was dialled.
    Endpoint(Endpoint),
}

impl<'s> Plan<'s> {
    /// For a request that no rule speaks of.
    pub(super) fn unrouted(session: &Session, snapshot: &'s Arc<Snapshot>) -> Result<Self, Refusal> {
        let namespace = session.peer.identity.namespace();
        let destination = match &session.target {
            Behind::Service { service, port, .. } => match snapshot.current_service(service) {
                Some(service) if service.port(*port).is_some() => {
                    Destination::Service(snapshot.routes().target_of(service, *port, namespace)?)
                }
                _ => Destination::Endpoint(session.endpoint(snapshot)?),
            },
            Behind::Workload { .. } => Destination::Endpoint(session.endpoint(snapshot)?),
        };
        let retries = Retries::default();
        Ok(Self { destination, retries, timeout: None, mirrors: &[], snapshot })
    }

    /// The service that it is for, and the port of it; `None` where it goes as it was dialled.
    pub(super) fn service(&self) -> Option<(&'s Arc<Service>, u16)> {
        match &self.destination {
            Destination::Service(target) => Some((target.service, target.port.number)),
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
            destination: Destination::Service(target),
            retries: rule.retries.clone(),
            timeout: rule.timeout,
            mirrors: choice.own.as_ref().map_or(&rule.mirrors, |own| &own.mirrors),
            snapshot,
        })
    }
}

/// Where a rule's destination is for this client.
pub(super) fn target<'s>(
    session: &Session,
    snapshot: &'s Snapshot,
    cluster: &'s Cluster,
) -> Result<Target<'s>, Refusal> {
    let dialled = session.service_port().map_or(0, |(_, port)| port);
    let target = snapshot.routes().target(cluster, dialled, session.peer.identity.namespace());
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
    let Some(limit) = plan.timeout else {
        let (response, lease) = attempts(session, plan, template, replay, record).await?;
        return Ok((response, lease, None));
    };
    let ended = async {
        // The time runs from the request's end on.
        replay.ended.notified().await;
        let deadline = Instant::now() + limit;
        sleep_until(deadline).await;
    };
    tokio::select! {
        biased;
        answer = attempts(session, plan, template, replay, record) => {
            let (response, lease) = answer?;
            // An answer that comes before the request has ended takes as long as it wants.
            Ok((response, lease, replay.ended_at().map(|ended| ended + limit)))
        }
        () = ended => Err(Reason::RequestTimeout.into()),
    }
}

async fn attempts(
    session: &Rc<Session>,
    plan: &Plan<'_>,
    template: &Template,
    replay: &Replay,
    record: &mut RequestRecord,
) -> Result<(Response<Incoming>, Lease), Refusal> {
    let mut tried = Vec::new();
    let state = plan.state(session);
    let pool = plan.target().and_then(|target| target.policy?.pool.as_ref());
    let limits = (pool.and_then(|pool| pool.max_requests), pool.and_then(|pool| pool.max_retries));
    let counted = match &state {
        Some(state) => Some(state.enter(limits.0).ok_or(Reason::Overflow)?),
        None => None,
    };
    let hash = plan.hash(session, template, record);
    let mut retrying = None;
    loop {
        let attempt = u32::try_from(tried.len()).unwrap_or(u32::MAX);
        let endpoint = plan.endpoint(session, state.as_deref(), hash, &tried)?;
        tried.push(endpoint.address);
        let span = record.trace.as_ref().map(|trace| trace.attempt(endpoint.address, attempt));
        let tried_once = once(session, plan, template, replay, (&endpoint, span.as_ref()), record);
        let result = match plan.retries.per_try {
            Some(limit) => match timeout(limit, tried_once).await {
                Ok(result) => result,
                Err(_) => Err(Unanswered::from(Refusal::new(Reason::RequestTimeout, "of one attempt"))),
            },
            None => tried_once.await,
        };
        let status = result.as_ref().ok().map(|(response, _)| response.status().as_u16());
        let is_told = result.as_ref().err().is_none_or(|error| is_of_endpoint(&error.refusal));
        if let Some(span) = span {
            span.end(result.as_ref().map(|(response, _)| response.status()).map_err(|error| &error.refusal));
        }
        if let (Some(target), Some(state), true) = (plan.target(), &state, is_told) {
            tell(session, target, state, endpoint.address, status);
        }
        let again = attempt < plan.retries.attempts && plan.wants_again(&result) && replay.is_whole();
        if again && let Some(state) = &state {
            retrying = state.retry(limits.1);
        }
        if !again || retrying.is_none() {
            let (response, mut lease) = result.map_err(|unanswered| unanswered.refusal)?;
            lease.counted = counted;
            return Ok((response, lease));
        }
        record.attempts += 1;
        let most = plan.retries.backoff * (1 << attempt.min(8)).min(MAX_BACKOFF);
        drop(result);
        sleep(plan.retries.at_least + most.mul_f64(fastrand::f64())).await;
    }
}

/// One attempt. A connection that has died unnoticed costs none.
async fn once(
    session: &Rc<Session>,
    plan: &Plan<'_>,
    template: &Template,
    replay: &Replay,
    (endpoint, span): (&Endpoint, Option<&Attempt>),
    record: &mut RequestRecord,
) -> Result<(Response<Incoming>, Lease), Unanswered> {
    session.check(plan.snapshot, endpoint)?;
    if let Some(goes_on) = &mut record.goes_on {
        goes_on.at = Some(endpoint.clone());
    }
    let port = plan.target().map(|target| target.port);
    let key = session.key(endpoint, port);
    record.went_to(endpoint, &key);
    if let Some(target) = plan.target() {
        record.service = Some(Arc::clone(target.service));
    }
    let connect_timeout = plan.target().and_then(|target| target.policy?.pool.as_ref()?.connect_timeout);
    let mut lease = within(connect_timeout, Upstreams::lease(session, &key)).await?;
    let anew = || {
        let mut request = template.request(&key, replay.attempt())?;
        if let Some(span) = span {
            span.tell(request.headers_mut());
        }
        Ok::<_, Refusal>(request)
    };
    let mut request = anew()?;
    loop {
        match lease.send(request).await {
            Ok(response) => return Ok((response, lease)),
            Err(Unanswered { request: Some(unsent), .. }) if lease.reused => {
                request = unsent;
                lease = within(connect_timeout, Upstreams::open(session, &key)).await?;
            }
            // RFC 9110, section 9.2.2: the server may have closed it just before it came.
            Err(Unanswered { refused: false, .. }) if lease.reused && is_safe(template.method(), replay) => {
                request = anew()?;
                lease = within(connect_timeout, Upstreams::open(session, &key)).await?;
            }
            Err(unanswered) => return Err(unanswered),
        }
    }
}

fn is_safe(method: &Method, replay: &Replay) -> bool {
    method.is_idempotent() && replay.is_whole()
}

async fn within(
    limit: Option<Duration>,
    connect: impl Future<Output = Result<Lease, Refusal>>,
) -> Result<Lease, Refusal> {
    match limit {
        None => connect.await,
        Some(limit) => timeout(limit, connect).await.unwrap_or_else(|_| Err(Reason::ConnectTimeout.into())),
    }
}

impl Plan<'_> {
    fn target(&self) -> Option<&Target<'_>> {
        match &self.destination {
            Destination::Service(target) => Some(target),
            Destination::Endpoint(_) => None,
        }
    }

    fn state(&self, session: &Session) -> Option<Arc<ServiceState>> {
        let local = &session.local;
        self.target().map(|target| local.host_cache.service(&local.own.hosts, &target.service.hostname))
    }

    /// What endpoints are chosen by, if that is something of the request. A cookie is made where one is wanted.
    fn hash(&self, session: &Session, template: &Template, record: &mut RequestRecord) -> Option<u64> {
        let policy = self.target()?.policy?;
        let Some(Balancer::Hash(on)) = &policy.balancer else { return None };
        let (hash, cookie) = hash_on(on, session, template.headers(), template.query());
        record.cookie = cookie;
        hash
    }

    fn endpoint(
        &self,
        session: &Session,
        state: Option<&ServiceState>,
        hash: Option<u64>,
        tried: &[SocketAddr],
    ) -> Result<Endpoint, Reason> {
        match (&self.destination, state) {
            (Destination::Service(target), Some(state)) => {
                choosing(session, *target, state, hash).choose(tried).cloned()
            }
            (Destination::Endpoint(endpoint), _) => Ok(endpoint.clone()),
            (Destination::Service(_), None) => Err(Reason::NoHealthyEndpoint),
        }
    }

    fn wants_again(&self, result: &Result<(Response<Incoming>, Lease), Unanswered>) -> bool {
        const DEFAULT: [RetryOn; 4] =
            [RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::Grpc(14), RetryOn::Grpc(1)];
        let conditions = if self.retries.on.is_empty() { &DEFAULT[..] } else { &self.retries.on };
        conditions.iter().any(|on| match result {
            Ok((response, _)) => {
                let status = response.status().as_u16();
                match on {
                    RetryOn::ServerError => status >= 500,
                    RetryOn::GatewayError => matches!(status, 502..=504),
                    RetryOn::Conflict => status == 409,
                    RetryOn::Status(wanted) => status == *wanted,
                    RetryOn::Grpc(wanted) => grpc_status(response.headers()) == Some(*wanted),
                    RetryOn::ConnectFailure | RetryOn::RefusedStream | RetryOn::Reset => false,
                }
            }
            Err(unanswered) => match on {
                RetryOn::ConnectFailure => !unanswered.connected,
                RetryOn::RefusedStream => unanswered.refused,
                RetryOn::Reset | RetryOn::ServerError | RetryOn::GatewayError => true,
                RetryOn::Conflict | RetryOn::Status(_) | RetryOn::Grpc(_) => false,
            },
        })
    }
}

/// Whether a failure says something of how well the endpoint is: no policy's refusal does, nor what fails here.
pub(super) fn is_of_endpoint(refusal: &Refusal) -> bool {
    let is_ours = matches!(
        refusal.reason,
        Reason::DescriptorLimit
            | Reason::MemoryLimit
            | Reason::CertificateUnavailable
            | Reason::NotThroughWaypoint
            | Reason::Internal
    );
    // What the peer's policy refuses says nothing of how well the peer is.
    !is_ours && refusal.answered != Some(StatusCode::UNAUTHORIZED)
}

/// Tells of how an endpoint has answered, if at all.
pub(super) fn tell(
    session: &Session,
    target: &Target<'_>,
    state: &ServiceState,
    host: SocketAddr,
    status: Option<u16>,
) {
    let Some(outlier) = target.policy.and_then(|policy| policy.outlier.as_ref()) else { return };
    let hosts = &session.local.own.hosts;
    let all = target.port.ready().map(|endpoint| endpoint.address);
    if state.answered(outlier, host, status, all, hosts.now()) {
        session.local.own.metrics.ejected.inc();
        tracing::info!(service = target.service.hostname, endpoint = %host, "ejected");
    }
}

pub(super) fn choosing<'a>(
    session: &'a Session,
    target: Target<'a>,
    state: &'a ServiceState,
    hash: Option<u64>,
) -> Choosing<'a> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let dialled = match &session.target {
        Behind::Service { dialled, .. } => dialled.unwrap_or(any),
        Behind::Workload { address, .. } => *address,
    };
    let (hosts, in_flight) = (&session.local.own.hosts, &session.local.worker.shared.in_flight);
    Choosing { target, state, hosts, in_flight, hash, dialled }
}
