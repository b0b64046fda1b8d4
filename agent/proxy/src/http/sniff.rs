//! What a connection speaks, as its first bytes say.

/// What is read of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Protocol {
    Http1,
    Http2,
    /// Nothing: it is passed on as it is.
    Opaque,
}

/// The beginning of every HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// No method that anybody uses is longer.
const LONGEST_METHOD: usize = 24;

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
}
