//! New connections to endpoints: through tunnels to pods' own proxies, and in plain to what takes no tunnels.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderValue, Request};
use orlop_identity::{ALPN_H2, Authorities, ClientCredential, classify_io, outside_config};
use orlop_model::{
    Reason,
    world::routing::{ConnectionPool, Keepalive, ProxyVersion, Roots},
};
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};

use super::{
    Own,
    io::Io,
    key::{Key, Preface, Tls},
    session::Session,
    upstream::stream_window,
};
use crate::{
    hbone, limits,
    pool::{self, Slot},
    refusal::Refusal,
    socket, tunnel,
};

/// Connects to an endpoint on behalf of the session's client. The slot is the place in the tunnel, if there is one.
pub(super) async fn connect(
    session: &Rc<Session>,
    key: &Key,
    pool: Option<&ConnectionPool>,
) -> Result<(Io, Option<Slot>), Refusal> {
    let opening = open(session, key, pool);
    let (mut io, slot) = match pool.and_then(|pool| pool.connect_timeout) {
        None => opening.await?,
        Some(limit) => {
            timeout(limit, opening).await.unwrap_or_else(|_| Err(Reason::ConnectTimeout.into()))?
        }
    };
    let agreed = async {
        if let Some(preface) = &key.preface {
            let written = io.sink.write(preface.bytes()).await;
            written.map_err(|reason| Refusal::new(reason, "the server took no PROXY header"))?;
        }
        match &key.tls {
            Some(tls) => sealed(&session.local.own, key, tls, io).await,
            None => Ok(io),
        }
    };
    let within = session.local.worker.shared.config.handshake_timeout;
    match timeout(within, agreed).await {
        Ok(agreed) => Ok((agreed?, slot)),
        Err(_) => Err(Refusal::new(Reason::TlsTimeout, format!("with {}", key.address))),
    }
}

/// Speaks TLS with the server itself, which must be the one that the policy wants.
async fn sealed(own: &Own, key: &Key, tls: &Tls, io: Io) -> Result<Io, Refusal> {
    const HTTP1: &[u8] = b"http/1.1";
    let alpn = if key.http2 { ALPN_H2 } else { HTTP1 };
    let unavailable = |error: &dyn std::fmt::Display| Refusal::new(Reason::TlsUnavailable, error);
    let lacks = |what: &str| {
        let secret = tls.check.credential.as_ref().map(|of| of.secret.to_string()).unwrap_or_default();
        unavailable(&format_args!("there is no {what} of the Secret {secret} here"))
    };
    let held = tls.credential.as_deref();
    let authorities = match &tls.check.roots {
        Roots::Public => Some(Authorities::public()),
        Roots::Only(texts) => Some(own.authorities.of(texts).map_err(|error| unavailable(&error))?),
        Roots::Named(_) => return Err(unavailable(&"the certificates of caCertificateRefs are not here")),
        Roots::Credential => {
            let authorities = held.and_then(ClientCredential::authorities).cloned();
            Some(authorities.ok_or_else(|| lacks("ca.crt"))?)
        }
        Roots::Anybody => None,
    };
    let shown = match tls.check.credential.as_ref().is_some_and(|of| of.shown) {
        true => {
            let shown = held.and_then(ClientCredential::shown);
            Some(shown.ok_or_else(|| lacks("tls.crt with its tls.key"))?)
        }
        false => None,
    };
    let config = outside_config(authorities, &tls.check.names, tls.http.then_some(alpn), shown);
    let config = config.map_err(|error| unavailable(&error))?;
    let name = ServerName::try_from(tls.name.clone());
    let name = name.map_err(|error| unavailable(&format!("{}: {error}", tls.name)))?;
    let failed = |error: std::io::Error| {
        let reason = tunnel::handshake_reason(classify_io(&error));
        Refusal::new(reason, format!("TLS with {} as {}: {error}", key.address, tls.name))
    };
    let (io, spoken) = io.sealed(Arc::new(config), name).await.map_err(failed)?;
    // HTTP/1.1 is what is spoken where nobody says anything.
    if tls.http && key.http2 && spoken.as_deref() != Some(ALPN_H2) {
        return Err(Refusal::new(Reason::AlpnMismatch, format!("{} does not speak h2", key.address)));
    }
    Ok(io)
}

async fn open(
    session: &Rc<Session>,
    key: &Key,
    pool: Option<&ConnectionPool>,
) -> Result<(Io, Option<Slot>), Refusal> {
    let local = &session.local;
    let shared = &local.worker.shared;
    let Some(destination) = &key.destination else {
        let tcp = dial(session, key.address).await?;
        if let Some(Keepalive { probes, time, interval }) = pool.and_then(|pool| pool.keepalive) {
            // Without it a dead server is noticed as for everybody else: no reason to be without the connection.
            if let Err(error) = socket::keep_alive_as(&tcp, time, interval, probes) {
                tracing::debug!(%error, address = %key.address, "no tcpKeepalive");
            }
        }
        return Ok((Io::tcp(tcp), None));
    };
    let tunnel = pool::Key {
        source: local.own.workload.identity.clone(),
        destination: destination.clone(),
        netns: 0,
        address: key.tunnel().unwrap_or(key.address),
    };
    let open = async || {
        tunnel::open_over(shared, &tunnel, stream_window(session), dial(session, tunnel.address)).await
    };
    loop {
        let mut slot = local.worker.pool.slot(&tunnel, open).await?;
        let request = connect_request(session, key)?;
        match tunnel::ask(shared, &mut slot, request).await {
            Ok((send, receive)) => return Ok((Io::stream(send, receive), Some(slot))),
            // Nothing of the client's has been sent: a tunnel that died unnoticed costs no connection.
            Err(refusal) if refusal.reason == Reason::TunnelClosed && slot.reused => slot.retire(),
            Err(refusal) => return Err(refusal),
        }
    }
}

/// Asks the endpoint's proxy, and says whom it is for.
fn connect_request(session: &Session, key: &Key) -> Result<Request<()>, Refusal> {
    let own = &session.local.own.workload;
    let unfit = || Refusal::internal("a name of the source does not fit a header");
    let Some(caller) = &key.caller else {
        let anywhere = SocketAddr::new(key.client, 0);
        let authority = key.through.as_deref().map_or_else(|| key.address.to_string(), str::to_owned);
        return hbone::connect_request(&authority, own, anywhere).ok_or_else(unfit);
    };
    let source = session.source.as_deref().unwrap_or(own);
    let authority = key.address.to_string();
    let mut request = hbone::connect_request(&authority, source, session.client).ok_or_else(unfit)?;
    let caller = HeaderValue::from_str(&format!("By={};URI={caller}", own.identity));
    request.headers_mut().insert(hbone::CLIENT_CERT, caller.map_err(|_| unfit())?);
    Ok(request)
}

async fn dial(session: &Session, address: SocketAddr) -> Result<TcpStream, Refusal> {
    let shared = &session.local.worker.shared;
    let tcp = match timeout(shared.config.connect_timeout, TcpStream::connect(address)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => {
            let text = format!("connect to {address}: {error}");
            return Err(match limits::no_socket(error) {
                refusal if refusal.reason == Reason::Internal => Refusal::new(Reason::ConnectFailed, text),
                refusal => refusal,
            });
        }
        Err(_) => {
            return Err(Refusal::new(Reason::ConnectTimeout, format!("no answer from {address} in time")));
        }
    };
    shared.limits.keep_dialled(&tcp)?;
    let _ = tcp.set_nodelay(true);
    Ok(tcp)
}

impl Preface {
    /// As HAProxy's PROXY protocol has it, sections 2.1 and 2.2.
    fn bytes(&self) -> Bytes {
        const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
        const V2_PROXY: u8 = 0x21;
        const TCP4: u8 = 0x11;
        const TCP6: u8 = 0x21;
        let ends = [self.client, self.dialled].map(|end| (end.ip(), end.port()));
        // Both are of one family there.
        let v4 = ends.iter().all(|(ip, _)| ip.is_ipv4());
        let [client, dialled] = ends.map(|(ip, port)| (if v4 { ip } else { as_v6(ip) }, port));
        if self.version == ProxyVersion::V1 {
            let family = if v4 { "TCP4" } else { "TCP6" };
            let line = format!("PROXY {family} {} {} {} {}\r\n", client.0, dialled.0, client.1, dialled.1);
            return line.into();
        }
        let mut bytes = BytesMut::from(SIGNATURE);
        bytes.put_u8(V2_PROXY);
        bytes.put_u8(if v4 { TCP4 } else { TCP6 });
        bytes.put_u16(if v4 { 12 } else { 36 });
        for ip in [client.0, dialled.0] {
            match ip {
                IpAddr::V4(ip) => bytes.put_slice(&ip.octets()),
                IpAddr::V6(ip) => bytes.put_slice(&ip.octets()),
            }
        }
        bytes.put_u16(client.1);
        bytes.put_u16(dialled.1);
        bytes.freeze()
    }
}

fn as_v6(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
        IpAddr::V6(_) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preface(version: ProxyVersion, client: &str, dialled: &str) -> Bytes {
        Preface { version, client: client.parse().unwrap(), dialled: dialled.parse().unwrap() }.bytes()
    }

    #[test]
    fn a_proxy_header_names_both_ends() {
        let v1 = preface(ProxyVersion::V1, "10.0.0.1:1024", "10.9.0.1:80");
        assert_eq!(&v1[..], b"PROXY TCP4 10.0.0.1 10.9.0.1 1024 80\r\n");
        let mixed = preface(ProxyVersion::V1, "10.0.0.1:1024", "[fd00::1]:80");
        assert_eq!(&mixed[..], b"PROXY TCP6 ::ffff:10.0.0.1 fd00::1 1024 80\r\n");
        let v2 = preface(ProxyVersion::V2, "10.0.0.1:1024", "10.9.0.1:80");
        let wanted = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\x09\0\x01\x04\0\0\x50";
        assert_eq!(&v2[..], wanted);
        assert_eq!(preface(ProxyVersion::V2, "[::1]:1", "[::2]:2").len(), 16 + 36);
    }
}
