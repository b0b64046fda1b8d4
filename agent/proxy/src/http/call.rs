//! Asks a service something of the waypoint's own: through the mesh, as itself.

use std::{net::Ipv4Addr, rc::Rc};

use http::{Request, Response};
use hyper::body::Incoming;
use orlop_model::{
    Reason, Snapshot,
    http::{Asker, Client, is_foreign},
};

use super::{
    forward,
    key::Key,
    replay::RequestBody,
    session::Session,
    upstream::{Lane, Lease, Upstreams},
};
use crate::refusal::Refusal;

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// It was not there, or in time, or says itself that it can't tell: what fails open lets pass.
    Away(String),
    /// It must not be asked, or what it says is no answer. Nothing passes for that: somebody has written down what is
    /// not so, and fails open for no mistake.
    Wrong(String),
}

impl Failed {
    pub(super) fn away(problem: impl ToString) -> Self {
        Self::Away(problem.to_string())
    }

    pub(super) fn wrong(problem: impl ToString) -> Self {
        Self::Wrong(problem.to_string())
    }

    /// What is wrong, and whether it may pass where it fails open.
    pub(super) fn into_problem(self) -> (String, bool) {
        match self {
            Self::Away(problem) => (problem, true),
            Self::Wrong(problem) => (problem, false),
        }
    }

    fn of(refusal: &Refusal, address: impl std::fmt::Display) -> Self {
        let problem = format!("{address}: {}: {}", refusal.reason, refusal.detail);
        if is_away(refusal) { Self::Away(problem) } else { Self::Wrong(problem) }
    }
}

/// Whether an endpoint that can't be reached for this reason is away. Not one that shows another's certificate, lets
/// nobody in or ends the tunnel, as one does that refuses the waypoint's certificate, nor one that the waypoint can't dial for what it lacks itself: whoever can bring that about would pass.
fn is_away(refusal: &Refusal) -> bool {
    let its_server = refusal.answered.is_some_and(|status| status.is_server_error());
    let reached = matches!(
        refusal.reason,
        Reason::NoHealthyEndpoint
            | Reason::ConnectFailed
            | Reason::ConnectTimeout
            | Reason::TlsTimeout
            | Reason::Reset
            | Reason::UpstreamReset
    );
    reached || its_server
}

/// A port of a service, as it is called in a namespace, and who wants it asked.
pub(super) struct Callee<'a> {
    /// `None` where it is the proxy's own arguments.
    pub(super) asker: Option<Asker<'a>>,
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) namespace: &'a str,
}

/// Sends a request to one of its endpoints, and to another one if the first can't be reached. The connection is the
/// waypoint's own: with its certificate where the endpoint is in the mesh, and no client's.
pub(super) async fn call(
    session: &Rc<Session>,
    snapshot: &Snapshot,
    callee: &Callee<'_>,
    http2: bool,
    request: impl Fn() -> Result<Request<RequestBody>, Failed>,
) -> Result<(Response<Incoming>, Lease), Failed> {
    let Callee { asker, host, port, namespace } = callee;
    let local = &session.local;
    let service = snapshot.service_named(namespace, host);
    let service = service.ok_or_else(|| Failed::Wrong(format!("{host} is no service")))?;
    if !asker.as_ref().is_none_or(|asker| snapshot.routes().permits(asker, service)) {
        let problem = format!("no ReferenceGrant of namespace {} lets it be asked", service.name.namespace);
        return Err(Failed::Wrong(problem));
    }
    let at_port = |reason: Reason| Failed::of(&reason.into(), format_args!("{host}:{port}"));
    let client = Client { namespace, pod: Some(&local.own.workload.name) };
    let target = snapshot.routes().target_of(service, *port, &client).map_err(at_port)?;
    let cluster = local.host_cache.cluster(&local.own.hosts, &target);
    let pool = target.policy.and_then(|policy| policy.pool.as_ref());
    let lane = Lane { cluster: Some(&cluster), pool };
    // Nothing that the client has dialled says who is asked: of PASSTHROUGH there is none here.
    let choosing = forward::choosing(session, snapshot, target, &cluster, None);
    let mut tried = Vec::new();
    let mut problem = Failed::wrong("it has no endpoint");
    loop {
        let endpoint = choosing.choose(tried[..].into()).map_err(at_port)?;
        if tried.contains(&endpoint.address) {
            return Err(problem);
        }
        if is_foreign(service, endpoint) {
            return Err(Failed::Wrong(format!("{} is a pod of another namespace", endpoint.address)));
        }
        // The address of a Service, which no endpoint can be.
        snapshot
            .transport_to(endpoint)
            .map_err(|reason| Failed::Wrong(format!("{}: {reason}", endpoint.address)))?;
        tried.push(endpoint.address);
        let tls = session.tls(endpoint, Some(&target), None);
        let tls = tls.map_err(|refusal| Failed::of(&refusal, endpoint.address))?;
        let enrolled = endpoint.workload.as_ref().filter(|workload| workload.enrolled);
        let key = Key {
            address: endpoint.address,
            destination: enrolled.map(|workload| workload.identity.clone()),
            through: None,
            caller: None,
            client: Ipv4Addr::UNSPECIFIED.into(),
            http2,
            preface: None,
            tls,
        };
        let mut lease = match Upstreams::lease(session, &key, lane, false).await {
            Ok(lease) => lease,
            Err(refusal) => {
                problem = Failed::of(&refusal, endpoint.address);
                if tried.len() < 2 {
                    continue;
                }
                return Err(problem);
            }
        };
        loop {
            match lease.send(request()?).await {
                Ok(response) => return Ok((response, lease)),
                // It had died unnoticed.
                Err(_) if lease.reused => {
                    drop(lease);
                    let opened = Upstreams::lease(session, &key, lane, true).await;
                    lease = opened.map_err(|refusal| Failed::of(&refusal, endpoint.address))?;
                }
                Err(unanswered) if unanswered.garbled => {
                    return Err(Failed::Wrong(unanswered.refusal.detail));
                }
                Err(unanswered) => return Err(Failed::of(&unanswered.refusal, endpoint.address)),
            }
        }
    }
}
