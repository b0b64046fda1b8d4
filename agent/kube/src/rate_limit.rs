use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use orlop_model::NamespacedName;
use orlop_model::world::{Counting, KeyPart, Limit, Rate, RateLimit, Shared, Unit};
use serde::Deserialize;

use crate::authorization_policy::{self, RuleObject};
use crate::duration;
use crate::field::{self, FieldError, FieldPath, NotNull};
use crate::metadata::{label, namespaced, subdomain};
use crate::target::{TargetObject, targets};
use crate::written::Written;

/// How long who counts for all may take to answer.
const TIMEOUT: Duration = Duration::from_secs(1);
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// An `orlop.dev` RateLimit.
pub(crate) type Object = Written<SpecObject>;

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct SpecObject {
    /// What it is for, if it is one thing; see targetRefs.
    target_ref: NotNull<TargetObject>,
    /// The Services, ServiceEntries, Gateways or GatewayClass whose requests are counted, by waypoints.
    target_refs: NotNull<Vec<TargetObject>>,
    /// All of those that a request counts for must let it pass.
    limits: NotNull<Vec<LimitObject>>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct LimitObject {
    /// What clients and logs see; the RateLimit's own name by default.
    name: NotNull<String>,
    /// How many there may be in a unit of time.
    requests: Option<u32>,
    /// The unit of time: second, minute, hour or day.
    unit: Option<String>,
    /// How many may come at once; as many as in a unit of time by default.
    burst: NotNull<u32>,
    /// Requests that differ in one of these are counted apart: source.principal, source.namespace,
    /// source.serviceAccount, source.ip, remote.ip, destination.service, request.host, request.method, request.path,
    /// request.headers[NAME], request.auth.principal, request.auth.claims[NAME].
    by: NotNull<Vec<String>>,
    /// Which requests count: those that one of these rules matches; all by default.
    #[serde(rename = "match")]
    matches: NotNull<Vec<RuleObject>>,
    /// A service that counts for all that ask it; requests and unit are in place of what it has itself.
    shared: NotNull<SharedObject>,
}

// It speaks envoy.service.ratelimit.v3.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SharedObject {
    /// The host of a service, or NAMESPACE/HOST.
    service: Option<String>,
    /// The port of the service.
    port: Option<i32>,
    /// Under which the service has its limits.
    domain: Option<String>,
    /// What the service calls what by names, in the same order; the same by default.
    keys: NotNull<Vec<String>>,
    /// How long an answer may take; 1s by default.
    timeout: NotNull<String>,
    /// Whether requests pass while it is away. By default they are refused.
    fail_open: NotNull<bool>,
}

/// Converts a RateLimit.
pub(crate) fn convert(object: Object) -> Result<RateLimit, FieldError> {
    let name = namespaced(&object.metadata)?;
    let spec = object.spec.0.unwrap_or_default();
    let targets = targets(spec.target_refs, spec.target_ref, &name.namespace)?;
    if targets.is_empty() {
        let problem = "is missing; name the Services, ServiceEntries or the Gateway that it is for";
        return Err(FieldError::new("spec.targetRefs", problem));
    }
    let written = spec.limits.0.unwrap_or_default();
    if written.is_empty() {
        return Err(FieldError::new("spec.limits", "is missing; say how many requests there may be"));
    }
    let several = written.len() > 1;
    let mut limits = Vec::with_capacity(written.len());
    let mut names = BTreeSet::new();
    for (index, of) in written.into_iter().enumerate() {
        let path = FieldPath::from("spec.limits").index(index);
        let default = if several { format!("{}-{index}", name.name) } else { name.name.to_string() };
        let limit = limit(of, &name, default, &path)?;
        if !names.insert(limit.name.clone()) {
            let problem = format!("{:?} is the name of another limit as well", limit.name);
            return Err(FieldError::new(path.key("name"), problem));
        }
        limits.push(Arc::new(limit));
    }
    Ok(RateLimit { name, targets, limits, unreadable: false })
}

fn limit(
    of: LimitObject,
    resource: &NamespacedName,
    default_name: String,
    path: &FieldPath,
) -> Result<Limit, FieldError> {
    let at = |key: &str| path.clone().key(key);
    let name = of.name.0.unwrap_or(default_name);
    // It goes into headers.
    subdomain(&name, "").map_err(|error| FieldError::new(at("name"), error.problem))?;
    let by = of.by.0.unwrap_or_default().into_iter().enumerate();
    let by = by.map(|(index, text)| key_part(&text, || at("by").index(index)));
    let by = by.collect::<Result<Vec<_>, _>>()?;
    let counting = match of.shared.0 {
        None => {
            let requests = positive(of.requests, at("requests"))?;
            Counting::Local(rate(requests, of.unit.as_deref(), of.burst.0, path)?)
        }
        Some(_) if of.burst.0.is_some() => {
            return Err(FieldError::new(at("burst"), "is not for shared limits: who counts goes by windows"));
        }
        Some(shared) => {
            let rate = match (of.requests, of.unit.as_deref()) {
                // As the service has it.
                (None, None) => None,
                (requests, unit) => Some(rate(positive(requests, at("requests"))?, unit, None, path)?),
            };
            Counting::Shared(shared_by(shared, rate, by.len(), &resource.namespace, &at("shared"))?)
        }
    };
    let matches = authorization_policy::rules(of.matches, &resource.namespace, at("match"))?;
    Ok(Limit { name, counting, by, matches })
}

fn shared_by(
    of: SharedObject,
    rate: Option<Rate>,
    parts: usize,
    own_namespace: &str,
    path: &FieldPath,
) -> Result<Shared, FieldError> {
    let at = |key: &str| path.clone().key(key);
    let service = of.service.unwrap_or_default();
    let (namespace, host) = service.split_once('/').unwrap_or((own_namespace, &service));
    label(namespace, "").map_err(|error| FieldError::new(at("service"), error.problem))?;
    let domain = of.domain.filter(|domain| !domain.is_empty());
    let domain = domain
        .ok_or_else(|| FieldError::new(at("domain"), "is missing; the service has its limits under one"))?;
    let keys = of.keys.0.unwrap_or_default();
    if !keys.is_empty() && (keys.len() != parts || keys.iter().any(String::is_empty)) {
        let problem = format!("must be a name for each of the {parts} that `by` has");
        return Err(FieldError::new(at("keys"), problem));
    }
    let timeout = match of.timeout.0 {
        Some(text) => duration::positive(&text, || at("timeout"))?.min(MAX_TIMEOUT),
        None => TIMEOUT,
    };
    Ok(Shared {
        host: field::host(host, || at("service"))?,
        namespace: namespace.to_owned(),
        port: field::port(of.port.unwrap_or_default(), || at("port"))?,
        domain,
        keys,
        timeout,
        fail_open: of.fail_open.0.unwrap_or_default(),
        rate,
    })
}

fn rate(
    requests: NonZeroU32,
    unit: Option<&str>,
    burst: Option<u32>,
    path: &FieldPath,
) -> Result<Rate, FieldError> {
    let at = |key: &str| path.clone().key(key);
    let unit = match unit {
        Some("second") => Unit::Second,
        Some("minute") => Unit::Minute,
        Some("hour") => Unit::Hour,
        Some("day") => Unit::Day,
        other => {
            let problem = other.map_or_else(|| "is missing".to_owned(), |other| format!("{other:?} is none"));
            let problem = format!("{problem}; write second, minute, hour or day");
            return Err(FieldError::new(at("unit"), problem));
        }
    };
    let burst = match burst {
        Some(burst) => positive(Some(burst), at("burst"))?,
        // Whoever writes a hundred a minute takes it that a hundred may come at once.
        None => requests,
    };
    Rate::new(requests, unit, burst).map_err(|error| FieldError::new(at("requests"), error.to_string()))
}

fn positive(number: Option<u32>, path: FieldPath) -> Result<NonZeroU32, FieldError> {
    number.and_then(NonZeroU32::new).ok_or_else(|| {
        FieldError::new(path, "must be at least 1; to let nobody in write an AuthorizationPolicy")
    })
}

/// Named as AuthorizationPolicies do in `when`.
fn key_part(text: &str, path: impl Fn() -> FieldPath) -> Result<KeyPart, FieldError> {
    Ok(match text {
        "source.principal" => KeyPart::Principal,
        "source.namespace" => KeyPart::Namespace,
        "source.serviceAccount" => KeyPart::ServiceAccount,
        "source.ip" => KeyPart::Address,
        "remote.ip" => KeyPart::Remote,
        "destination.service" => KeyPart::Service,
        "request.host" => KeyPart::Host,
        "request.method" => KeyPart::Method,
        "request.path" => KeyPart::Path,
        "request.auth.principal" => KeyPart::RequestPrincipal,
        other => match authorization_policy::claim(other) {
            Some(names) => KeyPart::Claim(names),
            None => match authorization_policy::header_seen(other) {
                Some(name) => KeyPart::Header(name),
                None => {
                    let problem = format!(
                        "{text:?} is nothing to count by; write source.principal, source.namespace, \
                         source.serviceAccount, source.ip, remote.ip, destination.service, request.host, \
                         request.method, request.path, request.headers[NAME], request.auth.principal or request.auth.claims[NAME]"
                    );
                    return Err(FieldError::new(path(), problem));
                }
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use orlop_model::world::security::Target;
    use serde_json::{Value, json};

    use super::*;
    use crate::object::{Kind, Object, Source};

    fn read(spec: Value) -> Result<RateLimit, FieldError> {
        let object = json!({
            "apiVersion": "orlop.dev/v1alpha1", "kind": "RateLimit",
            "metadata": {"name": "web", "namespace": "shop"}, "spec": spec,
        });
        match Kind::RateLimit.convert(object, Source::Cluster)? {
            Object::RateLimit(found) => Ok(Arc::unwrap_or_clone(found)),
            other => panic!("{other:?}"),
        }
    }

    fn of(limits: Value) -> Result<RateLimit, FieldError> {
        read(json!({"targetRefs": [{"kind": "Service", "group": "", "name": "web"}], "limits": limits}))
    }

    fn number(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    #[test]
    fn every_field_is_carried_over() {
        let found = of(json!([{
            "name": "logins", "requests": 5, "unit": "minute", "burst": 2,
            "by": [
                "source.principal", "source.namespace", "source.serviceAccount", "source.ip", "remote.ip",
                "destination.service", "request.host", "request.method", "request.path", "request.headers[X-Tenant]",
                "request.auth.principal", "request.auth.claims[team][name]",
            ],
            "match": [{"to": [{"operation": {"methods": ["POST"], "paths": ["/login"]}}]}],
        }]))
        .unwrap();
        assert_eq!(found.targets, [Target::Service("web".into())]);
        let limit = &found.limits[0];
        assert_eq!(limit.name, "logins");
        assert_eq!(limit.rate(), Some(Rate::new(number(5), Unit::Minute, number(2)).unwrap()));
        let by = [
            KeyPart::Principal,
            KeyPart::Namespace,
            KeyPart::ServiceAccount,
            KeyPart::Address,
            KeyPart::Remote,
            KeyPart::Service,
            KeyPart::Host,
            KeyPart::Method,
            KeyPart::Path,
            KeyPart::Header("x-tenant".into()),
            KeyPart::RequestPrincipal,
            KeyPart::Claim(vec!["team".into(), "name".into()]),
        ];
        assert_eq!(limit.by, by);
        assert_eq!(limit.matches[0].to[0].methods.values.len(), 1);
    }

    #[test]
    fn a_limit_needs_no_name_and_its_burst_is_what_may_come_in_a_unit() {
        let found = of(json!([{"requests": 9, "unit": "hour"}])).unwrap();
        let limit = &found.limits[0];
        assert_eq!((&*limit.name, limit.rate().unwrap().burst(), limit.by.len()), ("web", 9, 0));
        let several = json!([{"requests": 9, "unit": "hour"}, {"requests": 1, "unit": "day"}]);
        let names: Vec<_> = of(several).unwrap().limits.iter().map(|limit| limit.name.clone()).collect();
        assert_eq!(names, ["web-0", "web-1"]);
    }

    #[test]
    fn who_counts_for_all_has_limits_of_its_own() {
        let shared = json!({"service": "limits.infra.svc.cluster.local", "port": 8081, "domain": "shop"});
        let found = of(json!([{"shared": shared, "by": ["source.ip"]}])).unwrap();
        let mut wanted = Shared {
            host: "limits.infra.svc.cluster.local".into(),
            namespace: "shop".into(),
            port: 8081,
            domain: "shop".into(),
            keys: Vec::new(),
            timeout: TIMEOUT,
            fail_open: false,
            rate: None,
        };
        assert_eq!(found.limits[0].counting, Counting::Shared(wanted.clone()));
        let shared = json!({
            "service": "infra/limits.infra.svc.cluster.local", "port": 8081, "domain": "shop", "timeout": "250ms",
            "failOpen": true,
        });
        let found = of(json!([{"shared": shared, "requests": 5, "unit": "hour"}])).unwrap();
        wanted.namespace = "infra".into();
        (wanted.timeout, wanted.fail_open) = (Duration::from_millis(250), true);
        wanted.rate = Some(Rate::new(number(5), Unit::Hour, number(5)).unwrap());
        assert_eq!(found.limits[0].counting, Counting::Shared(wanted));
        for (limit, path) in [
            (json!({"shared": shared, "burst": 1}), "burst"),
            (json!({"shared": shared, "requests": 1}), "unit"),
            (json!({"shared": shared, "unit": "day"}), "requests"),
            (json!({"shared": {"service": "a", "port": 1}}), "shared.domain"),
            (json!({"shared": {"service": "a", "domain": "x"}}), "shared.port"),
            (json!({"shared": {"port": 1, "domain": "x"}}), "shared.service"),
            (json!({"shared": {"service": "a", "port": 1, "domain": "x", "keys": ["a"]}}), "shared.keys"),
        ] {
            let error = of(json!([limit])).unwrap_err();
            assert_eq!(error.path.to_string(), format!("spec.limits[0].{path}"), "{limit}: {error}");
        }
    }

    #[test]
    fn what_says_nothing_or_something_else_is_an_error() {
        let whole = json!({"requests": 1, "unit": "second"});
        for (change, path) in [
            (json!({"requests": 0}), "requests"),
            (json!({"requests": null}), "requests"),
            (json!({"requests": 1_000_001}), "requests"),
            (json!({"requests": 1, "unit": "day", "burst": 1000}), "requests"),
            (json!({"unit": "month"}), "unit"),
            (json!({"unit": null}), "unit"),
            (json!({"burst": 0}), "burst"),
            (json!({"burst": null}), "burst"),
            (json!({"name": "a b"}), "name"),
            (json!({"by": ["source"]}), "by[0]"),
            (json!({"by": ["request.headers[]"]}), "by[0]"),
            (json!({"by": ["request.headers[x-forwarded-client-cert]"]}), "by[0]"),
            (json!({"match": []}), "match"),
            (json!({"match": [{"to": [{"operation": {}}]}]}), "match[0].to[0].operation"),
            (json!({"per": "minute"}), "per"),
        ] {
            let mut limit = whole.clone();
            for (key, value) in change.as_object().unwrap() {
                limit[key] = value.clone();
            }
            let error = of(json!([limit])).unwrap_err();
            assert_eq!(error.path.to_string(), format!("spec.limits[0].{path}"), "{change}: {error}");
        }
        assert_eq!(of(json!([])).unwrap_err().path.to_string(), "spec.limits");
        let twice =
            json!([{"name": "a", "requests": 1, "unit": "day"}, {"name": "a", "requests": 1, "unit": "day"}]);
        assert_eq!(of(twice).unwrap_err().path.to_string(), "spec.limits[1].name");
        let nobody = json!({"limits": [whole]});
        assert_eq!(read(nobody).unwrap_err().path.to_string(), "spec.targetRefs");
    }
}
