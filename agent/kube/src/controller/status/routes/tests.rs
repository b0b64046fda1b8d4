use orlop_model::world::gateway_api::{RouteFilters, RouteRule};
use orlop_model::{NamespacedName, Severity};
use proptest::prelude::*;

use super::*;
use crate::cluster::Parents;
use crate::field::FieldError;

const NOW: &str = "2026-01-02T03:04:05Z";

fn head(refs: &Value, told: &[Value]) -> Head {
    let parents = Parents { refs: refs.as_array().unwrap().clone(), told: told.to_vec() };
    Head { generation: Some(3), parents, ..Head::default() }
}

fn told<'a>(head: &'a Head, findings: &'a [&'a Finding], own: &'a OwnGateways) -> Told<'a> {
    Told {
        kind: Kind::HttpRoute,
        namespace: "shop",
        head,
        route: None,
        findings,
        snapshot: None,
        own,
        not_attached: &|_| None,
    }
}

fn at(now: &str) -> At<'_> {
    At { generation: Some(3), now }
}

fn write(head: &Head, findings: &[&Finding], own: &[&str]) -> Option<Vec<Value>> {
    let waypoints = own.iter().map(|name| NamespacedName::new("shop", *name)).collect();
    let own = OwnGateways { waypoints, ..OwnGateways::default() };
    told(head, findings, &own).to_write(at(NOW))
}

fn service(name: &str) -> Value {
    json!({"group": "", "kind": "Service", "name": name})
}

fn finding(reason: FindingReason, message: &str) -> Finding {
    let name = NamespacedName::new("shop", "web");
    Finding { kind: "HTTPRoute", name, severity: Severity::Error, reason, message: message.to_owned() }
}

/// Status and reason of an entry's conditions.
fn short(entry: &Value) -> [(&str, &str); 2] {
    ["Accepted", "ResolvedRefs"].map(|kind| {
        let mut conditions = entry["conditions"].as_array().unwrap().iter();
        let one = conditions.find(|one| one["type"] == kind).unwrap();
        (one["status"].as_str().unwrap(), one["reason"].as_str().unwrap())
    })
}

#[test]
fn parents_that_are_services_or_gateways_of_ours_are_told() {
    let refs = json!([
        service("web"), service("web"), {"name": "way"}, {"name": "theirs"},
        {"group": "example.com", "kind": "Thing", "name": "web"}, 7,
    ]);
    let written = write(&head(&refs, &[]), &[], &["way"]).unwrap();
    let parents: Vec<_> = written.iter().map(|entry| &entry["parentRef"]).collect();
    assert_eq!(parents, [&service("web"), &json!({"name": "way"})]);
    assert!(written.iter().all(|entry| entry["controllerName"] == "orlop.dev/waypoint-controller"));
    assert_eq!(short(&written[0]), [("True", "Accepted"), ("True", "ResolvedRefs")]);
    assert_eq!(short(&written[1]), [("False", "NotAllowedByListeners"), ("Unknown", "NotAccepted")]);
    assert_eq!(written[0]["conditions"][0]["observedGeneration"], 3);
    let theirs = json!([{"name": "theirs"}]);
    assert_eq!(write(&head(&theirs, &[]), &[], &["way"]), None);
}

#[test]
fn what_others_say_is_kept_and_what_is_nobody_s_any_more_goes() {
    let other = json!({"parentRef": service("web"), "controllerName": "example.com/other", "conditions": []});
    let both = head(&json!([service("web"), service("old")]), std::slice::from_ref(&other));
    let written = write(&both, &[], &[]).unwrap();
    assert_eq!((written.len(), &written[0]), (3, &other));
    assert_eq!(write(&head(&json!([service("web"), service("old")]), &written), &[], &[]), None);
    let less = write(&head(&json!([service("web")]), &written), &[], &[]).unwrap();
    assert_eq!((less.len(), &less[0], &less[1]), (2, &other, &written[1]));
    let none = write(&head(&json!([]), &written), &[], &[]).unwrap();
    assert_eq!(none, [other]);
}

#[test]
fn an_entry_is_the_same_where_the_api_server_has_filled_in_what_is_meant() {
    let mut there = write(&head(&json!([{"name": "way"}]), &[]), &[], &["way"]).unwrap();
    there[0]["parentRef"] = json!({"group": GROUP, "kind": "Gateway", "namespace": "shop", "name": "way"});
    assert_eq!(write(&head(&json!([{"name": "way"}]), &there), &[], &["way"]), None);
}

#[test]
fn reasons_are_those_of_the_gateway_api() {
    let of = |reason| {
        let found = finding(reason, "rules[0] leads to nowhere");
        let written = write(&head(&json!([service("web")]), &[]), &[&found], &[]).unwrap();
        short(&written[0]).map(|(status, reason)| format!("{status} {reason}"))
    };
    for (reason, wanted) in [
        (FindingReason::NoSuchService, "False BackendNotFound"),
        (FindingReason::NoSuchPort, "False BackendNotFound"),
        (FindingReason::InvalidKind, "False InvalidKind"),
        (FindingReason::RefNotPermitted, "False RefNotPermitted"),
        (FindingReason::UnsupportedProtocol, "False UnsupportedProtocol"),
        (FindingReason::FieldsNotEnforced, "True ResolvedRefs"),
    ] {
        assert_eq!(of(reason), ["True Accepted", wanted]);
    }
}

#[test]
fn what_can_not_be_understood_or_applied_is_not_accepted() {
    let mut refused = head(&json!([service("web")]), &[]);
    refused.refused = Some(FieldError::new("spec.rules[0].timeouts.request", "\"soon\" is no duration"));
    let written = write(&refused, &[], &[]).unwrap();
    assert_eq!(short(&written[0]), [("False", "UnsupportedValue"), ("Unknown", "NotAccepted")]);
    let message = written[0]["conditions"][0]["message"].as_str().unwrap();
    assert!(message.starts_with("spec.rules[0].timeouts.request: \"soon\""), "{message}");

    let filters =
        RouteFilters { unsupported: Some("has the filter Tomorrow".to_owned()), ..RouteFilters::default() };
    let route = Route { rules: vec![RouteRule { filters, ..RouteRule::default() }], ..Route::default() };
    let (head, none) = (head(&json!([service("web")]), &[]), OwnGateways::default());
    let written = Told { route: Some(&route), ..told(&head, &[], &none) }.to_write(at(NOW)).unwrap();
    assert_eq!(short(&written[0])[0], ("False", "UnsupportedValue"));
    // Nobody knows such a Service.
    let snapshot = Snapshot::default();
    let written = Told { snapshot: Some(&snapshot), ..told(&head, &[], &none) }.to_write(at(NOW)).unwrap();
    assert_eq!(short(&written[0])[0], ("False", "NoMatchingParent"));
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<u8>().prop_map(Value::from),
        prop::sample::select(vec!["", "web", "Service", "Gateway", "shop", "Accepted", "True", CONTROLLER])
            .prop_map(Value::from),
    ];
    let keys = ["parentRef", "controllerName", "conditions", "type", "status", "group", "kind", "name"];
    let keys = prop::sample::select(keys.to_vec());
    leaf.prop_recursive(3, 24, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(keys.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever is there, it says afterwards what it should, keeps what is others', and is not written again.
    #[test]
    fn writing_once_is_enough_whatever_was_there(
        refs in prop::collection::vec(any_value(), 0..5),
        told in prop::collection::vec(any_value(), 0..5),
    ) {
        let head_of = |told: &[Value]| head(&Value::from(refs.clone()), told);
        let Some(written) = write(&head_of(&told), &[], &["web"]) else { return Ok(()) };
        let is_other = |entry: &&Value| entry["controllerName"] != CONTROLLER;
        prop_assert!(told.iter().filter(is_other).eq(written.iter().filter(is_other)));
        let waypoints = [NamespacedName::new("shop", "web")].into();
        let own = OwnGateways { waypoints, ..OwnGateways::default() };
        let again = head_of(&written);
        prop_assert_eq!(self::told(&again, &[], &own).to_write(at("later")), None);
    }
}

#[test]
fn a_gateway_that_is_a_parent_is_told_why_it_takes_the_route_or_not() {
    let refs = json!([{"name": "theirs"}, {"name": "gate"}, {"name": "gate", "sectionName": "none"}]);
    let head = head(&refs, &[]);
    let gateways = [NamespacedName::new("shop", "gate")].into();
    let own = OwnGateways { gateways, ..OwnGateways::default() };
    let problem = NotAttached::NoMatchingParent;
    // Counted with those of others.
    let not_attached = |index| (index == 2).then_some(&problem);
    let told = Told { not_attached: &not_attached, ..told(&head, &[], &own) };
    let written = told.to_write(at(NOW)).unwrap();
    assert!(written.iter().all(|entry| entry["controllerName"] == GATEWAY_CONTROLLER));
    assert_eq!(short(&written[0]), [("True", "Accepted"), ("True", "ResolvedRefs")]);
    assert_eq!(short(&written[1]), [("False", "NoMatchingParent"), ("True", "ResolvedRefs")]);
    let missing = finding(FindingReason::NoSuchService, "rules[0] leads to nobody");
    let told = Told { findings: &[&missing], ..told };
    let written = told.to_write(at(NOW)).unwrap();
    assert_eq!(short(&written[1]), [("False", "NoMatchingParent"), ("False", "BackendNotFound")]);
}
