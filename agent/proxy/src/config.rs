use std::{num::NonZeroUsize, time::Duration};

use crate::dns::DnsConfig;

/// Limits and timeouts of the proxy. Every one has a default.
#[derive(Clone, Debug)]
pub struct Config {
    /// Threads that carry connections; a connection stays on one of them.
    pub workers: NonZeroUsize,
    /// How long a dialled backend or tunnel may take to accept, and a peer to answer a CONNECT.
    pub connect_timeout: Duration,
    /// How long a TLS and HTTP/2 handshake may take.
    pub handshake_timeout: Duration,
    /// A connection on which nothing moves for this long, at the least, is closed.
    pub idle_timeout: Duration,
    /// A tunnel without a stream for this long, at the least, is closed.
    pub tunnel_idle_timeout: Duration,
    /// Connections and streams open at once; further ones are refused.
    pub max_connections: usize,
    /// Of these, how many may be one pod's.
    pub max_connections_per_pod: usize,
    /// Descriptors that the process may have (`RLIMIT_NOFILE`). Shortly before, connections are refused.
    pub max_descriptors: usize,
    /// Inbound TLS handshakes under way at once on one worker; a further one replaces the oldest.
    pub max_handshakes: usize,
    /// How many flows are kept for those who ask, some 500 bytes each.
    pub flow_buffer: usize,
    /// The pods' DNS.
    pub dns: DnsConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(3600),
            tunnel_idle_timeout: Duration::from_secs(300),
            max_connections: 100_000,
            max_connections_per_pod: 50_000,
            max_descriptors: usize::MAX,
            max_handshakes: 1024,
            flow_buffer: 4096,
            dns: DnsConfig::default(),
        }
    }
}
