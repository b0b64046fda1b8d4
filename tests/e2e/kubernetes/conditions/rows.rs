//! One good object and bad ones of every kind that has a status of ours, with what is said of each.

use serde_json::{Value, json};

/// An object, and what is to be said of it.
pub struct Row {
    pub kind: &'static str,
    pub name: &'static str,
    pub spec: Value,
    pub says: Vec<Says>,
}

/// A condition as it is to be.
pub struct Says {
    /// Of which part of the status: the object's own conditions, those of a listener by its name, or those of the only
    /// parent or ancestor.
    pub of: Of,
    pub condition: &'static str,
    pub status: &'static str,
    pub reason: &'static str,
    /// What its message contains.
    pub text: &'static str,
}

#[derive(Clone, Copy)]
pub enum Of {
    Object,
    Listener(&'static str),
    Parent,
}

/// The kinds by their plurals, each with the version that it is written in.
pub const KINDS: [(&str, &str, &str); 17] = [
    ("AuthorizationPolicy", "security.istio.io/v1", "authorizationpolicies"),
    ("PeerAuthentication", "security.istio.io/v1", "peerauthentications"),
    ("RequestAuthentication", "security.istio.io/v1", "requestauthentications"),
    ("VirtualService", "networking.istio.io/v1", "virtualservices"),
    ("DestinationRule", "networking.istio.io/v1", "destinationrules"),
    ("ServiceEntry", "networking.istio.io/v1", "serviceentries"),
    ("WorkloadEntry", "networking.istio.io/v1", "workloadentries"),
    ("RateLimit", "orlop.dev/v1alpha1", "ratelimits"),
    ("ExtensionProvider", "orlop.dev/v1alpha1", "extensionproviders"),
    ("Telemetry", "telemetry.istio.io/v1", "telemetries"),
    ("GatewayClass", GATEWAY_API, "gatewayclasses"),
    ("Gateway", GATEWAY_API, "gateways"),
    ("HTTPRoute", GATEWAY_API, "httproutes"),
    ("GRPCRoute", GATEWAY_API, "grpcroutes"),
    ("TLSRoute", GATEWAY_API, "tlsroutes"),
    ("TCPRoute", GATEWAY_API, "tcproutes"),
    ("BackendTLSPolicy", GATEWAY_API, "backendtlspolicies"),
];
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";

/// Where there are Services behind a waypoint, of which `web` has a pod, and nothing is called `nobody`.
pub fn rows(namespace: &str) -> Vec<Row> {
    let mut rows = policies();
    rows.extend(traffic(namespace));
    rows.extend(gateways());
    rows.extend(routes());
    rows
}

fn row(kind: &'static str, name: &'static str, spec: Value, says: Vec<Says>) -> Row {
    Row { kind, name, spec, says }
}

fn says(
    of: Of,
    condition: &'static str,
    status: &'static str,
    reason: &'static str,
    text: &'static str,
) -> Says {
    Says { of, condition, status, reason, text }
}

/// All is well.
fn good() -> Vec<Says> {
    vec![
        says(Of::Object, "orlop.dev/Accepted", "True", "Accepted", ""),
        says(Of::Object, "orlop.dev/ResolvedRefs", "True", "ResolvedRefs", ""),
        says(Of::Object, "orlop.dev/Programmed", "True", "Programmed", ""),
    ]
}

/// It can't be understood.
fn invalid(text: &'static str) -> Vec<Says> {
    vec![
        says(Of::Object, "orlop.dev/Accepted", "False", "Invalid", text),
        says(Of::Object, "orlop.dev/ResolvedRefs", "Unknown", "NotAccepted", "could not be read"),
        says(Of::Object, "orlop.dev/Programmed", "False", "NotAccepted", "could not be read"),
    ]
}

fn unresolved(reason: &'static str, text: &'static str) -> Vec<Says> {
    vec![
        says(Of::Object, "orlop.dev/Accepted", "True", "Accepted", ""),
        says(Of::Object, "orlop.dev/ResolvedRefs", "False", reason, text),
    ]
}

fn unenforced(reason: &'static str, text: &'static str) -> Vec<Says> {
    vec![
        says(Of::Object, "orlop.dev/Accepted", "True", "Accepted", ""),
        says(Of::Object, "orlop.dev/Programmed", "False", reason, text),
    ]
}

/// The keys that are written into it are none, while all else is in force.
fn no_keys(text: &'static str) -> Vec<Says> {
    vec![
        says(Of::Object, "orlop.dev/Accepted", "False", "InvalidKeys", text),
        says(Of::Object, "orlop.dev/Programmed", "True", "Programmed", ""),
    ]
}

fn target(name: &str) -> Value {
    json!([{"group": "", "kind": "Service", "name": name}])
}

const NO_TARGET: &str = "there is none of this name in the policy's namespace";

fn policies() -> Vec<Row> {
    let who = json!([{"from": [{"source": {"namespaces": ["shop"]}}]}]);
    let methods = json!([{"to": [{"operation": {"methods": ["GET"]}}]}]);
    let nobody = json!({"matchLabels": {"app": "nobody"}});
    let issuer = json!([{"issuer": "https://idp.example", "jwksUri": "https://idp.example/keys"}]);
    let keys = |text: &str| json!({"targetRefs": target("web"), "jwtRules": [{"issuer": "https://idp.example", "jwks": text}]});
    let limits = json!([{"requests": 5, "unit": "second"}]);
    let odd =
        json!([{"requests": 5, "unit": "second", "match": [{"to": [{"operation": {"ports": ["x"]}}]}]}]);
    let filter = |text: &str| json!({"targetRefs": target("web"), "accessLogging": [{"filter": {"expression": text}}]});
    vec![
        row("AuthorizationPolicy", "good", json!({"rules": who}), good()),
        row(
            "AuthorizationPolicy",
            "action",
            json!({"action": "DENNY"}),
            invalid("spec.action: \"DENNY\" is not ALLOW"),
        ),
        row("AuthorizationPolicy", "field", json!({"rulez": [{}]}), invalid("unknown field `rulez`")),
        row(
            "AuthorizationPolicy",
            "target",
            json!({"targetRefs": target("nobody"), "rules": who}),
            unresolved("NoSuchTarget", NO_TARGET),
        ),
        row(
            "AuthorizationPolicy",
            "selects",
            json!({"selector": nobody, "rules": who}),
            unresolved("SelectsNothing", "its selector (app=nobody) matches no pod"),
        ),
        row(
            "AuthorizationPolicy",
            "methods",
            json!({"action": "DENY", "rules": methods}),
            unenforced("FieldsNotEnforced", "give the policy targetRefs, so that a waypoint decides"),
        ),
        row("PeerAuthentication", "a-good", json!({"mtls": {"mode": "PERMISSIVE"}}), good()),
        row(
            "PeerAuthentication",
            "mode",
            json!({"selector": nobody, "mtls": {"mode": "ON"}}),
            invalid("spec.mtls.mode"),
        ),
        row(
            "PeerAuthentication",
            "second",
            json!({"mtls": {"mode": "STRICT"}}),
            unenforced("Overruled", "is of the same namespace and older"),
        ),
        row(
            "PeerAuthentication",
            "selects",
            json!({"selector": nobody, "mtls": {"mode": "STRICT"}}),
            unresolved("SelectsNothing", "matches no pod"),
        ),
        row(
            "RequestAuthentication",
            "good",
            json!({"targetRefs": target("web"), "jwtRules": issuer}),
            good(),
        ),
        row(
            "RequestAuthentication",
            "issuer",
            json!({"targetRefs": target("web"), "jwtRules": [{}]}),
            invalid("spec.jwtRules[0].issuer: is missing; say whose tokens these are"),
        ),
        row(
            "RequestAuthentication",
            "keys",
            keys(r#"{"kty": "EC"}"#),
            no_keys("spec.jwtRules[0].jwks is no key set that can be used"),
        ),
        row(
            "RequestAuthentication",
            "no-keys",
            keys(r#"{"keys": ["abc"]}"#),
            no_keys("none of its keys can verify a token"),
        ),
        row(
            "RequestAuthentication",
            "target",
            json!({"targetRefs": target("nobody"), "jwtRules": issuer}),
            unresolved("NoSuchTarget", NO_TARGET),
        ),
        row("RateLimit", "good", json!({"targetRefs": target("web"), "limits": limits}), good()),
        row(
            "RateLimit",
            "port",
            json!({"targetRefs": target("web"), "limits": odd}),
            invalid("spec.limits[0].match[0].to[0].operation.ports[0]: \"x\" is not a port"),
        ),
        row(
            "RateLimit",
            "target",
            json!({"targetRefs": target("nobody"), "limits": limits}),
            unresolved("NoSuchTarget", NO_TARGET),
        ),
        row("Telemetry", "good", filter("response.code >= 400"), good()),
        row(
            "Telemetry",
            "share",
            json!({"tracing": [{"randomSamplingPercentage": 101}]}),
            invalid("is not from 0 to 100"),
        ),
        row(
            "Telemetry",
            "filter",
            filter("response.code >="),
            unenforced("FieldsNotEnforced", "has no effect"),
        ),
        row(
            "Telemetry",
            "target",
            json!({"targetRefs": target("nobody"), "tracing": [{"randomSamplingPercentage": 1}]}),
            unresolved("NoSuchTarget", NO_TARGET),
        ),
    ]
}

fn traffic(namespace: &str) -> Vec<Row> {
    let to = |to: Value| json!({"hosts": ["web"], "http": [{"route": [{"destination": to}]}]});
    let matches = |uri: Value| json!({"hosts": ["web"], "http": [{"match": [{"uri": uri}], "route": [{"destination": {"host": "web"}}]}]});
    let delegate = json!({"hosts": ["web"], "http": [{"delegate": {"name": "nobody"}}]});
    let asks = |host: &str| json!({"envoyExtAuthzGrpc": {"service": format!("{host}.{namespace}.svc.cluster.local"), "port": 80}});
    let entry = |more: Value| {
        let mut spec = json!({
            "hosts": ["a.example"], "resolution": "STATIC", "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    vec![
        row("VirtualService", "a-good", to(json!({"host": "web"})), good()),
        row(
            "VirtualService",
            "regex",
            matches(json!({"regex": "("})),
            invalid("spec.http[0].match[0].uri.regex"),
        ),
        row("VirtualService", "matches", matches(json!({})), invalid("needs one of exact, prefix and regex")),
        row(
            "VirtualService",
            "subset",
            to(json!({"host": "web", "subset": "v9"})),
            unresolved("NoSuchSubset", "which no DestinationRule for that host defines"),
        ),
        row(
            "VirtualService",
            "service",
            to(json!({"host": "nobody"})),
            unresolved("NoSuchService", "http[0].route[0]"),
        ),
        row("VirtualService", "delegate", delegate, unresolved("NoSuchDelegate", "which is not there")),
        row(
            "VirtualService",
            "gateways",
            json!({"hosts": ["web"], "gateways": ["edge"], "http": [{"route": [{"destination": {"host": "web"}}]}]}),
            unenforced("NoGateway", "attach an HTTPRoute to a Gateway of class orlop"),
        ),
        row(
            "DestinationRule",
            "good",
            json!({"host": "web", "subsets": [{"name": "v1", "labels": {"app": "web"}}]}),
            good(),
        ),
        row(
            "DestinationRule",
            "balancer",
            json!({"host": "web", "trafficPolicy": {"loadBalancer": {"simple": "BEST"}}}),
            invalid("spec.trafficPolicy.loadBalancer.simple"),
        ),
        row(
            "DestinationRule",
            "service",
            json!({"host": "nobody"}),
            unresolved("NoSuchService", "is no service here"),
        ),
        row(
            "ServiceEntry",
            "good",
            entry(json!({"addresses": ["10.211.0.1"], "endpoints": [{"address": "10.211.0.2"}]})),
            good(),
        ),
        row(
            "ServiceEntry",
            "hosts",
            entry(json!({"hosts": []})),
            invalid("spec.hosts: is empty; name at least one host"),
        ),
        row(
            "ServiceEntry",
            "selects",
            entry(json!({"hosts": ["b.example"], "workloadSelector": {"labels": {"app": "nobody"}}})),
            unresolved("SelectsNothing", "selects no pod and no WorkloadEntry"),
        ),
        row("WorkloadEntry", "good", json!({"address": "10.212.0.1"}), good()),
        row(
            "WorkloadEntry",
            "address",
            json!({"address": ""}),
            invalid("is missing; write an IP address or a host name"),
        ),
        row("ExtensionProvider", "good", asks("web"), good()),
        row(
            "ExtensionProvider",
            "service",
            asks("nobody"),
            unresolved("NoSuchService", "is no service: it can't be asked"),
        ),
        row(
            "ExtensionProvider",
            "headers",
            json!({"envoyExtAuthzHttp": {"service": "web", "port": 80, "headersToUpstreamOnAllow": ["*"]}}),
            invalid("would take all headers from clients"),
        ),
    ]
}

fn gateways() -> Vec<Row> {
    let class = |more: Value| {
        let mut spec = json!({"controllerName": "orlop.dev/gateway-controller"});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let waypoint = |listener: Value| json!({"gatewayClassName": "orlop-waypoint", "listeners": [listener]});
    let gateway = |listeners: Value| json!({"gatewayClassName": "orlop", "listeners": listeners});
    let tls = |name: &str, port: u16, secret: Value| json!({"name": name, "port": port, "protocol": "HTTPS", "tls": {"certificateRefs": [secret]}});
    let http = json!({"name": "web", "port": 80, "protocol": "HTTP"});
    let of = |at: &'static str, condition, status, reason, text| {
        says(Of::Listener(at), condition, status, reason, text)
    };
    let accepted = says(Of::Object, "Accepted", "True", "Accepted", "");
    let listeners = json!([
        http,
        tls("gone", 443, json!({"name": "nobody"})),
        tls("empty", 444, json!({"name": "empty"})),
        tls("garbage", 445, json!({"name": "garbage"})),
        tls("sealed", 446, json!({"name": "sealed"})),
        tls("theirs", 447, json!({"name": "sealed", "namespace": "default"})),
        tls("map", 448, json!({"kind": "ConfigMap", "name": "sealed"})),
    ]);
    vec![
        row(
            "GatewayClass",
            "good",
            class(json!({})),
            vec![says(Of::Object, "Accepted", "True", "Accepted", "")],
        ),
        row(
            "GatewayClass",
            "parameters",
            class(json!({"parametersRef": {"group": "", "kind": "ConfigMap", "name": "a"}})),
            vec![says(Of::Object, "Accepted", "False", "InvalidParameters", "remove spec.parametersRef")],
        ),
        row(
            "Gateway",
            "waypoint",
            waypoint(json!({"name": "mesh", "port": 15008, "protocol": "HBONE"})),
            vec![
                accepted,
                of("mesh", "Accepted", "True", "Accepted", ""),
                of("mesh", "ResolvedRefs", "True", "ResolvedRefs", ""),
            ],
        ),
        row(
            "Gateway",
            "waypoint-http",
            waypoint(http.clone()),
            vec![
                says(Of::Object, "Accepted", "False", "ListenersNotValid", "make its protocol HBONE"),
                says(Of::Object, "Programmed", "False", "Invalid", "make its protocol HBONE"),
                of("web", "Accepted", "False", "UnsupportedProtocol", "make its protocol HBONE"),
            ],
        ),
        row(
            "Gateway",
            "gateway",
            gateway(json!([http, tls("sealed", 443, json!({"name": "sealed"}))])),
            vec![
                says(Of::Object, "Accepted", "True", "Accepted", ""),
                of("web", "ResolvedRefs", "True", "ResolvedRefs", "it refers to nothing"),
                of("sealed", "Accepted", "True", "Accepted", ""),
                of(
                    "sealed",
                    "ResolvedRefs",
                    "True",
                    "ResolvedRefs",
                    "each Secret has a certificate and its key",
                ),
            ],
        ),
        row(
            "Gateway",
            "secrets",
            gateway(listeners),
            vec![
                says(
                    Of::Object,
                    "Accepted",
                    "True",
                    "ListenersNotValid",
                    "listener gone: Secret nobody: there is none",
                ),
                of("web", "ResolvedRefs", "True", "ResolvedRefs", ""),
                of("gone", "Accepted", "True", "Accepted", ""),
                of("gone", "ResolvedRefs", "False", "InvalidCertificateRef", "there is none of this name"),
                of("gone", "Programmed", "False", "Invalid", "kubectl create secret tls"),
                of("empty", "ResolvedRefs", "False", "InvalidCertificateRef", "it has no tls.crt"),
                of("garbage", "ResolvedRefs", "False", "InvalidCertificateRef", "tls.key is not its key"),
                of("sealed", "ResolvedRefs", "True", "ResolvedRefs", ""),
                of(
                    "theirs",
                    "ResolvedRefs",
                    "False",
                    "RefNotPermitted",
                    "copy default/sealed to that of the Gateway",
                ),
                of("map", "ResolvedRefs", "False", "InvalidCertificateRef", "name a Secret"),
            ],
        ),
        row(
            "Gateway",
            "ports",
            gateway(json!([{"name": "own", "port": 15021, "protocol": "HTTP"}])),
            vec![says(Of::Object, "Accepted", "False", "ListenersNotValid", "choose another port: 15021")],
        ),
    ]
}

fn routes() -> Vec<Row> {
    let to = |name: &str| json!([{"backendRefs": [{"name": name, "port": 80}]}]);
    let route = |parent: &str, rules: Value| json!({"parentRefs": [{"group": "", "kind": "Service", "name": parent, "port": 80}], "rules": rules});
    let of = |condition, status, reason, text| says(Of::Parent, condition, status, reason, text);
    let good =
        || vec![of("Accepted", "True", "Accepted", ""), of("ResolvedRefs", "True", "ResolvedRefs", "")];
    let refused = |reason, text| {
        vec![
            of("Accepted", "False", reason, text),
            of("ResolvedRefs", "Unknown", "NotAccepted", "was not looked for"),
        ]
    };
    let unresolved = |reason, text| {
        vec![of("Accepted", "True", "Accepted", ""), of("ResolvedRefs", "False", reason, text)]
    };
    let mut rows = Vec::new();
    // Each before a Service of its own, as one kind of route counts there.
    for (kind, web) in [("HTTPRoute", "web"), ("GRPCRoute", "rpc"), ("TLSRoute", "tls"), ("TCPRoute", "tcp")]
    {
        let route = |parent: &str, rules: Value| {
            let mut spec = route(parent, rules);
            // Such a route must have them.
            if kind == "TLSRoute" {
                spec["hostnames"] = json!(["web.example"]);
            }
            spec
        };
        rows.extend([
            row(kind, "good", route(web, to(web)), good()),
            row(kind, "backend", route(web, to("nobody")), unresolved("BackendNotFound", "nobody")),
            row(kind, "parent", route("nobody", to(web)), refused("NoMatchingParent", "")),
            row(
                kind,
                "weight",
                route(web, json!([{"backendRefs": [{"name": web, "port": 80, "weight": -1}]}])),
                refused("UnsupportedValue", "is not a weight"),
            ),
        ]);
    }
    // It does not count there, and is told what would be wrong with it.
    rows.push(row(
        "HTTPRoute",
        "overruled",
        route("rpc", to("nobody")),
        vec![
            of("Accepted", "True", "Accepted", "counts instead"),
            of("ResolvedRefs", "False", "BackendNotFound", "nobody"),
        ],
    ));
    let validation = json!({"hostname": "web.example", "wellKnownCACertificates": "System"});
    let refs = |named: &[(&str, &str)]| {
        let of = |(kind, name): &(&str, &str)| json!({"group": "", "kind": kind, "name": name});
        let refs: Vec<_> = named.iter().map(of).collect();
        json!({"hostname": "web.example", "caCertificateRefs": refs})
    };
    let tls = |of: &str, validation: &Value| json!({"targetRefs": target(of), "validation": validation});
    rows.extend([
        row("BackendTLSPolicy", "a-good", tls("web", &validation), good()),
        row(
            "BackendTLSPolicy",
            "target",
            tls("nobody", &validation),
            vec![of("Accepted", "False", "TargetNotFound", "there is no such Service")],
        ),
        row("BackendTLSPolicy", "believed", tls("third", &refs(&[("ConfigMap", "authority")])), good()),
        row(
            "BackendTLSPolicy",
            "certificates",
            tls("other", &refs(&[("ConfigMap", "nowhere"), ("ConfigMap", "garbage")])),
            vec![
                of("Accepted", "False", "NoValidCACertificate", "caCertificateRefs"),
                of("ResolvedRefs", "False", "InvalidCACertificateRef", "has no certificate in PEM"),
            ],
        ),
        row(
            "BackendTLSPolicy",
            "some",
            tls("rpc", &refs(&[("ConfigMap", "authority"), ("ConfigMap", "nowhere")])),
            vec![
                of("Accepted", "True", "Accepted", ""),
                of("ResolvedRefs", "False", "InvalidCACertificateRef", "caCertificateRefs[1]"),
            ],
        ),
        row(
            "BackendTLSPolicy",
            "kind",
            tls("tls", &refs(&[("Secret", "sealed")])),
            vec![
                of("Accepted", "False", "NoValidCACertificate", "Secret sealed is no ConfigMap"),
                of("ResolvedRefs", "False", "InvalidKind", "Secret sealed is no ConfigMap"),
            ],
        ),
        row(
            "BackendTLSPolicy",
            "second",
            tls("web", &validation),
            vec![of("Accepted", "False", "Conflicted", "is for the same, and counts since it is older")],
        ),
        row(
            "BackendTLSPolicy",
            "field",
            tls("tcp", &json!({"hostname": "web.example", "ca": 7})),
            vec![of("Accepted", "False", "Invalid", "unknown field `ca`")],
        ),
    ]);
    rows
}
