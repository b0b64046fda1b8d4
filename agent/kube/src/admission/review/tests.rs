use std::collections::BTreeSet;
use std::slice;

use orlop_model::NamespacedName;
use serde_json::Value;

use super::*;

const POLICY: (&str, &str, &str) = ("security.istio.io", "v1", "AuthorizationPolicy");
const ROUTE: (&str, &str, &str) = ("gateway.networking.k8s.io", "v1", "HTTPRoute");

fn settings() -> Settings {
    Settings {
        node: String::new(),
        trust_domain: "cluster.local".parse().unwrap(),
        trust_domain_aliases: Vec::new(),
        root_namespace: "istio-system".to_owned(),
        cluster: "Kubernetes".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        network: None,
    }
}

fn object((group, version, kind): (&str, &str, &str), spec: &Value) -> Value {
    json!({
        "apiVersion": format!("{group}/{version}"), "kind": kind,
        "metadata": {"name": "web", "namespace": "shop"}, "spec": spec,
    })
}

fn review((group, version, kind): (&str, &str, &str), operation: &str, more: Value) -> Value {
    let mut request = json!({
        "uid": "u", "kind": {"group": group, "version": version, "kind": kind},
        "operation": operation, "name": "web", "namespace": "shop",
    });
    for (key, value) in more.as_object().unwrap() {
        request[key] = value.clone();
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
}

fn asked(review: &Value) -> Asked {
    Review::read(&review.to_string()).unwrap().asked
}

/// Of an object in the place of another, in a world without anything else.
fn verdict(kind: (&str, &str, &str), old: Option<&Value>, new: &Value) -> Verdict {
    let mut more = json!({"object": object(kind, new)});
    if let Some(old) = old {
        more["oldObject"] = object(kind, old);
    }
    let operation = if old.is_some() { "UPDATE" } else { "CREATE" };
    let Asked::Of(subject) = asked(&review(kind, operation, more)) else { panic!("nothing is asked") };
    let waypoints = BTreeSet::from([NamespacedName::new("shop", "gate")]);
    let own = OwnGateways { waypoints, ..OwnGateways::default() };
    subject.judged(&Judgement::default(), &Seen::default(), &own, &settings())
}

#[test]
fn what_can_t_be_understood_is_refused_and_what_is_not_there_is_a_warning() {
    let bad = verdict(POLICY, None, &json!({"action": "MAYBE"}));
    assert_eq!(bad.errors, ["spec.action: \"MAYBE\" is not ALLOW, DENY, AUDIT or CUSTOM"]);
    assert!(bad.warnings.is_empty());
    let absent = verdict(
        POLICY,
        None,
        &json!({"targetRefs": [{"kind": "Service", "group": "", "name": "nobody"}], "rules": [{}]}),
    );
    assert!(absent.errors.is_empty());
    assert!(absent.warnings.iter().any(|text| text.contains("nobody")), "{absent:?}");
    assert_eq!(verdict(POLICY, None, &json!({"rules": [{}]})).errors, [""; 0]);
}

#[test]
fn keys_that_are_none_are_refused_unless_they_were_none_before() {
    let kind = ("security.istio.io", "v1", "RequestAuthentication");
    let keys = |text: &str| {
        json!({
            "targetRefs": [{"kind": "Service", "group": "", "name": "web"}],
            "jwtRules": [{"issuer": "https://idp.example", "jwks": text}],
        })
    };
    let good = r#"{"keys": [{"kty": "new"}, {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let (good, bad) = (keys(good), keys(r#"{"kty": "EC"}"#));
    for old in [None, Some(&good)] {
        let refused = verdict(kind, old, &bad);
        let [error] = refused.errors.as_slice() else { panic!("{refused:?}") };
        assert!(error.starts_with("spec.jwtRules[0].jwks is no key set"), "{error}");
    }
    for (old, new) in [(None, &good), (Some(&bad), &bad), (Some(&bad), &good)] {
        assert_eq!(verdict(kind, old, new).errors, [""; 0]);
    }
}

#[test]
fn what_was_refused_before_can_be_mended_bit_by_bit() {
    let two = json!({"action": "MAYBE", "rules": [{"to": [{"operation": {"ports": ["x"]}}]}]});
    let one = json!({"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["x"]}}]}]});
    let none = json!({"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["80"]}}]}]});
    let mended = verdict(POLICY, Some(&two), &one);
    assert_eq!((mended.errors.len(), mended.warnings.len()), (0, 1), "{mended:?}");
    assert_eq!(verdict(POLICY, Some(&one), &none).errors, [""; 0]);
    assert_eq!(verdict(POLICY, Some(&none), &one).errors.len(), 1, "what was good stays so");
}

#[test]
fn a_route_is_judged_where_it_is_for_something_of_ours() {
    let parent = |kind: &str, name: &str| {
        let group = if kind == "Service" { "" } else { ROUTE.0 };
        json!({"group": group, "kind": kind, "name": name})
    };
    let route = |parents: &[Value], rules: Value| json!({"parentRefs": parents, "rules": rules});
    // What depends on something else may come.
    for (parent, reason) in [
        (parent("Gateway", "gate"), "NotAllowedByListeners: a waypoint has no routes of its own"),
        (parent("Service", "web"), "NoMatchingParent: "),
    ] {
        let early = verdict(ROUTE, None, &route(&[parent], json!([])));
        assert!(early.errors.is_empty() && early.warnings[0].starts_with(reason), "{early:?}");
    }
    let odd = json!([{"matches": [{"method": 1}]}]);
    let [web, theirs] = [parent("Service", "web"), parent("Gateway", "theirs")];
    assert_eq!(verdict(ROUTE, None, &route(slice::from_ref(&theirs), odd.clone())), Verdict::default());
    let refused = verdict(ROUTE, None, &route(slice::from_ref(&web), odd.clone()));
    assert!(refused.errors[0].contains("spec.rules[0].matches[0].method"), "{refused:?}");
    // Somebody else may read it.
    let both = verdict(ROUTE, None, &route(&[web, theirs], odd.clone()));
    assert_eq!((both.errors.len(), both.warnings.len()), (0, 1), "{both:?}");
}

#[test]
fn nothing_holds_up_what_is_deleted_or_a_status_or_what_nobody_reads() {
    let bad = object(POLICY, &json!({"action": "MAYBE"}));
    let mut leaving = bad.clone();
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    for (review, why) in [
        (review(POLICY, "DELETE", json!({"oldObject": bad, "object": null})), "deleted"),
        (
            review(POLICY, "UPDATE", json!({"object": bad, "oldObject": bad, "subResource": "status"})),
            "a status",
        ),
        (review(POLICY, "UPDATE", json!({"object": leaving, "oldObject": bad})), "on its way out"),
        (
            review(("security.istio.io", "v9", "AuthorizationPolicy"), "CREATE", json!({"object": bad})),
            "version",
        ),
        (review(("", "v1", "Pod"), "CREATE", json!({"object": bad})), "kind"),
    ] {
        assert!(matches!(asked(&review), Asked::Nothing), "{why}");
    }
    let dry = review(POLICY, "CREATE", json!({"object": bad, "dryRun": true}));
    assert!(matches!(asked(&dry), Asked::Of(_)), "a dry run says what would be");
    let many = object(POLICY, &json!({"rules": vec![json!({}); 30_000]}));
    assert!(matches!(asked(&review(POLICY, "CREATE", json!({"object": many}))), Asked::TooMuch));
}

#[test]
fn what_is_no_review_is_an_error() {
    let mut other = review(POLICY, "CREATE", json!({}));
    other["apiVersion"] = "admission.k8s.io/v1beta1".into();
    for text in ["", "{}", "[]", "null", "\u{0}", &other.to_string()] {
        assert!(matches!(Review::read(text), Err(NotReviewed::NotOne(_))), "{text}");
    }
    assert!(Review::text(&[0xff, 0xfe]).is_err());
}

#[test]
fn an_answer_says_why_and_what_it_says_is_bounded() {
    let read = |verdict: &Verdict| serde_json::from_slice::<Value>(&answer("u", verdict)).unwrap();
    let good = read(&Verdict::default());
    assert_eq!(good["response"], json!({"uid": "u", "allowed": true}));
    let bad = Verdict { errors: vec!["a".to_owned(), "b".to_owned()], warnings: vec!["ü".repeat(400); 99] };
    let bad = read(&bad);
    assert_eq!(
        (&bad["response"]["allowed"], &bad["response"]["status"]["message"]),
        (&json!(false), &json!("a; b"))
    );
    let warnings = bad["response"]["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), MAX_WARNINGS);
    assert!(warnings.iter().all(|text| text.as_str().unwrap().len() <= MAX_WARNING));
}
