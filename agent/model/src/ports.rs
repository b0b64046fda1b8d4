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

/// Where a waypoint or a gateway has its admin API, its metrics and its readiness.
const ADMIN_PORTS: [u16; 3] = [15000, 15020, 15021];

/// True for a port of Orlop's own, which no listener of a Gateway can have.
pub const fn is_own(port: u16) -> bool {
    let [admin, metrics, ready] = ADMIN_PORTS;
    is_reserved(port) || port == admin || port == metrics || port == ready
}
