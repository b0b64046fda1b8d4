//! What of a message's head is for the next hop, and what is not.

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
        TRANSFER_ENCODING, UPGRADE,
    },
    uri::Authority,
};
use orlop_model::http::is_alike;

use crate::hbone::CLIENT_CERT;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const WEBSOCKET: &str = "websocket";

/// How many headers there are. Cookies may come one by one (RFC 9113, section 8.2.3), and are joined: they are one.
pub(super) fn count(headers: &HeaderMap) -> usize {
    let cookies = headers.get_all(COOKIE).iter().count();
    headers.len() - cookies.saturating_sub(1)
}

/// Whether all see the same end of a message's body: its length is said once and plainly, or its one transfer coding is
/// `chunked` (RFC 9112, section 6.3). What another coding has made of it nobody would know after this hop.
pub(super) fn ends_clearly(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let plain = |length: &HeaderValue| !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit);
    match (lengths.next(), codings.next()) {
        (None, None) => true,
        (Some(length), None) => plain(length) && lengths.next().is_none(),
        (None, Some(coding)) => {
            coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") && codings.next().is_none()
        }
        (Some(_), Some(_)) => false,
    }
}

/// Whether a body is messages of gRPC.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind == b"application/grpc" || kind.starts_with(b"application/grpc+"))
}

/// Whom a request is for: what HTTP/2 has as `:authority`, else its one `Host`. `None` if it does not say, says it
/// twice, or names a user as well.
pub(super) fn authority<B>(request: &Request<B>) -> Option<Authority> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => Some(Authority::try_from(host.as_bytes()).ok()?),
        (Some(_), Some(_)) => return None,
    };
    let authority = match (request.uri().authority(), host) {
        (Some(of_uri), Some(host)) if request.version() == Version::HTTP_2 && *of_uri != host => return None,
        // RFC 9112, section 3.2.2: the absolute form counts, and not Host.
        (Some(of_uri), _) => of_uri.clone(),
        (None, host) => host?,
    };
    (!authority.as_str().contains('@') && !authority.host().is_empty()).then_some(authority)
}

/// Whether the client wants to go on with WebSocket. Any other upgrade is for this hop, and declined: one to h2c
/// would carry requests past whoever reads them here.
pub(super) fn wants_websocket(version: Version, headers: &HeaderMap) -> bool {
    let upgrade = headers.get(UPGRADE);
    version == Version::HTTP_11
        && upgrade.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes()))
        && names(headers, CONNECTION).any(|name| name.eq_ignore_ascii_case("upgrade"))
}

/// Makes of a client's headers those that a server gets: without what is between two neighbours alone, and with the wish
/// for WebSocket if there is one.
pub(super) fn for_next_hop(version: Version, headers: &mut HeaderMap) {
    let websocket = wants_websocket(version, headers);
    strip(headers);
    if websocket {
        upgrade(headers);
    }
    // RFC 9113, section 8.2.3: HTTP/2 may have split one in several.
    let mut cookies = headers.get_all(COOKIE).iter();
    if let (Some(first), Some(_)) = (cookies.next(), cookies.next()) {
        let mut whole = first.as_bytes().to_vec();
        for more in headers.get_all(COOKIE).iter().skip(1) {
            whole.extend_from_slice(b"; ");
            whole.extend_from_slice(more.as_bytes());
        }
        // Nothing but what was in values.
        if let Ok(whole) = HeaderValue::from_bytes(&whole) {
            headers.insert(COOKIE, whole);
        }
    }
}

/// Takes out what is between two neighbours alone (RFC 9110, section 7.6.1), also what `Connection` names. What is
/// needed beyond that must be put in afterwards.
pub(super) fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<_> =
            names(headers, CONNECTION).filter_map(|name| HeaderName::try_from(name).ok()).collect();
        // Without it the message would have no end, or nobody it is for.
        for name in named.iter().filter(|name| **name != HOST && **name != CONTENT_LENGTH) {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    let trailers = names(headers, TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Asks for, or agrees to, WebSocket.
pub(super) fn upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
}

/// Takes a header out, in each spelling that is [alike](is_alike).
pub(super) fn remove(headers: &mut HeaderMap, name: &str) {
    let alike: Vec<HeaderName> = headers.keys().filter(|of| is_alike(of.as_str(), name)).cloned().collect();
    for name in alike {
        headers.remove(name);
    }
}

/// A header that says what a gateway knows of a client, in whatever spelling.
pub(super) fn is_of_edge(name: &HeaderName) -> bool {
    const OF_EDGE: [&str; 3] = ["x-forwarded-for", "x-forwarded-proto", "x-request-id"];
    OF_EDGE.iter().any(|of| is_alike(name.as_str(), of))
}

/// A header that nobody but this hop may write, in whatever spelling, or that says what a message is.
pub(super) fn is_unfit(name: &HeaderName) -> bool {
    const UNFIT: [&str; 13] = [
        "connection",
        "content-length",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        CLIENT_CERT,
    ];
    UNFIT.iter().any(|unfit| is_alike(name.as_str(), unfit))
}

fn names(headers: &HeaderMap, of: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(of).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_that_come_one_by_one_are_one_header() {
        let mut headers = HeaderMap::new();
        assert_eq!(count(&headers), 0);
        for value in ["a=1", "b=2", "c=3"] {
            headers.append(COOKIE, HeaderValue::from_static(value));
            headers.append("x-a", HeaderValue::from_static(value));
        }
        assert_eq!(count(&headers), 4);
    }

    fn request(version: Version, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn a_request_is_for_one_host() {
        for (version, uri, hosts, wanted) in [
            (Version::HTTP_11, "/", &["web"][..], Some("web")),
            (Version::HTTP_11, "/", &["web:80"], Some("web:80")),
            (Version::HTTP_11, "http://other/", &["web"], Some("other")),
            (Version::HTTP_2, "http://web/", &["web"], Some("web")),
            (Version::HTTP_2, "http://web/", &[], Some("web")),
            (Version::HTTP_2, "http://web/", &["other"], None),
            (Version::HTTP_11, "/", &[], None),
            (Version::HTTP_11, "/", &["web", "web"], None),
            (Version::HTTP_11, "/", &["user@web"], None),
            (Version::HTTP_11, "/", &["we b"], None),
            (Version::HTTP_11, "/", &[""], None),
        ] {
            let hosts: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            let found = authority(&request(version, uri, &hosts));
            assert_eq!(found.as_ref().map(Authority::as_str), wanted, "{uri} {hosts:?}");
        }
    }

    #[test]
    fn a_body_has_one_end() {
        let both = [("content-length", "5"), ("transfer-encoding", "chunked")];
        for (headers, clear) in [
            (&[][..], true),
            (&[("content-length", "5")], true),
            (&[("transfer-encoding", " Chunked ")], true),
            (&[("content-length", "5"), ("content-length", "5")], false),
            (&[("content-length", "5, 5")], false),
            (&[("content-length", "+5")], false),
            (&[("content-length", "")], false),
            (&[("transfer-encoding", "gzip, chunked")], false),
            (&[("transfer-encoding", "chunked, chunked")], false),
            (&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], false),
            (&[("transfer-encoding", "identity")], false),
            (&[("transfer-encoding", "")], false),
            (&both, false),
        ] {
            let request = request(Version::HTTP_11, "/", headers);
            assert_eq!(ends_clearly(request.headers()), clear, "{headers:?}");
        }
    }

    #[test]
    fn what_is_for_this_hop_goes_no_further() {
        let headers = [
            ("connection", "close, X-Secret, host"),
            ("connection", "upgrade"),
            ("x-secret", "1"),
            ("host", "web"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers, deflate"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "Basic x"),
            ("accept", "*/*"),
        ];
        let mut request = request(Version::HTTP_11, "/", &headers);
        strip(request.headers_mut());
        let mut left: Vec<_> =
            request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        left.sort_unstable();
        assert_eq!(left, [("accept", "*/*"), ("host", "web"), ("te", "trailers")]);
    }

    #[test]
    fn what_nobody_else_may_write_is_so_in_every_spelling() {
        for name in ["host", "content_length", "transfer.encoding", "x_forwarded-client.cert"] {
            assert!(is_unfit(&HeaderName::from_static(name)), "{name}");
        }
        for name in ["x-forwarded-client-certs", "x-host", "forwarded"] {
            assert!(!is_unfit(&HeaderName::from_static(name)), "{name}");
        }
    }

    #[test]
    fn cookies_become_one() {
        let cookies = [("cookie", "a=1"), ("accept", "*/*"), ("cookie", "b=2")];
        let mut request = request(Version::HTTP_2, "http://web/", &cookies);
        for_next_hop(Version::HTTP_2, request.headers_mut());
        let found: Vec<_> = request.headers().get_all(COOKIE).iter().collect();
        assert_eq!(found, ["a=1; b=2"]);
    }

    #[test]
    fn only_websocket_is_upgraded_to() {
        let upgrades = |version, connection, upgrade| {
            let request = request(version, "/", &[("connection", connection), ("upgrade", upgrade)]);
            wants_websocket(version, request.headers())
        };
        assert!(upgrades(Version::HTTP_11, "keep-alive, Upgrade", "WebSocket"));
        assert!(!upgrades(Version::HTTP_11, "close", "websocket"));
        assert!(!upgrades(Version::HTTP_11, "upgrade", "h2c"));
        assert!(!upgrades(Version::HTTP_10, "upgrade", "websocket"));
    }
}
