//! Services, namespaces and pods that have a waypoint: the way leads through it, and no other way in.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::Builder;
use orlop_tests::{Endpoint, Pod, PodSpec, ServiceSpec, TargetPort};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::task::spawn_local;
use tokio_rustls::TlsConnector;

use crate::hbone::{HBONE_PORT, Peer, Reply, connect_request, hbone, identities, identity, within};
use crate::mesh::{Mesh, NAMESPACE, TIMEOUT, record};
use crate::pair::{assert_refused, is_refusal, ping, program, settle};

const LABEL: &str = "istio.io/use-waypoint";

/// A mesh in which `shop/gate` is a waypoint that answers every CONNECT by an echo, on the second node.
struct Gated {
    peer: Option<Peer>,
    gate: Pod,
    /// Of the service `shop/web`, which leads to the server's port 80.
    vip: Vec<IpAddr>,
    web: ServiceSpec,
    mesh: Mesh,
}

impl Gated {
    fn new() -> Self {
        let mesh = Mesh::new();
        let gate = PodSpec::new().service_account("gate").opt_out();
        let gate = mesh.nodes[1].pod(NAMESPACE, "gate", gate).unwrap();
        let config = identities(&mesh.testbed, &["gate"]).server_config(&identity("gate")).unwrap();
        let peer = Peer::start(&gate, config, Builder::new(), Reply::Echo);
        let vip = mesh.testbed.vip();
        let web = ServiceSpec::new(NAMESPACE, "web", 80, TargetPort::Number(80)).cluster_ips(vip.clone());
        let web = web.endpoints([&mesh.server]);
        let gated = Self { peer: Some(peer), gate, vip, web, mesh };
        gated.change(|| gated.service(&gated.gateway(true)));
        gated
    }

    /// The Service of the waypoint.
    fn gateway(&self, ready: bool) -> ServiceSpec {
        let spec = ServiceSpec::new(NAMESPACE, "gate", HBONE_PORT, TargetPort::Number(HBONE_PORT));
        let endpoint = Endpoint { ready, ..Endpoint::from(&self.gate) };
        spec.cluster_ips(self.mesh.testbed.vip()).endpoints([endpoint])
    }

    fn service(&self, spec: &ServiceSpec) {
        self.mesh.testbed.world().service(spec).unwrap();
    }

    /// Changes the world, and waits until both agents have it in force.
    fn change(&self, change: impl FnOnce()) {
        change();
        settle(self.mesh.testbed.world(), self.mesh.agents());
    }

    /// The addresses of the service, or of the server.
    fn service_and_server(&self) -> [SocketAddr; 4] {
        let server = &self.mesh.server;
        [
            SocketAddr::new(self.vip[0], 80),
            SocketAddr::new(self.vip[1], 80),
            server.addr(80),
            server.addr6(80),
        ]
    }

    /// Dials from the client, and sees that the waypoint was asked for what was dialled.
    #[track_caller]
    fn goes_through(&self, to: SocketAddr) {
        let stream = self.mesh.client.connect(to, TIMEOUT).unwrap();
        ping(&stream, "through?\n").unwrap();
        let asked = self.peer.as_ref().unwrap().next();
        assert_eq!(asked.uri.to_string(), to.to_string());
        assert_eq!(asked.headers["forwarded"], format!("for=\"{}\"", stream.local_addr().unwrap()));
        let session = self.peer.as_ref().unwrap().sessions.try_recv();
        assert!(session.is_err() || session.is_ok_and(|session| session.client == identity("client")));
    }

    /// Dials an echo server from the client, and sees that the waypoint was not asked.
    #[track_caller]
    fn goes_straight(&self, to: SocketAddr) {
        let stream = self.mesh.client.connect(to, TIMEOUT).unwrap();
        ping(&stream, "straight?\n").unwrap();
        assert!(self.peer.as_ref().unwrap().asked.try_recv().is_err(), "the waypoint was asked");
    }

    fn label_namespace(&self, value: &str) {
        let labels = [("orlop.dev/mesh", "enabled"), (LABEL, value)];
        self.mesh.testbed.world().namespace(NAMESPACE, &labels).unwrap();
    }
}

#[test]
fn a_labelled_service_is_reached_through_its_waypoint_also_by_pod_address() {
    let gated = Gated::new();
    gated.change(|| gated.service(&gated.web.clone().label(LABEL, "gate")));
    gated.service_and_server().into_iter().for_each(|to| gated.goes_through(to));
    let vip = SocketAddr::new(gated.vip[0], 80).to_string();
    let passed = record(gated.mesh.client_agent(), &[("dst", &vip), ("result", "ok")]);
    assert_eq!(passed["dst_workload"], "shop/gate");
    assert_eq!(passed["dst_service"], "web.shop.svc.cluster.local");
    assert_eq!(passed["dst_identity"], identity("gate").as_str());
}

#[test]
fn a_labelled_namespace_is_reached_through_its_waypoint_unless_an_object_opts_out() {
    let gated = Gated::new();
    let _server = gated.mesh.server.serve_echo(80).unwrap();
    gated.service(&gated.web);
    gated.change(|| gated.label_namespace("gate"));
    gated.service_and_server().into_iter().for_each(|to| gated.goes_through(to));

    gated.change(|| gated.service(&gated.web.clone().label(LABEL, "none")));
    gated.service_and_server().into_iter().for_each(|to| gated.goes_straight(to));
}

#[test]
fn a_labelled_pod_is_reached_through_its_waypoint_and_may_opt_out() {
    let gated = Gated::new();
    let _server = gated.mesh.server.serve_echo(80).unwrap();
    let direct = [gated.mesh.server.addr(80), gated.mesh.server.addr6(80)];
    direct.into_iter().for_each(|to| gated.goes_straight(to));
    gated.change(|| gated.mesh.server.set_label(LABEL, Some("gate")).unwrap());
    direct.into_iter().for_each(|to| gated.goes_through(to));
    gated.change(|| gated.mesh.server.set_label(LABEL, Some("none")).unwrap());
    direct.into_iter().for_each(|to| gated.goes_straight(to));
}

#[test]
fn a_waypoint_may_be_in_another_namespace() {
    let gated = Gated::new();
    let spec =
        ServiceSpec { namespace: "street".to_owned(), ..gated.web.clone().endpoints(Vec::<Endpoint>::new()) };
    let spec = spec.label(LABEL, "gate").label("istio.io/use-waypoint-namespace", NAMESPACE);
    gated.change(|| gated.service(&spec));
    for ip in gated.vip.clone() {
        gated.goes_through(SocketAddr::new(ip, 80));
    }
}

#[test]
fn without_a_ready_waypoint_it_is_refused_with_that_reason() {
    let gated = Gated::new();
    let _server = gated.mesh.server.serve_echo(80).unwrap();
    gated.service(&gated.gateway(false));
    gated.change(|| gated.service(&gated.web.clone().label(LABEL, "gate")));
    for to in gated.service_and_server() {
        assert_refused(&gated.mesh.client, to);
        record(gated.mesh.client_agent(), &[("dst", &to.to_string()), ("reason", "no_ready_waypoint")]);
    }
    // Nor with a name that nothing has.
    gated.change(|| gated.service(&gated.web.clone().label(LABEL, "nobody")));
    assert_refused(&gated.mesh.client, gated.service_and_server()[0]);
}

#[test]
fn only_the_waypoint_gets_in() {
    let gated = Gated::new();
    let server = gated.mesh.server.serve_echo(80).unwrap();
    let open = gated.mesh.client.connect(server.addr(), TIMEOUT).unwrap();
    ping(&open, "before\n").unwrap();
    gated.change(|| gated.service(&gated.web.clone().label(LABEL, "gate")));

    // What was open past the waypoint is cut.
    assert_cut(open);
    record(gated.mesh.server_agent(), &[("result", "cut"), ("reason", "not_through_waypoint")]);

    for to in [server.addr(), server.addr6()] {
        assert_eq!(ask(&gated, "gate", to), 200);
        assert_eq!(ask(&gated, "client", to), 401);
    }
    record(gated.mesh.server_agent(), &[("result", "refused"), ("reason", "not_through_waypoint")]);

    // Nor in clear.
    let outsider = gated.mesh.nodes[0].pod("street", "outsider", PodSpec::new()).unwrap();
    for to in [server.addr(), server.addr6()] {
        assert_refused(&outsider, to);
    }
}

#[test]
fn a_waypoint_that_is_in_the_mesh_itself_is_not_led_to_itself() {
    let gated = Gated::new();
    let server = gated.mesh.server.serve_echo(80).unwrap();
    gated.service(&gated.web);
    gated.change(|| gated.label_namespace("gate"));
    gated.change(|| gated.gate.opt_in().unwrap());
    gated.mesh.server_agent().wait_enrolled([&gated.mesh.server, &gated.gate]).unwrap();
    for to in gated.service_and_server() {
        let stream = gated.gate.connect(to, TIMEOUT).unwrap();
        ping(&stream, "from the waypoint\n").unwrap();
    }
    assert_eq!(server.peers().len(), 4);
    assert!(server.peers().iter().all(|peer| gated.gate.ips().contains(&peer.ip())));
}

#[test]
fn explain_shows_the_waypoint() {
    let gated = Gated::new();
    gated.change(|| gated.service(&gated.web.clone().label(LABEL, "gate")));
    for to in ["shop/web", "shop/server"] {
        let (code, text) = explain(&gated, to);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("waypoint") && text.contains("shop/gate"), "{text}");
    }
    gated.change(|| gated.service(&gated.gateway(false)));
    let (code, text) = explain(&gated, "shop/web");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("no_ready_waypoint"), "{text}");
}

/// Asks the server's proxy for `to`, from the waypoint's pod with the certificate of this account.
fn ask(gated: &Gated, account: &str, to: SocketAddr) -> u16 {
    let identities = identities(&gated.mesh.testbed, &[account]);
    let config = identities.client_config(&identity(account), &identity("server")).unwrap();
    let proxy = SocketAddr::new(to.ip(), hbone(&gated.mesh.server).port());
    within(&gated.gate, async move || {
        let mut tunnel = open(proxy, config).await;
        let (answer, _send) = tunnel.send_request(connect_request(&to.to_string(), &[]), false).unwrap();
        answer.await.unwrap().status().as_u16()
    })
}

pub async fn open(to: SocketAddr, config: Arc<ClientConfig>) -> SendRequest<Bytes> {
    let tcp = tokio::net::TcpStream::connect(to).await.unwrap();
    let tls = TlsConnector::from(config).connect(ServerName::IpAddress(to.ip().into()), tcp).await.unwrap();
    let (send, connection) = h2::client::handshake(tls).await.unwrap();
    spawn_local(async move {
        let _ = connection.await;
    });
    send.ready().await.unwrap()
}

#[track_caller]
fn assert_cut(mut stream: TcpStream) {
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let end = stream.write_all(b"?").and_then(|()| stream.read_exact(&mut [0; 2]));
    assert!(end.as_ref().is_err_and(is_refusal), "{end:?}");
}

fn explain(gated: &Gated, to: &str) -> (Option<i32>, String) {
    let output = Command::new(program(gated.mesh.client_agent()))
        .args(["explain", "--from", "shop/client", "--to", to, "--port", "80", "--world"])
        .arg(gated.mesh.testbed.world().dir())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}
