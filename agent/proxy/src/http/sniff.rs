//! What a connection speaks: as its port says, or as its first bytes do.

use orlop_model::ServicePort;

/// What is read of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Protocol {
    Http1,
    Http2,
    /// Nothing: it is passed on as it is.
    Opaque,
}

/// What a port says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Declared {
    /// HTTP of any version.
    Http,
    /// HTTP/2, also to its servers.
    Http2,
    Opaque,
    /// Nothing.
    Unknown,
}

/// The beginning of every HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// No method that anybody uses is longer.
const LONGEST_METHOD: usize = 24;

/// Reads what a port says of itself: its `appProtocol`, else its name, as Istio does: `PROTOCOL` or
/// `PROTOCOL-anything`.
pub(super) fn declared(port: &ServicePort) -> Declared {
    says(&port.name, port.app_protocol.as_deref())
}

fn says(name: &str, app_protocol: Option<&str>) -> Declared {
    let word = app_protocol.unwrap_or_else(|| name.split('-').next().unwrap_or_default());
    match word.to_ascii_lowercase().as_str() {
        "grpc" | "http2" | "kubernetes.io/h2c" => Declared::Http2,
        "http" | "kubernetes.io/ws" => Declared::Http,
        "tcp" | "tls" | "https" | "mongo" | "mysql" | "redis" | "udp" | "kubernetes.io/wss" => {
            Declared::Opaque
        }
        _ => Declared::Unknown,
    }
}

/// Tells by the first bytes; `None` where they are too few.
pub(super) fn sniff(bytes: &[u8]) -> Option<Protocol> {
    let compared = bytes.len().min(PREFACE.len());
    if bytes[..compared] == PREFACE[..compared] {
        return (compared == PREFACE.len()).then_some(Protocol::Http2);
    }
    let method = bytes.iter().take(LONGEST_METHOD).take_while(|byte| byte.is_ascii_uppercase()).count();
    if bytes.starts_with(b"CONNECT ") {
        return Some(Protocol::Http1);
    }
    match (bytes.get(method), bytes.get(method + 1)) {
        (None, _) if method < LONGEST_METHOD => None,
        (Some(b' '), None) if method > 0 => None,
        // In origin, absolute, authority or asterisk form.
        (Some(b' '), Some(b'/' | b'*' | b'h' | b'H')) if method > 0 => Some(Protocol::Http1),
        _ => Some(Protocol::Opaque),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell() {
        for (bytes, protocol) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Protocol::Http1)),
            (b"OPTIONS * HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"GET http://web/ HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"PROPFIND /", Some(Protocol::Http1)),
            (b"CONNECT 10.0.0.1:80 HTTP/1.1", Some(Protocol::Http1)),
            (PREFACE, Some(Protocol::Http2)),
            (b"", None),
            (b"P", None),
            (b"PRI * HTTP/2.0\r\n", None),
            (b"PRI", None),
            (b"GET ", None),
            (b"GET", None),
            (b"PRI * HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"\x16\x03\x01", Some(Protocol::Opaque)),
            (b" /", Some(Protocol::Opaque)),
            (b"get / HTTP/1.1", Some(Protocol::Opaque)),
            (b"PING\r\n", Some(Protocol::Opaque)),
            (b"GET key\r\n", Some(Protocol::Opaque)),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Some(Protocol::Opaque)),
        ] {
            assert_eq!(sniff(bytes), protocol, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_port_tells_by_its_app_protocol_and_else_by_its_name() {
        for (name, app_protocol, wanted) in [
            ("http", Some("tcp"), Declared::Opaque),
            ("tcp", Some("HTTP"), Declared::Http),
            ("web", Some("kubernetes.io/h2c"), Declared::Http2),
            ("web", Some("kubernetes.io/ws"), Declared::Http),
            ("web", Some("kubernetes.io/wss"), Declared::Opaque),
            ("http", Some("example.com/own"), Declared::Unknown),
        ] {
            assert_eq!(says(name, app_protocol), wanted, "{name} {app_protocol:?}");
        }
        for (name, wanted) in [
            ("http", Declared::Http),
            ("http-web", Declared::Http),
            ("http2", Declared::Http2),
            ("grpc-api", Declared::Http2),
            ("tcp-db", Declared::Opaque),
            ("https", Declared::Opaque),
            ("", Declared::Unknown),
            ("web", Declared::Unknown),
            ("httpx", Declared::Unknown),
        ] {
            assert_eq!(says(name, None), wanted, "{name}");
        }
    }
}
