use orlop_model::{FindingReason, NamespacedName, Severity};
use proptest::prelude::*;

use super::*;

fn finding(reason: FindingReason, message: &str) -> Finding {
    Finding {
        kind: "AuthorizationPolicy",
        name: NamespacedName::new("shop", "web"),
        severity: Severity::Error,
        reason,
        message: message.to_owned(),
    }
}

fn of(refused: Option<&FieldError>, findings: &[Finding]) -> [Condition; 3] {
    conditions(Kind::AuthorizationPolicy, refused, &findings.iter().collect::<Vec<_>>())
}

fn short(conditions: &[Condition; 3]) -> [(&str, &str); 3] {
    conditions.each_ref().map(|condition| (condition.status, condition.reason.as_str()))
}

#[test]
fn what_is_sound_is_accepted_resolved_and_programmed() {
    let conditions = of(None, &[]);
    assert_eq!(conditions.each_ref().map(|condition| condition.kind), KINDS);
    assert_eq!(short(&conditions), [("True", "Accepted"), ("True", "ResolvedRefs"), ("True", "Programmed")]);
    assert!(conditions.iter().all(|condition| condition.message.is_empty()));
}

#[test]
fn what_was_refused_names_the_field_and_what_holds_meanwhile() {
    let error = FieldError::new("spec.rules", "is an empty list");
    let conditions = of(Some(&error), &[finding(FindingReason::NoWaypoint, "of what it was before")]);
    assert_eq!(
        short(&conditions),
        [("False", "Invalid"), ("Unknown", "NotAccepted"), ("False", "NotAccepted")]
    );
    assert!(conditions[0].message.starts_with("spec.rules: is an empty list; until it is mended"));
    assert!(conditions[0].message.ends_with("denies everything where it applies"));
}

#[test]
fn each_finding_is_told_where_it_belongs_the_worst_first() {
    let light = Finding { severity: Severity::Info, ..finding(FindingReason::DryRun, "dry") };
    let conditions = of(
        None,
        &[
            light,
            finding(FindingReason::NoWaypoint, "unenforced"),
            finding(FindingReason::NoSuchTarget, "nowhere"),
            finding(FindingReason::NeverMatches, "odd"),
        ],
    );
    assert_eq!(
        short(&conditions),
        [("True", "Accepted"), ("False", "NoSuchTarget"), ("False", "NoWaypoint")]
    );
    assert_eq!(conditions.map(|condition| condition.message), ["odd", "nowhere", "unenforced; dry"]);
}

#[test]
fn a_message_is_bounded_and_shows_no_control_characters() {
    let odd = finding(FindingReason::NoWaypoint, "a\u{1b}[2J\n\u{0}b");
    assert_eq!(of(None, &[odd])[2].message, "a\\u{1b}[2J\\n\\u{0}b");
    let long = finding(FindingReason::NoWaypoint, &"é".repeat(100_000));
    let many: Vec<_> =
        (0..10_000).map(|n| finding(FindingReason::NoWaypoint, &format!("{n}{}", "x".repeat(900)))).collect();
    assert!(of(None, &[long])[2].message.len() <= MAX_PART + 4);
    let message = &of(None, &many)[2].message;
    assert!(message.len() <= MAX_MESSAGE + 32 && message.ends_with("; and 9996 more"), "{}", message.len());
}

const NOW: &str = "2026-01-02T03:04:05Z";
const BEFORE: &str = "2025-01-02T03:04:05Z";

/// What the API server has after somebody wrote all of `conditions`.
fn there(conditions: &[Condition], generation: Option<i64>) -> Vec<Value> {
    to_write(&[], conditions, generation, true, BEFORE).unwrap()
}

#[test]
fn nothing_is_written_where_nothing_differs() {
    let wanted = of(None, &[]);
    let found = there(&wanted, Some(3));
    assert_eq!(to_write(&found, &wanted, Some(3), true, NOW), None);
    // Istio's API has 64-bit numbers as texts.
    let mut as_text = found.clone();
    as_text[0]["observedGeneration"] = "3".into();
    assert_eq!(to_write(&as_text, &wanted, Some(3), true, NOW), None);
    // A definition may know no such field; then it would be written for ever.
    let mut dropped = found.clone();
    dropped
        .iter_mut()
        .for_each(|condition| drop(condition.as_object_mut().unwrap().remove("observedGeneration")));
    assert_eq!(to_write(&dropped, &wanted, Some(3), true, NOW), None);
    assert!(to_write(&found, &wanted, Some(4), true, NOW).is_some());
}

#[test]
fn the_time_moves_with_the_status_alone() {
    let found = there(&of(None, &[finding(FindingReason::NoWaypoint, "a")]), Some(1));
    let times = |wanted: &[Condition; 3]| {
        let written = to_write(&found, wanted, Some(1), false, NOW).unwrap();
        written.iter().map(|one| one["lastTransitionTime"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(times(&of(None, &[finding(FindingReason::NoProvider, "b")])), [BEFORE; 3]);
    assert_eq!(times(&of(None, &[])), [BEFORE, BEFORE, NOW]);
}

#[test]
fn others_conditions_are_kept_where_the_list_has_one_owner() {
    let other = json!({"type": "WaypointAccepted", "status": "True", "reason": "Accepted"});
    let found: Vec<_> = [other.clone()].into_iter().chain(there(&of(None, &[]), None)).collect();
    let wanted = of(None, &[finding(FindingReason::NoWaypoint, "a")]);
    let whole = to_write(&found, &wanted, None, true, NOW).unwrap();
    assert_eq!((whole.len(), &whole[0]), (4, &other));
    let each = to_write(&found, &wanted, None, false, NOW).unwrap();
    assert!(each.len() == 3 && !each.contains(&other));
}

#[test]
fn what_is_not_accepted_is_told_once_and_again_for_another_reason() {
    let refused = |problem: &str| {
        let error = FieldError::new("spec.rules", problem);
        json!({"conditions": there(&of(Some(&error), &[]), Some(1))})
    };
    let first = refused("is odd");
    let told = refusals(&[], &[], &first);
    assert_eq!(told.len(), 1);
    assert!(told[0].0 == "Invalid" && told[0].1.starts_with("spec.rules: is odd"), "{told:?}");
    let before = first["conditions"].as_array().unwrap();
    assert_eq!(refusals(before, &[], &first), []);
    assert_eq!(refusals(before, &[], &refused("is odder")).len(), 1);
    // What is only not enforced, or not all there, is no refusal.
    let unenforced =
        of(None, &[finding(FindingReason::NoWaypoint, "a"), finding(FindingReason::NoSuchTarget, "b")]);
    assert_eq!(refusals(&[], &[], &json!({"conditions": there(&unenforced, None)})), []);

    let condition =
        json!({"type": "Accepted", "status": "False", "reason": "NoMatchingParent", "message": "none"});
    let parent = |controller: &str| json!({"controllerName": controller, "conditions": [condition]});
    let status = json!({"parents": [parent("example.com/other"), parent(CONTROLLER)]});
    assert_eq!(refusals(&[], &[], &status), [("NoMatchingParent", "none")]);
    assert_eq!(refusals(&[], &[parent(CONTROLLER)], &status), []);
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec!["True", "False", ACCEPTED, PROGRAMMED, "x", BEFORE]).prop_map(Value::from),
    ];
    let keys = prop::sample::select(vec!["type", "status", "reason", "message", "lastTransitionTime"]);
    leaf.prop_recursive(2, 16, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(keys.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_finding() -> impl Strategy<Value = Finding> {
    let reasons = [
        FindingReason::NoSuchTarget,
        FindingReason::NoWaypoint,
        FindingReason::NeverMatches,
        FindingReason::UdpNotEnforced,
    ];
    (prop::sample::select(reasons.to_vec()), ".{0,8}").prop_map(|(reason, text)| finding(reason, &text))
}

proptest! {
    /// Whatever is in a list, it says afterwards what it should, keeps what is others', and is not written again.
    #[test]
    fn writing_once_is_enough_whatever_was_there(
        found in prop::collection::vec(any_value(), 0..6),
        findings in prop::collection::vec(any_finding(), 0..6),
        whole: bool,
        generation in prop::option::of(0_i64..3),
    ) {
        let wanted = of(None, &findings);
        // The order in which they were found does not matter.
        let mut backwards = findings.clone();
        backwards.reverse();
        prop_assert_eq!(&of(None, &backwards), &wanted);
        let Some(written) = to_write(&found, &wanted, generation, whole, NOW) else { return Ok(()) };
        let is_own = |value: &&Value| KINDS.iter().any(|kind| value["type"] == **kind);
        let others: Vec<_> = found.iter().filter(|value| !is_own(value)).collect();
        let kept: Vec<_> = written.iter().filter(|value| !is_own(value)).collect();
        prop_assert_eq!(if whole { others } else { Vec::new() }, kept);
        prop_assert_eq!(written.iter().filter(is_own).count(), 3);
        prop_assert_eq!(to_write(&written, &wanted, generation, whole, "later"), None);
    }
}
