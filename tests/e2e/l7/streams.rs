//! Connections in which no HTTP is read: TCP, and TLS by the name of its server.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::sys::socket::shutdown;
use orlop_tests::traffic::request;
use orlop_tests::{Pod, PodSpec, ServiceSpec, TargetPort};

use super::policy::write as write_policy;
use super::routes::Versions;
use super::scripted::Scripted;
use super::{LABEL, Stage, web};
use crate::mesh::{NAMESPACE, TIMEOUT};
use crate::pair::is_refusal;

/// Whoever waits for a client's first bytes does so for longer than anybody here waits for an answer.
const WAITS: [&str; 2] = ["--detection-timeout", "60s"];

/// A server that says its pod's name first, and reads whatever comes; until it is dropped.
struct Greeter {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl Greeter {
    fn start(pod: &Pod) -> Self {
        let listener = Arc::new(pod.listen(false, 80).unwrap());
        let (accepting, name) = (Arc::clone(&listener), pod.name().to_owned());
        let thread = thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                let name = name.clone();
                thread::spawn(move || {
                    let _ = stream.write_all(format!("{name}\n").as_bytes());
                    let _ = std::io::copy(&mut stream, &mut std::io::sink());
                });
            }
        });
        Self { listener, thread: Some(thread) }
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        let _ = shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Who answers a client that says this; `None` for a refusal.
fn greeted(client: &Pod, to: SocketAddr, says: &[&[u8]]) -> Option<String> {
    let mut stream = client.connect(to, TIMEOUT).unwrap();
    stream.set_nodelay(true).unwrap();
    let all = says.iter().try_for_each(|part| stream.write_all(part));
    let greeting = all.and_then(|()| line(&mut stream));
    match greeting {
        Ok(greeting) if !greeting.is_empty() => Some(greeting),
        Ok(_) => None,
        Err(error) => {
            assert!(is_refusal(&error), "{error}");
            None
        }
    }
}

/// Up to the end of a line, or of all.
fn line(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut found = String::new();
    BufReader::new(stream).read_line(&mut found)?;
    Ok(found.trim_end_matches('\n').to_owned())
}

/// The beginning of a client's TLS to this host, each record on its own.
fn hello(name: &str) -> Vec<Vec<u8>> {
    let sized = |bytes: usize, of: &[u8]| [&(of.len() as u32).to_be_bytes()[4 - bytes..], of].concat();
    let names = sized(2, &[&[0][..], &sized(2, name.as_bytes())].concat());
    let extensions = [&[0, 0][..], &sized(2, &names)].concat();
    let fixed = [&[3, 3][..], &[7; 32], &sized(1, &[]), &sized(2, &[0x13, 1]), &sized(1, &[0])].concat();
    let message = [vec![1], sized(3, &[fixed, sized(2, &extensions)].concat())].concat();
    let record = |part: &[u8]| [&[22, 3, 1][..], &sized(2, part)].concat();
    message.chunks(50).map(record).collect()
}

fn parts(of: &[Vec<u8>]) -> Vec<&[u8]> {
    of.iter().map(Vec::as_slice).collect()
}

/// A stage whose versions are also a service each, and one whose service says so much of its port.
fn versions(port_name: &str) -> (Versions, [Greeter; 2]) {
    let versions = Versions::with(&WAITS);
    let stage = &versions.stage;
    stage.change(|| {
        let world = stage.mesh.testbed.world();
        for pod in &versions.pods {
            let service = ServiceSpec::new(NAMESPACE, pod.name(), 80, TargetPort::Number(80));
            let service = service.cluster_ips(stage.mesh.testbed.vip()).label(LABEL, "gate");
            world.service(&service.endpoints([pod])).unwrap();
        }
        let mut service = web(&stage.vip);
        service.ports[0].name = port_name.to_owned();
        world.service(&service.endpoints([&versions.pods[0], &versions.pods[1]])).unwrap();
    });
    let greeters = [Greeter::start(&versions.pods[0]), Greeter::start(&versions.pods[1])];
    (versions, greeters)
}

/// Puts a route of the Gateway API for the service in force.
fn route(stage: &Stage, kind: &str, namespace: &str, spec: &str) {
    let version = if kind == "HTTPRoute" { "v1" } else { "v1alpha2" };
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\n\
         metadata: {{name: web, namespace: {namespace}}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: web, namespace: {NAMESPACE}}}]\n  {spec}\n"
    );
    let file = format!("{kind}-{namespace}.yaml");
    stage.change(|| stage.mesh.testbed.world().write(&file, &text).unwrap());
}

fn virtual_service(stage: &Stage, rules: &str) {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: shop}}\n\
         spec:\n  hosts: [web]\n{rules}"
    );
    stage.change(|| stage.mesh.testbed.world().write("routes.yaml", &text).unwrap());
}

#[test]
fn tcp_goes_by_the_rules_of_a_virtual_service_and_nobody_waits_for_who_speaks_second() {
    let (versions, _greeters) = versions("tcp");
    let stage = &versions.stage;
    let other = stage.mesh.nodes[0].pod(NAMESPACE, "other", PodSpec::new().label("app", "other")).unwrap();
    stage.mesh.client_agent().wait_enrolled([&stage.mesh.client, &other]).unwrap();
    virtual_service(
        stage,
        "  tcp:\n  - match: [{sourceLabels: {app: other}}]\n    route: [{destination: {host: v2}}]\n  \
           - match: [{destinationSubnets: [192.0.2.0/32, 203.0.113.0/24]}]\n    route: [{destination: {host: v2}}]\n  \
           - match: [{port: 80, destinationSubnets: [0.0.0.0/0]}]\n    route:\n    \
           - {destination: {host: web, subset: v1}, weight: 90}\n    - {destination: {host: web, subset: v2}, weight: 10}\n",
    );
    assert!(greeted(&stage.mesh.client, stage.web(), &[]).is_some());
    let to_v2 = (0..100).filter(|_| greeted(&stage.mesh.client, stage.web(), &[]).as_deref() == Some("v2"));
    let to_v2 = to_v2.count();
    assert!(to_v2.abs_diff(10) <= 3, "{to_v2} of 100 went to v2, not a tenth");
    assert!((0..5).all(|_| greeted(&other, stage.web(), &[]).as_deref() == Some("v2")));
    virtual_service(
        stage,
        "  tcp:\n  - match: [{sourceNamespace: far}]\n    route: [{destination: {host: v2}}]\n",
    );
    // A rule for others is none for this client.
    let greetings = (0..20).filter_map(|_| greeted(&stage.mesh.client, stage.web(), &[]));
    assert_eq!(greetings.collect::<std::collections::BTreeSet<_>>().len(), 2);
}

#[test]
fn tls_goes_by_the_name_of_its_server_and_policies_judge_by_it() {
    let (versions, _greeters) = versions("tls");
    let stage = &versions.stage;
    virtual_service(
        stage,
        "  tls:\n  - match: [{sniHosts: [a.example]}]\n    route: [{destination: {host: web, subset: v1}}]\n  \
           - match: [{sniHosts: ['*.b.example']}]\n    route: [{destination: {host: v2}}]\n",
    );
    let says = |says: &[&[u8]]| greeted(&stage.mesh.client, stage.web(), says);
    let names = |name: &str| says(&parts(&hello(name)));
    assert_eq!(names("A.example").as_deref(), Some("v1"));
    assert_eq!(names("x.b.example").as_deref(), Some("v2"));
    let all = hello("x.b.example").concat();
    assert_eq!(says(&[&all[..1], &all[1..9], &all[9..]]).as_deref(), Some("v2"));
    for (what, first) in [
        ("another name", hello("b.example").concat()),
        ("two in one", [hello("a.example").concat(), hello("x.b.example").concat()].concat()),
        ("no TLS", b"hello\n".to_vec()),
        ("SSL 2", vec![0x80, 0x2e, 1, 3, 1, 0, 0]),
    ] {
        let greeting = says(&[&first]);
        assert!(greeting.is_none() || what == "two in one", "{what}: {greeting:?}");
    }
    // Two hellos in a row: the first was answered by its own server, which got no second one.
    stage.record(|record| record["reason"] == "policy_denied" && record["result"] == "cut");
    let policy = |action: &str, condition: &str| {
        let spec = format!("action: {action}\nrules:\n- when: [{{key: connection.sni, {condition}}}]");
        stage.change(|| write_policy(stage, "sni", "Service, group: '', name: web", &spec));
    };
    policy("ALLOW", "values: [a.example]");
    assert_eq!(names("a.example").as_deref(), Some("v1"));
    assert_eq!(names("x.b.example"), None);
    policy("DENY", "values: [a.example]");
    assert_eq!(names("a.example"), None);
    assert_eq!(names("x.b.example").as_deref(), Some("v2"));
    // Of the services that a rule leads to as well.
    let spec = "action: DENY\nrules:\n- when: [{key: connection.sni, values: ['x.*']}]";
    stage.change(|| write_policy(stage, "v2", "Service, group: '', name: v2", spec));
    assert_eq!(names("x.b.example"), None);
    assert_eq!(names("y.b.example").as_deref(), Some("v2"));
}

#[test]
fn routes_of_the_services_namespace_have_its_port_unread_and_no_others_have() {
    let (versions, greeters) = versions("");
    let stage = &versions.stage;
    route(stage, "TCPRoute", NAMESPACE, "rules: [{backendRefs: [{name: v2, port: 80}]}]");
    // On a port of which nobody says what it speaks.
    assert_eq!(greeted(&stage.mesh.client, stage.web(), &[]).as_deref(), Some("v2"));
    assert_eq!(greeted(&stage.mesh.client, stage.web(), &[b"GET / HTTP/1.1\r\n"]).as_deref(), Some("v2"));
    // Of what can't be read then no policy lets anything pass that asks for it.
    let only_get = "rules: [{to: [{operation: {methods: [GET]}}]}]";
    stage.change(|| write_policy(stage, "get", "Service, group: '', name: web", only_get));
    assert_eq!(greeted(&stage.mesh.client, stage.web(), &[b"GET / HTTP/1.1\r\n"]), None);
    stage.change(|| stage.mesh.testbed.world().remove("TCPRoute-shop.yaml").unwrap());
    drop(greeters);
    let servers = versions.pods.each_ref().map(|pod| Scripted::status(pod, 200));
    stage.mesh.testbed.world().enrolled_namespace("far").unwrap();
    let far = stage.mesh.nodes[0].pod("far", "client", PodSpec::new().service_account("client")).unwrap();
    stage.mesh.client_agent().wait_enrolled([&stage.mesh.client, &far]).unwrap();
    for (kind, spec) in [("TCPRoute", ""), ("TLSRoute", "hostnames: [a.example]\n  ")] {
        let rules = "rules: [{backendRefs: [{name: v2, namespace: shop, port: 80}]}]";
        route(stage, kind, "far", &format!("{spec}{rules}"));
    }
    let ask = |method: &str| {
        let stream = far.connect(stage.web(), TIMEOUT).unwrap();
        let mut stream = BufReader::new(stream);
        request(&mut stream, &format!("{method} / HTTP/1.1\r\nhost: web\r\n\r\n")).unwrap().status
    };
    assert_eq!((ask("GET"), ask("DELETE")), (200, 403));
    let all: usize = servers.iter().map(Scripted::count).sum();
    assert_eq!(all, 1);
}

#[test]
fn a_tls_route_matches_names_and_a_server_that_speaks_first_on_another_port_is_not_kept_waiting() {
    let (versions, _greeters) = versions("");
    let stage = &versions.stage;
    stage.change(|| {
        let mut service = web(&stage.vip);
        service.ports[0].name = "tls".to_owned();
        let mail = orlop_tests::ServicePort {
            name: "tcp-mail".to_owned(),
            port: 25,
            target: TargetPort::Number(80),
        };
        service.ports.push(mail);
        let service = service.endpoints([&versions.pods[0]]);
        stage.mesh.testbed.world().service(&service).unwrap();
        let rule = "action: DENY\nrules:\n- to: [{operation: {ports: ['80']}}]\n  \
            when: [{key: connection.sni, values: [secret.example]}]";
        write_policy(stage, "sni", "Service, group: '', name: web", rule);
    });
    route(
        stage,
        "TLSRoute",
        NAMESPACE,
        "hostnames: ['*.example']\n  rules: [{backendRefs: [{name: v2, port: 80}]}]",
    );
    let names = |name: &str| greeted(&stage.mesh.client, stage.web(), &parts(&hello(name)));
    assert_eq!(names("a.example").as_deref(), Some("v2"));
    assert_eq!(names("secret.example"), None);
    assert_eq!(names("a.elsewhere"), None);
    let mail = SocketAddr::new(stage.vip[0], 25);
    assert_eq!(greeted(&stage.mesh.client, mail, &[]).as_deref(), Some("v1"));
}

#[test]
fn a_connection_is_tried_at_another_endpoint_within_its_time() {
    let (versions, mut greeters) = versions("tcp");
    let stage = &versions.stage;
    // Nobody listens there any more.
    let [first, _second] = &mut greeters;
    let _ = shutdown(first.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    assert!((0..10).all(|_| greeted(&stage.mesh.client, stage.web(), &[]).as_deref() == Some("v2")));
}

#[test]
fn what_a_peers_policy_refuses_ejects_nobody() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let _servers = versions.pods.each_ref().map(|pod| Scripted::status(pod, 200));
    let text = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\n\
        spec:\n  host: web\n  trafficPolicy:\n    outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 300s, maxEjectionPercent: 100}\n";
    let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: closed, namespace: shop}\n\
        spec:\n  selector: {matchLabels: {version: v1}}\n  action: DENY\n  \
        rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]\n";
    stage.change(|| {
        let world = stage.mesh.testbed.world();
        world.write("subsets.yaml", text).unwrap();
        world.write("closed.yaml", deny).unwrap();
        world.service(&web(&stage.vip).endpoints([&versions.pods[0]])).unwrap();
    });
    assert!((0..5).all(|_| stage.get("/").status == 503));
    stage.record(|record| record["reason"] == "peer_refused");
    assert_eq!(stage.waypoint.metric("orlop_endpoints_ejected_total", &[]).unwrap(), 0.0);
    stage.change(|| stage.mesh.testbed.world().remove("closed.yaml").unwrap());
    assert_eq!(stage.get("/").status, 200);
}

#[test]
fn one_that_idles_or_is_there_for_long_ends_as_the_destinations_policy_wants() {
    let (versions, _greeters) = versions("tcp");
    let stage = &versions.stage;
    for (limit, reason) in [("idleTimeout", "idle_timeout"), ("maxConnectionDuration", "max_duration")] {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: shop}}\n\
             spec: {{host: web, trafficPolicy: {{connectionPool: {{tcp: {{{limit}: 4s}}}}}}}}\n"
        );
        stage.change(|| stage.mesh.testbed.world().write("subsets.yaml", &text).unwrap());
        let mut stream = stage.mesh.client.connect(stage.web(), TIMEOUT).unwrap();
        assert!(!line(&mut stream).unwrap().is_empty());
        let end = line(&mut stream);
        assert!(end.as_ref().map_or_else(is_refusal, String::is_empty), "{end:?}");
        stage.record(|record| record["reason"] == reason);
    }
}

#[test]
fn whom_one_endpoint_refuses_another_takes() {
    let (versions, _greeters) = versions("tcp");
    let stage = &versions.stage;
    let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: v1, namespace: shop}\n\
        spec: {selector: {matchLabels: {version: v1}}, action: DENY, rules: [{}]}\n";
    stage.change(|| stage.mesh.testbed.world().write("v1.yaml", deny).unwrap());
    assert!((0..20).all(|_| greeted(&stage.mesh.client, stage.web(), &[]).as_deref() == Some("v2")));
}

#[test]
fn a_second_hello_that_names_another_server_reaches_none() {
    let (versions, _greeters) = versions("tls");
    let stage = &versions.stage;
    route(
        stage,
        "TLSRoute",
        NAMESPACE,
        "hostnames: [a.example]\n  rules: [{backendRefs: [{name: v1, port: 80}]}]",
    );
    let mut stream = stage.mesh.client.connect(stage.web(), TIMEOUT).unwrap();
    stream.write_all(&hello("a.example").concat()).unwrap();
    assert_eq!(line(&mut stream).unwrap(), "v1");
    stream.write_all(&hello("b.example").concat()).unwrap();
    let end = line(&mut stream);
    assert!(end.as_ref().is_err_and(is_refusal), "{end:?}");
    let _ = stream.shutdown(Shutdown::Both);
    stage.record(|record| record["result"] == "cut" && record["reason"] == "policy_denied");
}
