//! The gateway: clients from outside the mesh, and what becomes of their requests.

mod bounds;
mod edge;
mod leaving;
mod policy;
mod routing;
mod speaks;
mod stalls;
mod tls;

use std::io::BufReader;
use std::net::{SocketAddr, TcpStream};

use orlop_tests::traffic::{Response, request};
use orlop_tests::{Pod, PodSpec, ServiceSpec, TargetPort, Waypoint};
use serde_json::Value;

use crate::hbone::HBONE_PORT;
use crate::l7::settle_with;
use crate::mesh::{Mesh, NAMESPACE, TIMEOUT};

/// The gateway's namespace, which is not in the mesh.
const EDGE: &str = "edge";

/// A mesh before which `edge/gate` is the gateway, on the server's node. Its listener `web`, on port 80, takes routes of
/// all namespaces. The route `shop/web` leads to the service `shop/web`, whose port 80 is the server's.
///
/// The gateway comes first, so that it ends before its testbed goes.
struct Stage {
    gateway: Waypoint,
    gate: Pod,
    /// Nobody whom the mesh knows.
    stranger: Pod,
    mesh: Mesh,
}

const LISTENERS: &str = "- {name: web, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}";
const TO_WEB: &str = "- backendRefs: [{name: web, port: 80}]";

impl Stage {
    fn new() -> Self {
        Self::with(&[], "http")
    }

    /// More arguments for the gateway, and what the service's port is called.
    fn with(args: &[&str], port: &str) -> Self {
        Self::of(Self::pods(), args, port)
    }

    fn of((mesh, gate, stranger): (Mesh, Pod, Pod), args: &[&str], port: &str) -> Self {
        let world = mesh.testbed.world();
        let mut web = ServiceSpec::new(NAMESPACE, "web", 80, TargetPort::Number(80));
        web.ports[0].name = port.to_owned();
        world.service(&web.cluster_ips(mesh.testbed.vip()).endpoints([&mesh.server])).unwrap();
        write_gateway(&mesh, LISTENERS);
        write_route(&mesh, "HTTPRoute", "web", "", TO_WEB);
        let gateway = Waypoint::gateway(&gate, args).unwrap();
        let stage = Self { gateway, gate, stranger, mesh };
        stage.settle();
        stage
    }

    /// With its certificates in the testbed's directory.
    fn certified() -> Self {
        let (mesh, gate, stranger) = Self::pods();
        let dir = mesh.testbed.dir().join("certificates");
        Self::of((mesh, gate, stranger), &["--certificates", &dir.to_string_lossy()], "http")
    }

    fn pods() -> (Mesh, Pod, Pod) {
        let mesh = Mesh::new();
        let spec = PodSpec::new().service_account("gate").label("app", "gate").opt_out();
        let gate = mesh.nodes[1].pod(EDGE, "gate", spec).unwrap();
        let stranger = mesh.nodes[0].pod("street", "stranger", PodSpec::new()).unwrap();
        (mesh, gate, stranger)
    }

    /// Puts the waypoint `shop/way`, whose pods these are, before the service. The service's address is told.
    fn put_behind(&self, ways: &[&Pod]) -> SocketAddr {
        let world = self.mesh.testbed.world();
        let way = ServiceSpec::new(NAMESPACE, "way", HBONE_PORT, TargetPort::Number(HBONE_PORT));
        let endpoints = ways.iter().copied();
        world.service(&way.cluster_ips(self.mesh.testbed.vip()).endpoints(endpoints)).unwrap();
        let web = ServiceSpec::new(NAMESPACE, "web", 80, TargetPort::Number(80));
        let vip = self.mesh.testbed.vip();
        let to = SocketAddr::new(vip[0], 80);
        let web = web.label("istio.io/use-waypoint", "way").cluster_ips(vip);
        world.service(&web.endpoints([&self.mesh.server])).unwrap();
        self.settle();
        to
    }

    /// A pod for that waypoint.
    fn way(&self, name: &str) -> Pod {
        let spec = PodSpec::new().service_account("way").opt_out();
        self.mesh.nodes[0].pod(NAMESPACE, name, spec).unwrap()
    }

    fn settle(&self) {
        settle_with(&self.mesh, [&self.gateway]);
    }

    /// Changes the world, and waits until both agents and the gateway have it in force.
    fn change(&self, change: impl FnOnce(&Mesh)) {
        change(&self.mesh);
        self.settle();
    }

    /// Puts routes of this kind and name in force.
    fn route(&self, kind: &str, name: &str, hosts: &str, rules: &str) {
        self.change(|mesh| write_route(mesh, kind, name, hosts, rules));
    }

    /// The gateway's address, as its clients know it.
    fn address(&self) -> SocketAddr {
        self.gate.addr(80)
    }

    fn connect(&self) -> BufReader<TcpStream> {
        BufReader::new(self.stranger.connect(self.address(), TIMEOUT).unwrap())
    }

    /// One request of the stranger's on a connection of its own.
    fn get(&self, host: &str, path: &str) -> Response {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n"))
    }

    fn ask(&self, head: &str) -> Response {
        request(&mut self.connect(), head).unwrap()
    }

    /// Waits for a line of the access log.
    #[track_caller]
    fn record(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        orlop_tests::wait_for(TIMEOUT, || {
            let log = self.gateway.log().unwrap();
            let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            found = lines.find(|line| line["target"] == "access" && wanted(line));
            found.is_some()
        });
        found.unwrap_or_else(|| panic!("no such record in:\n{}", self.gateway.log().unwrap()))
    }
}

/// Writes the Gateway `edge/gate` with these entries of `spec.listeners`.
fn write_gateway(mesh: &Mesh, listeners: &str) {
    let indented: String = listeners.lines().map(|line| format!("  {line}\n")).collect();
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: gate, namespace: {EDGE}}}\n\
         spec:\n  gatewayClassName: orlop\n  listeners:\n{indented}"
    );
    mesh.testbed.world().write("gateway.yaml", &text).unwrap();
}

/// Writes a route of `shop` for the gateway.
fn write_route(mesh: &Mesh, kind: &str, name: &str, hosts: &str, rules: &str) {
    let indented: String = rules.lines().map(|line| format!("  {line}\n")).collect();
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         spec:\n  parentRefs: [{{name: gate, namespace: {EDGE}}}]\n  hostnames: [{hosts}]\n  rules:\n{indented}"
    );
    mesh.testbed.world().write(&format!("{kind}-{name}.yaml"), &text).unwrap();
}
