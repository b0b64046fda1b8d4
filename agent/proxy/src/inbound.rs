//! Connections to a pod: tunnels with their streams, and plaintext from outside the mesh.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Request, Response};
use orlop_model::{Identity, Reason, Snapshot, Workload, admit_connect, ports::is_reserved};
use tokio::{net::TcpStream, task::spawn_local};

use crate::{
    admission::{Arrival, admit, while_admitted},
    carried::Carried,
    copy,
    hbone::{self, Connect},
    incoming::{self, Peer, answer},
    metrics::Direction,
    pod::Pod,
    record::Record,
    refusal::Refusal,
    shared::LiveGuard,
    socket::{self, Accepted},
    tunnel,
    worker::Worker,
};

/// Serves one connection to the HBONE port: a tunnel, until its peer or the drain ends it.
pub(crate) async fn serve_tunnel(worker: &Rc<Worker>, pod: &Arc<Pod>, accepted: Accepted) {
    let peer_address = accepted.peer;
    let handshake = worker.handshakes.bounded(async {
        let snapshot = worker.shared.snapshot.load_full();
        let own = &snapshot.workload(pod.name()).ok_or(Reason::NotEnrolled)?.identity;
        incoming::shake_hands(&worker.shared, accepted, own).await
    });
    let (connection, peer) = match handshake.await {
        Ok(established) => established,
        Err(refusal) => {
            let mut record = Record::new(&worker.shared, Direction::Inbound);
            record.source.address = Some(peer_address);
            record.destination.workload = worker.shared.snapshot.load().workload(pod.name()).cloned();
            return record.finish(Err(refusal));
        }
    };
    let gauge = worker.shared.metrics.tunnels(Direction::Inbound);
    gauge.inc();
    let peer = Rc::new(peer);
    let start = |request, respond| start_stream(worker, pod, &peer, request, respond);
    let misuse = |refusal| record_misuse(worker, pod, &peer, refusal);
    incoming::serve_streams(&worker.shared, connection, &peer, start, misuse).await;
    gauge.dec();
}

/// A peer that breaks the rules of HTTP/2 has no stream to be recorded with.
fn record_misuse(worker: &Worker, pod: &Pod, peer: &Peer, refusal: Refusal) {
    let mut record = Record::new(&worker.shared, Direction::Inbound);
    record.tunnel = Some(peer.local);
    record.source.address = Some(peer.address);
    record.source.identity = Some(peer.identity.clone());
    record.destination.workload = worker.shared.snapshot.load().workload(pod.name()).cloned();
    record.finish(Err(refusal));
}

fn start_stream(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    peer: &Rc<Peer>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let shared = &worker.shared;
    let live = match shared.take_on_stream(pod) {
        Ok(live) => live,
        Err(reason) => {
            let mut record = Record::new(shared, Direction::Inbound);
            record.source.address = Some(peer.address);
            // A reset would have the peer try again in a tunnel of its own.
            answer(&mut respond, hbone::status(reason));
            return record.finish(Err(reason.into()));
        }
    };
    let load = worker.load();
    let (worker, pod, peer) = (Rc::clone(worker), Arc::clone(pod), Rc::clone(peer));
    spawn_local(async move {
        serve_connect(&worker, &pod, &peer, request, respond).await;
        drop::<([LiveGuard; 2], _)>((live, load));
    });
}

/// Serves one stream of a tunnel: gather, authorise, connect, respond, copy.
async fn serve_connect(
    worker: &Worker,
    pod: &Pod,
    peer: &Peer,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let mut record = Record::new(&worker.shared, Direction::Inbound);
    record.tunnel = Some(peer.local);
    let (request, mut receive) = request.into_parts();
    let (arrival, server) = match connect(worker, pod, peer, &request, &mut record).await {
        Ok(connected) => connected,
        Err(refusal) => {
            answer(&mut respond, hbone::status(refusal.reason));
            return record.finish(Err(refusal));
        }
    };
    let result = match respond.send_response(Response::new(()), false) {
        Ok(mut send) => {
            record.opened(&worker.series);
            let idle_timeout = worker.shared.config.idle_timeout;
            let (up, down) = (&record.up, &record.down);
            let carry = copy::tcp_and_stream(&server, &mut send, &mut receive, down, up, idle_timeout);
            while_admitted(worker, &arrival, Some(&peer.shown), carry).await
        }
        Err(_) => Err(Reason::TunnelClosed.into()),
    };
    if result.is_err() {
        socket::reset(server);
    }
    record.finish(result);
}

async fn connect(
    worker: &Worker,
    pod: &Pod,
    peer: &Peer,
    request: &http::request::Parts,
    record: &mut Record,
) -> Result<(Arrival, TcpStream), Refusal> {
    record.source.address = Some(peer.address);
    record.source.identity = Some(peer.identity.clone());
    let request = hbone::parse_connect(request)?;
    record.destination.address = Some(request.authority);

    let snapshot = worker.shared.snapshot.load_full();
    let workload = snapshot.workload(pod.name()).ok_or(Reason::NotEnrolled)?;
    destination_is(record, workload);
    let (client, caller) = client_of(&snapshot, workload, peer, &request);
    record.source.address = Some(client);
    record.caller = caller.as_ref().map(|(identity, _)| identity.clone());
    // The certificate says who it is; the address only adds what else is known of that workload.
    record.source.workload = snapshot
        .workload_at(peer.address.ip())
        .filter(|workload| workload.identity == peer.identity)
        .cloned();
    admit_connect(peer.local.ip(), workload, request.authority)?;
    if pod.is_own_port(request.authority.port()) {
        return Err(Reason::NotThisPod.into());
    }
    let arrival = Arrival {
        identity: Some(peer.identity.clone()),
        client: peer.address.ip(),
        pod: pod.name().clone(),
        address: request.authority,
        caller: caller.map(|(identity, address)| (identity, address.ip())),
    };
    record.judgement = Some(admit(&snapshot, &arrival)?);

    let server = tunnel::dial_end(&worker.shared, pod, request.authority, Some(client)).await?;
    Ok((arrival, server))
}

/// The client as the server may see it, and whom it speaks for. What is said of others is believed of the workload's
/// own waypoints alone.
fn client_of(
    snapshot: &Snapshot,
    workload: &Workload,
    peer: &Peer,
    request: &Connect,
) -> (SocketAddr, Option<(Identity, SocketAddr)>) {
    match &request.caller {
        Some(caller) if snapshot.is_waypoint_of(workload, &peer.identity) => {
            let client = request.forwarded.filter(|client| client.port() != 0).unwrap_or(peer.address);
            (client, Some((caller.clone(), client)))
        }
        _ => (hbone::client_address(peer.address, request.forwarded), None),
    }
}

/// Serves one connection that came without a tunnel.
pub(crate) async fn serve_plaintext(worker: &Rc<Worker>, pod: &Pod, client: Accepted, movable: LiveGuard) {
    let mut record = Record::new(&worker.shared, Direction::Inbound);
    record.source.address = Some(client.peer);
    match connect_plaintext(worker, pod, &client, &mut record).await {
        Ok((arrival, server)) => {
            record.opened(&worker.series);
            Carried {
                pod: pod.name().clone(),
                sockets: [client.tcp, server],
                halves: Default::default(),
                arrival: Some(arrival),
                movable,
            }
            .carry(worker, record)
            .await;
        }
        Err(refusal) => {
            socket::reset(client.tcp);
            record.finish(Err(refusal));
        }
    }
}

async fn connect_plaintext(
    worker: &Worker,
    pod: &Pod,
    client: &Accepted,
    record: &mut Record,
) -> Result<(Arrival, TcpStream), Refusal> {
    let destination = socket::canonical(client.tcp.local_addr().map_err(Refusal::internal)?);
    record.destination.address = Some(destination);
    // Led here by nobody: the pod itself has dialled the proxy.
    if is_reserved(destination.port())
        || pod.is_own_port(destination.port())
        || destination.ip() == client.peer.ip()
    {
        return Err(Reason::NoOriginalDestination.into());
    }
    let snapshot = worker.shared.snapshot.load_full();
    destination_is(record, snapshot.workload(pod.name()).ok_or(Reason::NotEnrolled)?);
    record.source.workload = snapshot.workload_at(client.peer.ip()).cloned();
    let arrival = Arrival {
        identity: None,
        client: client.peer.ip(),
        pod: pod.name().clone(),
        address: destination,
        caller: None,
    };
    record.judgement = Some(admit(&snapshot, &arrival)?);

    let server = tunnel::dial_end(&worker.shared, pod, destination, Some(client.peer)).await?;
    Ok((arrival, server))
}

fn destination_is(record: &mut Record, workload: &Arc<Workload>) {
    record.destination.identity = Some(workload.identity.clone());
    record.destination.workload = Some(Arc::clone(workload));
}
