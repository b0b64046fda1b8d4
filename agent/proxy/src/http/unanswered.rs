//! Why an attempt got no answer, and how far it came.

use http::{Request, StatusCode};
use hyper::client::conn::TrySendError;
use orlop_model::{Reason, http::Reach};

use super::{
    flags::Flag,
    replay::RequestBody,
    upstream::{described, flag_of, is_garbled, is_refused, is_severed},
};
use crate::refusal::Refusal;

/// Why a request got no answer. How far it came is always said, so that nothing that may be at a server is taken for what
/// is not.
pub(super) struct Unanswered {
    pub(super) refusal: Refusal,
    pub(super) reach: Reach,
    /// The request, where nothing of it has been sent.
    pub(super) request: Option<Request<RequestBody>>,
    /// What the server says is no HTTP of the version that it was asked in.
    pub(super) garbled: bool,
    /// The connection ended, and not this exchange alone.
    pub(super) severed: bool,
    /// It was the client that broke off.
    pub(super) by_client: bool,
    /// What is known of how the server broke off.
    pub(super) flag: Option<Flag>,
}

impl Unanswered {
    pub(super) fn new(refusal: Refusal, reach: Reach) -> Self {
        Self { refusal, reach, request: None, garbled: false, severed: false, by_client: false, flag: None }
    }

    /// It is refused before a server is asked for a connection.
    pub(super) fn refused_here(refusal: Refusal) -> Self {
        Self::new(refusal, Reach::RefusedHere)
    }

    /// There is no connection: for what a server does or does not, or for what is refused here.
    pub(super) fn without_connection(refusal: Refusal) -> Self {
        let reach = if is_of_server(refusal.reason) { Reach::NotConnected } else { Reach::RefusedHere };
        Self::new(refusal, reach)
    }

    /// There was a connection.
    pub(super) fn on_connection(mut error: TrySendError<Request<RequestBody>>) -> Self {
        let request = error.take_message();
        let error = error.into_error();
        let reach = match &request {
            Some(_) => Reach::NotSent,
            None if is_refused(&error) => Reach::RefusedUnread,
            None => Reach::Sent,
        };
        Self {
            refusal: Refusal::new(Reason::UpstreamReset, described(&error)),
            reach,
            request,
            garbled: is_garbled(&error),
            severed: is_severed(&error),
            by_client: error.is_user(),
            flag: flag_of(&error),
        }
    }
}

/// Whether a failure says something of how well the endpoint is: no policy's refusal does, nor what fails here.
pub(super) fn is_of_endpoint(refusal: &Refusal) -> bool {
    // What the peer's policy refuses says nothing of how well the peer is.
    is_of_server(refusal.reason) && refusal.answered != Some(StatusCode::UNAUTHORIZED)
}

/// Whether it is a server, or what is before it, that has failed or refused.
fn is_of_server(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ConnectFailed
            | Reason::ConnectTimeout
            | Reason::TlsFailed
            | Reason::TlsTimeout
            | Reason::UntrustedCertificate
            | Reason::RevokedCertificate
            | Reason::IdentityMismatch
            | Reason::AlpnMismatch
            | Reason::PeerRefused
            | Reason::TunnelClosed
            | Reason::Reset
            | Reason::UpstreamReset
            | Reason::RequestTimeout
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_server_does_is_worth_asking_another_one() {
        for (reason, reach) in [
            (Reason::ConnectFailed, Reach::NotConnected),
            (Reason::ConnectTimeout, Reach::NotConnected),
            (Reason::PeerRefused, Reach::NotConnected),
            (Reason::TlsFailed, Reach::NotConnected),
            (Reason::TunnelClosed, Reach::NotConnected),
            (Reason::Overflow, Reach::RefusedHere),
            (Reason::TlsUnavailable, Reach::RefusedHere),
            (Reason::PolicyDenied, Reach::RefusedHere),
            (Reason::CertificateUnavailable, Reach::RefusedHere),
            (Reason::DescriptorLimit, Reach::RefusedHere),
            (Reason::MemoryLimit, Reach::RefusedHere),
            (Reason::Draining, Reach::RefusedHere),
            (Reason::Internal, Reach::RefusedHere),
        ] {
            assert_eq!(Unanswered::without_connection(reason.into()).reach, reach, "{reason}");
        }
    }
}
