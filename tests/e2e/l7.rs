//! The waypoint: requests through it, read, routed and recorded.

mod away;
mod backend_filters;
mod balancers;
mod besieged;
mod bodies;
pub mod bounds;
mod caller;
mod circuit_breaking;
mod connecting;
mod counted;
mod custom;
mod custom_answers;
mod custom_open;
mod destinations;
mod flags;
mod forged;
pub mod framing;
mod gateway_api;
mod grpc;
mod grpc_routes;
pub mod h2c;
mod heads;
mod hostile;
mod leaving;
mod limits;
mod localities;
mod logged;
mod measured;
mod origination;
mod policy;
pub mod raw;
mod resilience;
mod retries;
mod rolling;
mod routes;
mod rules;
pub mod scripted;
mod sources;
mod speaks;
mod stories;
mod streams;
mod telemetry;
mod tokens;
mod traces;
pub mod trailers;

use std::io::BufReader;
use std::net::{IpAddr, SocketAddr, TcpStream};

use orlop_tests::traffic::{Response, request};
use orlop_tests::{Pod, PodSpec, ServiceSpec, TargetPort, Waypoint};
use serde_json::Value;

use crate::hbone::HBONE_PORT;
use crate::mesh::{Mesh, NAMESPACE, TIMEOUT, await_value};
use crate::pair::settle;

const LABEL: &str = "istio.io/use-waypoint";

/// A mesh in which `shop/gate` is the waypoint of the service `shop/web`, whose port 80 leads to the server's. The
/// waypoint is on the server's node.
///
/// The waypoint comes first, so that it ends before its testbed goes.
pub struct Stage {
    pub waypoint: Waypoint,
    pub gate: Pod,
    /// Of `shop/gate`.
    pub gate_vip: Vec<IpAddr>,
    /// Of `shop/web`.
    pub vip: Vec<IpAddr>,
    pub mesh: Mesh,
}

impl Stage {
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// More arguments for the waypoint.
    pub fn with(args: &[&str]) -> Self {
        let mesh = Mesh::new();
        let gate = PodSpec::new().service_account("gate").opt_out();
        let gate = mesh.nodes[1].pod(NAMESPACE, "gate", gate).unwrap();
        let world = mesh.testbed.world();
        let spec = ServiceSpec::new(NAMESPACE, "gate", HBONE_PORT, TargetPort::Number(HBONE_PORT));
        let gate_vip = mesh.testbed.vip();
        world.service(&spec.cluster_ips(gate_vip.clone()).endpoints([&gate])).unwrap();
        let vip = mesh.testbed.vip();
        world.service(&web(&vip).endpoints([&mesh.server])).unwrap();
        let waypoint = Waypoint::start(&gate, args).unwrap();
        let stage = Self { waypoint, gate, gate_vip, vip, mesh };
        stage.settle();
        stage
    }

    /// The address of the service.
    pub fn web(&self) -> SocketAddr {
        SocketAddr::new(self.vip[0], 80)
    }

    /// Changes the world, and waits until both agents and the waypoint have it in force.
    pub fn change(&self, change: impl FnOnce()) {
        change();
        self.settle();
    }

    fn settle(&self) {
        settle_with(&self.mesh, [&self.waypoint]);
    }

    /// A connection of the client's to the service.
    pub fn connect(&self) -> BufReader<TcpStream> {
        BufReader::new(self.mesh.client.connect(self.web(), TIMEOUT).unwrap())
    }

    /// One request of the client's, on a connection of its own.
    pub fn get(&self, path: &str) -> Response {
        request(&mut self.connect(), &format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n")).unwrap()
    }

    /// Requests that the waypoint has counted with all of these labels.
    pub fn counted(&self, labels: &[&str]) -> f64 {
        self.waypoint.metric("istio_requests_total", labels).unwrap()
    }

    /// Waits for it.
    #[track_caller]
    pub fn await_count(&self, labels: &[&str], wanted: f64) {
        await_value(wanted, || self.counted(labels));
    }

    /// The lines of the access log.
    pub fn records(&self) -> Vec<Value> {
        let log = self.waypoint.log().unwrap();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["target"] == "access").collect()
    }

    /// Waits for a line of the access log.
    #[track_caller]
    pub fn record(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        orlop_tests::wait_for(TIMEOUT, || {
            found = self.records().into_iter().find(&wanted);
            found.is_some()
        });
        found.unwrap_or_else(|| panic!("no such record in:\n{:#?}", self.records()))
    }
}

/// Waits until both agents and these have the world in force as it is now.
pub fn settle_with<'a>(mesh: &Mesh, proxies: impl IntoIterator<Item = &'a Waypoint>) {
    let world = mesh.testbed.world();
    settle(world, mesh.agents());
    let mark = std::fs::read_to_string(world.dir().join("mark.yaml")).unwrap();
    let name = mark.split("name: ").nth(1).unwrap().split(',').next().unwrap();
    let name = format!("marks/{name}");
    let in_force = |dump: &str| {
        let dump: Value = serde_json::from_str(dump).unwrap_or_default();
        let services = dump["snapshot"]["services"].as_array();
        services.is_some_and(|services| services.iter().any(|service| service["name"] == *name))
    };
    proxies.into_iter().for_each(|proxy| proxy.wait_until(in_force).unwrap());
}

/// The service `shop/web` behind the waypoint, without endpoints.
pub fn web(vip: &[IpAddr]) -> ServiceSpec {
    let web = ServiceSpec::new(NAMESPACE, "web", 80, TargetPort::Number(80));
    web.cluster_ips(vip.to_vec()).label(LABEL, "gate")
}
