use std::collections::BTreeMap;
use std::time::Duration;

use orlop_model::world::routing::{
    Balancer, ConnectionPool, DestinationRule, HashOn, Outlier, Subset, TrafficPolicy,
};
use serde::Deserialize;

use crate::duration::{duration, positive};
use crate::field::{FieldError, FieldPath, Ignored, port};
use crate::metadata::namespaced;
use crate::read::Metadata;
use crate::service_entry::exports;
use crate::virtual_service::any_host;

/// A `networking.istio.io` DestinationRule as it is written.
#[derive(Debug, Deserialize)]
pub(crate) struct Object {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

/// A misspelt field would treat servers otherwise, so none is let pass.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Spec {
    /// The name of a service. A short one is of the same namespace.
    host: String,
    /// How its servers are treated.
    traffic_policy: Option<PolicyObject>,
    /// Parts of the service, by labels, that VirtualServices lead to.
    subsets: Vec<SubsetObject>,
    /// Namespaces whose workloads go by this: "." its own, "*" all, which is also meant if it is left out.
    export_to: Option<Vec<String>>,
    /// The clients that this is for. Has no effect.
    workload_selector: Option<Ignored>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SubsetObject {
    /// What it is called in VirtualServices.
    name: String,
    /// Labels of its servers.
    labels: BTreeMap<String, String>,
    /// Instead of the rule's, block by block.
    traffic_policy: Option<PolicyObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct PolicyObject {
    /// Which server is next.
    load_balancer: Option<BalancerObject>,
    /// When a server that fails is left out for a while.
    outlier_detection: Option<OutlierObject>,
    /// How much a server is asked at once.
    connection_pool: Option<PoolObject>,
    /// Instead of all this, by the service's port.
    port_level_settings: Vec<PortLevelObject>,
    /// Has no effect: the mesh has mutual TLS of its own.
    tls: Option<Ignored>,
    /// Has no effect.
    tunnel: Option<Ignored>,
    /// Has no effect.
    proxy_protocol: Option<Ignored>,
    /// Has no effect.
    retry_budget: Option<Ignored>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct PortLevelObject {
    /// The service's port.
    port: Option<PortObject>,
    /// Which server is next.
    load_balancer: Option<BalancerObject>,
    /// When a server that fails is left out for a while.
    outlier_detection: Option<OutlierObject>,
    /// How much a server is asked at once.
    connection_pool: Option<PoolObject>,
    /// Has no effect: the mesh has mutual TLS of its own.
    tls: Option<Ignored>,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct PortObject {
    /// The number of the port.
    number: i32,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct BalancerObject {
    /// LEAST_REQUEST (if left out), ROUND_ROBIN, RANDOM or PASSTHROUGH.
    simple: Option<String>,
    /// The same server for what is the same in requests. Not together with simple.
    consistent_hash: Option<HashObject>,
    /// Has no effect here.
    locality_lb_setting: Option<Ignored>,
    /// Has no effect.
    warmup_duration_secs: Option<Ignored>,
    /// Has no effect.
    warmup: Option<Ignored>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct HashObject {
    /// By this header.
    http_header_name: Option<String>,
    /// By this parameter of the query.
    http_query_parameter_name: Option<String>,
    /// By the client's address.
    use_source_ip: Option<bool>,
    /// By this cookie, which is made if it is not there.
    http_cookie: Option<CookieObject>,
    /// Has no effect.
    #[serde(rename = "ringHash")]
    _ring_hash: Option<Ignored>,
    /// Has no effect.
    #[serde(rename = "maglev")]
    _maglev: Option<Ignored>,
    /// Has no effect.
    #[serde(rename = "minimumRingSize")]
    _minimum_ring_size: Option<Ignored>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct CookieObject {
    /// Its name.
    name: String,
    /// Its path.
    path: Option<String>,
    /// How long it lives; 0s is as long as the browser runs.
    ttl: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct OutlierObject {
    /// The older name of consecutive5xxErrors.
    consecutive_errors: Option<u32>,
    /// After so many failures in a row: 5 if left out, never if 0.
    #[serde(rename = "consecutive5xxErrors")]
    consecutive_5xx_errors: Option<u32>,
    /// After so many answers 502, 503 or 504 in a row.
    consecutive_gateway_errors: Option<u32>,
    /// How often to look: every 10s if left out.
    interval: Option<String>,
    /// How long at first: 30s if left out; longer each time.
    base_ejection_time: Option<String>,
    /// At most so many of the servers: 10 if left out.
    max_ejection_percent: Option<u32>,
    /// None are left out, if fewer than these are well.
    min_health_percent: Option<u32>,
    /// Has no effect.
    split_external_local_origin_errors: Option<Ignored>,
    /// Has no effect.
    consecutive_local_origin_failures: Option<Ignored>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct PoolObject {
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
    /// Has no effect.
    tcp_keepalive: Option<Ignored>,
    /// Has no effect.
    max_connection_duration: Option<Ignored>,
    /// Has no effect.
    idle_timeout: Option<Ignored>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct HttpObject {
    /// At most so many that wait.
    http1_max_pending_requests: Option<u32>,
    /// At most so many at once.
    http2_max_requests: Option<u32>,
    /// At most so many over one connection; 0 for any number.
    max_requests_per_connection: Option<u32>,
    /// At most so many attempts again at once.
    max_retries: Option<u32>,
    /// Has no effect.
    idle_timeout: Option<Ignored>,
    /// Has no effect.
    h2_upgrade_policy: Option<Ignored>,
    /// Has no effect.
    use_client_protocol: Option<Ignored>,
    /// Has no effect.
    max_concurrent_streams: Option<Ignored>,
}

/// Converts a DestinationRule.
pub(crate) fn convert(object: Object) -> Result<DestinationRule, FieldError> {
    let name = namespaced(&object.metadata)?;
    let spec = object.spec;
    let mut unread = Unread::default();
    unread.note("workloadSelector", spec.workload_selector.is_some());
    let policy = policy(spec.traffic_policy.unwrap_or_default(), &"spec.trafficPolicy".into(), &mut unread)?;
    let mut subsets = Vec::new();
    for (index, of) in spec.subsets.into_iter().enumerate() {
        let path = FieldPath::from("spec.subsets").index(index);
        if of.name.is_empty() {
            return Err(FieldError::new(path.key("name"), "is missing; name the subset"));
        }
        let path = path.key("trafficPolicy");
        let policy = policy_of_subset(of.traffic_policy, &path, &mut unread)?;
        subsets.push(Subset { name: of.name, labels: of.labels.into_iter().collect(), policy });
    }
    Ok(DestinationRule {
        created: object.metadata.creation_timestamp.map(|time| time.0.as_second()),
        host: any_host(&spec.host, || "spec.host".into())?,
        exports: exports(spec.export_to.unwrap_or_default(), &name.namespace)?,
        policy,
        subsets,
        unread: unread.0,
        name,
    })
}

/// Fields that have no effect, each once.
#[derive(Default)]
struct Unread(Vec<String>);

impl Unread {
    fn note(&mut self, field: &str, there: bool) {
        if there && !self.0.iter().any(|known| known == field) {
            self.0.push(field.to_owned());
        }
    }
}

fn policy_of_subset(
    of: Option<PolicyObject>,
    path: &FieldPath,
    unread: &mut Unread,
) -> Result<TrafficPolicy, FieldError> {
    policy(of.unwrap_or_default(), path, unread)
}

fn policy(of: PolicyObject, path: &FieldPath, unread: &mut Unread) -> Result<TrafficPolicy, FieldError> {
    unread.note("trafficPolicy.tls", of.tls.is_some());
    unread.note("trafficPolicy.tunnel", of.tunnel.is_some());
    unread.note("trafficPolicy.proxyProtocol", of.proxy_protocol.is_some());
    unread.note("trafficPolicy.retryBudget", of.retry_budget.is_some());
    let mut ports = Vec::new();
    for (index, level) in of.port_level_settings.into_iter().enumerate() {
        let path = path.clone().key("portLevelSettings").index(index);
        let number = level.port.map_or(0, |port| port.number);
        let number = port(number, || path.clone().key("port").key("number"))?;
        unread.note("trafficPolicy.portLevelSettings.tls", level.tls.is_some());
        let of = PolicyObject {
            load_balancer: level.load_balancer,
            outlier_detection: level.outlier_detection,
            connection_pool: level.connection_pool,
            ..PolicyObject::default()
        };
        ports.push((number, policy(of, &path, unread)?));
    }
    Ok(TrafficPolicy {
        balancer: of
            .load_balancer
            .map(|of| balancer(of, &path.clone().key("loadBalancer"), unread))
            .transpose()?,
        outlier: of
            .outlier_detection
            .map(|of| outlier(of, &path.clone().key("outlierDetection"), unread))
            .transpose()?,
        pool: of
            .connection_pool
            .map(|of| pool(of, &path.clone().key("connectionPool"), unread))
            .transpose()?,
        ports,
    })
}

fn balancer(of: BalancerObject, path: &FieldPath, unread: &mut Unread) -> Result<Balancer, FieldError> {
    unread.note("loadBalancer.localityLbSetting", of.locality_lb_setting.is_some());
    unread.note("loadBalancer.warmup", of.warmup.is_some() || of.warmup_duration_secs.is_some());
    match (of.simple.as_deref(), of.consistent_hash) {
        (Some(_), Some(_)) => Err(FieldError::new(path.clone(), "has simple and consistentHash; keep one")),
        (None, Some(hash)) => Ok(Balancer::Hash(hash_on(hash, &path.clone().key("consistentHash"))?)),
        (None | Some("UNSPECIFIED" | "LEAST_REQUEST" | "LEAST_CONN"), None) => Ok(Balancer::LeastRequest),
        (Some("ROUND_ROBIN"), None) => Ok(Balancer::RoundRobin),
        (Some("RANDOM"), None) => Ok(Balancer::Random),
        (Some("PASSTHROUGH"), None) => {
            unread.note("loadBalancer.simple: PASSTHROUGH", true);
            Ok(Balancer::LeastRequest)
        }
        (Some(other), None) => {
            let problem = format!("{other:?} is not ROUND_ROBIN, LEAST_REQUEST, RANDOM or PASSTHROUGH");
            Err(FieldError::new(path.clone().key("simple"), problem))
        }
    }
}

fn hash_on(of: HashObject, path: &FieldPath) -> Result<HashOn, FieldError> {
    let source = of.use_source_ip == Some(true);
    match (of.http_header_name, of.http_query_parameter_name, of.http_cookie, source) {
        (Some(name), None, None, false) if !name.is_empty() => Ok(HashOn::Header(name.to_ascii_lowercase())),
        (None, Some(name), None, false) if !name.is_empty() => Ok(HashOn::Query(name)),
        (None, None, None, true) => Ok(HashOn::Source),
        (None, None, Some(cookie), false) if !cookie.name.is_empty() => {
            let ttl = cookie.ttl.map(|text| duration(&text, || path.clone().key("httpCookie").key("ttl")));
            Ok(HashOn::Cookie { name: cookie.name, path: cookie.path, ttl: ttl.transpose()? })
        }
        _ => {
            let problem = "needs one of httpHeaderName, httpQueryParameterName, httpCookie and useSourceIp";
            Err(FieldError::new(path.clone(), problem))
        }
    }
}

fn outlier(of: OutlierObject, path: &FieldPath, unread: &mut Unread) -> Result<Outlier, FieldError> {
    let local =
        of.split_external_local_origin_errors.is_some() || of.consecutive_local_origin_failures.is_some();
    unread.note("outlierDetection of local origin failures", local);
    let default = Outlier::default();
    let time = |text: Option<String>, field: &str, default: Duration| {
        text.map_or(Ok(default), |text| positive(&text, || path.clone().key(field)))
    };
    let percent = |value: Option<u32>, field: &str, default: u32| match value.unwrap_or(default) {
        value @ 0..=100 => Ok(value),
        value => Err(FieldError::new(path.clone().key(field), format!("{value} is no percentage"))),
    };
    Ok(Outlier {
        server_errors: of.consecutive_5xx_errors.or(of.consecutive_errors).unwrap_or(default.server_errors),
        gateway_errors: of.consecutive_gateway_errors.unwrap_or(default.gateway_errors),
        interval: time(of.interval, "interval", default.interval)?,
        base: time(of.base_ejection_time, "baseEjectionTime", default.base)?,
        max_percent: percent(of.max_ejection_percent, "maxEjectionPercent", default.max_percent)?,
        min_health: percent(of.min_health_percent, "minHealthPercent", default.min_health)?,
    })
}

fn pool(of: PoolObject, path: &FieldPath, unread: &mut Unread) -> Result<ConnectionPool, FieldError> {
    let (tcp, http) = (of.tcp.unwrap_or_default(), of.http.unwrap_or_default());
    for (field, there) in [
        ("connectionPool.tcp.tcpKeepalive", tcp.tcp_keepalive.is_some()),
        ("connectionPool.tcp.maxConnectionDuration", tcp.max_connection_duration.is_some()),
        ("connectionPool.tcp.idleTimeout", tcp.idle_timeout.is_some()),
        ("connectionPool.tcp.maxConnections", tcp.max_connections.is_some()),
        ("connectionPool.http.http1MaxPendingRequests", http.http1_max_pending_requests.is_some()),
        ("connectionPool.http.maxRequestsPerConnection", http.max_requests_per_connection.is_some()),
        ("connectionPool.http.idleTimeout", http.idle_timeout.is_some()),
        ("connectionPool.http.h2UpgradePolicy", http.h2_upgrade_policy.is_some()),
        ("connectionPool.http.useClientProtocol", http.use_client_protocol.is_some()),
        ("connectionPool.http.maxConcurrentStreams", http.max_concurrent_streams.is_some()),
    ] {
        unread.note(field, there);
    }
    let timeout =
        tcp.connect_timeout.map(|text| positive(&text, || path.clone().key("tcp").key("connectTimeout")));
    // 0 is the default, which is unlimited.
    let limit = |limit: Option<u32>| limit.filter(|limit| *limit > 0);
    Ok(ConnectionPool {
        connect_timeout: timeout.transpose()?,
        max_requests: limit(http.http2_max_requests),
        max_retries: limit(http.max_retries),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn everything_the_waypoint_reads_is_carried_over() {
        let rule = rule(json!({
            "host": "Reviews",
            "exportTo": ["."],
            "trafficPolicy": {
                "loadBalancer": {"simple": "ROUND_ROBIN"},
                "outlierDetection": {"consecutive5xxErrors": 3, "interval": "1s", "maxEjectionPercent": 50},
                "connectionPool": {"http": {"http2MaxRequests": 7, "maxRetries": 0}, "tcp": {"connectTimeout": "2s"}},
                "portLevelSettings": [{"port": {"number": 80}, "loadBalancer": {"simple": "RANDOM"}}],
                "tls": {"mode": "ISTIO_MUTUAL"},
            },
            "subsets": [{"name": "v2", "labels": {"version": "v2"}, "trafficPolicy": {
                "loadBalancer": {"consistentHash": {"httpCookie": {"name": "user", "ttl": "0s"}}},
            }}],
        }))
        .unwrap();
        assert_eq!((rule.host.as_str(), rule.unread), ("reviews", vec!["trafficPolicy.tls".to_owned()]));
        assert_eq!(rule.policy.balancer, Some(Balancer::RoundRobin));
        let outlier = rule.policy.outlier.unwrap();
        assert_eq!((outlier.server_errors, outlier.max_percent), (3, 50));
        assert_eq!((outlier.interval, outlier.base), (Duration::from_secs(1), Duration::from_secs(30)));
        let pool = rule.policy.pool.unwrap();
        assert_eq!((pool.max_requests, pool.max_retries), (Some(7), None));
        assert_eq!(rule.policy.ports[0].1.balancer, Some(Balancer::Random));
        let cookie = HashOn::Cookie { name: "user".to_owned(), path: None, ttl: Some(Duration::ZERO) };
        assert_eq!(rule.subsets[0].policy.balancer, Some(Balancer::Hash(cookie)));
    }

    #[test]
    fn mistakes_are_told_with_their_field() {
        for (spec, path) in [
            (json!({"host": ""}), "spec.host"),
            (json!({"host": "a", "subsets": [{}]}), "spec.subsets[0].name"),
            (
                json!({"host": "a", "trafficPolicy": {"loadBalancer": {"simple": "BEST"}}}),
                "spec.trafficPolicy.loadBalancer.simple",
            ),
            (
                json!({"host": "a", "trafficPolicy": {"outlierDetection": {"interval": "fast"}}}),
                "spec.trafficPolicy.outlierDetection.interval",
            ),
            (
                json!({"host": "a", "trafficPolicy": {"loadBalancer": {"consistentHash": {}}}}),
                "spec.trafficPolicy.loadBalancer.consistentHash",
            ),
            (
                json!({"host": "a", "trafficPolicy": {"portLevelSettings": [{}]}}),
                "spec.trafficPolicy.portLevelSettings[0].port.number",
            ),
        ] {
            assert_eq!(rule(spec).unwrap_err().path.to_string(), path);
        }
    }

    fn rule(spec: Value) -> Result<DestinationRule, FieldError> {
        let object = json!({"metadata": {"name": "r", "namespace": "shop"}, "spec": spec});
        convert(serde_json::from_value(object).unwrap())
    }
}
