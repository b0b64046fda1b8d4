//! Flows: what is told of connections that ended, and what a changed world would do to them.

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Output};

use orlop_tests::{Agent, AgentOptions, PodSpec, ServiceSpec, TargetPort, wait_for};
use serde_json::Value;

use crate::pair::{Pair, TIMEOUT, apply, assert_refused, dial, program};
use crate::policy::{NO_BUYERS, STRICT, authorization_policy};

const BUYERS_ON_80: &str = "{action: ALLOW, rules: [{from: [{source: {serviceAccounts: [buyer]}}], \
    to: [{operation: {ports: ['80']}}]}]}";

/// `orlop flows` of an agent's node.
fn flows(agent: &Agent) -> Vec<Value> {
    let output =
        agent.node().command(&program(agent).to_string_lossy()).unwrap().arg("flows").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits until so many flows are as wanted, and gives them.
#[track_caller]
fn await_flows(agent: &Agent, count: usize, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    let mut found = Vec::new();
    wait_for(TIMEOUT, || {
        found = flows(agent).into_iter().filter(|flow| wanted(flow)).collect();
        found.len() == count
    });
    assert_eq!(found.len(), count, "{:#?}", flows(agent));
    found
}

fn replay(pair: &Pair, flows: &[Value]) -> (Option<i32>, String) {
    let file = pair.testbed.world().dir().join("../flows.jsonl");
    let lines: String = flows.iter().map(|flow| format!("{flow}\n")).collect();
    fs::write(&file, lines).unwrap();
    let mut command = Command::new(program(&pair.far));
    command.args(["explain", "--replay"]).arg(file).arg("--world").arg(pair.testbed.world().dir());
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

#[test]
fn a_connection_is_a_flow_at_each_end() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(8080).unwrap();
    let vips = pair.testbed.vip();
    let service = ServiceSpec::new("shop", "web", 80, TargetPort::Number(8080)).cluster_ips(vips.clone());
    pair.testbed.world().service(&service.endpoints([&pair.server])).unwrap();
    pair.wait_both(|snapshot| snapshot["services"][0]["name"] == "shop/web");

    for (vip, upstream) in vips.iter().zip([server.addr(), server.addr6()]) {
        let dialled = SocketAddr::new(*vip, 80);
        drop(dial(&pair.client, dialled).unwrap());
        for (agent, direction) in [(&pair.near, "outbound"), (&pair.far, "inbound")] {
            let is_it = |flow: &Value| flow["dst"] == upstream.to_string();
            let flow = &await_flows(agent, 1, is_it)[0];
            let fields = [
                ("direction", direction),
                ("src_workload", "shop/client"),
                ("src_identity", "spiffe://cluster.local/ns/shop/sa/buyer"),
                ("dst_workload", "shop/server"),
                ("dst_identity", "spiffe://cluster.local/ns/shop/sa/seller"),
                ("result", "ok"),
            ];
            for (name, wanted) in fields {
                assert_eq!(flow[name], wanted, "{name} of {flow}");
            }
            assert_eq!(flow["bytes_received"], 15, "{flow}");
            assert!(flow["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{flow}");
            if direction == "outbound" {
                assert_eq!(flow["dialled"], dialled.to_string(), "{flow}");
                assert_eq!(flow["dst_service"], "web.shop.svc.cluster.local", "{flow}");
            }
        }
    }
}

#[test]
fn a_refusal_explains_itself() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let denied = |flow: &Value| flow["reason"] == "policy_denied";

    apply(&pair, "policy.yaml", &authorization_policy("no-buyers", NO_BUYERS));
    assert_refused(&pair.client, server.addr());
    let flow = await_flows(&pair.far, 1, denied).remove(0);
    assert_eq!(flow["policy"], "shop/no-buyers");
    assert_eq!(flow["result"], "refused");
    let detail = flow["detail"].as_str().unwrap();
    assert!(detail.contains("rules[0] matches, since"), "{detail}");
    assert!(detail.contains("buyer"), "{detail}");

    // Where no policy matches it is its absence that is told, the rule that came nearest, and what it misses.
    let other = pair.pod(&pair.near, "other", PodSpec::new().service_account("other"));
    apply(&pair, "policy.yaml", &authorization_policy("buyers-only", BUYERS_ON_80));
    assert_refused(&other, server.addr());
    let flow =
        await_flows(&pair.far, 1, |flow| denied(flow) && flow["src_workload"] == "shop/other").remove(0);
    assert!(flow.get("policy").is_none(), "{flow}");
    let detail = flow["detail"].as_str().unwrap();
    for part in
        ["no ALLOW policy matches: shop/buyers-only", "nearest is shop/buyers-only rules[0]", "shop/other"]
    {
        assert!(detail.contains(part), "{detail}");
    }
    drop(dial(&pair.client, server.addr()).unwrap());
    let flow = await_flows(&pair.far, 1, |flow| flow["result"] == "ok").remove(0);
    assert_eq!(flow["policy"], "shop/buyers-only");

    let outsider = pair.outsider(pair.near.node(), "outsider");
    apply(&pair, "strict.yaml", STRICT);
    assert_refused(&outsider, server.addr6());
    let flow = await_flows(&pair.far, 1, |flow| flow["reason"] == "plaintext_refused").remove(0);
    assert_eq!(flow["policy"], "shop/default");
    assert!(flow["detail"].as_str().unwrap().contains("PeerAuthentication shop/default asks for mutual TLS"));
}

#[test]
fn what_is_audited_and_what_is_in_dry_run_is_told() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let dry_run = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
        metadata: {name: maybe, namespace: shop, annotations: {istio.io/dry-run: 'true'}}\n\
        spec: {action: DENY, rules: [{}]}\n---\n";
    let audit = authorization_policy("watch", "{action: AUDIT, rules: [{}]}");
    apply(&pair, "policies.yaml", &format!("{dry_run}{audit}"));
    drop(dial(&pair.client, server.addr()).unwrap());
    let flow = await_flows(&pair.far, 1, |flow| flow["result"] == "ok").remove(0);
    assert_eq!(flow["audit"], true, "{flow}");
    assert_eq!(flow["dry_run"], serde_json::json!([{ "policy": "shop/maybe", "outcome": "deny" }]));
}

#[test]
fn the_last_flows_are_kept() {
    let args = ["--log-format", "json", "--flow-buffer", "3"].map(str::to_owned).into();
    let pair = Pair::with(AgentOptions { args, ..AgentOptions::default() });
    let server = pair.server.serve_echo(80).unwrap();
    let mut last = Vec::new();
    for number in 0..5 {
        let stream = dial(&pair.client, server.addr()).unwrap();
        last.push(stream.local_addr().unwrap().to_string());
        drop(stream);
        let told = || flows(&pair.near).last().is_some_and(|flow| flow["src"] == last[number]);
        assert!(wait_for(TIMEOUT, told), "{:#?}", flows(&pair.near));
    }
    let told: Vec<_> =
        flows(&pair.near).iter().map(|flow| flow["src"].as_str().unwrap().to_owned()).collect();
    assert_eq!(told, last[2..]);
}

#[test]
fn a_replay_tells_what_a_changed_world_would_change() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let outsider = pair.outsider(pair.near.node(), "outsider");
    for _ in 0..2 {
        drop(dial(&pair.client, server.addr()).unwrap());
    }
    drop(dial(&outsider, server.addr6()).unwrap());
    let ok = |flow: &Value| flow["result"] == "ok";
    let recorded = [await_flows(&pair.far, 3, ok), await_flows(&pair.near, 2, ok)].concat();

    let (code, text) = replay(&pair, &recorded);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("5 flows judged, 0 would fare differently"), "{text}");

    apply(&pair, "policy.yaml", &authorization_policy("no-buyers", NO_BUYERS));
    let (code, text) = replay(&pair, &recorded);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains("4 × shop/client → shop/server:80: was let in by HBONE, would be refused"),
        "{text}"
    );
    assert!(text.contains("AuthorizationPolicy shop/no-buyers denies it"), "{text}");
    assert!(text.contains("5 flows judged, 4 would fare differently"), "{text}");

    // The refusals of this world, judged by one without the policy.
    assert_refused(&pair.client, server.addr());
    let refused = await_flows(&pair.far, 1, |flow| flow["reason"] == "policy_denied");
    apply(&pair, "policy.yaml", STRICT);
    let (code, text) = replay(&pair, &refused);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("was refused, would be let in by HBONE"), "{text}");
    let (code, text) = replay(&pair, &recorded);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains("street/outsider → shop/server:80: was let in in clear, would be refused"),
        "{text}"
    );
    assert!(text.contains("5 flows judged, 1 would fare differently"), "{text}");
}
