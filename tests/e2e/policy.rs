//! Policies, as users write them: refused with an explanation, and cut when they change.

use std::process::Command;

use orlop_tests::PodSpec;
use orlop_tests::traffic::ReadUninterrupted;

use crate::pair::{Pair, TIMEOUT, apply, assert_refused, dial, ping, program, record, remove, wait_enrolled};
use crate::pattern::assert_reset;

pub fn authorization_policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

pub const NO_BUYERS: &str = "{action: DENY, rules: [{from: [{source: {serviceAccounts: [buyer]}}]}]}";
pub const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
    metadata: {name: default, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";

#[test]
fn a_denied_connection_is_refused_with_the_policys_name() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    drop(dial(&pair.client, server.addr()).unwrap());

    apply(&pair, "policy.yaml", &authorization_policy("no-buyers", NO_BUYERS));
    assert_refused(&pair.client, server.addr());
    let refused = record(&pair.far, |record| record["result"] == "refused");
    assert_eq!(refused["reason"], "policy_denied");
    assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains("shop/no-buyers")), "{refused}");
    record(&pair.near, |record| record["reason"] == "peer_refused");

    remove(&pair, "policy.yaml");
    drop(dial(&pair.client, server.addr()).unwrap());
}

#[test]
fn an_allow_policy_lets_in_only_whom_it_names() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let other = pair.pod(&pair.near, "other", PodSpec::new().service_account("other"));
    let outsider = pair.outsider(pair.near.node(), "outsider");
    let spec = "{action: ALLOW, rules: [{from: [{source: \
        {principals: [cluster.local/ns/shop/sa/buyer]}}], to: [{operation: {ports: ['80']}}]}]}";
    apply(&pair, "policy.yaml", &authorization_policy("buyers-only", spec));

    drop(dial(&pair.client, server.addr()).unwrap());
    assert_refused(&other, server.addr());
    assert_refused(&outsider, server.addr());
    let refused = record(&pair.far, |record| record["src_workload"] == "shop/other");
    assert_eq!(refused["reason"], "policy_denied");
    assert!(
        refused["detail"].as_str().is_some_and(|detail| detail.contains("shop/buyers-only")),
        "{refused}"
    );
}

#[test]
fn an_open_connection_is_cut_when_a_policy_forbids_it() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let other = pair.pod(&pair.near, "other", PodSpec::new().service_account("other"));
    let mut forbidden = dial(&pair.client, server.addr()).unwrap();
    let allowed = dial(&other, server.addr()).unwrap();

    apply(&pair, "policy.yaml", &authorization_policy("no-buyers", NO_BUYERS));
    forbidden.set_read_timeout(Some(TIMEOUT)).unwrap();
    let end = forbidden.read_uninterrupted(&mut [0; 1]);
    assert!(end.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset), "{end:?}");
    let cut = record(&pair.far, |record| record["result"] == "cut");
    assert_eq!(cut["reason"], "policy_denied");
    ping(&allowed, "still here?\n").unwrap();
}

#[test]
fn strict_refuses_plaintext_and_nothing_else() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let outsider = pair.outsider(pair.near.node(), "outsider");
    let in_clear = dial(&outsider, server.addr()).unwrap();

    apply(&pair, "strict.yaml", STRICT);
    assert_refused(&outsider, server.addr());
    let refused = record(&pair.far, |record| record["result"] == "refused");
    assert_eq!(refused["reason"], "plaintext_refused");
    // What was open in clear is cut too.
    assert_reset(&in_clear);
    drop(dial(&pair.client, server.addr()).unwrap());
}

#[test]
fn a_bad_policy_changes_nothing_and_is_named() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    apply(&pair, "policy.yaml", &authorization_policy("no-buyers", NO_BUYERS));
    let bad = authorization_policy("no-buyers", "{action: DENI}");
    pair.testbed.world().write("policy.yaml", &bad).unwrap();
    pair.far.wait_log(|log| log.contains("policy.yaml:") && log.contains("action"), TIMEOUT).unwrap();
    assert_refused(&pair.client, server.addr());
}

#[test]
fn what_a_node_cannot_decide_is_told() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let spec = "{action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}";
    apply(&pair, "policy.yaml", &authorization_policy("no-deletes", spec));
    assert_refused(&pair.client, server.addr());
    pair.far.wait_log(|log| log.contains("no-deletes") && log.contains("finding"), TIMEOUT).unwrap();
    wait_enrolled(&pair.far, &pair.server, true);
}

#[test]
fn explain_tells_the_same_from_the_world_alone() {
    let pair = Pair::new();
    apply(&pair, "policy.yaml", &authorization_policy("no-buyers", NO_BUYERS));
    let (code, text) = explain(&pair, "shop/client", "shop/server");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("policy_denied") && text.contains("shop/no-buyers"), "{text}");

    remove(&pair, "policy.yaml");
    let (code, text) = explain(&pair, "shop/client", "shop/server");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("by HBONE") && text.contains("allowed"), "{text}");

    let (code, text) = explain(&pair, "shop/nobody", "shop/server");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("no live pod shop/nobody"), "{text}");
}

fn explain(pair: &Pair, from: &str, to: &str) -> (Option<i32>, String) {
    let output = Command::new(program(&pair.far))
        .args(["explain", "--from", from, "--to", to, "--port", "80", "--world"])
        .arg(pair.testbed.world().dir())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_policy_that_never_was_good_lets_nothing_pass_where_it_is_for() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let other = pair.pod(&pair.near, "other", PodSpec::new().service_account("other"));
    apply(&pair, "policy.yaml", &authorization_policy("no-buyers", NO_BUYERS));
    let mut open = dial(&other, server.addr()).unwrap();

    // What was good stays as it was. Whatever else changes is in force.
    pair.testbed.world().write("policy.yaml", &authorization_policy("no-buyers", "{action: DENI}")).unwrap();
    pair.far.wait_log(|log| log.contains("DENI"), TIMEOUT).unwrap();
    pair.change(|world| world.namespace("later", &[]));
    assert_refused(&pair.client, server.addr());
    ping(&open, "still there?\n").unwrap();

    let broken = [("{action: ALOW, rules: [{}]}", "typo"), ("{rules: [", "another.yaml")];
    for (spec, name) in broken {
        apply(&pair, "another.yaml", &authorization_policy("typo", spec));
        let said = format!("nothing passes where AuthorizationPolicy shop/{name} is for");
        let told = |line: &str| line.contains("another.yaml:") && line.contains(&said);
        pair.far.wait_log(|log| log.lines().any(told), TIMEOUT).unwrap();
        assert_reset(&open);
        assert_refused(&other, server.addr());
        let refused = record(&pair.far, |record| {
            record["result"] == "refused"
                && record["src_workload"] == "shop/other"
                && record["detail"].as_str().is_some_and(|detail| detail.contains(&format!("shop/{name}")))
        });
        assert_eq!(refused["reason"], "policy_denied");
        remove(&pair, "another.yaml");
        open = dial(&other, server.addr()).unwrap();
    }
}
