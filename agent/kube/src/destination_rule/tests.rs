use std::time::Duration;

use orlop_model::world::Labels;
use orlop_model::world::routing::{Credential, HashOn, HashTable, Keepalive, Roots, ServerCheck, Warmup};
use serde_json::json;

use super::*;

#[test]
fn everything_the_waypoint_reads_is_carried_over() {
    let rule = rule(json!({
        "host": "Reviews",
        "exportTo": ["."],
        "workloadSelector": {"matchLabels": {"app": "shop"}},
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
    assert_eq!((rule.host.as_str(), &rule.unread), ("reviews", &Vec::new()));
    assert_eq!(rule.selector, Some([("app".to_owned(), "shop".to_owned())].into()));
    assert_eq!(rule.policy.balancer, Some(Balancer::RoundRobin));
    let outlier = rule.policy.outlier.unwrap();
    assert_eq!((outlier.server_errors, outlier.max_percent), (3, 50));
    assert_eq!((outlier.interval, outlier.base), (Duration::from_secs(1), Duration::from_secs(30)));
    let pool = rule.policy.pool.unwrap();
    assert_eq!((pool.max_requests, pool.max_retries), (Some(7), None));
    assert_eq!(rule.policy.ports[0].1.balancer, Some(Balancer::Random));
    let cookie = HashOn::Cookie {
        name: "user".to_owned(),
        path: None,
        ttl: Some(Duration::ZERO),
        attributes: Vec::new(),
    };
    let hashed = Balancer::Hash(cookie, HashTable::Ring(1024));
    assert_eq!(rule.subsets[0].policy.balancer, Some(hashed));
}

#[test]
fn everything_of_pools_retries_and_outliers_is_carried_over() {
    let rule = rule(json!({
        "host": "reviews",
        "trafficPolicy": {
            "connectionPool": {
                "tcp": {
                    "maxConnections": 1, "maxConnectionDuration": "9s", "idleTimeout": "1s",
                    "tcpKeepalive": {"probes": 3, "time": "5s", "interval": "2s"},
                },
                "http": {
                    "http1MaxPendingRequests": 2, "maxRequestsPerConnection": 3, "maxConcurrentStreams": 4,
                    "idleTimeout": "7s", "h2UpgradePolicy": "UPGRADE",
                },
            },
            "outlierDetection": {"splitExternalLocalOriginErrors": true, "consecutiveLocalOriginFailures": 2},
            "retryBudget": {"percent": 12.5, "minRetryConcurrency": 0},
            "proxyProtocol": {"version": "V2"},
        },
    }))
    .unwrap();
    assert_eq!(rule.unread, Vec::<String>::new());
    let pool = rule.policy.pool.unwrap();
    let limits = (pool.max_connections, pool.max_pending, pool.max_per_connection, pool.max_streams);
    assert_eq!(limits, (Some(1), Some(2), Some(3), Some(4)));
    let seconds = |n| Some(Duration::from_secs(n));
    assert_eq!((pool.max_duration, pool.idle_timeout), (seconds(9), seconds(7)));
    assert_eq!(pool.stream_idle_timeout, seconds(1));
    assert_eq!(pool.keepalive, Some(Keepalive { probes: Some(3), time: seconds(5), interval: seconds(2) }));
    assert!(pool.to_http2 && !pool.client_protocol);
    assert_eq!(rule.policy.outlier.unwrap().local_failures, Some(2));
    assert_eq!(rule.policy.retry_budget, Some(RetryBudget { thousandths: 12_500, at_least: 0 }));
    assert_eq!(rule.policy.proxy_protocol, Some(ProxyVersion::V2));
}

#[test]
fn tls_is_as_it_is_written_or_refused() {
    let tls = |of: Value| {
        rule(json!({"host": "a", "trafficPolicy": {"tls": of}})).map(|rule| rule.policy.tls.unwrap())
    };
    assert_eq!(tls(json!({})).unwrap(), ServerTls::Disable);
    assert_eq!(tls(json!({"mode": "ISTIO_MUTUAL"})).unwrap(), ServerTls::Mesh);
    let simple = |sni: Option<&str>, names: &[&str], roots| {
        let (sni, names) = (sni.map(str::to_owned), names.iter().map(|name| (*name).to_owned()).collect());
        ServerTls::Simple(std::sync::Arc::new(ServerCheck { sni, names, roots, credential: None }))
    };
    assert_eq!(tls(json!({"mode": "SIMPLE"})).unwrap(), simple(None, &[], Roots::Public));
    let named = json!({"mode": "SIMPLE", "sni": "a.example", "subjectAltNames": ["b.example"]});
    assert_eq!(tls(named).unwrap(), simple(Some("a.example"), &["b.example"], Roots::Public));
    let anybody = json!({"mode": "SIMPLE", "insecureSkipVerify": true});
    assert_eq!(tls(anybody).unwrap(), simple(None, &[], Roots::Anybody));
    for of in [
        json!({"mode": "MUTUAL", "insecureSkipVerify": true}),
        json!({"mode": "MUTUAL", "credentialName": "a", "clientCertificate": "/etc/a.pem"}),
        json!({"mode": "SIMPLE", "caCertificates": "/etc/ca.pem"}),
        json!({"mode": "SIMPLE", "caCrl": "/etc/crl.pem"}),
    ] {
        assert!(matches!(tls(of.clone()).unwrap(), ServerTls::Unavailable(_)), "{of}");
    }
    for (mode, skip, shown, roots) in [
        ("SIMPLE", false, false, Roots::Credential),
        ("MUTUAL", false, true, Roots::Credential),
        ("MUTUAL", true, true, Roots::Anybody),
    ] {
        let found =
            tls(json!({"mode": mode, "credentialName": "a.b-c", "insecureSkipVerify": skip})).unwrap();
        let ServerTls::Simple(check) = found else { panic!("{found:?}") };
        let secret = NamespacedName::new("shop", "a.b-c");
        assert_eq!((&check.roots, &check.credential), (&roots, &Some(Credential { secret, shown })));
    }
    for name in ["../a", "a/b", "A", "a..b", "-a", "kubernetes://a", &"a".repeat(254)] {
        let error = tls(json!({"mode": "SIMPLE", "credentialName": name})).unwrap_err();
        assert_eq!(error.path.to_string(), "spec.trafficPolicy.tls.credentialName", "{name}");
    }
    assert_eq!(tls(json!({"mode": "MAYBE"})).unwrap_err().path.to_string(), "spec.trafficPolicy.tls.mode");
}

#[test]
fn one_that_cannot_be_understood_and_wants_tls_refuses() {
    let name = NamespacedName::new("shop", "r");
    let of_port = json!([{"port": {"number": 1}, "tls": {"mode": "Simple"}}]);
    for (policy, refuses) in [
        (json!({"tls": {"mode": "SIMPLE", "typo": 1}}), true),
        (json!({"portLevelSettings": of_port}), true),
        (json!({"tls": {"mode": "DISABLE", "typo": 1}}), false),
        (json!({"loadBalancer": {"simple": "BEST"}}), false),
        (json!(7), false),
    ] {
        for spec in [
            json!({"host": "web", "trafficPolicy": policy}),
            json!({"host": "web", "subsets": [{"name": "a", "trafficPolicy": policy}]}),
        ] {
            let rule = stand_in(&name, &spec);
            assert_eq!(rule.is_some(), refuses, "{spec}");
            let tls = rule.map(|rule| rule.policy.tls);
            assert!(tls.is_none_or(|tls| matches!(tls, Some(ServerTls::Unavailable(_)))));
        }
    }
    assert_eq!(stand_in(&name, &json!({"trafficPolicy": {"tls": {"mode": "SIMPLE"}}})), None);
}

#[test]
fn what_stands_in_for_a_rule_is_for_nobody_else_than_the_rule() {
    let name = NamespacedName::new("shop", "a");
    let selector = |selector: Value| {
        let tls = json!({"tls": {"mode": "SIMPLE"}});
        let spec =
            json!({"host": "web", "trafficPolicy": tls, "workloadSelector": selector, "exportTo": ["."]});
        let rule = stand_in(&name, &spec).unwrap();
        assert!(rule.exports.include("shop") && !rule.exports.include("other"));
        rule.selector
    };
    let app: Labels = [("app".to_owned(), "x".to_owned())].into();
    assert_eq!(selector(Value::Null), None);
    assert_eq!(selector(json!({"matchLabels": {"app": "x"}, "matchExpressions": []})), Some(app));
    for odd in [json!({"labels": {"app": "x"}}), json!({"matchLabels": {"app": 1}}), json!("x")] {
        assert_eq!(selector(odd.clone()), Some(Labels::default()), "{odd}");
    }
}

#[test]
fn balancers_tables_and_warmups() {
    let balancer = |of: Value| {
        let policy = rule(json!({"host": "a", "trafficPolicy": {"loadBalancer": of}})).unwrap().policy;
        (policy.balancer.unwrap(), policy.warmup)
    };
    assert_eq!(balancer(json!({"simple": "PASSTHROUGH"})).0, Balancer::Passthrough);
    let hashed = |of: Value| balancer(json!({"consistentHash": of})).0;
    let by_source = |table| Balancer::Hash(HashOn::Source, table);
    let maglev = hashed(json!({"useSourceIp": true, "maglev": {"tableSize": 101}}));
    assert_eq!(maglev, by_source(HashTable::Maglev(101)));
    let ring = hashed(json!({"useSourceIp": true, "ringHash": {"minimumRingSize": 7}}));
    assert_eq!(ring, by_source(HashTable::Ring(7)));
    let largest = hashed(json!({"useSourceIp": true, "maglev": {"tableSize": 5_000_011}}));
    assert_eq!(largest, by_source(HashTable::Maglev(HashTable::MAX)));
    let older = hashed(json!({"useSourceIp": true, "minimumRingSize": 8}));
    assert_eq!(older, by_source(HashTable::Ring(8)));
    let warmup = Warmup { duration: Duration::from_secs(60), minimum_percent: 10, aggression: 1000 };
    assert_eq!(balancer(json!({"warmupDurationSecs": "60s"})).1, Some(warmup));
    let own = json!({"warmup": {"duration": "60s", "minimumPercent": 25, "aggression": 1.5}});
    assert_eq!(balancer(own).1, Some(Warmup { minimum_percent: 25, aggression: 1500, ..warmup }));
}

#[test]
fn an_annotation_is_in_place_of_least_request() {
    let annotated = |policy: Value, value: &str| {
        let annotations = json!({"orlop.dev/load-balancer": value});
        let metadata = json!({"name": "r", "namespace": "shop", "annotations": annotations});
        let spec = json!({"host": "a", "trafficPolicy": policy});
        convert(serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap())
    };
    let balancer = |policy| annotated(policy, "PEAK_EWMA").unwrap().policy.balancer;
    assert_eq!(balancer(json!({})), Some(Balancer::PeakEwma));
    assert_eq!(balancer(json!({"loadBalancer": {"simple": "LEAST_REQUEST"}})), Some(Balancer::PeakEwma));
    assert_eq!(balancer(json!({"loadBalancer": {"simple": "RANDOM"}})), Some(Balancer::Random));
    let error = annotated(json!({}), "FASTEST").unwrap_err();
    assert_eq!(error.path.to_string(), r#"metadata.annotations["orlop.dev/load-balancer"]"#);
}

#[test]
fn mistakes_are_told_with_their_field() {
    let many: Vec<_> = (1..=MAX_PORT_SETTINGS + 1).map(|port| json!({"port": {"number": port}})).collect();
    for (spec, path) in [
        (
            json!({"host": "a", "trafficPolicy": {"portLevelSettings": many}}),
            "spec.trafficPolicy.portLevelSettings",
        ),
        (
            json!({"host": "a", "workloadSelector": {"matchLabels": {"": "b"}}}),
            "spec.workloadSelector.matchLabels.",
        ),
        (json!({"host": ""}), "spec.host"),
        (json!({"host": "a", "subsets": [{}]}), "spec.subsets[0].name"),
        (
            json!({"host": "a", "trafficPolicy": {"loadBalancer": {"simple": "BEST"}}}),
            "spec.trafficPolicy.loadBalancer.simple",
        ),
        (
            json!({"host": "a", "trafficPolicy": {"loadBalancer": {"consistentHash": {
                "useSourceIp": true, "maglev": {"tableSize": 1000},
            }}}}),
            "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
        ),
        (
            json!({"host": "a", "trafficPolicy": {"loadBalancer": {"consistentHash": {
                "useSourceIp": true, "ringHash": {"minimumRingSize": 4_000_000_000_u64},
            }}}}),
            "spec.trafficPolicy.loadBalancer.consistentHash.ringHash.minimumRingSize",
        ),
        (
            json!({"host": "a", "trafficPolicy": {"loadBalancer": {"warmup": {"duration": "5"}}}}),
            "spec.trafficPolicy.loadBalancer.warmup.duration",
        ),
        (
            json!({"host": "a", "trafficPolicy": {"retryBudget": {"percent": 101}}}),
            "spec.trafficPolicy.retryBudget.percent",
        ),
        (
            json!({"host": "a", "trafficPolicy": {"proxyProtocol": {"version": "V3"}}}),
            "spec.trafficPolicy.proxyProtocol.version",
        ),
        (
            json!({"host": "a", "trafficPolicy": {"connectionPool": {"http": {"h2UpgradePolicy": "MAYBE"}}}}),
            "spec.trafficPolicy.connectionPool.http.h2UpgradePolicy",
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
