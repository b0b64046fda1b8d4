//! Which endpoint of a service a connection goes to, and what else is a service.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use orlop_tests::traffic::EchoServer;
use orlop_tests::{Endpoint, Pod, PodSpec, ServicePort, ServiceSpec, TargetPort};

use crate::pair::{Pair, assert_refused, dial, program, record};

/// A service of `shop/web` on port 80 with an endpoint on each node, at an address of each family.
struct Web {
    vip: Vec<IpAddr>,
    spec: ServiceSpec,
    near: EchoServer,
    far: EchoServer,
    near_pod: Pod,
    pair: Pair,
}

impl Web {
    fn new() -> Self {
        let pair = Pair::new();
        let near_pod = pair.pod(&pair.near, "near", PodSpec::new());
        let [near, far] = [&near_pod, &pair.server].map(|pod| pod.serve_echo(8080).unwrap());
        let vip = pair.testbed.vip();
        let spec = ServiceSpec::new("shop", "web", 80, TargetPort::Number(8080)).cluster_ips(vip.clone());
        let spec = spec.endpoints([&near_pod, &pair.server]);
        Self { vip, spec, near, far, near_pod, pair }
    }

    fn apply(&self, spec: &ServiceSpec) {
        self.pair.change(|world| world.service(spec));
    }

    /// Dials an address so many times, and says how many went to the near and to the far endpoint.
    #[track_caller]
    fn dial(&self, to: SocketAddr, times: usize) -> (usize, usize) {
        let before = (self.near.peers().len(), self.far.peers().len());
        for _ in 0..times {
            drop(dial(&self.pair.client, to).unwrap());
        }
        (self.near.peers().len() - before.0, self.far.peers().len() - before.1)
    }

    fn at(&self, port: u16) -> [SocketAddr; 2] {
        [SocketAddr::new(self.vip[0], port), SocketAddr::new(self.vip[1], port)]
    }
}

#[test]
fn a_client_comes_back_to_one_endpoint_for_as_long_as_it_is_eligible() {
    let web = Web::new();
    let affine = web.spec.clone().spec("sessionAffinity: ClientIP");
    web.apply(&affine);
    for to in web.at(80) {
        let (near, far) = web.dial(to, 8);
        assert!((near, far) == (8, 0) || (near, far) == (0, 8), "{near} and {far} to {to}");
        let (staying, pod) = if near > 0 { ("far", &web.pair.server) } else { ("near", &web.near_pod) };
        web.apply(&affine.clone().endpoints([pod]));
        assert_eq!(web.dial(to, 3), if staying == "far" { (0, 3) } else { (3, 0) });
        web.apply(&affine);
        assert_eq!(web.dial(to, 3), if staying == "far" { (0, 3) } else { (3, 0) }, "it moved for good");
    }
}

#[test]
fn an_affinity_that_is_over_is_forgotten() {
    let web = Web::new();
    let client_ip = "sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}";
    web.apply(&web.spec.clone().spec("sessionAffinity: ClientIP").spec(client_ip));
    let to = web.at(80)[0];
    // All are kept open: without affinity the one that has fewer is the next.
    let first = dial(&web.pair.client, to).unwrap();
    let to_near = web.near.peers().len() == 1;
    let mut kept = vec![first];
    let moved = orlop_tests::wait_for(std::time::Duration::from_secs(20), || {
        std::thread::sleep(std::time::Duration::from_millis(1500));
        kept.push(dial(&web.pair.client, to).unwrap());
        if to_near { web.far.peers().len() == 1 } else { web.near.peers().len() == 1 }
    });
    assert!(moved);
}

#[test]
fn the_clients_own_node_is_preferred_as_long_as_it_has_a_ready_endpoint() {
    let web = Web::new();
    let local = web.spec.clone().spec("trafficDistribution: PreferSameNode");
    web.apply(&local);
    for to in web.at(80) {
        assert_eq!(web.dial(to, 6), (6, 0));
    }
    let unready = Endpoint { ready: false, ..Endpoint::from(&web.near_pod) };
    web.apply(&local.endpoints([unready, Endpoint::from(&web.pair.server)]));
    for to in web.at(80) {
        assert_eq!(web.dial(to, 3), (0, 3));
    }
}

#[test]
fn the_clients_own_zone_is_preferred_and_zones_may_change() {
    let web = Web::new();
    let zones = |near: &str, far: &str| {
        let node = |name: &str, zone: &str| {
            format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}, \
                 topology.kubernetes.io/region: eu}}}}\n"
            )
        };
        let text = format!("{}---\n{}", node("n1", near), node("n2", far));
        web.pair.change(|world| world.write("nodes.yaml", &text));
    };
    zones("a", "b");
    web.apply(&web.spec.clone().spec("trafficDistribution: PreferClose"));
    for to in web.at(80) {
        assert_eq!(web.dial(to, 6), (6, 0));
    }
    zones("a", "a");
    for to in web.at(80) {
        // All are kept open: the one that has fewer is always the next.
        let before = web.far.peers().len();
        let kept: Vec<_> = (0..4).map(|_| dial(&web.pair.client, to).unwrap()).collect();
        assert_eq!(web.far.peers().len() - before, 2);
        drop(kept);
    }
}

#[test]
fn a_node_local_service_is_refused_where_its_node_has_none() {
    let web = Web::new();
    let local = web.spec.clone().spec("internalTrafficPolicy: Local");
    web.apply(&local);
    for to in web.at(80) {
        assert_eq!(web.dial(to, 4), (4, 0));
    }
    web.apply(&local.endpoints([&web.pair.server]));
    for to in web.at(80) {
        assert_refused(&web.pair.client, to);
        let refused = record(&web.pair.near, |record| record["dst"] == to.to_string());
        assert_eq!(refused["reason"], "no_healthy_endpoint");
    }
}

#[test]
fn an_endpoint_that_terminates_serves_while_no_other_is_ready() {
    let web = Web::new();
    let draining = || Endpoint { ready: false, draining: true, ..Endpoint::from(&web.near_pod) };
    web.apply(&web.spec.clone().endpoints([draining(), Endpoint::from(&web.pair.server)]));
    for to in web.at(80) {
        assert_eq!(web.dial(to, 4), (0, 4));
    }
    web.apply(&web.spec.clone().endpoints([draining()]));
    for to in web.at(80) {
        assert_eq!(web.dial(to, 4), (4, 0));
    }
}

#[test]
fn endpoints_that_are_not_ready_are_reached_where_the_service_publishes_them() {
    let web = Web::new();
    let unready = Endpoint { ready: false, ..Endpoint::from(&web.near_pod) };
    let spec = web.spec.clone().endpoints([unready]);
    web.apply(&spec);
    assert_refused(&web.pair.client, web.at(80)[0]);
    web.apply(&spec.spec("publishNotReadyAddresses: true"));
    for to in web.at(80) {
        assert_eq!(web.dial(to, 2), (2, 0));
    }
}

#[test]
fn external_and_load_balancer_addresses_lead_into_the_mesh() {
    let web = Web::new();
    let [external, balancer] = [web.pair.testbed.vip(), web.pair.testbed.vip()];
    let list: Vec<_> = external.iter().map(|ip| format!("{:?}", ip.to_string())).collect();
    let mut spec = web.spec.clone().endpoints([&web.pair.server]);
    spec = spec.spec(&format!("externalIPs: [{}]", list.join(", ")));
    spec.balancer_ips.clone_from(&balancer);
    web.apply(&spec);
    for ip in external.into_iter().chain(balancer) {
        let to = SocketAddr::new(ip, 80);
        assert!(!web.pair.in_clear(&web.pair.client, to), "{to}");
        let reached = record(&web.pair.near, |record| record["dst_service"] == "web.shop.svc.cluster.local");
        assert_eq!(reached["result"], "ok");
    }
}

#[test]
fn ports_may_change_while_connections_are_open() {
    let web = Web::new();
    web.apply(&web.spec);
    let open = dial(&web.pair.client, web.at(80)[0]).unwrap();
    let mut spec = web.spec.clone();
    spec.ports = vec![ServicePort { name: String::new(), port: 81, target: TargetPort::Number(8080) }];
    web.apply(&spec);
    for to in web.at(81) {
        let (near, far) = web.dial(to, 2);
        assert_eq!(near + far, 2);
    }
    for to in web.at(80) {
        assert_refused(&web.pair.client, to);
    }
    crate::pair::ping(&open, "still open\n").unwrap();
}

#[test]
fn a_service_entry_selects_pods_and_leads_into_the_mesh() {
    let web = Web::new();
    let pod = web.pair.pod(&web.pair.far, "selected", PodSpec::new().label("app", "selected"));
    let echo = pod.serve_echo(8080).unwrap();
    let spec = "resolution: STATIC, location: MESH_INTERNAL, workloadSelector: {labels: {app: selected}}";
    entry(&web, "selecting", &web.vip, spec);
    for to in web.at(80) {
        assert!(!web.pair.in_clear(&web.pair.client, to));
    }
    assert_eq!(echo.peers().len(), 2);
    let reached = record(&web.pair.near, |record| record["dst_service"] == "selecting.example.com");
    assert_eq!((&reached["result"], &reached["dst_workload"]), (&"ok".into(), &"shop/selected".into()));
}

#[test]
fn a_service_entry_reaches_what_is_outside_in_clear() {
    let web = Web::new();
    let outside = web.pair.outsider(web.pair.far.node(), "outside");
    let echo = outside.serve_echo(9000).unwrap();
    let endpoints: Vec<_> = outside.ips().iter().map(|ip| format!("{{address: \"{ip}\"}}")).collect();
    let spec = format!("resolution: STATIC, endpoints: [{}]", endpoints.join(", "));
    entry(&web, "outside", &web.vip, &spec.replace("\"}", "\", ports: {tcp: 9000}}"));
    for to in web.at(80) {
        assert!(web.pair.in_clear(&web.pair.client, to));
    }
    assert_eq!(echo.peers().len(), 2);
    for to in web.at(81) {
        assert_refused(&web.pair.client, to);
    }
}

#[test]
fn a_workload_entry_is_an_endpoint_of_a_service_and_of_a_service_entry() {
    let web = Web::new();
    let machine = web.pair.outsider(web.pair.far.node(), "machine");
    let echo = machine.serve_echo(8080).unwrap();
    let text = format!(
        "apiVersion: networking.istio.io/v1beta1\nkind: WorkloadEntry\nmetadata: {{name: vm, namespace: shop}}\n\
         spec: {{address: {}, labels: {{app: vm}}}}\n",
        machine.ipv4(),
    );
    web.pair.change(|world| world.write("vm.yaml", &text));
    let entry_vip = web.pair.testbed.vip();
    let spec = "resolution: STATIC, workloadSelector: {labels: {app: vm}}";
    entry(&web, "vm", &entry_vip, spec);
    let mut service = web.spec.clone().endpoints(Vec::<Endpoint>::new());
    service.selector = [("app".to_owned(), "vm".to_owned())].into();
    web.apply(&service);
    for ip in entry_vip.into_iter().chain(web.vip.clone()) {
        drop(dial(&web.pair.client, SocketAddr::new(ip, 80)).unwrap());
    }
    assert_eq!(echo.peers().len(), 4);
}

#[test]
fn an_entry_without_resolution_passes_on_to_the_address_that_was_dialled() {
    let web = Web::new();
    let outside = web.pair.outsider(web.pair.far.node(), "outside");
    let echo = outside.serve_echo(80).unwrap();
    // The block holds every pod: those of the mesh are reached as ever.
    let text = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: all, namespace: shop}\n\
        spec: {hosts: [all.example.com], addresses: [0.0.0.0/0, '::/0'], resolution: NONE, \
        ports: [{number: 80, name: tcp}]}\n";
    web.pair.change(|world| world.write("all.yaml", text));
    for to in [echo.addr(), echo.addr6()] {
        // A pod's address is the pod's.
        assert!(web.pair.in_clear(&web.pair.client, to));
    }
    for to in [web.far.addr(), web.far.addr6()] {
        assert!(!web.pair.in_clear(&web.pair.client, to));
    }
    let gateway = SocketAddr::new(web.pair.near.node().ipv4().into(), 15021);
    web.pair.client.connect(gateway, crate::pair::TIMEOUT).unwrap();
    let passed = record(&web.pair.near, |record| record["dst"] == gateway.to_string());
    assert_eq!(passed["dst_service"], "all.example.com");
}

#[test]
fn an_entry_is_seen_only_where_it_is_exported_to() {
    let web = Web::new();
    let other = web.pair.far.node().pod("street", "other", PodSpec::new()).unwrap();
    web.pair.change(|world| world.enrolled_namespace("street"));
    web.pair.wait_known(&other, true);
    crate::pair::wait_enrolled(&web.pair.far, &other, true);
    let endpoints = format!("endpoints: [{{address: {}, ports: {{tcp: 8080}}}}]", web.pair.server.ipv4());
    entry(&web, "own", &web.vip, &format!("resolution: STATIC, exportTo: ['.'], {endpoints}"));
    let to = web.at(80)[0];
    drop(dial(&web.pair.client, to).unwrap());
    // To others it is an address like any other, and nobody is there.
    assert!(dial(&other, to).is_err());
    entry(&web, "own", &web.vip, &format!("resolution: STATIC, exportTo: [shop, street], {endpoints}"));
    drop(dial(&other, to).unwrap());
}

#[test]
fn an_entry_that_leads_to_a_cluster_ip_does_not_leave_the_mesh() {
    let web = Web::new();
    web.apply(&web.spec.clone().endpoints([&web.pair.server]));
    let vip = web.pair.testbed.vip();
    let endpoints: Vec<_> = web.vip.iter().map(|ip| format!("{{address: \"{ip}\"}}")).collect();
    entry(&web, "alias", &vip, &format!("resolution: STATIC, endpoints: [{}]", endpoints.join(", ")));
    for ip in vip {
        assert!(!web.pair.in_clear(&web.pair.client, SocketAddr::new(ip, 80)));
    }
}

#[test]
fn explain_shows_where_a_service_leads() {
    let web = Web::new();
    web.apply(&web.spec.clone().spec("trafficDistribution: PreferSameNode"));
    let text = explain(&web, "shop/web");
    assert!(text.contains("shop/near") && !text.contains("shop/server"), "{text}");
    entry(&web, "outside", &web.pair.testbed.vip(), "resolution: STATIC, endpoints: [{address: 192.0.2.1}]");
    let text = explain(&web, "shop/outside");
    assert!(text.contains("192.0.2.1:80") && text.contains("in clear"), "{text}");
}

/// Adds or replaces the ServiceEntry `NAME.example.com` of `shop`, with a port 80 named `tcp`.
fn entry(web: &Web, name: &str, addresses: &[IpAddr], spec: &str) {
    let addresses: Vec<_> = addresses.iter().map(|ip| format!("{:?}", ip.to_string())).collect();
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{hosts: [{name}.example.com], addresses: [{}], ports: [{{number: 80, name: tcp, protocol: TCP{}}}], {spec}}}\n",
        addresses.join(", "),
        if spec.contains("workloadSelector") { ", targetPort: 8080" } else { "" },
    );
    web.pair.change(|world| world.write(&format!("entry.{name}.yaml"), &text));
}

fn explain(web: &Web, to: &str) -> String {
    let output = Command::new(program(&web.pair.near))
        .args(["explain", "--from", "shop/client", "--to", to, "--port", "80", "--world"])
        .arg(web.pair.testbed.world().dir())
        .output()
        .unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}
