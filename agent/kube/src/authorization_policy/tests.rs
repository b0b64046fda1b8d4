use serde_json::{Value, json};

use orlop_model::world::PathPattern;
use orlop_model::world::security::Target;

use super::*;

#[test]
fn everything_the_mesh_reads_is_carried_over() {
    let policy = policy(json!({
        "selector": {"matchLabels": {"app": "web"}},
        "action": "DENY",
        "rules": [{
            "from": [{"source": {
                "principals": ["cluster.local/ns/a/sa/b", "td/*"], "notPrincipals": ["*/sa/c"],
                "namespaces": ["*"], "notNamespaces": ["dev"],
                "serviceAccounts": ["own", "other/theirs"], "notServiceAccounts": ["not"],
                "ipBlocks": ["10.0.0.0/8", "fd00::1"], "notIpBlocks": ["10.1.2.3"],
            }}],
            "to": [{"operation": {"ports": ["80", "443"], "notPorts": ["8080"]}}],
            "when": [
                {"key": "source.ip", "values": ["10.0.0.1"], "notValues": ["10.0.0.2"]},
                {"key": "source.namespace", "values": ["a*"]},
                {"key": "source.principal", "notValues": ["*"]},
                {"key": "source.serviceAccount", "values": ["web"]},
                {"key": "destination.ip", "values": ["10.0.0.0/24"]},
                {"key": "destination.port", "notValues": ["22"]},
            ],
        }, {}],
    }))
    .unwrap();
    assert_eq!(policy.name.to_string(), "shop/web");
    assert_eq!(
        (policy.action, policy.dry_run, policy.selector["app"].as_str()),
        (Action::Deny, false, "web")
    );
    let source = &policy.rules[0].from[0];
    let prefix = Pattern::Prefix("td/".into());
    assert_eq!(source.principals.values, [Pattern::Exact("cluster.local/ns/a/sa/b".into()), prefix]);
    assert_eq!(source.principals.not_values, [Pattern::Suffix("/sa/c".into())]);
    assert_eq!(source.namespaces.values, [Pattern::Present]);
    assert_eq!(source.namespaces.not_values, [Pattern::Exact("dev".into())]);
    let accounts: Vec<_> = source.service_accounts.values.iter().map(ToString::to_string).collect();
    assert_eq!(accounts, ["shop/own", "other/theirs"]);
    assert_eq!(source.service_accounts.not_values[0].to_string(), "shop/not");
    assert_eq!(format!("{:?}", source.ip_blocks.values), "[10.0.0.0/8, fd00::1]");
    assert_eq!(format!("{:?}", source.ip_blocks.not_values), "[10.1.2.3]");
    let ports = Match { values: vec![80, 443], not_values: vec![8080] };
    assert_eq!(policy.rules[0].to, [Operation { ports, ..Operation::default() }]);
    let when = &policy.rules[0].when;
    let block = |text: &str| vec![text.parse::<IpBlock>().unwrap()];
    let ip = Match { values: block("10.0.0.1"), not_values: block("10.0.0.2") };
    assert_eq!(when[0], Condition::SourceIp(ip));
    let of = |values| Match { values, not_values: vec![] };
    assert_eq!(when[1], Condition::SourceNamespace(of(vec![Pattern::Prefix("a".into())])));
    let nobody = Match { values: vec![], not_values: vec![Pattern::Present] };
    assert_eq!(when[2], Condition::SourcePrincipal(nobody));
    let account = ServiceAccount { namespace: "shop".into(), name: "web".into() };
    assert_eq!(when[3], Condition::SourceServiceAccount(Match { values: vec![account], not_values: vec![] }));
    assert_eq!(when[4], Condition::DestinationIp(Match { values: block("10.0.0.0/24"), not_values: vec![] }));
    assert_eq!(when[5], Condition::DestinationPort(Match { values: vec![], not_values: vec![22] }));
    assert_eq!(policy.rules[1], Rule::default());
}

#[test]
fn what_is_asked_of_requests_is_carried_over_and_what_nobody_reads_is_named() {
    let policy = policy(json!({"rules": [{
        "from": [{"source": {
            "requestPrincipals": ["*"], "notRequestPrincipals": ["x"], "remoteIpBlocks": ["10.0.0.1"],
            "notRemoteIpBlocks": ["10.0.0.2"],
        }}],
        "to": [{"operation": {
            "hosts": ["A.b."], "notHosts": ["*.c"], "methods": ["get"], "notMethods": ["P*"], "paths": ["/"],
            "notPaths": ["/admin/{*}", "/%61"],
        }}],
        "when": [
            {"key": "request.headers[X-Y]", "values": ["y"]}, {"key": "remote.ip", "values": ["10.0.0.1"]},
            {"key": "request.headers[:authority]", "values": ["A"]}, {"key": "request.headers[:method]", "values": ["get"]},
            {"key": "request.headers[]", "values": ["y"]}, {"key": "request.headers[Connection]", "values": ["y"]}, {"key": "request.headers[:path]", "values": ["/"]},
            {"key": "request.headers[x-forwarded-client-cert]", "notValues": ["y"]},
            {"key": "connection.sni", "values": ["A.b."]}, {"key": "experimental.envoy.filters.x", "values": ["a"]},
            {"key": "source.moon", "notValues": ["full"]},
        ],
    }]}))
    .unwrap();
    let rule = &policy.rules[0];
    let source = &rule.from[0];
    let tokens = Match { values: vec![Pattern::Present], not_values: vec![Pattern::Exact("x".into())] };
    assert_eq!(source.request_principals, tokens);
    assert_eq!(format!("{:?}", source.remote_ip_blocks.values), "[10.0.0.1]");
    assert_eq!(format!("{:?}", source.remote_ip_blocks.not_values), "[10.0.0.2]");
    let exact = |text: &str| vec![Pattern::Exact(text.into())];
    let operation = &rule.to[0];
    let hosts = Match { values: exact("a.b"), not_values: vec![Pattern::Suffix(".c".into())] };
    assert_eq!(operation.hosts, hosts);
    assert_eq!(
        operation.methods,
        Match { values: exact("GET"), not_values: vec![Pattern::Prefix("P".into())] }
    );
    let paths = |of: &[PathPattern]| of.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(paths(&operation.paths.values), ["/"]);
    assert_eq!(paths(&operation.paths.not_values), ["/admin/{*}", "/a"]);
    let of = |values| Match { values, not_values: vec![] };
    assert_eq!(rule.when[0], Condition::Header("x-y".into(), of(exact("y"))));
    assert_eq!(
        rule.when[1],
        Condition::RemoteIp(Match { values: vec!["10.0.0.1".parse().unwrap()], not_values: vec![] })
    );
    assert_eq!(rule.when[2], Condition::Host(of(exact("a"))));
    assert_eq!(rule.when[3], Condition::Method(of(exact("GET"))));
    assert_eq!(rule.when[8], Condition::Sni(of(exact("a.b"))));
    let mut unread = rule.when[4..8].iter().chain(&rule.when[9..]);
    assert!(unread.all(|when| matches!(when, Condition::Unread(_))), "{:?}", rule.when);
}

#[test]
fn an_empty_policy_allows_nothing_and_targets_are_kept() {
    for spec in [json!({}), json!({"rules": []}), json!({"action": "ALLOW"})] {
        let policy = policy(spec).unwrap();
        assert_eq!((policy.action, policy.rules.len()), (Action::Allow, 0));
    }
    let waypoint = json!({"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "waypoint"});
    let service = json!({"kind": "Service", "group": "", "name": "web"});
    let many = policy(json!({"targetRefs": [waypoint, service]})).unwrap();
    assert_eq!(many.targets, [Target::Gateway("waypoint".into()), Target::Service("web".into())]);
    assert_eq!(policy(json!({"targetRef": service})).unwrap().targets, [Target::Service("web".into())]);
    let entry =
        json!({"kind": "ServiceEntry", "group": "networking.istio.io", "name": "a", "namespace": "shop"});
    let class = json!({"kind": "GatewayClass", "group": "gateway.networking.k8s.io", "name": "b"});
    let others = policy(json!({"targetRefs": [entry, class]})).unwrap().targets;
    assert_eq!(others, [Target::ServiceEntry("a".into()), Target::GatewayClass("b".into())]);
}

#[test]
fn dry_run_is_by_annotation() {
    let with = |value: &str| {
        let mut object = object(&json!({}));
        object["metadata"]["annotations"] = json!({"istio.io/dry-run": value});
        convert(serde_json::from_value(object).unwrap())
    };
    assert!(with("true").unwrap().dry_run);
    assert!(!with("false").unwrap().dry_run);
    let error = with("yes").unwrap_err();
    assert_eq!(error.path.to_string(), r#"metadata.annotations["istio.io/dry-run"]"#);
}

#[test]
fn wrong_fields_are_named() {
    let source = |source: Value| json!({"rules": [{}, {"from": [{"source": source}]}]});
    let operation = |operation: Value| json!({"rules": [{"to": [{"operation": operation}]}]});
    let when = |when: Value| json!({"rules": [{"when": [when]}]});
    let in_source = "spec.rules[1].from[0].source";
    let in_operation = "spec.rules[0].to[0].operation";
    let in_when = "spec.rules[0].when[0]";
    let labels = json!({"matchLabels": {"app": "web"}});
    for (spec, want) in [
        (json!({"action": "REFUSE"}), "spec.action".to_owned()),
        (json!({"selector": {"matchLabels": {"app": "*"}}}), "spec.selector.matchLabels.app".into()),
        (
            json!({"selector": labels, "targetRefs": [{"kind": "Service", "name": "a"}]}),
            "spec.selector".into(),
        ),
        (json!({"targetRefs": []}), "spec.targetRefs".into()),
        (json!({"targetRefs": [{"kind": "Service"}]}), "spec.targetRefs[0]".into()),
        (json!({"targetRefs": [{"kind": "Gateway", "name": "a"}]}), "spec.targetRefs[0]".into()),
        (json!({"targetRef": {"kind": "Pod", "name": "a"}}), "spec.targetRef".into()),
        (
            json!({"targetRef": {"kind": "Service", "name": "a", "namespace": "b"}}),
            "spec.targetRef.namespace".into(),
        ),
        (json!({"rules": [{"from": []}]}), "spec.rules[0].from".into()),
        (json!({"rules": [{"to": []}]}), "spec.rules[0].to".into()),
        (json!({"rules": [{"when": []}]}), "spec.rules[0].when".into()),
        (json!({"rules": [{"from": [{}]}]}), "spec.rules[0].from[0].source".into()),
        (json!({"rules": [{"to": [{}]}]}), "spec.rules[0].to[0].operation".into()),
        (source(json!({})), in_source.into()),
        (source(json!({"principals": []})), format!("{in_source}.principals")),
        (source(json!({"requestPrincipals": []})), format!("{in_source}.requestPrincipals")),
        (source(json!({"principals": ["a", ""]})), format!("{in_source}.principals[1]")),
        (source(json!({"principals": ["a*b"]})), format!("{in_source}.principals[0]")),
        (source(json!({"principals": ["*a*"]})), format!("{in_source}.principals[0]")),
        (source(json!({"principals": ["spiffe://a/ns/b/sa/c"]})), format!("{in_source}.principals[0]")),
        (source(json!({"notNamespaces": ["**"]})), format!("{in_source}.notNamespaces[0]")),
        (source(json!({"serviceAccounts": ["a*"]})), format!("{in_source}.serviceAccounts[0]")),
        (source(json!({"notServiceAccounts": ["a/b/c"]})), format!("{in_source}.notServiceAccounts[0]")),
        (source(json!({"ipBlocks": ["10.0.0.0/33"]})), format!("{in_source}.ipBlocks[0]")),
        (source(json!({"notIpBlocks": ["ten"]})), format!("{in_source}.notIpBlocks[0]")),
        (operation(json!({})), in_operation.into()),
        (operation(json!({"paths": ["/a", "b"]})), format!("{in_operation}.paths[1]")),
        (operation(json!({"notPaths": ["/a//b"]})), format!("{in_operation}.notPaths[0]")),
        (operation(json!({"hosts": [""]})), format!("{in_operation}.hosts[0]")),
        (operation(json!({"ports": ["0"]})), format!("{in_operation}.ports[0]")),
        (operation(json!({"ports": ["80", "http"]})), format!("{in_operation}.ports[1]")),
        (operation(json!({"notPorts": ["65536"]})), format!("{in_operation}.notPorts[0]")),
        (when(json!({"values": ["a"]})), format!("{in_when}.key")),
        (when(json!({"key": "source.ip"})), in_when.into()),
        (when(json!({"key": "request.headers[a b]", "values": ["y"]})), format!("{in_when}.key")),
        (when(json!({"key": "source.ip", "values": ["a"]})), format!("{in_when}.values[0]")),
        (when(json!({"key": "destination.port", "notValues": ["a"]})), format!("{in_when}.notValues[0]")),
    ] {
        assert_eq!(policy(spec.clone()).unwrap_err().path.to_string(), want, "{spec}");
    }
}

#[test]
fn fields_nobody_reads_and_empty_ones_are_refused() {
    let rule = |rule: Value| json!({"rules": [rule]});
    for spec in [
        json!({"rule": []}),
        json!({"Action": "DENY"}),
        json!({"selector": {"matchExpressions": []}}),
        json!({"selector": null}),
        json!({"rules": null}),
        rule(json!({"From": []})),
        rule(json!({"from": null})),
        rule(json!({"from": [{"sources": {}}]})),
        rule(json!({"from": [{"source": {"principal": ["a"]}}]})),
        rule(json!({"from": [{"source": {"principals": null}}]})),
        rule(json!({"to": [{"operation": {"port": ["80"]}}]})),
        rule(json!({"to": [{"operation": {"ports": [80]}}]})),
        rule(json!({"when": [{"key": "source.ip", "value": ["10.0.0.1"]}]})),
    ] {
        assert!(serde_json::from_value::<Object>(object(&spec)).is_err(), "{spec}");
    }
    let mut misplaced = object(&json!({}));
    misplaced["rules"] = json!([]);
    assert!(serde_json::from_value::<Object>(misplaced).is_err());
}

fn policy(spec: Value) -> Result<AuthorizationPolicy, FieldError> {
    convert(serde_json::from_value(object(&spec)).unwrap())
}

fn object(spec: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "spec": spec,
        "metadata": {"name": "web", "namespace": "shop"},
    })
}
