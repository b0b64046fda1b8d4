use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use hyper::Uri;
use orlop_model::NamespacedName;

use super::{
    ADMIN, AccessLogArguments, AuthorityArguments, LogArguments, NameArguments, WorldArguments, dns_server,
    duration, loopback, size,
};

#[derive(Args, Debug)]
pub struct WaypointArguments {
    #[command(flatten)]
    pub proxy: ProxyArguments,
    /// A route of the Gateway API leads to a Service of another namespace only if a ReferenceGrant there lets it.
    #[arg(long)]
    pub require_reference_grants: bool,
    /// Where it takes tunnels.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15008")]
    pub listen: SocketAddr,
}

#[derive(Args, Debug)]
pub struct GatewayArguments {
    #[command(flatten)]
    pub proxy: ProxyArguments,
    /// The GatewayClass that it was made for: its policies count also once the Gateway has another.
    #[arg(long, value_name = "NAME")]
    pub class: Option<String>,
    /// The pod that it runs as, of the Gateway's namespace, whose labels policies select it by [default: the Gateway's
    /// name].
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub pod: Option<String>,
    /// Where the Secrets of its listeners' certificates are: NAMESPACE/NAME/tls.crt and tls.key.
    #[arg(long, value_name = "DIR", default_value = "/etc/orlop/certificates")]
    pub certificates: PathBuf,
    /// Where it takes clients, on the ports of its Gateway's listeners.
    #[arg(long, value_name = "IP", default_value = "::")]
    pub listen_address: IpAddr,
    /// A client's connection that waits for its next request for this long is closed.
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = duration)]
    pub client_idle_timeout: Duration,
    /// Connections of one client, as its address tells it, or of IPv6 its /64 [default: half of --max-connections].
    #[arg(long, value_name = "N")]
    pub max_connections_per_client: Option<usize>,
    /// Requests at once, of which each client has half at the most [default: one for each 128 KiB of --max-memory].
    #[arg(long, value_name = "N")]
    pub max_requests: Option<usize>,
    /// A request of which nothing moves for this long, neither of its body nor of its answer, is broken off; after twice
    /// that at the latest.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub stall_timeout: Duration,
}

/// Of waypoints and gateways.
#[derive(Args, Debug)]
pub struct ProxyArguments {
    #[command(flatten)]
    pub world: WorldArguments,
    /// The Gateway that it is, as labels and policies name it: that of its Service.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub name: NamespacedName,
    /// Its service account, whose certificate it shows [default: the Gateway's name].
    #[arg(long, value_name = "NAME", env = "SERVICE_ACCOUNT")]
    pub service_account: Option<String>,
    /// Name of the node that it runs on, for services that want near endpoints.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub node: String,
    #[command(flatten)]
    pub authority: AuthorityArguments,
    #[command(flatten)]
    pub names: NameArguments,
    /// Admin API: /config_dump and /flows. Loopback addresses only.
    #[arg(long, value_name = "ADDRESS", default_value = ADMIN, value_parser = loopback)]
    pub admin: SocketAddr,
    /// Prometheus metrics: /metrics.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15020")]
    pub metrics: SocketAddr,
    /// Readiness: /healthz/ready.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15021")]
    pub ready: SocketAddr,
    /// DNS server for the hosts of ServiceEntries and WorkloadEntries [default: those of /etc/resolv.conf].
    #[arg(long, value_name = "ADDRESS", value_parser = dns_server)]
    pub host_resolver: Option<SocketAddr>,
    /// Roots, as PEM, that servers of tokens' keys may have beside the public ones.
    #[arg(long, value_name = "FILE")]
    pub jwks_roots: Option<PathBuf>,
    /// Where the Secrets are that DestinationRules of its namespace name by credentialName: NAMESPACE/NAME/ca.crt, tls.crt
    /// and tls.key.
    #[arg(long, value_name = "DIR", default_value = "/etc/orlop/credentials")]
    pub credentials: PathBuf,
    /// How long open requests may go on after SIGTERM.
    #[arg(long, value_name = "TIME", default_value = "25s", value_parser = duration)]
    pub drain_timeout: Duration,
    /// How long a server or a peer's proxy may take to accept.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub connect_timeout: Duration,
    /// A connection on which nothing moves for this long is closed.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub idle_timeout: Duration,
    /// How long to wait for a client's first bytes where a port doesn't say what it speaks.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub detection_timeout: Duration,
    /// How long a request's head may take from its first byte on; at most twice that.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = duration)]
    pub header_timeout: Duration,
    /// Headers of one request or answer.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub max_headers: usize,
    /// Size of a request's or an answer's head.
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = size)]
    pub max_header_size: u64,
    /// Size of a request's body, which is passed on as it comes: past it, the request is broken off and refused.
    #[arg(long, value_name = "SIZE", default_value = "1024GiB", value_parser = size)]
    pub max_body_size: u64,
    /// Requests that a client may have open in one HTTP/2 connection.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub max_streams: u32,
    /// Connections open at once; further ones are refused [default: 100000, or as many as the limit of open
    /// files allows; of a gateway also no more than its memory has room for with 64 KiB each].
    #[arg(long, value_name = "N")]
    pub max_connections: Option<usize>,
    /// Resident memory, such as 512MiB, past which new connections and requests are refused [default: nine tenths of
    /// what the proxy's cgroup may have].
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_memory: Option<u64>,
    /// Threads that carry requests [default: one a core].
    #[arg(long, value_name = "N")]
    pub workers: Option<NonZeroUsize>,
    #[command(flatten)]
    pub traces: TraceArguments,
    #[command(flatten)]
    pub access_log: AccessLogArguments,
    #[command(flatten)]
    pub log: LogArguments,
}

#[derive(Args, Debug)]
pub struct TraceArguments {
    /// The collector that gets spans of requests by OTLP: over gRPC, such as http://collector.observability:4317, or over
    /// HTTP if it has a path, such as http://collector.observability:4318/v1/traces; through the mesh where that knows the
    /// service [default: none].
    #[arg(long, value_name = "URL", value_parser = collector)]
    pub otlp: Option<Uri>,
    /// Of the requests that begin a trace, so many percent are traced; what continues one is traced as the rest of it.
    #[arg(long, value_name = "PERCENT", default_value = "1", value_parser = percent)]
    pub trace_sampling: f64,
}

impl TraceArguments {
    /// The arguments of a waypoint that say the same.
    pub fn to_args(&self) -> Vec<String> {
        let Some(collector) = &self.otlp else { return Vec::new() };
        vec![format!("--otlp={collector}"), format!("--trace-sampling={}", self.trace_sampling)]
    }
}

fn collector(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
    let plain = uri.scheme_str() == Some("http") && uri.host().is_some();
    if plain {
        Ok(uri)
    } else {
        Err("want http://HOST:PORT or http://HOST:PORT/v1/traces; TLS is the mesh's".to_owned())
    }
}

pub(super) fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    percent.ok_or_else(|| "want a number from 0 to 100".to_owned())
}
