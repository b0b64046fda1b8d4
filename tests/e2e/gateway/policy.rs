//! AuthorizationPolicies, asked about strangers by the gateway and about the gateway by everybody behind it.

use std::io::BufReader;

use orlop_tests::traffic::request;
use orlop_tests::{Waypoint, wait_for};

use super::{EDGE, Stage};
use crate::l7::settle_with;
use crate::mesh::{Mesh, NAMESPACE, TIMEOUT};

fn write(mesh: &Mesh, namespace: &str, spec: &str) {
    let indented: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\n\
         spec:\n{indented}"
    );
    mesh.testbed.world().write("policy.yaml", &text).unwrap();
}

#[test]
fn policies_of_the_gateways_namespace_its_pods_and_the_mesh_are_asked_about_strangers() {
    let stage = Stage::new();
    let server = stage.mesh.server.serve_http(80).unwrap();
    let address = stage.stranger.ipv4();
    let allow = |block: &str| format!("rules:\n- from: [{{source: {{ipBlocks: [{block}]}}}}]");
    let remote = format!("rules:\n- from: [{{source: {{remoteIpBlocks: [{address}]}}}}]");
    let deny = "action: DENY\nrules:\n- to: [{operation: {paths: [/no]}}]";
    let targeted = |kind: &str, name: &str| {
        format!("targetRefs: [{{group: gateway.networking.k8s.io, kind: {kind}, name: {name}}}]\n{deny}")
    };
    for (namespace, spec, allows, denies) in [
        (EDGE, allow(&address.to_string()), true, true),
        (EDGE, remote, true, true),
        (EDGE, allow("192.0.2.1"), false, false),
        // Nobody knows who a stranger is.
        (EDGE, "rules:\n- from: [{source: {principals: ['*']}}]".to_owned(), false, false),
        (EDGE, deny.to_owned(), true, false),
        (EDGE, format!("selector: {{matchLabels: {{app: gate}}}}\n{deny}"), true, false),
        (EDGE, format!("selector: {{matchLabels: {{app: other}}}}\n{deny}"), true, true),
        ("istio-system", format!("selector: {{matchLabels: {{app: gate}}}}\n{deny}"), true, false),
        (EDGE, targeted("Gateway", "gate"), true, false),
        ("istio-system", targeted("GatewayClass", "orlop"), true, false),
        // One that nobody understands is for all that it may be for.
        (EDGE, "rules: [{from: nobody}]".to_owned(), false, false),
    ] {
        stage.change(|mesh| write(mesh, namespace, &spec));
        let found = ["/yes", "/no"].map(|path| stage.get("x", path).status);
        let wanted = [allows, denies].map(|passes| if passes { 200 } else { 403 });
        assert_eq!(found, wanted, "{namespace}: {spec}");
    }
    let seen = server.peers().len();
    stage.change(|mesh| write(mesh, EDGE, "{}"));
    assert_eq!(stage.get("x", "/").status, 403);
    assert_eq!(server.peers().len(), seen);
    stage.record(|record| record["reason"] == "policy_denied" && record["policy"].is_null());
}

#[test]
fn policies_of_a_backend_know_the_gateway_by_its_certificate() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    for (spec, status) in [
        ("rules:\n- from: [{source: {principals: [cluster.local/ns/edge/sa/gate]}}]", 200),
        ("rules:\n- from: [{source: {principals: [cluster.local/ns/edge/sa/other]}}]", 503),
        ("rules:\n- from: [{source: {namespaces: [edge]}}]", 200),
        ("{}", 503),
        ("action: DENY\nrules:\n- from: [{source: {principals: [cluster.local/ns/edge/sa/gate]}}]", 503),
    ] {
        stage.change(|mesh| write(mesh, NAMESPACE, spec));
        // What the gateway keeps open from before is closed somewhat later.
        assert!(wait_for(TIMEOUT, || stage.get("x", "/").status == status), "{spec}");
    }
}

#[test]
fn policies_of_a_waypoint_know_the_gateways_client_by_its_address_and_believe_nobody_else() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let way = stage.way("way");
    let web = stage.put_behind(&[&way]);
    let waypoint = Waypoint::start(&way, &[]).unwrap();
    settle_with(&stage.mesh, [&waypoint]);
    let (stranger, client) = (stage.stranger.ipv4(), stage.mesh.client.ipv4());
    let to_web = "targetRefs: [{group: '', kind: Service, name: web}]";
    let remote =
        |block: &str| format!("{to_web}\nrules:\n- from: [{{source: {{remoteIpBlocks: [{block}]}}}}]");
    let change = |spec: &str| {
        stage.change(|mesh| write(mesh, NAMESPACE, spec));
        settle_with(&stage.mesh, [&waypoint]);
    };
    let forge = |address: &dyn std::fmt::Display| {
        format!(
            "GET / HTTP/1.1\r\nhost: web\r\nx-forwarded-for: {address}\r\nx_forwarded_for: {address}\r\n\r\n"
        )
    };
    let from_within = |head: &str| {
        request(&mut BufReader::new(stage.mesh.client.connect(web, TIMEOUT).unwrap()), head).unwrap().status
    };
    change(&remote(&stranger.to_string()));
    assert_eq!(stage.get("x", "/").status, 200);
    assert_eq!(from_within(&forge(&stranger)), 403, "it is no gateway");
    change(&remote(&client.to_string()));
    assert_eq!(from_within(&forge(&"10.1.1.1")), 200, "nor does it deny itself");
    assert_eq!(stage.ask(&forge(&client)).status, 403, "a stranger says whatever it likes");
    change(&remote(&stage.gate.ipv4().to_string()));
    assert_eq!(stage.get("x", "/").status, 403, "the gateway is not the client");

    // Whoever writes routes does not write where their clients are.
    for [kind, status] in [["set", "200"], ["add", "200"], ["remove", "403"]] {
        let header = match kind {
            "remove" => "[x-forwarded-for]".to_owned(),
            _ => format!("[{{name: X-Forwarded-For, value: {client}}}]"),
        };
        let filter = format!("{{type: RequestHeaderModifier, requestHeaderModifier: {{{kind}: {header}}}}}");
        let rules = format!("- filters: [{filter}]\n  backendRefs: [{{name: web, port: 80}}]");
        stage.route("HTTPRoute", "web", "", &rules);
        change(&remote(&stranger.to_string()));
        assert_eq!(stage.get("x", "/").status.to_string(), status, "{kind}");
        change(&remote(&client.to_string()));
        assert_eq!(stage.get("x", "/").status, 403, "{kind}");
    }
}

#[test]
fn a_policy_that_changes_is_in_force_for_the_next_request_and_for_a_websocket_at_once() {
    use std::io::{Read as _, Write as _};

    use crate::l7::scripted::{Reply, Scripted};

    let stage = Stage::new();
    let _server = Scripted::start(&stage.mesh.server, |_| {
        Reply::With(101, vec![("connection", "upgrade"), ("upgrade", "websocket")], String::new())
    });
    let mut stream = stage.stranger.connect(stage.address(), TIMEOUT).unwrap();
    let upgrade = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(upgrade.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    stage.change(|mesh| write(mesh, EDGE, "action: DENY\nrules:\n- to: [{operation: {paths: [/ws]}}]"));
    let mut rest = Vec::new();
    // Cut, not left open.
    let _ = stream.read_to_end(&mut rest);
    stage.record(|record| record["path"] == "/ws" && record["reason"] == "policy_denied");
}
