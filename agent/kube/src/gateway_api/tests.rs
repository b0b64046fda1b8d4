use orlop_model::world::gateway_api::{RouteMatch, RpcName};
use orlop_model::world::header_text::HeaderText;
use orlop_model::world::routing::{HttpMatch, PathChange, Percent, RedirectPort, RetryOn};
use serde_json::json;

use super::*;

fn object(kind: &str, spec: Value) -> Result<Route, FieldError> {
    let object = json!({"metadata": {"name": "r", "namespace": "shop"}, "spec": spec});
    let object = serde_json::from_value(object).unwrap();
    match kind {
        "HTTPRoute" => http_route::convert(object),
        _ => grpc_route::convert(object),
    }
}

fn parents() -> Value {
    json!([{"group": "", "kind": "Service", "name": "web"}])
}

fn http(rule: Value) -> Result<RouteRule, FieldError> {
    let route = object("HTTPRoute", json!({"parentRefs": parents(), "rules": [rule]}))?;
    Ok(route.rules.into_iter().next().unwrap())
}

fn grpc(rule: Value) -> Result<RouteRule, FieldError> {
    let route = object("GRPCRoute", json!({"parentRefs": parents(), "rules": [rule]}))?;
    Ok(route.rules.into_iter().next().unwrap())
}

#[test]
fn everything_the_waypoint_reads_of_an_http_route_is_carried_over() {
    let found = object("HTTPRoute", json!({
        "parentRefs": [
            {"group": "", "kind": "Service", "name": "web", "sectionName": "http", "port": 80},
            {"group": "", "kind": "Service", "name": "other", "namespace": "far"},
            {"name": "gateway"},
        ],
        "hostnames": ["example.com"],
        "rules": [{
            "name": "canary",
            "matches": [{
                "path": {"type": "PathPrefix", "value": "/v1/"}, "method": "GET",
                "headers": [{"name": "X-Beta", "value": "true"}, {"name": "x-beta", "value": "false"}],
                "queryParams": [{"type": "RegularExpression", "name": "Q", "value": "a+"}],
            }],
            "filters": [
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {
                    "set": [{"name": "X-A", "value": "1"}], "add": [{"name": "X-B", "value": "2"}], "remove": ["x-c"],
                }},
                {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": ["x-a"]}},
                {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "a", "port": 80}}},
                {"type": "RequestMirror", "requestMirror": {
                    "backendRef": {"name": "b", "port": 80}, "fraction": {"numerator": 1, "denominator": 8},
                }},
                {"type": "URLRewrite", "urlRewrite": {
                    "hostname": "inner", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"},
                }},
            ],
            "backendRefs": [
                {"name": "web", "port": 8080, "weight": 90},
                {"name": "web", "namespace": "far", "port": 81, "filters": [
                    {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/x"}}},
                ]},
                {"group": "net.example", "kind": "Bucket", "name": "b", "weight": 0},
            ],
            "timeouts": {"request": "10s", "backendRequest": "2s"},
            "retry": {"codes": [500, 503], "attempts": 3, "backoff": "100ms"},
            "sessionPersistence": {},
        }],
    })).unwrap();
    assert_eq!(found.parents.len(), 2);
    assert_eq!(found.parents[0].section.as_deref(), Some("http"));
    assert_eq!((found.parents[1].service.to_string(), found.parents[1].port), ("far/other".to_owned(), None));
    assert_eq!(found.unread, ["hostnames", "sessionPersistence"]);
    let rule = &found.rules[0];
    let of = &rule.matches[0].http;
    assert_eq!(of.uri, Some(StringMatch::Segments("/v1".to_owned())));
    assert_eq!(of.method, Some(StringMatch::Exact("GET".to_owned())));
    // Of two of one name the first counts.
    assert_eq!(of.headers, [("x-beta".to_owned(), StringMatch::Exact("true".to_owned()))]);
    assert_eq!(of.query, [("Q".to_owned(), StringMatch::Regex("a+".parse().unwrap()))]);
    let filters = &rule.filters;
    assert_eq!(filters.headers.request.set, [("x-a".to_owned(), HeaderText::verbatim("1"))]);
    assert_eq!(filters.headers.response.remove, ["x-a"]);
    let percents: Vec<_> = filters.mirrors.iter().map(|mirror| mirror.percent).collect();
    assert_eq!(percents, [Percent::ALL, Percent(125_000)]);
    let rewrite = filters.rewrite.as_ref().unwrap();
    assert_eq!(rewrite.authority.as_deref(), Some("inner"));
    assert_eq!(rewrite.path, Some(PathChange::Prefix("/".to_owned())));
    assert_eq!(filters.unsupported, None);
    let weights: Vec<_> = rule.backends.iter().map(|of| (of.weight, of.backend.to_string())).collect();
    let wanted = [(90, "Service shop/web:8080"), (1, "Service far/web:81"), (0, "Bucket.net.example shop/b")];
    assert_eq!(weights, wanted.map(|(weight, backend)| (weight, backend.to_owned())));
    let own = rule.backends[1].filters.rewrite.as_ref().unwrap();
    assert_eq!(own.path, Some(PathChange::Full("/x".to_owned())));
    assert_eq!(rule.timeout, Some(Duration::from_secs(10)));
    let retries = rule.retries.as_ref().unwrap();
    assert_eq!((retries.attempts, retries.per_try), (3, Some(Duration::from_secs(2))));
    assert_eq!(retries.at_least, Duration::from_millis(100));
    let on = retries.on.as_ref().unwrap();
    assert!(on.contains(&RetryOn::Status(503)) && on.contains(&RetryOn::Reset));
}

#[test]
fn a_rule_of_a_gateway_that_is_not_understood_is_kept_with_what_it_matches_if_that_is_known() {
    let path = |value: &str| json!([{"path": {"type": "PathPrefix", "value": value}}]);
    let rules = json!([
        {"whatever": 1, "matches": path("/a")},
        {"matches": [{"whatever": 1}]},
        {"matches": path("/b")},
        {"whatever": 1},
    ]);
    let found = object("HTTPRoute", json!({"parentRefs": [{"name": "in"}], "rules": rules})).unwrap();
    assert!(found.parents.is_empty());
    let [known, unknown, good, last] = &found.rules[..] else { panic!("{:?}", found.rules) };
    assert_eq!(known.matches, [RouteMatch { http: segments("/a"), rpc: None }]);
    let of = |rule: &RouteRule| rule.unreadable.clone().map(|of| (of.problem, of.may_match_anything));
    let (problem, may_match_anything) = of(known).unwrap();
    assert!(problem.starts_with("spec.rules[0]") && !may_match_anything, "{problem}");
    let (problem, may_match_anything) = of(unknown).unwrap();
    assert!(problem.starts_with("spec.rules[1].matches[0]") && may_match_anything, "{problem}");
    assert_eq!(of(good), None);
    // It matches what no other rule does, which is known.
    assert!(last.matches.is_empty() && of(last).is_some_and(|(_, may_match_anything)| !may_match_anything));
    let rules = json!([{"whatever": 1}, {"whatever": 1, "matches": null}]);
    let found = object("GRPCRoute", json!({"parentRefs": [{"name": "in"}], "rules": rules})).unwrap();
    assert!(
        found.rules.iter().all(|rule| of(rule).is_some_and(|(_, may_match_anything)| !may_match_anything))
    );
}

fn segments(path: &str) -> HttpMatch {
    HttpMatch { uri: Some(StringMatch::Segments(path.to_owned())), ..HttpMatch::default() }
}

#[test]
fn what_a_gateway_lets_in_is_carried_over_and_what_is_not_known_lets_in_nobody() {
    use orlop_model::world::gateway::{FromNamespaces, LabelTest};

    let gateway = |namespaces: Value| {
        let object = json!({
            "metadata": {"name": "gate", "namespace": "edge"},
            "spec": {"gatewayClassName": "orlop", "whatever": 1, "listeners": [{
                "name": "web", "port": 80, "protocol": "HTTP", "hostname": "*.Example.com",
                "allowedRoutes": {"namespaces": namespaces, "kinds": [{"kind": "HTTPRoute"}]},
            }]},
        });
        typed(object).and_then(gateway::convert)
    };
    let found = gateway(json!({"from": "Selector", "selector": {
        "matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "DoesNotExist"}],
    }}));
    let listener = found.unwrap().listeners.remove(0);
    assert_eq!(
        (listener.hostname.as_deref(), listener.kinds[0].group.as_str()),
        (Some("*.example.com"), GROUP)
    );
    let FromNamespaces::Selector(wanted) = listener.namespaces else { panic!("{listener:?}") };
    let wanted: Vec<_> = wanted.into_iter().map(|of| (of.key, of.test)).collect();
    assert_eq!(
        wanted,
        [("a".to_owned(), LabelTest::In(vec!["b".to_owned()])), ("c".to_owned(), LabelTest::DoesNotExist),]
    );
    for (namespaces, lets) in [
        (json!({}), FromNamespaces::Same),
        (json!({"from": "All"}), FromNamespaces::All),
        (json!({"from": "None"}), FromNamespaces::None),
        (json!({"from": "Some"}), FromNamespaces::None),
        (json!({"from": "Selector"}), FromNamespaces::None),
    ] {
        assert_eq!(gateway(namespaces.clone()).unwrap().listeners[0].namespaces, lets, "{namespaces}");
    }
    let selector = json!({"matchExpressions": [{"key": "a", "operator": "Like", "values": ["b"]}]});
    let error = gateway(json!({"from": "Selector", "selector": selector})).unwrap_err();
    assert!(error.to_string().contains("matchExpressions[0].operator"), "{error}");
    assert!(gateway(json!({"from": "Selector", "selector": {"matchLabel": {}}})).is_err());
}

#[test]
fn defaults_are_those_of_the_specification() {
    let rule =
        http(json!({"matches": [{}], "timeouts": {"request": "0s", "backendRequest": "0h0m0s"}})).unwrap();
    assert_eq!(rule.matches[0].http.uri, Some(StringMatch::Segments(String::new())));
    assert_eq!((rule.timeout, rule.retries), (None, None));
    let of = |redirect: Value| {
        let filter = json!({"type": "RequestRedirect", "requestRedirect": redirect});
        http(json!({"filters": [filter]})).unwrap().filters.redirect.unwrap()
    };
    let found = of(json!({}));
    assert_eq!((found.code, found.port), (302, RedirectPort::OfRequest));
    assert_eq!(of(json!({"scheme": "https"})).port, RedirectPort::OfScheme);
    assert_eq!(of(json!({"scheme": "https", "port": 8443})).port, RedirectPort::Number(8443));
    let cors = json!({"type": "CORS", "cors": {"allowOrigins": ["https://*.example.com:443"]}});
    let cors = http(json!({"filters": [cors]})).unwrap().filters.cors.unwrap();
    assert_eq!((cors.max_age, cors.credentials), (Some(Duration::from_secs(5)), false));
    let StringMatch::Regex(origin) = &cors.origins[0] else { panic!("{:?}", cors.origins) };
    assert!(origin.matches("https://a.b.example.com"));
    assert!(!origin.matches("https://example.com") && !origin.matches("https://a.example.com:8443"));
    // A dot is one, and not any character.
    assert!(!origin.matches("https://a.exampleXcom") && !origin.matches("https://aXexample.com"));
    // A route without rules has one that leads nowhere.
    assert_eq!(object("HTTPRoute", json!({"parentRefs": parents()})).unwrap().rules.len(), 1);
}

#[test]
fn a_backend_may_have_any_filter_of_a_rule() {
    let cors = json!({"type": "CORS", "cors": {"allowOrigins": ["https://a.example"]}});
    let rule = http(json!({"backendRefs": [{"name": "a", "port": 1, "filters": [cors]}]})).unwrap();
    let filters = &rule.backends[0].filters;
    let origins = [StringMatch::Exact("https://a.example".to_owned())];
    assert_eq!(
        (filters.cors.as_ref().unwrap().origins.as_slice(), &filters.unsupported),
        (&origins[..], &None)
    );
}

#[test]
fn a_filter_that_is_not_known_is_not_skipped() {
    for filter in [
        json!({"type": "ExtensionRef", "extensionRef": {"group": "a", "kind": "b", "name": "c"}}),
        json!({"type": "ExternalAuth", "externalAuth": {"protocol": "HTTP"}}),
        json!({"type": "Tomorrow", "tomorrow": [1, 2]}),
    ] {
        let kind = filter["type"].as_str().unwrap();
        let rule = http(json!({"filters": [filter]})).unwrap();
        assert!(rule.filters.unsupported.unwrap().contains(kind));
        let rule = http(json!({"backendRefs": [{"name": "a", "port": 1, "filters": [filter]}]})).unwrap();
        assert!(rule.backends[0].filters.unsupported.is_some());
    }
    let redirect = json!({"type": "RequestRedirect", "requestRedirect": {}});
    assert!(grpc(json!({"filters": [redirect]})).unwrap().filters.unsupported.is_some());
}

#[test]
fn grpc_methods_are_paths() {
    let uri =
        |method: Value| grpc(json!({"matches": [{"method": method}]})).unwrap().matches[0].http.uri.clone();
    assert_eq!(
        uri(json!({"service": "a.B", "method": "Do"})),
        Some(StringMatch::Exact("/a.B/Do".to_owned()))
    );
    assert_eq!(uri(json!({"service": "a.B"})), Some(StringMatch::Prefix("/a.B/".to_owned())));
    let Some(StringMatch::Regex(regex)) = uri(json!({"method": "Do.It"})) else { panic!() };
    assert!(regex.matches("/a.B/Do.It") && !regex.matches("/a.B/DoxIt") && !regex.matches("/a/b/Do.It"));
    let found = json!({"type": "RegularExpression", "service": "a|b", "method": "x.*"});
    let Some(StringMatch::Regex(regex)) = uri(found) else { panic!() };
    assert!(regex.matches("/a/xy") && regex.matches("/b/x") && !regex.matches("/a"));
    let rule = grpc(json!({"matches": [{}, {"method": {"method": "M"}}]})).unwrap();
    assert_eq!(rule.matches[0].http.uri, None);
    assert_eq!(rule.matches[1].rpc.as_ref().unwrap().method, Some(RpcName::Exact("M".to_owned())));
}

#[test]
fn mistakes_are_told_with_their_field() {
    let backends = json!([{"name": "a", "port": 80}]);
    let filter = |filter: Value| json!({"filters": [filter]});
    let modifier = |changes: Value| json!({"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": changes}]});
    let prefix = json!({"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}});
    for (rule, path, says) in [
        (json!({"backendRef": []}), "", "unknown field"),
        (json!({"matches": [{"paths": {}}]}), "matches[0]", "unknown field"),
        (json!({"matches": [{"path": {"type": "Glob"}}]}), "matches[0].path.type", "Glob"),
        (json!({"matches": [{"path": {"value": "a"}}]}), "matches[0].path.value", "no path"),
        (json!({"matches": [{"path": {"value": "/a/../b"}}]}), "matches[0].path.value", "no path"),
        (
            json!({"matches": [{"path": {"type": "RegularExpression", "value": "("}}]}),
            "matches[0].path.value",
            "regular expression",
        ),
        (
            json!({"matches": [{"headers": [{"name": ":path", "value": "/"}]}]}),
            "matches[0].headers[0].name",
            "not the name",
        ),
        (json!({"backendRefs": [{"name": "a", "weight": -1}]}), "backendRefs[0].weight", "not a weight"),
        (json!({"backendRefs": [{"port": 80}]}), "backendRefs[0].name", "missing"),
        (filter(json!({"type": "CORS"})), "filters[0].cors", "missing"),
        (
            modifier(json!({"set": [{"name": "a", "value": "1"}], "remove": ["A"]})),
            "filters[0].requestHeaderModifier.remove[0]",
            "twice",
        ),
        (
            json!({
                "filters": [{"type": "RequestRedirect", "requestRedirect": {}}],
                "backendRefs": backends,
            }),
            "",
            "redirects",
        ),
        (
            json!({"filters": [prefix], "matches": [{"path": {"type": "Exact", "value": "/a"}}]}),
            "",
            "PathPrefix",
        ),
        (
            filter(json!({"type": "RequestMirror", "requestMirror": {
                "backendRef": {"name": "a"}, "percent": 1, "fraction": {"numerator": 1},
            }})),
            "filters[0].requestMirror.percent",
            "beside",
        ),
        (
            filter(json!({"type": "CORS", "cors": {"allowOrigins": ["example.com"]}})),
            "filters[0].cors.allowOrigins[0]",
            "no origin",
        ),
        (json!({"timeouts": {"request": "1.5s"}}), "timeouts.request", "no duration"),
        (json!({"timeouts": {"request": "1s", "backendRequest": "2s"}}), "timeouts.backendRequest", "longer"),
        (json!({"retry": {"codes": [200]}}), "retry.codes[0]", "not the status"),
    ] {
        let error = http(rule).unwrap_err();
        let wanted =
            if path.is_empty() { "spec.rules[0]".to_owned() } else { format!("spec.rules[0].{path}") };
        assert!(error.path.to_string().starts_with(&wanted), "{error}: {wanted}");
        assert!(error.problem.contains(says), "{error}");
    }
    let error = grpc(json!({"matches": [{"method": {}}]})).unwrap_err();
    assert_eq!(error.path.to_string(), "spec.rules[0].matches[0].method");
}

#[test]
fn durations_are_those_of_gep_2257() {
    for (text, wanted) in [
        ("5s", Some(5_000)),
        ("1h30m", Some(5_400_000)),
        ("1h1m1s1ms", Some(3_661_001)),
        ("0s", Some(0)),
        ("99999ms", Some(99_999)),
        ("100000ms", None),
        ("1h1h1h1h1h", None),
        ("1.5s", None),
        ("1us", None),
        ("-1s", None),
        ("s", None),
        ("1", None),
        ("", None),
    ] {
        assert_eq!(read_duration(text), wanted.map(Duration::from_millis), "{text:?}");
    }
}

#[test]
fn a_grant_is_for_what_it_names() {
    let grant = json!({
        "metadata": {"name": "g", "namespace": "far"},
        "spec": {
            "from": [{"group": GROUP, "kind": "HTTPRoute", "namespace": "shop"}],
            "to": [{"group": "", "kind": "Service", "name": "web"}],
        },
    });
    let grant = reference_grant::convert(serde_json::from_value(grant).unwrap()).unwrap();
    let grants = |kind: &str, namespace: &str, name: &str| {
        grant.grants(("gateway.networking.k8s.io", kind, namespace), ("", "Service"), name)
    };
    assert!(grants("HTTPRoute", "shop", "web"));
    assert!(!grants("GRPCRoute", "shop", "web"));
    assert!(!grants("HTTPRoute", "other", "web"));
    assert!(!grants("HTTPRoute", "shop", "other"));
}
