//! Asks a service something of the waypoint's own: through the mesh, as itself.

use std::{net::Ipv4Addr, rc::Rc};

use http::{Request, Response};
use hyper::body::Incoming;
use orlop_model::Snapshot;

use super::{
    forward::choosing,
    replay::RequestBody,
    session::Session,
    upstream::{Key, Lease, Upstreams},
};

/// A port of a service, as it is called in a namespace.
pub(super) struct Callee<'a> {
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
    request: impl Fn() -> Result<Request<RequestBody>, String>,
) -> Result<(Response<Incoming>, Lease), String> {
    let Callee { host, port, namespace } = callee;
    let local = &session.local;
    let service = snapshot.service_named(namespace, host).ok_or_else(|| format!("{host} is no service"))?;
    let target = snapshot.routes().target_of(service, *port, namespace);
    let target = target.map_err(|reason| format!("{host}:{port}: {reason}"))?;
    let state = local.host_cache.service(&local.own.hosts, &service.hostname);
    let mut tried = Vec::new();
    let mut problem = String::new();
    loop {
        let endpoint = choosing(session, target, &state, None).choose(&tried);
        let endpoint = endpoint.map_err(|reason| format!("{host}:{port}: {reason}"))?;
        if tried.contains(&endpoint.address) {
            return Err(problem);
        }
        snapshot.transport_to(endpoint).map_err(|reason| format!("{}: {reason}", endpoint.address))?;
        tried.push(endpoint.address);
        let enrolled = endpoint.workload.as_ref().filter(|workload| workload.enrolled);
        let key = Key {
            address: endpoint.address,
            destination: enrolled.map(|workload| workload.identity.clone()),
            caller: None,
            client: Ipv4Addr::UNSPECIFIED.into(),
            http2,
        };
        let mut lease = match Upstreams::lease(session, &key).await {
            Ok(lease) => lease,
            Err(refusal) => {
                problem = format!("{}: {}", refusal.reason, refusal.detail);
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
                    let opened = Upstreams::open(session, &key).await;
                    lease = opened.map_err(|refusal| format!("{}: {}", refusal.reason, refusal.detail))?;
                }
                Err(unanswered) => return Err(unanswered.refusal.detail),
            }
        }
    }
}
