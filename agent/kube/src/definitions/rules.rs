//! What an API server refuses at once, though the types alone would have it in. Istio's definitions refuse the same,
//! and more.

use serde_json::{Value, json};

use crate::object::Kind;

/// Something that is added to the schema of a field.
pub(super) struct Rule {
    /// Keys, parted by dots, `[]` for what is in a list, and `{}` for what is in a map.
    path: &'static str,
    what: Value,
}

/// Those of a kind.
pub(super) fn of(kind: Kind) -> Vec<Rule> {
    match kind {
        Kind::AuthorizationPolicy => authorization_policy(),
        Kind::PeerAuthentication => peer_authentication(),
        Kind::RequestAuthentication => request_authentication(),
        Kind::VirtualService => virtual_service(),
        Kind::DestinationRule => destination_rule(),
        Kind::ServiceEntry => service_entry(),
        Kind::WorkloadEntry => workload_entry(),
        Kind::ExtensionProvider => extension_provider(),
        Kind::RateLimit => rate_limit(),
        Kind::Telemetry => telemetry(),
        _ => Vec::new(),
    }
}

impl Rule {
    /// Adds it, beside what there is.
    pub fn add_to(self, schema: &mut Value) {
        let pointer = self.path.replace("[]", ".[]").replace("{}", ".{}");
        let field = pointer.split('.').fold(schema, |schema, key| match key {
            "[]" => &mut schema["items"],
            "{}" => &mut schema["additionalProperties"],
            key => &mut schema["properties"][key],
        });
        let (Value::Object(field), Value::Object(what)) = (field, self.what) else {
            panic!("{} is not there", self.path)
        };
        field.extend(what);
    }
}

fn rule(path: &'static str, what: Value) -> Rule {
    Rule { path, what }
}

/// A rule in CEL, and what to change.
fn cel(path: &'static str, expression: &str, message: &str) -> Rule {
    rule(path, json!({"x-kubernetes-validations": [{"rule": expression, "message": message}]}))
}

fn required(path: &'static str, fields: &[&str]) -> Rule {
    rule(path, json!({"required": fields}))
}

fn one_of(path: &'static str, values: &[&str]) -> Rule {
    rule(path, json!({"enum": values}))
}

fn duration(path: &'static str, least: &str) -> Rule {
    let message = format!("must be a duration of at least {least}, such as 5s, 1m30s or 25ms");
    cel(path, &format!("duration(self) >= duration('{least}')"), &message)
}

/// The same as far as a pattern can say it: of expressions an API server takes only so many.
fn like_a_duration(path: &'static str) -> Rule {
    rule(path, json!({"pattern": r"^([0-9]+(\.[0-9]+)?(h|m|s|ms|us|µs|ns))+$"}))
}

/// One kind of target alone.
fn targets() -> [Rule; 3] {
    [
        cel(
            "spec",
            "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1",
            "selector, targetRef and targetRefs can't be together; keep one of them",
        ),
        required("spec.targetRef", &["kind", "name"]),
        required("spec.targetRefs[]", &["kind", "name"]),
    ]
}

fn authorization_policy() -> Vec<Rule> {
    let accounts = "!(has(self.serviceAccounts) || has(self.notServiceAccounts)) || \
                    !(has(self.principals) || has(self.notPrincipals) || has(self.namespaces) || has(self.notNamespaces))";
    let mut rules = vec![
        one_of("spec.action", &["ALLOW", "DENY", "AUDIT", "CUSTOM"]),
        rule("spec.rules", json!({"maxItems": 512})),
        rule("spec.rules[].from", json!({"maxItems": 512})),
        cel(
            "spec.rules[].from[].source",
            accounts,
            "serviceAccounts can't be together with principals or namespaces; write them in an entry of their own",
        ),
        required("spec.rules[].when[]", &["key"]),
    ];
    rules.extend(targets());
    rules
}

fn peer_authentication() -> Vec<Rule> {
    const MODES: &[&str] = &["UNSET", "DISABLE", "PERMISSIVE", "STRICT"];
    vec![
        cel(
            "spec",
            "!has(self.portLevelMtls) || \
             (has(self.selector) && has(self.selector.matchLabels) && self.selector.matchLabels.size() > 0)",
            "portLevelMtls only counts with a selector; name the workload's labels in selector.matchLabels",
        ),
        one_of("spec.mtls.mode", MODES),
        one_of("spec.portLevelMtls{}.mode", MODES),
        cel(
            "spec.portLevelMtls",
            "self.all(port, 0 < int(port) && int(port) <= 65535)",
            "each key is a port of the workload, from 1 to 65535",
        ),
    ]
}

fn request_authentication() -> Vec<Rule> {
    let mut rules = vec![
        rule("spec.jwtRules", json!({"maxItems": 4096})),
        cel(
            "spec.jwtRules[]",
            "!(has(self.jwks) && has(self.jwksUri))",
            "jwks and jwksUri can't be together; keep one of them",
        ),
        rule("spec.jwtRules[].issuer", json!({"minLength": 1})),
        rule("spec.jwtRules[].jwksUri", json!({"maxLength": 2048})),
        cel(
            "spec.jwtRules[].jwksUri",
            "url(self).getScheme() in ['http', 'https']",
            "write it as https://HOST/PATH or http://HOST/PATH",
        ),
        required("spec.jwtRules[].fromHeaders[]", &["name"]),
        required("spec.jwtRules[].outputClaimToHeaders[]", &["header", "claim"]),
        duration("spec.jwtRules[].timeout", "1ms"),
    ];
    rules.extend(targets());
    rules
}

fn virtual_service() -> Vec<Rule> {
    vec![
        required("spec.http[].route[]", &["destination"]),
        required("spec.http[].route[].destination", &["host"]),
        required("spec.tls[]", &["match", "route"]),
        required("spec.tls[].match[]", &["sniHosts"]),
        required("spec.tls[].route[]", &["destination"]),
        required("spec.tls[].route[].destination", &["host"]),
        required("spec.tcp[].route[]", &["destination"]),
        required("spec.tcp[].route[].destination", &["host"]),
        required("spec.http[].mirror", &["host"]),
        required("spec.http[].mirrors[]", &["destination"]),
        required("spec.http[].mirrors[].destination", &["host"]),
        one_of("spec.http[].redirect.derivePort", &["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"]),
        // None at all may be written so.
        duration("spec.http[].timeout", "0s"),
        duration("spec.http[].retries.perTryTimeout", "1ms"),
        duration("spec.http[].retries.backoff", "1ms"),
        duration("spec.http[].fault.delay.fixedDelay", "1ms"),
        duration("spec.http[].corsPolicy.maxAge", "1ms"),
    ]
}

/// Of a traffic policy, at these paths.
macro_rules! of_policy {
    ($($policy:literal),*) => {
        [$(
            one_of(
                concat!($policy, ".loadBalancer.simple"),
                &["UNSPECIFIED", "LEAST_CONN", "LEAST_REQUEST", "ROUND_ROBIN", "RANDOM", "PASSTHROUGH"],
            ),
            cel(
                concat!($policy, ".loadBalancer"),
                "!(has(self.simple) && has(self.consistentHash))",
                "simple and consistentHash can't be together; keep one of them",
            ),
            required(concat!($policy, ".loadBalancer.consistentHash.httpCookie"), &["name"]),
            duration(concat!($policy, ".outlierDetection.interval"), "1ms"),
            duration(concat!($policy, ".outlierDetection.baseEjectionTime"), "1ms"),
            duration(concat!($policy, ".connectionPool.tcp.connectTimeout"), "1ms"),
            like_a_duration(concat!($policy, ".connectionPool.tcp.maxConnectionDuration")),
            like_a_duration(concat!($policy, ".connectionPool.tcp.idleTimeout")),
            like_a_duration(concat!($policy, ".connectionPool.tcp.tcpKeepalive.time")),
            like_a_duration(concat!($policy, ".connectionPool.tcp.tcpKeepalive.interval")),
            like_a_duration(concat!($policy, ".connectionPool.http.idleTimeout")),
            one_of(
                concat!($policy, ".connectionPool.http.h2UpgradePolicy"),
                &["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"],
            ),
            like_a_duration(concat!($policy, ".loadBalancer.warmupDurationSecs")),
            like_a_duration(concat!($policy, ".loadBalancer.warmup.duration")),
            required(concat!($policy, ".loadBalancer.warmup"), &["duration"]),
            one_of(concat!($policy, ".tls.mode"), &["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"]),
        )*]
    };
}

fn destination_rule() -> Vec<Rule> {
    let mut rules = vec![required("spec", &["host"]), required("spec.subsets[]", &["name"])];
    rules.extend(of_policy!(
        "spec.trafficPolicy",
        "spec.trafficPolicy.portLevelSettings[]",
        "spec.subsets[].trafficPolicy",
        "spec.subsets[].trafficPolicy.portLevelSettings[]"
    ));
    for policy in
        ["spec.trafficPolicy.proxyProtocol.version", "spec.subsets[].trafficPolicy.proxyProtocol.version"]
    {
        rules.push(one_of(policy, &["V1", "V2"]));
    }
    rules
}

fn a_port(path: &'static str) -> Rule {
    rule(path, json!({"minimum": 1, "maximum": 65535}))
}

fn service_entry() -> Vec<Rule> {
    vec![
        required("spec", &["hosts"]),
        rule("spec.hosts", json!({"minItems": 1, "maxItems": 256})),
        cel("spec.hosts[]", "self != '*'", "name a host: '*' alone would be all of them"),
        cel(
            "spec",
            "!(has(self.workloadSelector) && has(self.endpoints))",
            "workloadSelector and endpoints can't be together; keep one of them",
        ),
        one_of("spec.location", &["MESH_EXTERNAL", "MESH_INTERNAL"]),
        one_of("spec.resolution", &["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"]),
        required("spec.ports[]", &["name", "number"]),
        a_port("spec.ports[].number"),
        a_port("spec.ports[].targetPort"),
        a_port("spec.endpoints[].ports{}"),
    ]
}

/// Of a provider, at these paths.
macro_rules! of_provider {
    ($($provider:literal),*) => {
        [$(
            required($provider, &["service", "port"]),
            a_port(concat!($provider, ".port")),
            duration(concat!($provider, ".timeout"), "1ms"),
            rule(concat!($provider, ".statusOnError"), json!({"pattern": "^[45][0-9][0-9]$"})),
            required(concat!($provider, ".includeRequestBodyInCheck"), &["maxRequestBytes"]),
            rule(
                concat!($provider, ".includeRequestBodyInCheck.maxRequestBytes"),
                json!({"minimum": 1, "maximum": 65536}),
            ),
        )*]
    };
}

fn extension_provider() -> Vec<Rule> {
    let mut rules = vec![cel(
        "spec",
        "has(self.envoyExtAuthzGrpc) != has(self.envoyExtAuthzHttp)",
        "must be one of envoyExtAuthzGrpc and envoyExtAuthzHttp",
    )];
    rules.extend(of_provider!("spec.envoyExtAuthzGrpc", "spec.envoyExtAuthzHttp"));
    rules
}

fn rate_limit() -> Vec<Rule> {
    let number = || json!({"minimum": 1, "maximum": u32::MAX});
    vec![
        required("spec", &["limits"]),
        cel(
            "spec",
            "has(self.targetRef) != has(self.targetRefs)",
            "name what it is for in targetRefs, or in targetRef",
        ),
        required("spec.targetRef", &["kind", "name"]),
        rule("spec.targetRefs", json!({"minItems": 1, "maxItems": 16})),
        required("spec.targetRefs[]", &["kind", "name"]),
        rule("spec.limits", json!({"minItems": 1, "maxItems": 16})),
        rule(
            "spec.limits[]",
            json!({"anyOf": [{"required": ["requests", "unit"]}, {"required": ["shared"]}]}),
        ),
        rule("spec.limits[].requests", number()),
        one_of("spec.limits[].unit", &["second", "minute", "hour", "day"]),
        rule("spec.limits[].burst", number()),
        rule("spec.limits[].by", json!({"maxItems": 16})),
        rule("spec.limits[].match", json!({"minItems": 1, "maxItems": 64})),
        required("spec.limits[].match[].when[]", &["key"]),
        required("spec.limits[].shared", &["service", "port", "domain"]),
        a_port("spec.limits[].shared.port"),
        rule("spec.limits[].shared.keys", json!({"maxItems": 16})),
        duration("spec.limits[].shared.timeout", "1ms"),
    ]
}

fn telemetry() -> Vec<Rule> {
    vec![
        required("spec.targetRef", &["kind", "name"]),
        rule("spec.targetRefs", json!({"minItems": 1, "maxItems": 16})),
        required("spec.targetRefs[]", &["kind", "name"]),
        rule("spec.tracing[].randomSamplingPercentage", json!({"minimum": 0, "maximum": 100})),
        one_of("spec.metrics[].overrides[].tagOverrides{}.operation", &["UPSERT", "REMOVE"]),
        one_of("spec.metrics[].overrides[].match.mode", &["CLIENT_AND_SERVER", "CLIENT", "SERVER"]),
    ]
}

fn workload_entry() -> Vec<Rule> {
    vec![cel("spec", "has(self.address) || has(self.network)", "it needs an address"), a_port("spec.ports{}")]
}
