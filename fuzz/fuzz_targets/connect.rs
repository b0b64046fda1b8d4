//! An HBONE CONNECT with its headers, as a peer with any certificate can send it.
//!
//! The input is a request line, `METHOD AUTHORITY`, and a line `NAME: VALUE` for each header.
#![no_main]

use std::net::SocketAddr;

use http::{HeaderName, HeaderValue, Method, Request, Uri};
use libfuzzer_sys::fuzz_target;
use orlop_proxy::fuzzing;

fuzz_target!(|input: &[u8]| {
    let Some(request) = request(input) else { return };
    let (parts, ()) = request.into_parts();
    let peer = SocketAddr::from(([10, 0, 0, 9], 5000));
    let Ok((authority, client)) = fuzzing::connect(&parts, peer) else { return };
    assert_eq!(parts.method, Method::CONNECT);
    // What is dialled is what was asked for, in other words at most.
    let asked = parts.uri.authority().map(|authority| authority.as_str());
    assert_eq!(asked.and_then(|text| text.parse().ok()), Some(authority));
    // Whatever a peer says of its client, it can't choose its address.
    assert_eq!(client.ip(), peer.ip());
    assert_ne!(client.port(), 0);
});

fn request(input: &[u8]) -> Option<Request<()>> {
    let mut lines = input.split(|byte| *byte == b'\n');
    let first = lines.next()?;
    let space = first.iter().position(|byte| *byte == b' ')?;
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(&first[..space]).ok()?;
    // h2 makes the URI of a CONNECT from its `:authority` alone.
    *request.uri_mut() = Uri::builder().authority(&first[space + 1..]).build().ok()?;
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), line[colon + 1..].trim_ascii());
        request.headers_mut().append(name.ok()?, HeaderValue::from_bytes(value).ok()?);
    }
    Some(request)
}
