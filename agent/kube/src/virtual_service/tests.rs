use std::time::Duration;

use orlop_model::world::routing::{Abort, Percent, RedirectPort, Retries, RetryOn};
use serde_json::{Value, json};

use super::*;

#[test]
fn everything_the_waypoint_reads_is_carried_over() {
    let found = service(json!({
        "hosts": ["Web", "*.example.com", "*"],
        "gateways": ["mesh", "istio-system/in"],
        "exportTo": ["."],
        "tls": [{"match": [{"sniHosts": ["A.com", "*.b.com"], "port": 443, "destinationSubnets": ["10.0.0.0/8"]}],
            "route": [{"destination": {"host": "web"}}]}],
        "tcp": [{"match": [{"sourceLabels": {"app": "a"}, "sourceNamespace": "shop", "gateways": ["mesh"]}],
            "route": [{"destination": {"host": "web", "subset": "v1"}, "weight": 9}, {"destination": {"host": "b"}, "weight": 1}]}],
        "http": [{
            "name": "canary",
            "match": [{
                "uri": {"prefix": "/v1"}, "ignoreUriCase": true, "method": {"exact": "GET"},
                "headers": {"X-Beta": {"exact": "true"}, "x-any": {}}, "withoutHeaders": {"x-no": {"regex": "a+"}},
                "queryParams": {"Q": {"exact": "1"}}, "port": 80, "sourceLabels": {"app": "a"},
                "sourceNamespace": "shop", "gateways": ["mesh"],
            }],
            "route": [
                {"destination": {"host": "web", "subset": "v1", "port": {"number": 8080}}, "weight": 90},
                {"destination": {"host": "web"}, "weight": 10, "headers": {"response": {"add": {"X-From": "v2"}}}},
            ],
            "rewrite": {"uri": "/", "authority": "inner"},
            "timeout": "1.5s",
            "retries": {
                "attempts": 3, "perTryTimeout": "2s", "retryOn": "5xx,unavailable, 429", "backoff": "10ms",
                "retryRemoteLocalities": true,
            },
            "fault": {
                "delay": {"fixedDelay": "5s", "percentage": {"value": 0.1}},
                "abort": {"grpcStatus": "UNAVAILABLE"},
            },
            "mirrors": [{"destination": {"host": "shadow"}, "percentage": {"value": 50}}],
            "corsPolicy": {"allowOrigins": [{"exact": "https://a"}], "allowMethods": ["GET"], "maxAge": "24h"},
            "headers": {"request": {"set": {"X-A": "1"}, "remove": ["x-b"]}},
        }],
    }))
    .unwrap();
    assert_eq!(found.hosts, ["web", "*.example.com", "*"]);
    let of = &found.tls[0].matches[0];
    assert_eq!(of.names.iter().map(|name| name.0.as_str()).collect::<Vec<_>>(), ["a.com", "*.b.com"]);
    assert_eq!((of.port, of.destinations[0].to_string().as_str()), (Some(443), "10.0.0.0/8"));
    assert_eq!(found.tls[0].route[0].weight, 1);
    assert_eq!(found.tcp[0].matches[0].source_namespace.as_deref(), Some("shop"));
    assert_eq!(found.tcp[0].route.iter().map(|of| of.weight).collect::<Vec<_>>(), [9, 1]);
    let rule = &found.http[0];
    let of = &rule.matches[0];
    assert_eq!(of.uri, Some(StringMatch::Prefix("/v1".to_owned())));
    assert_eq!(of.headers[0], ("x-beta".to_owned(), StringMatch::Exact("true".to_owned())));
    assert_eq!(of.headers[1].1, StringMatch::Present);
    assert_eq!(of.query[0].0, "Q");
    let RuleAction::Route(route) = &rule.action else { panic!("{:?}", rule.action) };
    assert_eq!((route[0].weight, route[0].destination.port), (90, Some(8080)));
    assert_eq!(route[1].headers.response.add, [("x-from".to_owned(), HeaderText::verbatim("v2"))]);
    assert_eq!(rule.timeout, Some(Duration::from_millis(1500)));
    let retries = rule.retries.as_ref().unwrap();
    let on = [RetryOn::ServerError, RetryOn::Grpc(14), RetryOn::Status(429)];
    assert_eq!(retries.on.as_deref(), Some(&on[..]));
    assert_eq!((retries.attempts, retries.backoff), (3, Duration::from_millis(10)));
    assert!(retries.remote_localities && !Retries::default().remote_localities);
    let fault = rule.fault.as_ref().unwrap();
    assert_eq!(fault.delay, Some((Duration::from_secs(5), Percent(1000))));
    assert_eq!(fault.abort, Some((Abort::Grpc(14), Percent::ALL)));
    assert_eq!(rule.mirrors[0].percent, Percent(500_000));
}

#[test]
fn a_redirect_is_permanent_unless_it_says_otherwise() {
    let action = |redirect: Value| {
        let found = service(json!({"hosts": ["a"], "http": [{"redirect": redirect}]})).unwrap();
        found.http.into_iter().next().unwrap().action
    };
    let RuleAction::Redirect(found) = action(json!({"uri": "/x"})) else { panic!() };
    assert_eq!((found.code, found.port), (301, RedirectPort::FromAuthority));
    let RuleAction::Redirect(found) = action(json!({"redirectCode": 307, "derivePort": "FROM_REQUEST_PORT"}))
    else {
        panic!()
    };
    assert_eq!((found.code, found.port), (307, RedirectPort::OfRequest));
}

#[test]
fn mirrors_without_a_percentage_get_everything_and_zero_is_off() {
    let percent = |rule: Value| {
        let mut rule = rule;
        rule["route"] = json!([{"destination": {"host": "a"}}]);
        service(json!({"hosts": ["a"], "http": [rule]})).unwrap().http[0].mirrors[0].percent
    };
    assert_eq!(percent(json!({"mirror": {"host": "b"}})), Percent::ALL);
    assert_eq!(percent(json!({"mirror": {"host": "b"}, "mirrorPercentage": {"value": 0}})), Percent(0));
    assert_eq!(percent(json!({"mirrors": [{"destination": {"host": "b"}}]})), Percent::ALL);
}

#[test]
fn mistakes_are_told_with_their_field() {
    let route = json!([{"destination": {"host": "a"}}]);
    for (rule, path, says) in [
        (json!({}), "spec.http[0]", "nothing to do"),
        (json!({"route": route, "redirect": {}}), "spec.http[0]", "route and redirect"),
        (json!({"route": [{"destination": {}}]}), "spec.http[0].route[0].destination.host", "missing"),
        (
            json!({"route": [{"destination": {"host": "a"}, "weight": 0}, {"destination": {"host": "b"}}]}),
            "spec.http[0].route",
            "no weight but 0",
        ),
        (
            json!({"route": route, "match": [{"uri": {"regex": "("}}]}),
            "spec.http[0].match[0].uri.regex",
            "regular expression",
        ),
        (json!({"route": route, "match": [{"uri": {}}]}), "spec.http[0].match[0].uri", "one of exact"),
        (json!({"route": route, "match": [{"port": 0}]}), "spec.http[0].match[0].port", "not a port"),
        (json!({"route": route, "timeout": "5"}), "spec.http[0].timeout", "no duration"),
        (json!({"route": route, "retries": {"retryOn": "often"}}), "spec.http[0].retries.retryOn", "often"),
        (json!({"route": route, "fault": {"delay": {}}}), "spec.http[0].fault.delay.fixedDelay", "missing"),
        (json!({"route": route, "fault": {"abort": {}}}), "spec.http[0].fault.abort", "httpStatus"),
        (
            json!({"route": route, "mirror": {"host": "b"}, "mirrors": [{"destination": {"host": "c"}}]}),
            "spec.http[0].mirror",
            "beside mirrors",
        ),
        (json!({"directResponse": {"status": 99}}), "spec.http[0].directResponse.status", "99"),
        (json!({"redirect": {"redirectCode": 200}}), "spec.http[0].redirect.redirectCode", "200"),
        (
            json!({"route": route, "headers": {"request": {"set": {"a b": "c"}}}}),
            "spec.http[0].headers.request.set.a b",
            "not the name",
        ),
        (
            json!({"route": route, "headers": {"response": {"add": {"x": "%CEL(a)%"}}}}),
            "spec.http[0].headers.response.add.x",
            "%CEL(a)%",
        ),
        (
            json!({"route": route, "headers": {"request": {"set": {"Host": "%REQ(x)%"}}}}),
            "spec.http[0].headers.request.set.Host",
            "no host",
        ),
        (
            json!({"route": route, "match": [{"uri": {"regex": "*"}}]}),
            "spec.http[0].match[0].uri.regex",
            "regular expression",
        ),
    ] {
        let error = service(json!({"hosts": ["a"], "http": [rule]})).unwrap_err();
        assert_eq!(error.path.to_string(), path);
        assert!(error.problem.contains(says), "{path}: {}", error.problem);
    }
    assert_eq!(service(json!({"hosts": ["a b"]})).unwrap_err().path.to_string(), "spec.hosts[0]");
}

#[test]
fn conditions_of_retries_that_there_are_not_are_told_and_are_not_the_default_ones() {
    let retries = |retry_on: Value| {
        let rule = json!({"route": [{"destination": {"host": "a"}}], "retries": {"retryOn": retry_on}});
        let found = service(json!({"hosts": ["a"], "http": [rule]})).unwrap();
        (found.http[0].retries.clone().unwrap().on, found.unread)
    };
    let at = |what: &str| vec![format!("spec.http[0].retries.retryOn {what}")];
    for (text, on, unread) in [
        (json!(null), None, Vec::new()),
        (json!(""), None, Vec::new()),
        (json!("reset-before-request"), Some(vec![RetryOn::ResetBeforeRequest]), Vec::new()),
        (json!("reset,envoy-ratelimited"), Some(vec![RetryOn::Reset, RetryOn::RateLimited]), Vec::new()),
        (json!("retriable-status-codes,503"), Some(vec![RetryOn::Status(503)]), Vec::new()),
        (json!("retriable-status-codes"), Some(Vec::new()), at("retriable-status-codes without a status")),
        (json!("retriable-headers"), Some(Vec::new()), at("retriable-headers")),
        (
            json!("5xx, http3-post-connect-failure"),
            Some(vec![RetryOn::ServerError]),
            at("http3-post-connect-failure"),
        ),
    ] {
        assert_eq!(retries(text.clone()), (on, unread), "{text}");
    }
}

fn service(spec: Value) -> Result<VirtualService, FieldError> {
    let object = json!({"metadata": {"name": "r", "namespace": "shop"}, "spec": spec});
    convert(serde_json::from_value(object).unwrap())
}

#[test]
fn claims_are_named_by_dots_and_brackets() {
    let names = |text: &str| claim_names(text).map(|names| names.join("|"));
    for (text, wanted) in [
        ("@request.auth.claims.sub", Some("sub")),
        ("@request.auth.claims.name.given", Some("name|given")),
        ("@request.auth.claims[name][a.b/c]", Some("name|a.b/c")),
        ("@request.auth.claims.name[a.b].c", Some("name|a.b|c")),
        ("@request.auth.claims", None),
        ("@request.auth.claims.", None),
        ("@request.auth.claims..a", None),
        ("@request.auth.claims[a", None),
        ("@request.auth.claims[]", None),
        ("@request.auth.claimsa", None),
        ("@request.auth.principal", None),
    ] {
        assert_eq!(names(text).as_deref(), wanted, "{text}");
    }
    let of = |field: &str, name: &str| {
        service(json!({
            "hosts": ["web"],
            "http": [{"match": [{field: {name: {"exact": "Bob"}, "X-A": {}}}], "directResponse": {"status": 200}}],
        }))
    };
    let found = of("headers", "@request.auth.claims.Sub").unwrap();
    let of_claim = (vec!["Sub".to_owned()], StringMatch::Exact("Bob".to_owned()));
    assert_eq!(found.http[0].matches[0].claims, std::slice::from_ref(&of_claim));
    assert_eq!(found.http[0].matches[0].headers, [("x-a".to_owned(), StringMatch::Present)]);
    let found = of("withoutHeaders", "@request.auth.claims.Sub").unwrap();
    assert_eq!(found.http[0].matches[0].without_claims, [of_claim]);
    assert!(found.http[0].matches[0].claims.is_empty());
    let error = of("headers", "@request.auth.principal").unwrap_err().to_string();
    assert!(error.contains("@request.auth.principal") && error.contains("names no claim"), "{error}");
}

#[test]
fn an_odd_rule_of_streams_costs_no_other() {
    let spec = |gateways: Value, own: Value| {
        json!({
            "hosts": ["web"], "gateways": gateways,
            "http": [{"route": [{"destination": {"host": "web"}}]}],
            "tls": [{"match": [{"gateways": own}]}],
            "tcp": [{"match": [{"port": 0, "gateways": own}]}],
        })
    };
    for (gateways, own) in [(json!(["edge"]), json!([])), (json!(["mesh"]), json!(["edge"]))] {
        let found = service(spec(gateways, own)).unwrap();
        let edge = ["edge".to_owned()];
        assert!(found.tls.iter().chain(&found.tcp).all(|rule| rule.matches[0].gateways == edge));
        assert_eq!((found.tls.len(), found.tcp.len(), found.http.len()), (1, 1, 1));
    }
    for (gateways, own) in [(json!([]), json!([])), (json!(["edge"]), json!(["edge", "mesh"]))] {
        assert!(service(spec(gateways, own)).is_err());
    }
    let subnet = json!({
        "hosts": ["web"],
        "tcp": [{"match": [{"sourceSubnet": "10.0.0.0/8"}], "route": [{"destination": {"host": "web"}}]}],
    });
    let found = service(subnet).unwrap();
    // It is for nobody.
    assert_eq!(found.tcp[0].matches[0].source_namespace.as_deref(), Some(""));
}

#[test]
fn a_star_for_a_regex_asks_whether_it_is_there() {
    let star = json!({"x": {"regex": "*"}});
    let found = service(json!({
        "hosts": ["web"],
        "http": [{
            "match": [{"headers": star, "withoutHeaders": star, "queryParams": star}],
            "directResponse": {"status": 200},
        }],
    }));
    let of = &found.unwrap().http[0].matches[0];
    let present = [("x".to_owned(), StringMatch::Present)];
    assert_eq!(
        (&of.headers[..], &of.without_headers[..], &of.query[..]),
        (&present[..], &present[..], &present[..])
    );
}

#[test]
fn what_has_no_effect_is_told() {
    let unread = |of: Value| {
        service(json!({"hosts": ["web"], "http": [{"match": [of], "directResponse": {"status": 200}}]}))
            .unwrap()
            .unread
    };
    assert_eq!(unread(json!({"statPrefix": "a"})), ["http.match.statPrefix"]);
    assert!(unread(json!({})).is_empty());
    // An endpoint that was tried is passed over in any case.
    let unread = |of: Value| {
        let rule =
            json!({"route": [{"destination": {"host": "a"}}], "retries": {"retryIgnorePreviousHosts": of}});
        service(json!({"hosts": ["web"], "http": [rule]})).unwrap().unread
    };
    assert_eq!(unread(json!(false)), ["spec.http[0].retries.retryIgnorePreviousHosts: false"]);
    assert!(unread(json!(true)).is_empty());
}

/// A delegate's rule that says so goes by it, not by the rule that delegates.
#[test]
fn what_is_written_to_be_none_is_not_what_is_left_out() {
    let rule = |more: Value| {
        let mut rule = json!({"route": [{"destination": {"host": "a"}}]});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        service(json!({"http": [rule]})).unwrap().http.remove(0)
    };
    let left_out = rule(json!({}));
    assert_eq!((left_out.timeout, left_out.fault, left_out.headers), (None, None, None));
    let none = rule(json!({"timeout": "0s", "fault": {}, "headers": {}}));
    assert_eq!((none.timeout, none.fault), (Some(Duration::ZERO), Some(Default::default())));
    assert_eq!(none.headers, Some(HeaderChanges::default()));
}
