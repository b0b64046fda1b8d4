//! `connectionPool`

use std::time::Duration;

use orlop_model::world::routing::{ConnectionPool, Keepalive};
use serde::Deserialize;

use crate::duration::positive;
use crate::field::{FieldError, FieldPath};

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(super) struct PoolObject {
    /// Connections.
    tcp: Option<TcpObject>,
    /// Requests.
    http: Option<HttpObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct TcpObject {
    /// At most so many at once.
    max_connections: Option<u32>,
    /// How long connecting may take: 10s if left out.
    connect_timeout: Option<String>,
    /// Has the kernel look whether the other side is still there.
    tcp_keepalive: Option<KeepaliveObject>,
    /// After this time a connection takes no more requests, and one without HTTP ends.
    max_connection_duration: Option<String>,
    /// A connection is closed in which nothing is said for this long, or without a request.
    idle_timeout: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct KeepaliveObject {
    /// How many may be missed.
    probes: Option<u32>,
    /// After so long without a byte.
    time: Option<String>,
    /// Between two.
    interval: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct HttpObject {
    /// At most so many that wait for a connection.
    http1_max_pending_requests: Option<u32>,
    /// At most so many at once.
    http2_max_requests: Option<u32>,
    /// At most so many over one connection; 0 for any number.
    max_requests_per_connection: Option<u32>,
    /// At most so many attempts again at once.
    max_retries: Option<u32>,
    /// A connection without a request for this long is closed.
    idle_timeout: Option<String>,
    /// UPGRADE has HTTP/1.1 go on as HTTP/2; DEFAULT and DO_NOT_UPGRADE have it stay as it is.
    h2_upgrade_policy: Option<String>,
    /// What clients speak goes on as it is, whatever the port or h2UpgradePolicy says.
    use_client_protocol: Option<bool>,
    /// At most so many at once over one connection of HTTP/2.
    max_concurrent_streams: Option<u32>,
}

impl PoolObject {
    pub(super) fn convert(self, path: &FieldPath) -> Result<ConnectionPool, FieldError> {
        let (tcp, http) = (self.tcp.unwrap_or_default(), self.http.unwrap_or_default());
        let (of_tcp, of_http) = (path.clone().key("tcp"), path.clone().key("http"));
        let keepalive = tcp.tcp_keepalive.map(|of| of.convert(&of_tcp.clone().key("tcpKeepalive")));
        let of_http_idle = time(http.idle_timeout, &of_http, "idleTimeout")?;
        let of_tcp_idle = time(tcp.idle_timeout, &of_tcp, "idleTimeout")?;
        let upgrade = match http.h2_upgrade_policy.as_deref() {
            None | Some("DEFAULT" | "DO_NOT_UPGRADE") => false,
            Some("UPGRADE") => true,
            Some(other) => {
                let problem = format!("{other:?} is not DEFAULT, DO_NOT_UPGRADE or UPGRADE");
                return Err(FieldError::new(of_http.key("h2UpgradePolicy"), problem));
            }
        };
        let client_protocol = http.use_client_protocol == Some(true);
        // 0 is the default, which is unlimited.
        let limit = |limit: Option<u32>| limit.filter(|limit| *limit > 0);
        Ok(ConnectionPool {
            max_connections: limit(tcp.max_connections),
            connect_timeout: time(tcp.connect_timeout, &of_tcp, "connectTimeout")?,
            keepalive: keepalive.transpose()?,
            max_duration: time(tcp.max_connection_duration, &of_tcp, "maxConnectionDuration")?,
            idle_timeout: of_http_idle.or(of_tcp_idle),
            stream_idle_timeout: of_tcp_idle,
            max_pending: limit(http.http1_max_pending_requests),
            max_requests: limit(http.http2_max_requests),
            max_per_connection: limit(http.max_requests_per_connection),
            max_retries: limit(http.max_retries),
            max_streams: limit(http.max_concurrent_streams),
            to_http2: upgrade && !client_protocol,
            client_protocol,
        })
    }
}

impl KeepaliveObject {
    fn convert(self, path: &FieldPath) -> Result<Keepalive, FieldError> {
        Ok(Keepalive {
            probes: self.probes.filter(|probes| *probes > 0),
            time: time(self.time, path, "time")?,
            interval: time(self.interval, path, "interval")?,
        })
    }
}

fn time(text: Option<String>, path: &FieldPath, field: &str) -> Result<Option<Duration>, FieldError> {
    text.map(|text| positive(&text, || path.clone().key(field))).transpose()
}
