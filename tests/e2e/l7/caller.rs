//! Whom a request is from, through the waypoint, and that nobody else can say so.

use std::net::SocketAddr;

use orlop_tests::{Pod, PodSpec, wait_for};

use super::Stage;
use crate::hbone::{connect_request, hbone, identities, identity, within};
use crate::mesh::{NAMESPACE, TIMEOUT, record};
use crate::pair::assert_refused;
use crate::waypoint::open;

pub const CLIENT_CERT: &str = "x-forwarded-client-cert";

#[test]
fn policy_at_the_destination_names_the_caller() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let other = other(&stage);
    allow(&stage, "client");
    assert_eq!(stage.get("/").status, 200);
    let answer = other.http_get(stage.web(), "/", TIMEOUT).unwrap();
    assert_eq!(answer.status, 503);
    let agent = stage.mesh.server_agent();
    let refused =
        record(agent, &[("reason", "policy_denied"), ("caller_identity", identity("other").as_str())]);
    assert_eq!(refused["src_identity"], identity("gate").as_str());
    assert_eq!(refused["src"].as_str().unwrap().split(':').next(), Some(&*other.ipv4().to_string()));
    // Connections that are open for one caller are no other's: each of them had one, and only one was let in.
    assert_eq!(stage.get("/").status, 200);
    // A policy that names the waypoint trusts it with everybody.
    allow(&stage, "gate");
    assert_eq!(stage.get("/").status, 200);
    assert_eq!(other.http_get(stage.web(), "/", TIMEOUT).unwrap().status, 200);
}

#[test]
fn policy_at_the_destination_sees_the_callers_address_and_namespace() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    stage.mesh.testbed.world().enrolled_namespace("far").unwrap();
    let far = stage.mesh.nodes[0].pod("far", "other", PodSpec::new().service_account("other")).unwrap();
    stage.mesh.client_agent().wait_enrolled([&stage.mesh.client, &far]).unwrap();
    let [near, other, gate] = [&stage.mesh.client, &far, &stage.gate].map(Pod::ipv4);
    for (source, wanted) in [
        (format!("ipBlocks: [{near}]"), (200, 503)),
        (format!("ipBlocks: [{other}]"), (503, 200)),
        (format!("notIpBlocks: [{near}]"), (503, 200)),
        // Both come through it.
        (format!("ipBlocks: [{gate}]"), (503, 503)),
        (format!("notIpBlocks: [{gate}]"), (200, 200)),
        (format!("principals: [cluster.local/ns/{NAMESPACE}/*]"), (200, 503)),
        (format!("principals: [\"*/ns/{NAMESPACE}/sa/gate\"]"), (200, 200)),
        (format!("namespaces: [{NAMESPACE}]"), (200, 503)),
        ("namespaces: [far]".to_owned(), (503, 200)),
        (format!("notNamespaces: [{NAMESPACE}]"), (503, 200)),
    ] {
        allow_from(&stage, &source);
        // What is kept open from before is closed somewhat later.
        let found = || (stage.get("/").status, far.http_get(stage.web(), "/", TIMEOUT).unwrap().status);
        assert!(wait_for(TIMEOUT, || found() == wanted), "{source}: {:?}", found());
    }
}

#[test]
fn a_caller_that_is_denied_later_loses_its_connections() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let mut stream = stage.connect();
    let get = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";
    assert_eq!(orlop_tests::traffic::request(&mut stream, get).unwrap().status, 200);
    allow(&stage, "somebody");
    let is_refused = || orlop_tests::traffic::request(&mut stream, get).unwrap().status == 503;
    assert!(wait_for(TIMEOUT, is_refused));
}

#[test]
fn only_the_waypoint_can_speak_for_others() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    allow(&stage, "client");
    let to = stage.mesh.server.addr(80);
    let forged = format!("By={};URI={}", identity("gate"), identity("client"));
    // Past the waypoint nobody gets in, whatever is claimed.
    assert_eq!(ask(&stage, "other", to, &forged), 401);
    record(stage.mesh.server_agent(), &[("reason", "not_through_waypoint")]);
    // With no waypoint there is nobody to believe.
    stage.change(|| {
        let web = super::web(&stage.vip).label(super::LABEL, "none").endpoints([&stage.mesh.server]);
        stage.mesh.testbed.world().service(&web).unwrap();
    });
    assert_eq!(ask(&stage, "other", to, &forged), 401);
    let refused = record(stage.mesh.server_agent(), &[("reason", "policy_denied")]);
    assert_eq!(refused["src_identity"], identity("other").as_str());
    assert!(refused["caller_identity"].is_null());
    assert_eq!(ask(&stage, "client", to, ""), 200);
}

#[test]
fn a_client_cannot_say_who_it_is_in_its_request() {
    let stage = Stage::new();
    let _server = super::h2c::Server::start(&stage.mesh.server, 80);
    let to = stage.web();
    within(&stage.mesh.client, async move || {
        let client = super::h2c::connect(to).await;
        let request =
            http::Request::get("http://web/").header(CLIENT_CERT, "URI=spiffe://cluster.local/ns/a/sa/b");
        let request = request.body(()).unwrap();
        let (answer, _) = client.ready().await.unwrap().send_request(request, true).unwrap();
        let seen = answer.await.unwrap().headers()["seen-caller"].clone();
        assert_eq!(seen, format!("By={};URI={}", identity("gate"), identity("client")));
    });
}

#[test]
fn the_waypoint_leads_nowhere_but_to_what_it_stands_before() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let gate = SocketAddr::new(stage.gate.ipv4().into(), crate::hbone::HBONE_PORT);
    for (authority, status) in [
        (stage.web().to_string(), 200),
        ("web.shop.svc.cluster.local:80".to_owned(), 200),
        ("WEB.shop.svc.cluster.local.:80".to_owned(), 200),
        (stage.mesh.server.addr(80).to_string(), 200),
        (stage.mesh.client.addr(80).to_string(), 400),
        (stage.gate.addr(15000).to_string(), 400),
        ("127.0.0.1:15000".to_owned(), 400),
        ("169.254.169.254:80".to_owned(), 400),
        ("gate.shop.svc.cluster.local:15008".to_owned(), 400),
        ("nobody.shop.svc.cluster.local:80".to_owned(), 400),
        ("web.shop.svc.cluster.local".to_owned(), 400),
        ("web.shop.svc.cluster.local:81".to_owned(), 503),
    ] {
        assert_eq!(connect(&stage, "client", gate, "gate", &authority, &[]), status, "{authority}");
    }
    // The node leads what is dialled to the waypoint, and takes its no for an answer.
    assert_refused(&stage.mesh.client, SocketAddr::new(stage.vip[0], 81));
}

pub fn other(stage: &Stage) -> Pod {
    let other = stage.mesh.nodes[0].pod(NAMESPACE, "other", PodSpec::new().service_account("other")).unwrap();
    stage.mesh.client_agent().wait_enrolled([&stage.mesh.client, &other]).unwrap();
    other
}

/// Lets only this account reach the server.
pub fn allow(stage: &Stage, account: &str) {
    allow_from(stage, &format!("principals: [cluster.local/ns/{NAMESPACE}/sa/{account}]"));
}

/// Lets only what is from this source reach the server.
fn allow_from(stage: &Stage, source: &str) {
    let policy = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: only, namespace: {NAMESPACE}}}\n\
         spec:\n  rules:\n  - from:\n    - source: {{{source}}}\n"
    );
    stage.change(|| stage.mesh.testbed.world().write("policy.yaml", &policy).unwrap());
}

/// Asks the server's proxy for `to`, with the certificate of this account, on behalf of somebody.
fn ask(stage: &Stage, account: &str, to: SocketAddr, caller: &str) -> u16 {
    let headers = [(CLIENT_CERT, caller.to_owned())];
    let headers = if caller.is_empty() { &[] } else { &headers[..] };
    connect(stage, account, hbone(&stage.mesh.server), "server", &to.to_string(), headers)
}

/// Asks a proxy that must be `server`, with these headers.
pub fn connect(
    stage: &Stage,
    account: &str,
    proxy: SocketAddr,
    server: &str,
    authority: &str,
    headers: &[(&'static str, String)],
) -> u16 {
    let identities = identities(&stage.mesh.testbed, &[account]);
    let config = identities.client_config(&identity(account), &identity(server)).unwrap();
    let (authority, headers) = (authority.to_owned(), headers.to_vec());
    // From a pod that is not in the mesh: what others dial is led to their node's proxy.
    within(&stage.gate, async move || {
        let mut tunnel = open(proxy, config).await;
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (answer, _send) = tunnel.send_request(connect_request(&authority, &headers), false).unwrap();
        answer.await.unwrap().status().as_u16()
    })
}
