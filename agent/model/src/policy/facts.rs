use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::http::{Claims, Headers, Request, readings};
use crate::identity::Identity;
use crate::world::ExtensionProvider;
use crate::world::stream::Sni;

/// What rules ask of a connection, or of a request in it. The texts are empty where the source has no identity: no
/// value matches that.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    /// `TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`
    pub principal: &'a str,
    /// `ns/NAMESPACE/sa/SERVICE_ACCOUNT`: a service account of whatever trust domain.
    pub service_account: &'a str,
    pub namespace: &'a str,
    pub source: IpAddr,
    /// The address of the client for whom the source asks; `None` where that does not say.
    pub remote: Option<IpAddr>,
    /// Unknown where a service was asked for by its name.
    pub destination: Option<IpAddr>,
    pub port: u16,
    /// `None` where no HTTP is seen.
    pub request: Option<&'a RequestFacts<'a>>,
    pub token: Token<'a>,
    /// Of the connection.
    pub sni: Sni<'a>,
    /// Those who were asked about it and let it pass.
    pub passed: &'a [Arc<ExtensionProvider>],
}

/// What is known of a request's token.
#[derive(Clone, Copy)]
pub(crate) enum Token<'a> {
    /// Nobody looks at tokens, and so nobody can tell.
    Untold,
    /// There is none.
    Missing,
    Verified(&'a Claims),
}

impl<'a> Facts<'a> {
    pub fn new(identity: Option<&'a Identity>, source: IpAddr, destination: SocketAddr) -> Self {
        let principal = identity.and_then(|identity| identity.as_str().strip_prefix("spiffe://"));
        let principal = principal.unwrap_or_default();
        Self {
            principal,
            service_account: principal.split_once('/').map_or("", |(_, rest)| rest),
            namespace: principal.split('/').nth(2).unwrap_or_default(),
            source: source.to_canonical(),
            remote: Some(source.to_canonical()),
            destination: Some(destination.ip().to_canonical()),
            port: destination.port(),
            request: None,
            token: Token::Untold,
            sni: Sni::Unknown,
            passed: &[],
        }
    }
}

/// What rules ask of a request.
pub(crate) struct RequestFacts<'a> {
    pub method: &'a str,
    /// As it was written.
    pub authority: &'a str,
    /// The host with its port and without, in lower case; none where it could be read in several ways.
    pub hosts: Vec<String>,
    /// In its normal form.
    pub path: &'a str,
    /// What a server may take it for; `None` where nobody can tell.
    pub paths: Option<Vec<Cow<'a, str>>>,
    pub headers: &'a dyn Headers,
}

impl<'a> RequestFacts<'a> {
    pub fn new(request: &Request<'a>) -> Self {
        Self {
            method: request.method,
            authority: request.authority,
            hosts: hosts(request.authority, request.port),
            path: request.path,
            paths: readings(request.path),
            headers: request.headers,
        }
    }
}

/// Host names are the same in either case, and with a dot at their end or without (RFC 1034, section 3.1). Without a
/// port, it is the one that was dialled.
fn hosts(authority: &str, dialled: u16) -> Vec<String> {
    if authority.contains('%') {
        return Vec::new();
    }
    let authority = authority.to_ascii_lowercase();
    let port = authority.rsplit_once(':').filter(|(host, port)| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']'))
    });
    let (host, port) = port.map_or((authority.as_str(), ""), |(host, port)| (host, port));
    let host = host.strip_suffix('.').unwrap_or(host);
    let port = match port {
        "" => Ok(dialled),
        port => port.parse(),
    };
    match port {
        Ok(port) => vec![host.to_owned(), format!("{host}:{port}")],
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_the_same_in_every_spelling() {
        for (authority, want) in [
            ("a.b", &["a.b", "a.b:80"][..]),
            ("A.b.", &["a.b", "a.b:80"]),
            ("a.b:81", &["a.b", "a.b:81"]),
            ("a.B.:081", &["a.b", "a.b:81"]),
            ("a.b:", &["a.b", "a.b:80"]),
            ("a.b:99999", &[]),
            ("[fd00::1]", &["[fd00::1]", "[fd00::1]:80"]),
            ("[fd00::1]:81", &["[fd00::1]", "[fd00::1]:81"]),
            ("%61.b", &[]),
        ] {
            assert_eq!(hosts(authority, 80), want, "{authority}");
        }
    }
}
