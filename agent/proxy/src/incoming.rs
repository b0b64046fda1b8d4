//! The accepting side of a tunnel: mutual TLS, HTTP/2, and the streams that its peer opens.

use std::{future::poll_fn, net::SocketAddr, pin::pin, rc::Rc, sync::Arc};

use bytes::Bytes;
use h2::{
    RecvStream,
    server::{self, Connection, SendResponse},
};
use http::{Request, Response, StatusCode};
use orlop_identity::{PeerChain, classify_io, peer_identity, require_h2};
use orlop_model::{Identity, Reason};
use tokio::time::timeout;

use crate::{
    refusal::Refusal,
    shared::{Phase, Shared},
    shown::Shown,
    socket::{self, Accepted},
    tls::{self, TlsStream},
    tunnel::{self, handshake_reason},
};

/// Who is at the other end of a tunnel.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// Our own address that the tunnel came to.
    pub(crate) local: SocketAddr,
    /// From the verified certificate.
    pub(crate) identity: Identity,
    /// That certificate, and what vouches for it.
    pub(crate) shown: Rc<Shown>,
}

/// Makes a tunnel of a connection, as `own`.
pub(crate) async fn shake_hands(
    shared: &Shared,
    accepted: Accepted,
    own: &Identity,
) -> Result<(Connection<TlsStream, Bytes>, Peer), Refusal> {
    let local = socket::canonical(accepted.tcp.local_addr().map_err(Refusal::internal)?);
    let config = shared
        .identities
        .server_config(own)
        .map_err(|error| Refusal::new(Reason::CertificateUnavailable, error))?;
    let _ = socket::keep_alive(&accepted.tcp);

    let trust = Arc::clone(&shared.identities.trust().borrow());
    let handshake = async {
        shared.identities.attempted(own).await;
        let (tls, session) = tls::accept(accepted.tcp, config)
            .await
            .map_err(|error| Refusal::new(handshake_reason(classify_io(&error)), error))?;
        require_h2(session.alpn.as_deref()).map_err(handshake_reason)?;
        let identity = peer_identity(&session.certificates, shared.identities.trust_domain())
            .map_err(|error| Refusal::new(Reason::UntrustedCertificate, error))?;
        let chain = PeerChain::of_client(session.certificates).ok_or(Reason::NoClientCertificate)?;
        let shown = Shown::new(chain, trust, &shared.identities);
        let connection = server::Builder::new()
            .initial_window_size(tunnel::STREAM_WINDOW)
            .initial_connection_window_size(tunnel::CONNECTION_WINDOW)
            .max_concurrent_streams(tunnel::MAX_STREAMS)
            .max_frame_size(tunnel::MAX_FRAME)
            .max_header_list_size(tunnel::MAX_HEADERS)
            .handshake(tls)
            .await
            .map_err(|error| Refusal::new(Reason::BadConnectRequest, error))?;
        Ok::<_, Refusal>((connection, identity, shown))
    };
    let (connection, identity, shown) =
        timeout(shared.config.handshake_timeout, handshake).await.map_err(|_| Reason::TlsTimeout)??;
    Ok((connection, Peer { address: accepted.peer, local, identity, shown }))
}

/// Starts each stream of a tunnel, until its peer, the drain or a revocation ends it. Of a peer that breaks the
/// rules of HTTP/2 `misuse` is told.
pub(crate) async fn serve_streams(
    shared: &Shared,
    mut connection: Connection<TlsStream, Bytes>,
    peer: &Peer,
    mut start: impl FnMut(Request<RecvStream>, SendResponse<Bytes>),
    misuse: impl FnOnce(Refusal),
) {
    let mut phase = shared.phase.subscribe();
    let mut told = false;
    let mut fallen = pin!(peer.shown.fallen());
    loop {
        let stream = tokio::select! {
            stream = connection.accept() => stream,
            _ = phase.wait_for(Phase::is_leaving), if !told => {
                told = true;
                connection.graceful_shutdown();
                continue;
            }
            // Its streams are told too, and end for the same reason.
            _ = &mut fallen => return,
        };
        match stream {
            Some(Ok((request, respond))) => start(request, respond),
            Some(Err(error)) => {
                tracing::debug!(peer = %peer.address, %error, "tunnel ended");
                if error.is_library() {
                    let reason = match error.reason() {
                        Some(h2::Reason::ENHANCE_YOUR_CALM) => Reason::StreamLimit,
                        _ => Reason::BadConnectRequest,
                    };
                    misuse(Refusal::new(reason, error));
                }
                break;
            }
            None => break,
        }
    }
    // What was said last, for example to a stream that was refused, may still be on its way out.
    let _ = poll_fn(|cx| connection.poll_closed(cx)).await;
}

/// Answers a stream that is refused.
pub(crate) fn answer(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    // A peer that is gone needs no answer.
    let _ = respond.send_response(response, true);
}
