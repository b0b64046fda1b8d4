mod balancer;
mod locality;
mod outlier;
mod pool;
mod tls;

use std::collections::BTreeMap;
use std::iter::once;

use orlop_model::NamespacedName;
use orlop_model::http::{MAX_PORT_SETTINGS, MAX_SUBSETS};
use orlop_model::world::routing::{
    Balancer, DestinationRule, ProxyVersion, RetryBudget, ServerTls, Subset, TrafficPolicy,
};
use serde::Deserialize;
use serde_json::{Value, json};

use self::balancer::BalancerObject;
use self::outlier::OutlierObject;
use self::pool::PoolObject;
use self::tls::TlsObject;
use crate::field::{FieldError, FieldPath, Ignored, port};
use crate::metadata::namespaced;
use crate::read::Metadata;
use crate::selector::{self, Selector};
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
    /// The clients that this is for, of its own namespace. All, of any namespace, if left out.
    workload_selector: Option<Selector>,
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
    /// By what its servers are reached, beyond the mesh's own mutual TLS.
    tls: Option<TlsObject>,
    /// Has no effect.
    tunnel: Option<Ignored>,
    /// Has each connection begin by telling who its client is.
    proxy_protocol: Option<ProxyObject>,
    /// How many of the requests at one time may be retries.
    retry_budget: Option<BudgetObject>,
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
    /// By what its servers are reached, beyond the mesh's own mutual TLS.
    tls: Option<TlsObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct ProxyObject {
    /// V1 (if left out) or V2.
    version: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct BudgetObject {
    /// Of the requests, so many may be retries: 20 if left out.
    percent: Option<f64>,
    /// So many always may: 3 if left out.
    min_retry_concurrency: Option<u32>,
    /// Has no effect: those requests count that are under way.
    budget_interval: Option<Ignored>,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct PortObject {
    /// The number of the port.
    number: i32,
}

/// Converts a DestinationRule.
pub(crate) fn convert(object: Object) -> Result<DestinationRule, FieldError> {
    let name = namespaced(&object.metadata)?;
    let spec = object.spec;
    let default = balancer::default_of(&object.metadata)?;
    let mut unread = Unread { namespace: name.namespace.to_string(), default, ..Unread::default() };
    let of = spec.traffic_policy.unwrap_or_default();
    let mut policy = policy(of, &"spec.trafficPolicy".into(), &mut unread)?;
    policy.balancer = policy.balancer.or_else(|| unread.default.clone());
    if spec.subsets.len() > MAX_SUBSETS {
        let many = format!("are {}; a service has at most {MAX_SUBSETS}", spec.subsets.len());
        return Err(FieldError::new("spec.subsets", many));
    }
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
        selector: spec
            .workload_selector
            .map(|of| selector::convert_at(Some(of), &at_selector()))
            .transpose()?,
        policy,
        subsets,
        unread: unread.fields,
        name,
    })
}

fn at_selector() -> FieldPath {
    "spec.workloadSelector".into()
}

/// In place of one that can't be understood and was never good: if it wants TLS, nothing goes there in clear of those that
/// it is for. What can't be read of whom it selects may be anybody of its namespace.
pub(crate) fn stand_in(name: &NamespacedName, spec: &Value) -> Option<DestinationRule> {
    let policies = once(spec).chain(spec["subsets"].as_array().into_iter().flatten());
    let policies = policies.map(|of| &of["trafficPolicy"]);
    let ports = |policy: &'_ Value| policy["portLevelSettings"].as_array().cloned().unwrap_or_default();
    let wants_tls = |policy: &Value| match &policy["tls"] {
        Value::Null => false,
        tls => tls.get("mode").is_some_and(|mode| mode != "DISABLE"),
    };
    let wanted = policies.into_iter().any(|of| wants_tls(of) || ports(of).iter().any(wants_tls));
    let host = any_host(spec["host"].as_str()?, || "spec.host".into()).ok()?;
    let why = "tls: the DestinationRule can't be understood".to_owned();
    let policy = TrafficPolicy { tls: Some(ServerTls::Unavailable(why)), ..TrafficPolicy::default() };
    let selector = spec.get("workloadSelector").filter(|selector| !selector.is_null()).map(|selector| {
        let labels = json!({"matchLabels": selector.get("matchLabels")});
        let labels =
            serde_json::from_value(labels).ok().map(|of| selector::convert_at(Some(of), &at_selector()));
        labels.and_then(Result::ok).unwrap_or_default()
    });
    let named = serde_json::from_value(spec["exportTo"].clone()).unwrap_or_default();
    let exports = exports(named, &name.namespace).unwrap_or_default();
    let name = name.clone();
    wanted.then(|| DestinationRule { name, host, exports, selector, policy, ..DestinationRule::default() })
}

/// What is known, and what is noticed, on the way.
#[derive(Default)]
struct Unread {
    /// Of the rule.
    namespace: String,
    /// The balancer where LEAST_REQUEST would be, or nothing is said.
    default: Option<Balancer>,
    /// Fields that have no effect, each once.
    fields: Vec<String>,
}

impl Unread {
    fn note(&mut self, field: &str, there: bool) {
        if there && !self.fields.iter().any(|known| known == field) {
            self.fields.push(field.to_owned());
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
    unread.note("trafficPolicy.tunnel", of.tunnel.is_some());
    if of.port_level_settings.len() > MAX_PORT_SETTINGS {
        let many = format!("are {}; there may be {MAX_PORT_SETTINGS}", of.port_level_settings.len());
        return Err(FieldError::new(path.clone().key("portLevelSettings"), many));
    }
    let mut ports = Vec::new();
    for (index, level) in of.port_level_settings.into_iter().enumerate() {
        let path = path.clone().key("portLevelSettings").index(index);
        let number = level.port.map_or(0, |port| port.number);
        let number = port(number, || path.clone().key("port").key("number"))?;
        let of = PolicyObject {
            load_balancer: level.load_balancer,
            outlier_detection: level.outlier_detection,
            connection_pool: level.connection_pool,
            tls: level.tls,
            ..PolicyObject::default()
        };
        ports.push((number, policy(of, &path, unread)?));
    }
    let balancing = of.load_balancer.map(|of| of.convert(&path.clone().key("loadBalancer"), unread));
    let balancing = balancing.transpose()?.unwrap_or_default();
    let outlier = of.outlier_detection.map(|of| of.convert(&path.clone().key("outlierDetection")));
    let pool = of.connection_pool.map(|of| of.convert(&path.clone().key("connectionPool")));
    let tls = of.tls.map(|of| of.convert(&unread.namespace, &path.clone().key("tls")));
    let budget = of.retry_budget.map(|of| of.convert(&path.clone().key("retryBudget"), unread));
    let proxy = of.proxy_protocol.map(|of| of.convert(&path.clone().key("proxyProtocol")));
    Ok(TrafficPolicy {
        balancer: balancing.balancer,
        warmup: balancing.warmup,
        locality: balancing.locality,
        outlier: outlier.transpose()?,
        pool: pool.transpose()?,
        tls: tls.transpose()?,
        retry_budget: budget.transpose()?,
        proxy_protocol: proxy.transpose()?,
        ports,
    })
}

impl ProxyObject {
    fn convert(self, path: &FieldPath) -> Result<ProxyVersion, FieldError> {
        match self.version.as_deref() {
            None | Some("V1") => Ok(ProxyVersion::V1),
            Some("V2") => Ok(ProxyVersion::V2),
            Some(other) => {
                Err(FieldError::new(path.clone().key("version"), format!("{other:?} is not V1 or V2")))
            }
        }
    }
}

impl BudgetObject {
    fn convert(self, path: &FieldPath, unread: &mut Unread) -> Result<RetryBudget, FieldError> {
        unread.note("retryBudget.budgetInterval", self.budget_interval.is_some());
        let default = RetryBudget::default();
        let percent = self.percent.map_or(Ok(default.thousandths), |percent| {
            thousandths(percent, 100.0, || path.clone().key("percent"))
        });
        let at_least = self.min_retry_concurrency.unwrap_or(default.at_least);
        Ok(RetryBudget { thousandths: percent?, at_least })
    }
}

/// A number from 0 to `most`, in thousandths.
fn thousandths(number: f64, most: f64, path: impl FnOnce() -> FieldPath) -> Result<u32, FieldError> {
    if (0.0..=most).contains(&number) {
        return Ok((number * 1000.0).round() as u32);
    }
    Err(FieldError::new(path(), format!("{number} is not from 0 to {most}")))
}

#[cfg(test)]
mod tests;
