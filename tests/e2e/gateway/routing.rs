//! Where requests go.

use orlop_tests::traffic::request;
use orlop_tests::{PodSpec, ServiceSpec, TargetPort, Waypoint, wait_for};

use super::{EDGE, LISTENERS, Stage, TO_WEB, write_gateway, write_route};
use crate::l7::scripted::Scripted;
use crate::l7::settle_with;
use crate::mesh::{NAMESPACE, TIMEOUT, await_value};

#[test]
fn a_stranger_reaches_a_pod_of_the_mesh_through_the_gateways_own_tunnel() {
    let stage = Stage::new();
    let server = stage.mesh.server.serve_http(80).unwrap();
    let answer = stage.get("anything.example", "/x");
    assert_eq!((answer.status, answer.field("path").as_deref()), (200, Some("/x")));
    // The server's node has seen the gateway's certificate, and nobody else's.
    let own = format!("source_principal=\"spiffe://cluster.local/ns/{EDGE}/sa/gate\"");
    let opened = |labels: &[&str]| {
        stage.mesh.server_agent().metric("istio_tcp_connections_opened_total", labels).unwrap()
    };
    assert_eq!((opened(&[&own]), opened(&["reporter=\"destination\""])), (1.0, 1.0));
    assert_eq!(server.peers().len(), 1);
    // Where the pod takes nobody in plain there is no other way to it.
    let strict = format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: strict, namespace: {NAMESPACE}}}\n\
         spec: {{mtls: {{mode: STRICT}}}}\n"
    );
    stage.change(|mesh| mesh.testbed.world().write("strict.yaml", &strict).unwrap());
    assert_eq!(stage.get("anything.example", "/y").status, 200);
    assert!(stage.stranger.http_get(stage.mesh.server.addr(80), "/", TIMEOUT).is_err());
    let line = stage.record(|record| record["path"] == "/x");
    assert_eq!((&line["rule"], line["src_identity"].is_null()), (&"shop/web".into(), true));
    let labels = ["reporter=\"source\"", "source_principal=\"spiffe://cluster.local/ns/edge/sa/gate\""];
    await_value(2.0, || stage.gateway.metric("istio_requests_total", &labels).unwrap());
}

#[test]
fn listeners_and_routes_come_and_go() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    stage.route("HTTPRoute", "web", "a.example, '*.b.example'", TO_WEB);
    for (host, status) in [
        ("a.example", 200),
        ("A.example.:80", 200),
        ("x.b.example", 200),
        ("b.example", 404),
        ("c.example", 404),
    ] {
        assert_eq!(stage.get(host, "/").status, status, "{host}");
    }
    let mut kept = stage.connect();
    let get = "GET / HTTP/1.1\r\nhost: a.example\r\n\r\n";
    assert_eq!(request(&mut kept, get).unwrap().status, 200);
    // Another port, and a pair that conflicts: the rest goes on.
    let more = format!(
        "{LISTENERS}\n- {{name: more, port: 8080, protocol: HTTP, hostname: a.example, allowedRoutes: {{namespaces: \
         {{from: All}}}}}}\n- {{name: same, port: 80, protocol: HTTP, hostname: c.example}}\n\
         - {{name: again, port: 80, protocol: HTTP, hostname: c.example}}\n\
         - {{name: own, port: 15021, protocol: HTTP}}"
    );
    stage.change(|mesh| write_gateway(mesh, &more));
    let at = |port| stage.stranger.http_get(stage.gate.addr(port), "/", TIMEOUT);
    assert!(wait_for(TIMEOUT, || at(8080).is_ok()));
    assert_eq!(stage.get("a.example", "/").status, 200);
    assert_eq!(stage.gateway.http_get("/healthz/ready", 15021).unwrap().status, 200);
    stage.change(|mesh| write_gateway(mesh, LISTENERS));
    assert!(wait_for(TIMEOUT, || at(8080).is_err()));
    // Of a Gateway that is gone nothing is left.
    stage.change(|mesh| mesh.testbed.world().remove("gateway.yaml").unwrap());
    assert!(wait_for(TIMEOUT, || at(80).is_err()));
    assert_eq!(request(&mut kept, get).unwrap().status, 404);
    await_value(503, || stage.gateway.http_get("/healthz/ready", 15021).unwrap().status);
}

#[test]
fn it_is_not_ready_before_all_its_ports_are_open() {
    let (mesh, gate, stranger) = Stage::pods();
    write_gateway(&mesh, LISTENERS);
    let taken = gate.listen(true, 80).unwrap();
    let mut gateway = Waypoint::gateway_unready(&gate, &[]).unwrap();
    let why = || gateway.http_get("/healthz/ready", 15021).map(|answer| (answer.status, answer.text()));
    assert!(
        wait_for(TIMEOUT, || why()
            .is_ok_and(|(status, text)| status == 503 && text.contains("cannot listen"))),
        "{:?}",
        why()
    );
    drop(taken);
    gateway.wait_ready().unwrap();
    let stage = Stage { gateway, gate, stranger, mesh };
    assert_eq!(stage.get("a.example", "/").status, 404);
}

#[test]
fn a_service_that_has_a_waypoint_is_reached_through_it() {
    let stage = Stage::new();
    let server = Scripted::status(&stage.mesh.server, 200);
    let way = stage.way("way");
    stage.put_behind(&[&way]);
    // Nobody goes past it.
    assert_eq!(stage.get("x", "/").status, 503);
    let waypoint = Waypoint::start(&way, &[]).unwrap();
    settle_with(&stage.mesh, [&waypoint, &stage.gateway]);
    assert!(wait_for(TIMEOUT, || stage.get("x", "/through").status == 200));
    let caller = &server.asked().pop().unwrap().headers["x-forwarded-client-cert"];
    assert!(caller.ends_with(&format!("URI=spiffe://cluster.local/ns/{EDGE}/sa/gate")), "{caller}");
    // Its policies know the gateway by its certificate.
    stage.change(|mesh| {
        let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web, namespace: shop}\n\
            spec:\n  targetRefs: [{kind: Service, group: '', name: web}]\n  action: DENY\n  rules:\n  \
            - from: [{source: {principals: [cluster.local/ns/edge/sa/gate]}}]\n    to: [{operation: {paths: [/no]}}]";
        mesh.testbed.world().write("policy.yaml", text).unwrap();
    });
    settle_with(&stage.mesh, [&waypoint]);
    assert_eq!((stage.get("x", "/no").status, stage.get("x", "/yes").status), (403, 200));
}

#[test]
fn where_one_waypoint_is_gone_another_is_asked() {
    let stage = Stage::new();
    let _server = Scripted::status(&stage.mesh.server, 200);
    let [way, gone] = ["way", "gone"].map(|name| stage.way(name));
    stage.put_behind(&[&way, &gone]);
    let waypoint = Waypoint::start(&way, &[]).unwrap();
    settle_with(&stage.mesh, [&waypoint, &stage.gateway]);
    let answers: Vec<_> = (0..20).map(|_| stage.get("x", "/").status).collect();
    assert_eq!(answers, [200; 20]);
    stage.record(|record| record["attempts"] == 2);
}

#[test]
fn what_is_not_in_the_mesh_is_reached_in_plain() {
    let stage = Stage::new();
    let plain = stage.mesh.nodes[0].pod("street", "plain", PodSpec::new()).unwrap();
    let _server = plain.serve_http(80).unwrap();
    let service = ServiceSpec::new("street", "plain", 80, TargetPort::Number(80));
    let service = service.cluster_ips(stage.mesh.testbed.vip()).endpoints([&plain]);
    stage.change(|mesh| {
        mesh.testbed.world().service(&service).unwrap();
        write_route(
            mesh,
            "HTTPRoute",
            "web",
            "",
            "- backendRefs: [{name: plain, namespace: street, port: 80}]",
        );
    });
    // A Service of another namespace has to be granted.
    assert_eq!(stage.get("x", "/").status, 500);
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
                 metadata: {name: g, namespace: street}\nspec:\n  \
                 from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]\n  \
                 to: [{group: '', kind: Service}]";
    stage.change(|mesh| mesh.testbed.world().write("grant.yaml", grant).unwrap());
    let answer = stage.get("x", "/");
    assert_eq!((answer.status, answer.field("pod").as_deref()), (200, Some("street/plain")));
}
