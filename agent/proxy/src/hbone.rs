//! HBONE's CONNECT request and its answers: what is said, without the saying.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header::FORWARDED, request::Parts};
use orlop_model::{Identity, Reason, Workload};

const BAGGAGE: &str = "baggage";
const TRACEPARENT: &str = "traceparent";
/// Envoy's: whose certificate a waypoint has verified, as `URI=IDENTITY`. Read from a pod's own waypoints only.
pub(crate) const CLIENT_CERT: &str = "x-forwarded-client-cert";

/// The request for a connection to `authority`, on behalf of `source`, whose socket is at `client`.
///
/// `None` if a name is not fit for a header, which Kubernetes does not allow.
pub(crate) fn connect_request(authority: &str, source: &Workload, client: SocketAddr) -> Option<Request<()>> {
    let uri = Uri::builder().authority(authority).build().ok()?;
    let trace = format!("00-{:032x}-{:016x}-00", fastrand::u128(1..), fastrand::u64(1..));
    Request::builder()
        .method(Method::CONNECT)
        .uri(uri)
        .header(BAGGAGE, baggage(source))
        .header(FORWARDED, format!("for=\"{client}\""))
        .header(TRACEPARENT, trace)
        .body(())
        .ok()
}

/// What a CONNECT asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Connect {
    /// The address and port that the client dialled.
    pub(crate) authority: SocketAddr,
    /// Where the client says that its connection comes from.
    pub(crate) forwarded: Option<SocketAddr>,
    /// Whom the client says it speaks for.
    pub(crate) caller: Option<Identity>,
}

/// What a CONNECT asks a waypoint for: `ip:port` or `host:port`.
pub(crate) fn parse_authority(request: &Parts) -> Result<&str, Reason> {
    if request.method != Method::CONNECT || request.extensions.get::<h2::ext::Protocol>().is_some() {
        return Err(Reason::BadConnectRequest);
    }
    request.uri.authority().map(|authority| authority.as_str()).ok_or(Reason::BadConnectRequest)
}

/// Reads a request. Names instead of addresses are for waypoints and refused here.
pub(crate) fn parse_connect(request: &Parts) -> Result<Connect, Reason> {
    let authority = parse_authority(request)?.parse().map_err(|_| Reason::BadConnectRequest)?;
    let headers = &request.headers;
    Ok(Connect { authority, forwarded: forwarded(headers), caller: caller(headers) })
}

/// The client's address as the server may see it: what the tunnel's peer says, as long as that is only
/// about the port of its own address.
pub(crate) fn client_address(peer: SocketAddr, forwarded: Option<SocketAddr>) -> SocketAddr {
    match forwarded {
        Some(claimed) if claimed.ip() == peer.ip() && claimed.port() != 0 => claimed,
        _ => peer,
    }
}

/// The status that tells the peer of a refusal.
pub(crate) fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::BadConnectRequest | Reason::NotThisPod | Reason::NotThisWaypoint => StatusCode::BAD_REQUEST,
        Reason::NotEnrolled | Reason::NotThroughWaypoint | Reason::PolicyDenied => StatusCode::UNAUTHORIZED,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// `for="ip:port"` of RFC 7239, the form that HBONE uses; anything else is no statement.
pub(crate) fn forwarded(headers: &HeaderMap<HeaderValue>) -> Option<SocketAddr> {
    let value = headers.get(FORWARDED)?.to_str().ok()?;
    let element = value.strip_prefix("for=")?;
    let address: SocketAddr = element.trim_matches('"').parse().ok()?;
    Some(SocketAddr::new(IpAddr::to_canonical(&address.ip()), address.port()))
}

/// The identity of the last element, which is the one that the tunnel's peer itself has added.
fn caller(headers: &HeaderMap<HeaderValue>) -> Option<Identity> {
    let element = headers.get(CLIENT_CERT)?.to_str().ok()?.rsplit(',').next()?;
    element.split(';').find_map(|pair| pair.trim().strip_prefix("URI="))?.parse().ok()
}

fn baggage(source: &Workload) -> String {
    format!(
        "k8s.cluster.name={},k8s.namespace.name={},k8s.pod.name={},service.name={},service.version={}",
        source.names.cluster,
        source.name.namespace,
        source.name.name,
        source.names.canonical_service,
        source.names.canonical_revision,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, uri: &str, forwarded: Option<&str>) -> Parts {
        let mut builder = Request::builder().method(method).uri(uri);
        if let Some(forwarded) = forwarded {
            builder = builder.header(FORWARDED, forwarded);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_connect_to_an_address_is_read() {
        let parsed =
            parse_connect(&request(Method::CONNECT, "10.1.2.3:80", Some("for=\"10.0.0.9:4711\""))).unwrap();
        assert_eq!(parsed.authority, "10.1.2.3:80".parse().unwrap());
        assert_eq!(parsed.forwarded, Some("10.0.0.9:4711".parse().unwrap()));
        let parsed = parse_connect(&request(Method::CONNECT, "[fd00::1]:80", None)).unwrap();
        assert_eq!(parsed.authority, "[fd00::1]:80".parse().unwrap());
    }

    #[test]
    fn everything_else_is_refused() {
        for (method, uri) in [
            (Method::GET, "10.1.2.3:80"),
            (Method::CONNECT, "example.com:80"),
            (Method::CONNECT, "10.1.2.3"),
            (Method::CONNECT, "user@10.1.2.3:80"),
        ] {
            assert_eq!(parse_connect(&request(method, uri, None)), Err(Reason::BadConnectRequest), "{uri}");
        }
    }

    #[test]
    fn a_peer_cannot_claim_another_address() {
        let peer = "10.0.0.9:5000".parse().unwrap();
        assert_eq!(client_address(peer, Some("10.0.0.9:4711".parse().unwrap())).port(), 4711);
        assert_eq!(client_address(peer, Some("10.0.0.1:4711".parse().unwrap())), peer);
        assert_eq!(client_address(peer, None), peer);
    }

    #[test]
    fn odd_forwarded_headers_say_nothing() {
        for value in ["for=unknown", "by=1.2.3.4", "for=\"10.0.0.9\"", "", "for=_hidden;proto=http"] {
            let parsed = parse_connect(&request(Method::CONNECT, "10.1.2.3:80", Some(value))).unwrap();
            assert_eq!(parsed.forwarded, None, "{value}");
        }
    }
}
