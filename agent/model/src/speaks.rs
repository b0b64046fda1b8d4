//! What a service's port says of itself that it speaks.

use crate::service::ServicePort;

/// What a port says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declared {
    /// HTTP of any version.
    Http,
    /// HTTP/2, also to its servers.
    Http2,
    /// TLS, which only the server can read.
    Tls,
    /// Something else.
    Opaque,
    /// Nothing.
    Unknown,
}

impl Declared {
    /// Whether it is HTTP.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2)
    }

    /// Whether nobody but the server can read it.
    pub fn is_opaque(self) -> bool {
        matches!(self, Self::Tls | Self::Opaque)
    }
}

impl ServicePort {
    /// By its `appProtocol`, else by its name, as Istio does: `PROTOCOL` or `PROTOCOL-anything`.
    pub fn declared(&self) -> Declared {
        says(&self.name, self.app_protocol.as_deref())
    }
}

fn says(name: &str, app_protocol: Option<&str>) -> Declared {
    let word = app_protocol.unwrap_or_else(|| name.split('-').next().unwrap_or_default());
    match word.to_ascii_lowercase().as_str() {
        "grpc" | "http2" | "kubernetes.io/h2c" => Declared::Http2,
        "http" | "kubernetes.io/ws" => Declared::Http,
        "tls" | "https" | "kubernetes.io/wss" => Declared::Tls,
        "tcp" | "mongo" | "mysql" | "redis" | "udp" => Declared::Opaque,
        _ => Declared::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_tells_by_its_app_protocol_and_else_by_its_name() {
        for (name, app_protocol, wanted) in [
            ("http", Some("tcp"), Declared::Opaque),
            ("tcp", Some("HTTP"), Declared::Http),
            ("web", Some("kubernetes.io/h2c"), Declared::Http2),
            ("web", Some("kubernetes.io/ws"), Declared::Http),
            ("web", Some("kubernetes.io/wss"), Declared::Tls),
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
            ("https", Declared::Tls),
            ("", Declared::Unknown),
            ("web", Declared::Unknown),
            ("httpx", Declared::Unknown),
        ] {
            assert_eq!(says(name, None), wanted, "{name}");
        }
    }
}
