//! What a backend's `appProtocol` says of the requests of routes that lead there (KEP-3726).

use crate::world::gateway_api::RouteKind;

/// How a backend takes the requests of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// As they are, or as the rules for it say.
    Any,
    /// By TLS alone.
    Tls,
    /// Not at all.
    Nothing,
}

impl Takes {
    pub fn of(kind: RouteKind, app_protocol: &str) -> Self {
        if kind.is_stream() {
            return Self::Any;
        }
        match app_protocol.to_ascii_lowercase().as_str() {
            "tls" | "https" => Self::Tls,
            "kubernetes.io/wss" if kind == RouteKind::Http => Self::Tls,
            "kubernetes.io/ws" if kind == RouteKind::Http => Self::Any,
            "tcp" | "udp" | "mongo" | "mysql" | "redis" | "kubernetes.io/ws" | "kubernetes.io/wss" => {
                Self::Nothing
            }
            _ => Self::Any,
        }
    }
}
