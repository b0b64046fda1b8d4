//! Who a client is and what it asks, said in a way that others could take for something else.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::thread;

use bytes::Bytes;
use orlop_tests::traffic::request;
use orlop_tests::{Pod, PodSpec, ServiceSpec, TargetPort, wait_for};

use super::caller::{self, CLIENT_CERT, allow};
use super::framing::head_of;
use super::policy;
use super::scripted::{Reply, Scripted};
use super::{LABEL, Stage};
use crate::hbone::{HBONE_PORT, connect_request, hbone, identities, identity, within, write};
use crate::mesh::{NAMESPACE, TIMEOUT, record};
use crate::waypoint::open;

const CHAT: &str = "GET /chat HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n";
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n";

#[test]
fn a_waypoint_speaks_for_the_callers_of_its_own_services_alone() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let node = &stage.mesh.nodes[1];
    let spec = PodSpec::new().service_account("other-gate").opt_out();
    let other_gate = node.pod(NAMESPACE, "other-gate", spec).unwrap();
    let backend = node.pod(NAMESPACE, "backend", PodSpec::new().service_account("backend")).unwrap();
    let _backend = backend.serve_http(80).unwrap();
    stage.mesh.server_agent().wait_enrolled([&stage.mesh.server, &backend]).unwrap();
    stage.change(|| {
        let world = stage.mesh.testbed.world();
        let gate = ServiceSpec::new(NAMESPACE, "other-gate", HBONE_PORT, TargetPort::Number(HBONE_PORT));
        world.service(&gate.cluster_ips(stage.mesh.testbed.vip()).endpoints([&other_gate])).unwrap();
        let other = ServiceSpec::new(NAMESPACE, "other", 80, TargetPort::Number(80));
        let other = other.cluster_ips(stage.mesh.testbed.vip()).label(LABEL, "other-gate");
        world.service(&other.endpoints([&backend])).unwrap();
    });
    allow(&stage, "client");
    let forged = [(CLIENT_CERT, format!("By={};URI={}", identity("other-gate"), identity("client")))];
    let ask = |pod: &Pod, account: &str| {
        let to = pod.addr(80).to_string();
        caller::connect(&stage, "other-gate", hbone(pod), account, &to, &forged)
    };
    // Of its own service's callers it is believed.
    assert_eq!(ask(&backend, "backend"), 200);
    assert_eq!(ask(&stage.mesh.server, "server"), 401);
    record(stage.mesh.server_agent(), &[("reason", "not_through_waypoint")]);
    // Without a waypoint before it, the server's node judges by who it is.
    stage.change(|| {
        let web = super::web(&stage.vip).label(LABEL, "none").endpoints([&stage.mesh.server]);
        stage.mesh.testbed.world().service(&web).unwrap();
    });
    assert_eq!(ask(&stage.mesh.server, "server"), 401);
    let refused = record(stage.mesh.server_agent(), &[("reason", "policy_denied")]);
    assert_eq!(refused["src_identity"], identity("other-gate").as_str());
    assert!(refused["caller_identity"].is_null(), "{refused}");
}

#[test]
fn what_a_tunnels_head_says_of_its_client_a_waypoint_believes_nobody() {
    let stage = Stage::new();
    let server = Scripted::status(&stage.mesh.server, 200);
    let proxy = SocketAddr::new(stage.gate.ipv4().into(), HBONE_PORT);
    let identities = identities(&stage.mesh.testbed, &["other"]);
    let config = identities.client_config(&identity("other"), &identity("gate")).unwrap();
    let ask = || {
        let (config, authority) = (config.clone(), stage.web().to_string());
        let client = stage.mesh.client.ipv4();
        within(&stage.gate, async move || {
            let mut tunnel = open(proxy, config).await;
            let cert = format!("By={};URI={}", identity("gate"), identity("client"));
            let headers = [(CLIENT_CERT, &*cert), ("forwarded", &*format!("for=\"{client}:1234\""))];
            let (answer, mut send) =
                tunnel.send_request(connect_request(&authority, &headers), false).unwrap();
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), 200);
            let head = format!("GET / HTTP/1.1\r\nhost: web\r\n{CLIENT_CERT}: {cert}\r\n\r\n");
            write(&mut send, Bytes::from(head)).await.unwrap();
            let (mut body, mut text) = (answer.into_body(), Vec::new());
            while !text.windows(4).any(|end| end == b"\r\n\r\n") {
                text.extend_from_slice(&body.data().await.expect("it ended").unwrap());
            }
            String::from_utf8(text).unwrap().split(' ').nth(1).unwrap().to_owned()
        })
    };
    assert_eq!(ask(), "200");
    let own = format!("By={};URI={}", identity("gate"), identity("other"));
    assert_eq!(server.asked()[0].headers[CLIENT_CERT], own);
    let own = format!("{}:", stage.gate.ipv4());
    let told = stage.record(|record| record["code"] == 200);
    assert_eq!(told["src_identity"], identity("other").as_str());
    assert!(told["src"].as_str().unwrap().starts_with(&own), "{told}");
    // Nor does whoever judges by the waypoint's word.
    allow(&stage, "client");
    // What it had open is closed first.
    assert!(wait_for(TIMEOUT, || ask() == "503"));
    let served = server.count();
    assert_eq!(ask(), "503");
    let refused = record(stage.mesh.server_agent(), &[("reason", "policy_denied")]);
    assert_eq!(refused["caller_identity"], identity("other").as_str());
    assert!(refused["src"].as_str().unwrap().starts_with(&own), "{refused}");
    assert_eq!(server.count(), served);
    assert_eq!(stage.get("/").status, 200);
}

#[test]
fn what_comes_before_a_declined_upgrade_is_a_request_of_its_own() {
    for status in [200, 403] {
        let stage = Stage::new();
        let server = Scripted::start(&stage.mesh.server, move |asked| {
            Reply::Answer(if asked.line.contains("/chat") { status } else { 200 }, String::new())
        });
        let web = "Service, group: '', name: web";
        let deny = "action: DENY\nrules: [{to: [{operation: {paths: [/smuggled]}}]}]";
        stage.change(|| policy::write(&stage, "web", web, deny));
        let mut stream = stage.connect();
        let after = "GET /after HTTP/1.1\r\nhost: web\r\n\r\n";
        stream.get_mut().write_all([CHAT, SMUGGLED, after].concat().as_bytes()).unwrap();
        for wanted in [status, 403, 200] {
            assert_eq!(request(&mut stream, "").unwrap().status, wanted);
        }
        let lines: Vec<_> = server.asked().into_iter().map(|asked| asked.line).collect();
        assert_eq!(lines, ["GET /chat HTTP/1.1", "GET /after HTTP/1.1"]);
        stage.record(|record| record["path"] == "/smuggled" && record["reason"] == "policy_denied");
    }
}

#[test]
fn what_comes_before_an_upgrade_is_agreed_to_is_passed_on_after_it_and_in_order() {
    let stage = Stage::new();
    let listener = stage.mesh.server.listen(false, 80).unwrap();
    let (sent, ready) = channel::<()>();
    let server = thread::spawn(move || {
        let mut stream = BufReader::new(listener.accept().unwrap().0);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            assert!(stream.read_line(&mut line).unwrap() > 0);
        }
        ready.recv_timeout(TIMEOUT).unwrap();
        let agreed = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.get_mut().write_all(agreed.as_bytes()).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        rest
    });
    let mut stream = stage.connect();
    stream.get_mut().write_all([CHAT, SMUGGLED].concat().as_bytes()).unwrap();
    sent.send(()).unwrap();
    assert!(head_of(&mut stream).starts_with("http/1.1 101 "));
    stream.get_mut().write_all(b"and more").unwrap();
    stream.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(server.join().unwrap(), format!("{SMUGGLED}and more"));
    // To whoever carries it it is no request.
    stage.record(|record| record["path"] == "/chat" && record["code"] == 101);
    assert!(stage.records().iter().all(|record| record["path"] != "/smuggled"));
}

#[test]
fn a_byte_that_is_no_utf8_leads_past_no_policy() {
    let stage = Stage::new();
    let server = Scripted::status(&stage.mesh.server, 200);
    let ask = |value: &[u8]| {
        let mut stream = stage.connect();
        let text = [b"GET / HTTP/1.1\r\nhost: web\r\nx-user: ", value, b"\r\n\r\n"].concat();
        stream.get_mut().write_all(&text).unwrap();
        request(&mut stream, "").unwrap().status
    };
    let put = |action: &str| {
        let spec = format!(
            "action: {action}\nrules: [{{when: [{{key: 'request.headers[x-user]', values: [\"caf\u{e9}\", \"root*\"]}}]}}]"
        );
        stage.change(|| policy::write(&stage, "web", "Service, group: '', name: web", &spec));
    };
    put("DENY");
    for (value, wanted) in [
        ("caf\u{e9}".as_bytes(), 403),
        // As ISO-8859-1 has it.
        (b"caf\xe9", 403),
        (b"root\xff", 403),
        (b"ann\xff", 200),
        (b"ann", 200),
    ] {
        assert_eq!(ask(value), wanted, "{value:?}");
    }
    // Where all must be sure, that is none.
    put("ALLOW");
    for (value, wanted) in
        [("caf\u{e9}".as_bytes(), 200), (b"caf\xe9", 403), (b"root\xff", 200), (b"ann\xff", 403)]
    {
        assert_eq!(ask(value), wanted, "{value:?}");
    }
    assert_eq!(server.count(), 4);
}
