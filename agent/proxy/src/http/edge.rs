//! A gateway's clients, who come from outside the mesh: nobody knows who they are, and what they say of it counts for
//! nothing.

use std::{fmt, net::IpAddr, rc::Rc, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue};
use orlop_identity::{ALPN_H2, classify_io};
use orlop_model::{Entrance, Reason};
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{sync::watch, task::spawn_local, time::timeout};

use super::{
    Local, Own,
    clients::{Room, site},
    headers::remove,
    io::Io,
    listener::accept,
    pace::Budget,
    record::RequestRecord,
    session,
    session::Session,
    sniff::Protocol,
};
use crate::{
    hbone,
    metrics::Direction,
    record::Record,
    refusal::Refusal,
    shared::Shared,
    socket::{self, Accepted},
    tunnel,
};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Accepts until the port is closed or the gateway leaves.
pub(super) async fn run(
    local: Rc<Local>,
    listener: std::net::TcpListener,
    tls: Arc<ServerConfig>,
    mut open: watch::Receiver<()>,
) {
    // Whoever holds the other end never sends.
    let closed = async { drop(open.changed().await) };
    accept(&local, listener, closed, |accepted| {
        spawn_local(serve(Rc::clone(&local), accepted, Arc::clone(&tls)));
    })
    .await;
}

async fn serve(local: Rc<Local>, accepted: Accepted, tls: Arc<ServerConfig>) {
    let shared = &local.worker.shared;
    let Accepted { tcp, peer } = accepted;
    let refuse = |refusal: Refusal| {
        let mut record = Record::new(shared, Direction::Gateway);
        record.source.address = Some(peer);
        record.finish(Err(refusal));
    };
    let limit = local.own.limits.max_connections_per_client;
    let Some(own) = local.own.clients.enter(peer.ip(), limit) else {
        socket::reset(tcp);
        let detail = "as many are open as one client may have";
        return refuse(Refusal::new(Reason::ConnectionLimit, detail));
    };
    let live = match shared.take_on_socket(&tcp) {
        Ok(live) => live,
        Err(reason) => {
            socket::reset(tcp);
            return refuse(reason.into());
        }
    };
    let dialled = match tcp.local_addr() {
        Ok(address) => socket::canonical(address),
        Err(error) => return refuse(Refusal::internal(error)),
    };
    let _ = (tcp.set_nodelay(true), socket::keep_alive(&tcp));
    let io = Io::tcp(tcp);
    let is_tls = shared.snapshot.load().routes().is_tls(dialled.port());
    let (io, entrance) = if is_tls {
        let handshake = shake_hands(shared, io, tls);
        match local.worker.handshakes.bounded_of(Some(site(peer.ip())), handshake).await {
            Ok(established) => established,
            Err(refusal) => return refuse(refusal),
        }
    } else {
        ((io, None), Entrance::Plain)
    };
    session::serve_outsider(&local, io, peer, dialled, entrance).await;
    drop((live, own));
}

/// Counts a request, of which so much may be held. Whoever goes on asking without reading that there is no room for it loses
/// its connection: what is answered is held as well until somebody reads it.
pub(super) fn admit(session: &Session, record: &mut RequestRecord) -> Result<(), Refusal> {
    let own = &session.local.own;
    let limit = own.limits.max_requests;
    let room = own.requests.enter(session.client.ip(), limit);
    match &room {
        Room::Given { .. } => {
            record.room = Some(room);
            return Ok(());
        }
        Room::Refused { .. } => record.room = Some(room),
        Room::Abused => session.broken.notify_one(),
    }
    Err(no_room())
}

pub(super) fn no_room() -> Refusal {
    Refusal::new(Reason::MemoryLimit, "as many requests are open as there may be, or as one client may have")
}

/// Against what a client's heads count, if they are large.
pub(super) fn budget(local: &Local, client: IpAddr) -> Budget {
    let own = &local.own;
    Budget { requests: Arc::clone(&own.requests), client, limit: own.limits.max_requests }
}

async fn shake_hands(
    shared: &Shared,
    io: Io,
    tls: Arc<ServerConfig>,
) -> Result<((Io, Option<Protocol>), Entrance), Refusal> {
    let opened = timeout(shared.config.handshake_timeout, io.opened(tls)).await;
    let opened = opened.map_err(|_| Refusal::from(Reason::TlsTimeout))?;
    let (io, host, alpn) = opened.map_err(|error| {
        Refusal::new(tunnel::handshake_reason(classify_io(&error)), format!("TLS: {error}"))
    })?;
    let agreed = (alpn.as_deref() == Some(ALPN_H2)).then_some(Protocol::Http2);
    Ok(((io, agreed), Entrance::Tls(host)))
}

/// The certificates that clients are shown on a port: those of the listener whose host they name.
pub(super) struct Shown {
    pub(super) shared: Arc<Shared>,
    pub(super) own: Arc<Own>,
    pub(super) port: u16,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let snapshot = self.shared.snapshot.load();
        let host = hello.server_name().map(str::to_ascii_lowercase);
        let listener = snapshot.routes().tls_listener(self.port, host.as_deref())?;
        self.own.served.choose(listener, &hello)
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").field("port", &self.port).finish_non_exhaustive()
    }
}

/// Puts what is known of a client in place of what it says of itself, as Envoy does at an edge. To the addresses that it
/// names, which nobody vouches for, its own is added, which comes last.
pub(super) fn introduce(session: &Session, headers: &mut HeaderMap) {
    remove(headers, hbone::CLIENT_CERT);
    let client = session.client.ip();
    let mut through: Vec<u8> = Vec::new();
    for named in headers.get_all(&FORWARDED_FOR) {
        through.extend_from_slice(named.as_bytes());
        through.extend_from_slice(b", ");
    }
    through.extend_from_slice(client.to_string().as_bytes());
    remove(headers, FORWARDED_FOR.as_str());
    // Nothing but what was in values.
    if let Ok(through) = HeaderValue::from_bytes(&through) {
        headers.insert(FORWARDED_FOR, through);
    }
    remove(headers, FORWARDED_PROTO.as_str());
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(session.scheme));
    remove(headers, REQUEST_ID.as_str());
    if let Ok(id) = HeaderValue::from_str(&random_id(fastrand::u128(..))) {
        headers.insert(REQUEST_ID, id);
    }
}

/// The addresses that a request has come through, as [`introduce`] has said.
pub(super) fn introduced(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(FORWARDED_FOR).cloned()
}

/// Whatever rules have made of these addresses: they may be left out, but nobody writes others, since waypoints judge by
/// them.
pub(super) fn insist(introduced: Option<HeaderValue>, headers: &mut HeaderMap) {
    if headers.remove(FORWARDED_FOR).is_some()
        && let Some(addresses) = introduced
    {
        headers.insert(FORWARDED_FOR, addresses);
    }
}

/// RFC 9562's UUID of version 4.
fn random_id(random: u128) -> String {
    let id = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{id:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::random_id;

    #[test]
    fn an_id_says_how_it_was_made() {
        assert_eq!(random_id(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(random_id(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
