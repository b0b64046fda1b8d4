use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+) => {
        /// Why a connection was refused or cut short: the fixed list behind logs, metrics and flow events.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason, in the order they are declared.
            pub const ALL: [Reason; [$($text),+].len()] = [$(Reason::$variant),+];

            /// The name in logs and metrics.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Reason::$variant => $text,)+
                }
            }
        }
    };
}

reasons! {
    /// The connection came without a record of where it was going: someone dialled the proxy's port directly.
    NoOriginalDestination = "no_original_destination",
    /// The service has no TCP port of that number.
    NoServicePort = "no_service_port",
    /// The service's port has no ready endpoint.
    NoHealthyEndpoint = "no_healthy_endpoint",
    /// The waypoint that it would have to go through has no ready pod, or there is none of that name.
    NoReadyWaypoint = "no_ready_waypoint",
    /// It came to a workload past the waypoint that stands before it.
    NotThroughWaypoint = "not_through_waypoint",
    /// The upstream refused the connection or can't be reached.
    ConnectFailed = "connect_failed",
    /// The upstream did not answer the connect in time.
    ConnectTimeout = "connect_timeout",
    /// The TLS handshake failed for none of the more telling reasons below.
    TlsFailed = "tls_failed",
    /// The destination's policy wants TLS that can't be had: in clear nothing is sent.
    TlsUnavailable = "tls_unavailable",
    /// The TLS handshake did not end in time.
    TlsTimeout = "tls_timeout",
    /// The client showed no certificate.
    NoClientCertificate = "no_client_certificate",
    /// The peer's certificate is expired, malformed or not signed by a trusted root.
    UntrustedCertificate = "untrusted_certificate",
    /// The peer's certificate was revoked: before its handshake or, for what was open, since.
    RevokedCertificate = "revoked_certificate",
    /// The peer's certificate is good but is someone else's.
    IdentityMismatch = "identity_mismatch",
    /// The peer did not agree to speak `h2`.
    AlpnMismatch = "alpn_mismatch",
    /// The tunnel's request is not a CONNECT to an address and port.
    BadConnectRequest = "bad_connect_request",
    /// An authorization policy refuses it, or none of those that allow some matches.
    PolicyDenied = "policy_denied",
    /// Whoever is to be asked about the request can't be asked.
    AuthorizerUnavailable = "authorizer_unavailable",
    /// The token that the request shows can't be believed.
    InvalidToken = "invalid_token",
    /// The keys of the token's issuer can't be had.
    TokenKeysUnavailable = "token_keys_unavailable",
    /// There were as many requests as a RateLimit lets pass.
    RateLimited = "rate_limited",
    /// Nobody can tell whether a RateLimit lets it pass.
    RateLimitUnavailable = "rate_limit_unavailable",
    /// It came without mutual TLS to a workload that takes none of those.
    PlaintextRefused = "plaintext_refused",
    /// The tunnel's target is not an address of the pod it arrived at, or is a port of the proxy.
    NotThisPod = "not_this_pod",
    /// The waypoint was asked for something that it does not stand before.
    NotThisWaypoint = "not_this_waypoint",
    /// The peer's proxy answered the CONNECT with a refusal.
    PeerRefused = "peer_refused",
    /// One side reset the connection.
    Reset = "reset",
    /// The tunnel ended under the connection.
    TunnelClosed = "tunnel_closed",
    /// Nothing was sent either way for the idle timeout, or of a request for the stall timeout.
    IdleTimeout = "idle_timeout",
    /// It was open for as long as the destination's policy lets it.
    MaxDuration = "max_duration",
    /// Too many handshakes are under way.
    HandshakeLimit = "handshake_limit",
    /// Too many connections are open.
    ConnectionLimit = "connection_limit",
    /// The node's agent has hardly a file descriptor left.
    DescriptorLimit = "descriptor_limit",
    /// The node's agent has hardly any memory left.
    MemoryLimit = "memory_limit",
    /// The streams of a connection are too many, or what opens them costs too much.
    StreamLimit = "stream_limit",
    /// The workload's own certificate can't be had.
    CertificateUnavailable = "certificate_unavailable",
    /// The agent is shutting down.
    Draining = "draining",
    /// The request is no HTTP that could be passed on.
    BadRequest = "bad_request",
    /// The request's head has more headers, or more bytes, than may be.
    HeaderLimit = "header_limit",
    /// The request's head did not end in time.
    HeaderTimeout = "header_timeout",
    /// The request's body has more bytes than may be.
    BodyTooLarge = "body_too_large",
    /// No rule for the host matches the request.
    NoRoute = "no_route",
    /// The request is for a host that is another listener's than the one it came by.
    Misdirected = "misdirected",
    /// The rule leads to a service, port or subset that there is not.
    NoSuchDestination = "no_such_destination",
    /// By the rules of the Gateway API the rule, or the backend that it chose, is invalid.
    InvalidRoute = "invalid_route",
    /// The answer took longer than the rule allows.
    RequestTimeout = "request_timeout",
    /// The rule has requests fail.
    FaultInjected = "fault_injected",
    /// There are as many requests, connections or retries as the destination's policy allows.
    Overflow = "overflow",
    /// The upstream ended or reset the connection before its answer was whole.
    UpstreamReset = "upstream_reset",
    /// The pod is not, or no longer, part of the mesh.
    NotEnrolled = "not_enrolled",
    /// A fault of Orlop's own; the log says more.
    Internal = "internal",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for Reason {}

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        let found = Reason::ALL.into_iter().find(|reason| reason.as_str() == text);
        found.ok_or_else(|| UnknownReason(text.to_owned()))
    }
}

/// The text is the name of no [`Reason`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a reason that this version knows")]
pub struct UnknownReason(String);

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_distinct_and_snake_case() {
        let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }
}
