//! The dialling side of a tunnel: TCP from the pod, mutual TLS, HTTP/2.

use std::{future::poll_fn, net::SocketAddr, os::fd::AsFd as _, pin::Pin, rc::Rc, sync::Arc, task::Poll};

use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{self, Connection, SendRequest},
};
use http::{Request, StatusCode};
use orlop_identity::{HandshakeFailure, PeerChain, classify_io, require_h2};
use orlop_model::Reason;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream},
    task::spawn_local,
    time::timeout,
};

use crate::{
    limits,
    metrics::Direction,
    pod::Pod,
    pool::{Key, Slot},
    pulse::Pulse,
    refusal::Refusal,
    shared::Shared,
    shown::Shown,
    socket, tls,
    worker::Worker,
};

/// What one stream may have on the way. With [`CONNECTION_WINDOW`] as the sum of all streams', readers
/// that stop can't stop the others.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// Streams that a peer may have open in one tunnel.
pub(crate) const MAX_STREAMS: u32 = 100;
/// What a whole tunnel may have on the way.
pub(crate) const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS;
/// Large enough to be cheap, small enough that a bulk stream's frame does not delay the others much.
pub(crate) const MAX_FRAME: u32 = 128 << 10;
/// Per request: our own takes a few hundred bytes.
pub(crate) const MAX_HEADERS: u32 = 16 << 10;

/// So many streams no SETTINGS can allow, and those that name no limit allow more.
const UNSETTLED: usize = usize::MAX - 1;

/// A tunnel that was opened.
pub(crate) struct Opened {
    pub(crate) send: SendRequest<Bytes>,
    /// What the other end has shown.
    pub(crate) shown: Rc<Shown>,
    pub(crate) pulse: Rc<Pulse>,
}

/// Opens a tunnel for `key` from `pod`.
pub(crate) async fn open(worker: &Worker, pod: &Pod, key: &Key) -> Result<Opened, Refusal> {
    open_over(&worker.shared, key, STREAM_WINDOW, dial(&worker.shared, pod, key.address)).await
}

/// Opens a tunnel for `key` over the connection that `dial` makes, each of whose streams may have so much on the way.
pub(crate) async fn open_over(
    shared: &Arc<Shared>,
    key: &Key,
    stream_window: u32,
    dial: impl Future<Output = Result<TcpStream, Refusal>>,
) -> Result<Opened, Refusal> {
    let config = shared
        .identities
        .client_config(&key.source, &key.destination)
        .map_err(|error| Refusal::new(Reason::CertificateUnavailable, error))?;
    let tcp = dial.await?;
    let _ = socket::keep_alive(&tcp);

    let name = ServerName::IpAddress(key.address.ip().into());
    let trust = Arc::clone(&shared.identities.trust().borrow());
    let handshake = async {
        shared.identities.attempted(&key.source).await;
        let (tls, session) = tls::connect(tcp, config, name).await.map_err(|error| {
            Refusal::new(handshake_reason(classify_io(&error)), format!("TLS with {}: {error}", key.address))
        })?;
        require_h2(session.alpn.as_deref()).map_err(|failure| {
            Refusal::new(handshake_reason(failure), format!("{} does not speak h2", key.address))
        })?;
        let chain = PeerChain::of_server(session.certificates).ok_or(Reason::UntrustedCertificate)?;
        let shown = Shown::new(chain, trust, &shared.identities);
        let http =
            |error| Refusal::new(Reason::TunnelClosed, format!("HTTP/2 with {}: {error}", key.address));
        let (send, mut connection) = client::Builder::new()
            .initial_window_size(stream_window)
            .initial_connection_window_size(stream_window * MAX_STREAMS)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(MAX_HEADERS)
            .enable_push(false)
            .initial_max_send_streams(UNSETTLED)
            .handshake(tls)
            .await
            .map_err(http)?;
        settled(&send, &mut connection).await.map_err(http)?;
        Ok::<_, Refusal>((Opened { send, shown, pulse: Rc::new(Pulse::new()) }, connection))
    };
    let (opened, mut connection) =
        timeout(shared.config.handshake_timeout, handshake).await.map_err(|_| {
            Refusal::new(Reason::TlsTimeout, format!("no TLS handshake with {} in time", key.address))
        })??;

    let gauge = shared.metrics.tunnels(Direction::Outbound);
    gauge.inc();
    let (shown, pulse) = (Rc::clone(&opened.shown), Rc::clone(&opened.pulse));
    let pings = connection.ping_pong();
    spawn_local(async move {
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::debug!(%error, "tunnel ended");
            },
            // Without its connection, the tunnel's streams end, and nobody gets another one in it.
            _ = shown.fallen() => {}
            () = pulse.watch(pings) => {}
        }
        gauge.dec();
    });
    Ok(opened)
}

/// Waits for the peer's SETTINGS, which say how many streams it takes: before that, a burst's would be too many for
/// some, and the peer refuses these.
async fn settled<T>(send: &SendRequest<Bytes>, connection: &mut Connection<T>) -> Result<(), h2::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    poll_fn(|context| match Pin::new(&mut *connection).poll(context) {
        Poll::Ready(Ok(())) => Poll::Ready(Err(h2::Reason::NO_ERROR.into())),
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Pending if send.current_max_send_streams() == UNSETTLED => Poll::Pending,
        Poll::Pending => Poll::Ready(Ok(())),
    })
    .await
}

/// Asks through a tunnel for what `request` names, and gives the stream to it.
pub(crate) async fn ask(
    shared: &Shared,
    slot: &mut Slot,
    request: Request<()>,
) -> Result<(SendStream<Bytes>, RecvStream), Refusal> {
    let lost = |error: h2::Error| Refusal::new(Reason::TunnelClosed, error);
    let (answer, send) = slot.send.send_request(request, false).map_err(lost)?;
    let answer = tokio::select! {
        answer = timeout(shared.config.connect_timeout, answer) => answer,
        () = slot.silence() => {
            slot.retire();
            return Err(Refusal::new(Reason::TunnelClosed, "the tunnel's other end does not answer"));
        }
    };
    let answer = answer
        .map_err(|_| Refusal::new(Reason::ConnectTimeout, "no answer to the CONNECT in time"))?
        .map_err(lost)?;
    match answer.status() {
        StatusCode::OK => Ok((send, answer.into_body())),
        status => {
            let refusal = Refusal::new(Reason::PeerRefused, format!("the peer's proxy answered {status}"));
            Err(Refusal { answered: Some(status), ..refusal })
        }
    }
}

/// Dials from the pod's own address, as the agent and not as the pod.
async fn dial(shared: &Shared, pod: &Pod, address: SocketAddr) -> Result<TcpStream, Refusal> {
    connect(shared, own_socket(shared, pod, address, None)?, address).await
}

/// Like [`dial`], to the end that a connection is carried to; the socket resets unless whole. A server in the pod itself
/// sees `client` as its peer.
pub(crate) async fn dial_end(
    shared: &Shared,
    pod: &Pod,
    address: SocketAddr,
    client: Option<SocketAddr>,
) -> Result<TcpStream, Refusal> {
    let tcp = own_socket(shared, pod, address, client)?;
    socket::reset_unless_whole(&tcp);
    connect(shared, tcp, address).await
}

/// The agent's own socket, and not the pod's, in the pod.
fn own_socket(
    shared: &Shared,
    pod: &Pod,
    address: SocketAddr,
    client: Option<SocketAddr>,
) -> Result<TcpSocket, Refusal> {
    let tcp = pod.netns().tcp_socket(address).map_err(limits::no_socket)?;
    shared.limits.keep_dialled(&tcp)?;
    shared.kernel.claim(tcp.as_fd(), client).map_err(Refusal::internal)?;
    if client.is_some() {
        socket::bind_to(&tcp, address.ip())
            .map_err(|error| Refusal::new(Reason::ConnectFailed, format!("{}: {error}", address.ip())))?;
    }
    Ok(tcp)
}

async fn connect(shared: &Shared, tcp: TcpSocket, address: SocketAddr) -> Result<TcpStream, Refusal> {
    match timeout(shared.config.connect_timeout, tcp.connect(address)).await {
        Ok(Ok(tcp)) => Ok(tcp),
        Ok(Err(error)) => Err(Refusal::new(Reason::ConnectFailed, format!("connect to {address}: {error}"))),
        Err(_) => Err(Refusal::new(Reason::ConnectTimeout, format!("no answer from {address} in time"))),
    }
}

/// What a failed handshake is called in logs and metrics.
pub(crate) fn handshake_reason(failure: HandshakeFailure) -> Reason {
    match failure {
        HandshakeFailure::NoClientCertificate => Reason::NoClientCertificate,
        HandshakeFailure::UntrustedCertificate => Reason::UntrustedCertificate,
        HandshakeFailure::RevokedCertificate => Reason::RevokedCertificate,
        HandshakeFailure::IdentityMismatch => Reason::IdentityMismatch,
        HandshakeFailure::AlpnMismatch => Reason::AlpnMismatch,
        HandshakeFailure::CertificateUnavailable => Reason::CertificateUnavailable,
        HandshakeFailure::RefusedByPeer => Reason::PeerRefused,
        HandshakeFailure::Other => Reason::TlsFailed,
    }
}
