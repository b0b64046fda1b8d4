//! Ports Orlop keeps for itself inside a pod's network namespace.

/// Where the proxy takes the pod's outbound connections.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where the proxy takes inbound connections that are not HBONE.
pub const INBOUND_PLAINTEXT_PORT: u16 = 15006;
/// Where the proxy takes HBONE tunnels.
pub const HBONE_PORT: u16 = 15008;
/// Where the proxy answers DNS.
pub const DNS_PORT: u16 = 15053;

/// True for a port of the proxy, which no tunnel may lead to.
pub const fn is_reserved(port: u16) -> bool {
    matches!(port, OUTBOUND_PORT | INBOUND_PLAINTEXT_PORT | HBONE_PORT | DNS_PORT)
}
