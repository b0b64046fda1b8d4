//! Connections to a pod: tunnels with their streams, and plaintext from outside the mesh.

use std::{future::poll_fn, net::SocketAddr, pin::pin, rc::Rc, sync::Arc};

use bytes::Bytes;
use h2::{
    RecvStream,
    server::{self, Connection, SendResponse},
};
use http::{Request, Response, StatusCode};
use orlop_identity::{classify_io, peer_identity, require_h2};
use orlop_model::{Identity, Reason, Workload, admit_connect, ports::is_reserved};
use rustls::pki_types::CertificateDer;
use tokio::{net::TcpStream, task::spawn_local, time::timeout};

use crate::{
    admission::{Arrival, admit, revoked, while_admitted},
    carried::Carried,
    copy, hbone,
    metrics::Direction,
    pod::Pod,
    record::Record,
    refusal::Refusal,
    shared::{LiveGuard, Phase},
    socket::{self, Accepted},
    tls::{self, TlsStream},
    tunnel,
    tunnel::handshake_reason,
    worker::Worker,
};

/// Serves one connection to the HBONE port: a tunnel, until its peer or the drain ends it.
pub(crate) async fn serve_tunnel(worker: &Rc<Worker>, pod: &Arc<Pod>, accepted: Accepted) {
    let peer_address = accepted.peer;
    let handshake = worker.handshakes.bounded(shake_hands(worker, pod, accepted));
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
    serve_streams(worker, pod, connection, Rc::new(peer)).await;
    gauge.dec();
}

/// Who is at the other end of a tunnel.
struct Peer {
    address: SocketAddr,
    /// The pod's own address that the tunnel came to.
    local: SocketAddr,
    /// From the verified certificate.
    identity: Identity,
    /// That certificate.
    certificate: Rc<CertificateDer<'static>>,
}

async fn shake_hands(
    worker: &Worker,
    pod: &Pod,
    accepted: Accepted,
) -> Result<(Connection<TlsStream, Bytes>, Peer), Refusal> {
    let shared = &worker.shared;
    let local = socket::canonical(accepted.tcp.local_addr().map_err(Refusal::internal)?);
    let snapshot = shared.snapshot.load_full();
    let workload = snapshot.workload(pod.name()).ok_or(Reason::NotEnrolled)?;
    let config = shared
        .identities
        .server_config(&workload.identity)
        .map_err(|error| Refusal::new(Reason::CertificateUnavailable, error))?;
    let _ = socket::keep_alive(&accepted.tcp);

    let handshake = async {
        let (tls, session) = tls::accept(accepted.tcp, config)
            .await
            .map_err(|error| Refusal::new(handshake_reason(classify_io(&error)), error))?;
        require_h2(session.alpn.as_deref()).map_err(handshake_reason)?;
        let certificate = session.certificates.first().ok_or(Reason::NoClientCertificate)?.clone();
        let identity = peer_identity(&session.certificates, shared.identities.trust_domain())
            .map_err(|error| Refusal::new(Reason::UntrustedCertificate, error))?;
        let connection = server::Builder::new()
            .initial_window_size(tunnel::STREAM_WINDOW)
            .initial_connection_window_size(tunnel::CONNECTION_WINDOW)
            .max_concurrent_streams(tunnel::MAX_STREAMS)
            .max_frame_size(tunnel::MAX_FRAME)
            .max_header_list_size(tunnel::MAX_HEADERS)
            .handshake(tls)
            .await
            .map_err(|error| Refusal::new(Reason::BadConnectRequest, error))?;
        Ok::<_, Refusal>((connection, identity, Rc::new(certificate)))
    };
    let (connection, identity, certificate) =
        timeout(shared.config.handshake_timeout, handshake).await.map_err(|_| Reason::TlsTimeout)??;
    Ok((connection, Peer { address: accepted.peer, local, identity, certificate }))
}

async fn serve_streams(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    mut connection: Connection<TlsStream, Bytes>,
    peer: Rc<Peer>,
) {
    let mut phase = worker.shared.phase.subscribe();
    let mut told = false;
    let mut revoked = pin!(revoked(&worker.shared, &peer.certificate));
    loop {
        let stream = tokio::select! {
            stream = connection.accept() => stream,
            _ = phase.wait_for(Phase::is_leaving), if !told => {
                told = true;
                connection.graceful_shutdown();
                continue;
            }
            // Its streams are told too, and end for the same reason.
            () = &mut revoked => return,
        };
        match stream {
            Some(Ok((request, respond))) => start_stream(worker, pod, &peer, request, respond),
            Some(Err(error)) => {
                tracing::debug!(peer = %peer.address, %error, "tunnel ended");
                if error.is_library() {
                    record_misuse(worker, pod, &peer, &error);
                }
                break;
            }
            None => break,
        }
    }
    // What was said last, for example to a stream that was refused, may still be on its way out.
    let _ = poll_fn(|cx| connection.poll_closed(cx)).await;
}

/// A peer that breaks the rules of HTTP/2 has no stream to be recorded with.
fn record_misuse(worker: &Worker, pod: &Pod, peer: &Peer, error: &h2::Error) {
    let mut record = Record::new(&worker.shared, Direction::Inbound);
    record.tunnel = Some(peer.local);
    record.source.address = Some(peer.address);
    record.source.identity = Some(peer.identity.clone());
    record.destination.workload = worker.shared.snapshot.load().workload(pod.name()).cloned();
    let reason = match error.reason() {
        Some(h2::Reason::ENHANCE_YOUR_CALM) => Reason::StreamLimit,
        _ => Reason::BadConnectRequest,
    };
    record.finish(Err(Refusal::new(reason, error)));
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
            while_admitted(&worker.shared, pod.name(), &arrival, carry).await
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
    let client = hbone::client_address(peer.address, request.forwarded);
    record.source.address = Some(client);
    record.destination.address = Some(request.authority);

    let snapshot = worker.shared.snapshot.load_full();
    let workload = snapshot.workload(pod.name()).ok_or(Reason::NotEnrolled)?;
    destination_is(record, workload);
    // The certificate says who it is; the address only adds what else is known of that workload.
    record.source.workload =
        snapshot.workload_at(client.ip()).filter(|workload| workload.identity == peer.identity).cloned();
    admit_connect(peer.local.ip(), workload, request.authority)?;
    if pod.is_own_port(request.authority.port()) {
        return Err(Reason::NotThisPod.into());
    }
    let arrival = Arrival {
        identity: Some(peer.identity.clone()),
        certificate: Some(Rc::clone(&peer.certificate)),
        client,
        address: request.authority,
    };
    record.judgement = Some(admit(&worker.shared, &snapshot, pod.name(), &arrival)?);

    let server = tunnel::dial_as(&worker.shared, pod, request.authority, Some(client)).await?;
    Ok((arrival, server))
}

/// Serves one connection that came without a tunnel.
pub(crate) async fn serve_plaintext(worker: &Rc<Worker>, pod: &Pod, client: Accepted) {
    let mut record = Record::new(&worker.shared, Direction::Inbound);
    record.source.address = Some(client.peer);
    match connect_plaintext(worker, pod, &client, &mut record).await {
        Ok((arrival, server)) => {
            record.opened(&worker.series);
            let sockets = [client.tcp, server];
            Carried { pod: pod.name().clone(), sockets, halves: Default::default(), arrival: Some(arrival) }
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
    let arrival = Arrival { identity: None, certificate: None, client: client.peer, address: destination };
    record.judgement = Some(admit(&worker.shared, &snapshot, pod.name(), &arrival)?);

    let server = tunnel::dial_as(&worker.shared, pod, destination, Some(client.peer)).await?;
    Ok((arrival, server))
}

fn destination_is(record: &mut Record, workload: &Arc<Workload>) {
    record.destination.identity = Some(workload.identity.clone());
    record.destination.workload = Some(Arc::clone(workload));
}

fn answer(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    // A peer that is gone needs no answer.
    let _ = respond.send_response(response, true);
}
