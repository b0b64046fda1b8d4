//! Services of which endpoints are on the client's node: the kernel chooses, and goes straight where it may.

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use orlop_tests::traffic::{EchoServer, ReadUninterrupted};
use orlop_tests::{Pod, PodSpec, ServiceSpec, TargetPort, wait_for};

use super::{NO_NEIGHBOURS, Neighbours, attacks::dial_from, authorization_policy, is_in_kernel};
use crate::pair::{TIMEOUT, apply, assert_refused, dial, full_name, ping, record};

const PORT: u16 = 8080;
/// Of sockets that choose theirs: none that the kernel gives to others.
const FIRST_PORT: u16 = 20_000;

/// `shop/web` on port 80, with the server and another pod of its node as endpoints on port 8080.
pub struct Web {
    spec: ServiceSpec,
    pub to: [SocketAddr; 2],
    pub servers: [EchoServer; 2],
    other: Pod,
    pub set: Neighbours,
}

impl Web {
    pub fn new() -> Self {
        let set = Neighbours::new();
        let other = set.pair.pod(&set.pair.far, "other", PodSpec::new().service_account("seller"));
        let servers = [&set.pair.server, &other].map(|pod| pod.serve_echo(PORT).unwrap());
        let vip = set.pair.testbed.vip();
        let to = [SocketAddr::new(vip[0], 80), SocketAddr::new(vip[1], 80)];
        let spec = ServiceSpec::new("shop", "web", 80, TargetPort::Number(PORT)).cluster_ips(vip);
        let spec = spec.endpoints([&set.pair.server, &other]);
        let web = Self { spec, to, servers, other, set };
        web.apply(&web.spec);
        web
    }

    fn apply(&self, spec: &ServiceSpec) {
        self.set.pair.change(|world| world.service(spec));
    }

    fn dial(&self, to: SocketAddr) -> TcpStream {
        dial(&self.set.neighbour, to).unwrap()
    }

    fn is_straight(&self, stream: &TcpStream) -> bool {
        is_in_kernel(&self.set.neighbour, stream.local_addr().unwrap().port(), PORT)
    }

    /// Waits until connections to both endpoints go straight; gives one to each.
    #[track_caller]
    pub fn straight(&self, to: SocketAddr) -> Vec<TcpStream> {
        let mut straight: Vec<(usize, TcpStream)> = Vec::new();
        wait_for(TIMEOUT, || {
            let stream = self.dial(to);
            let server = self.server_of(&stream);
            if self.is_straight(&stream) && straight.iter().all(|(found, _)| *found != server) {
                straight.push((server, stream));
            }
            straight.len() == 2
        });
        assert_eq!(straight.len(), 2, "they go through the proxy");
        straight.into_iter().map(|(_, stream)| stream).collect()
    }

    /// Which server has accepted it.
    fn server_of(&self, stream: &TcpStream) -> usize {
        let own = stream.local_addr().unwrap();
        self.servers.iter().position(|server| server.peers().contains(&own)).unwrap()
    }
}

#[test]
fn a_service_goes_straight_and_the_client_sees_its_address() {
    let web = Web::new();
    for to in web.to {
        let first = web.dial(to);
        assert!(!web.is_straight(&first), "{to}: nobody has allowed it yet");
        for stream in web.straight(to) {
            assert_eq!(stream.peer_addr().unwrap(), to);
            ping(&stream, "and you?\n").unwrap();
            let from = stream.local_addr().unwrap();
            let server = web.server_of(&stream);
            drop(stream);
            let pod = [&web.set.pair.server, &web.other][server];
            let dst = if to.is_ipv4() { pod.addr(PORT) } else { pod.addr6(PORT) };
            let record = record(&web.set.pair.far, |record| record["src"] == *from.to_string());
            for (field, value) in [
                ("path", "kernel"),
                ("result", "ok"),
                ("dialled", &to.to_string()),
                ("dst", &dst.to_string()),
                ("dst_service", "web.shop.svc.cluster.local"),
                ("dst_workload", &full_name(pod)),
            ] {
                assert_eq!(record[field], value, "{field}: {record}");
            }
        }
    }
    let labels = ["reporter=\"source\"", "destination_service=\"web.shop.svc.cluster.local\""];
    let opened = web.set.pair.far.metric("istio_tcp_connections_opened_total", &labels).unwrap();
    assert!(opened >= 6.0, "{opened}");
}

#[test]
fn ten_thousand_connections_spread_evenly_over_both_paths() {
    let web = Web::new();
    let remote = web.set.pair.pod(&web.set.pair.near, "remote", PodSpec::new().service_account("seller"));
    let far_away = remote.serve_echo(PORT).unwrap();
    drop(web.straight(web.to[0]));
    web.apply(&web.spec.clone().endpoints([&web.set.pair.server, &web.other, &remote]));
    let counts = || [&web.servers[0], &web.servers[1], &far_away].map(|server| server.peers().len());
    let before = counts();
    let to = web.to[0];
    let made = web.set.neighbour.run(|| {
        (0..10_000).try_for_each(|_| {
            let mut stream = orlop_tests::traffic::connect(to, TIMEOUT)?;
            ping(&stream, "x")?;
            // One that is still ending would count, and most so where the way is long.
            stream.shutdown(Shutdown::Write)?;
            stream.read_uninterrupted(&mut [0]).map(drop)
        })
    });
    made.unwrap().unwrap();
    let [a, b, c] = counts();
    let got = [a - before[0], b - before[1], c - before[2]];
    // A third of 10,000, give or take six standard deviations.
    assert!(got.iter().all(|count| (3050..=3617).contains(count)), "{got:?}");
    let to = to.to_string();
    let straight = || web.set.records(|record| record["path"] == "kernel" && record["dialled"] == *to);
    assert!(wait_for(TIMEOUT, || straight() > 6000), "{} of {got:?}", straight());
}

#[test]
fn of_two_endpoints_that_with_fewer_connections_is_next_on_whichever_path() {
    let web = Web::new();
    let remote = web.set.pair.pod(&web.set.pair.near, "remote", PodSpec::new().service_account("seller"));
    let far_away = remote.serve_echo(PORT).unwrap();
    web.apply(&web.spec.clone().endpoints([&web.set.pair.server, &remote]));
    // Each pair of connections that are kept open goes to both, the first of all through the proxy.
    let kept: Vec<_> = (0..8).map(|_| web.dial(web.to[0])).collect();
    assert_eq!((web.servers[0].peers().len(), far_away.peers().len()), (4, 4));
    let straight = kept.iter().filter(|stream| web.is_straight(stream)).count();
    assert_eq!(straight, 3);
    // Those that end make room.
    let (ended, kept): (Vec<_>, Vec<_>) = kept.into_iter().partition(|stream| web.is_straight(stream));
    drop(ended);
    assert!(wait_for(TIMEOUT, || web.set.records(|record| record["path"] == "kernel") == 3));
    let more: Vec<_> = (0..3).map(|_| web.dial(web.to[0])).collect();
    assert_eq!((web.servers[0].peers().len(), far_away.peers().len()), (7, 4));
    drop((kept, more));
}

#[test]
fn a_client_comes_back_to_one_endpoint_on_whichever_path() {
    let web = Web::new();
    web.apply(&web.spec.clone().spec("sessionAffinity: ClientIP"));
    for to in web.to {
        let first = web.server_of(&web.dial(to));
        let mut straight = 0;
        for n in 0..20 {
            let stream = web.dial(to);
            straight += usize::from(web.is_straight(&stream));
            assert_eq!(web.server_of(&stream), first);
            // A socket that has chosen its port goes through the proxy.
            let from = (stream.local_addr().unwrap().ip(), FIRST_PORT + n).into();
            let bound = web.set.neighbour.run(dial_from(from, to)).unwrap().unwrap();
            ping(&bound, "hello\n").unwrap();
            assert!(!web.is_straight(&bound));
            assert_eq!(web.server_of(&bound), first);
        }
        assert!(straight >= 18, "{straight}");
    }
}

#[test]
fn an_affinity_that_is_over_is_forgotten_by_the_kernel_too() {
    let web = Web::new();
    let timeout = "sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}";
    web.apply(&web.spec.clone().spec("sessionAffinity: ClientIP").spec(timeout));
    let first = web.server_of(&web.dial(web.to[0]));
    let moved = wait_for(Duration::from_secs(60), || {
        std::thread::sleep(Duration::from_millis(1100));
        web.server_of(&web.dial(web.to[0])) != first
    });
    assert!(moved);
}

#[test]
fn an_endpoint_that_is_gone_gets_no_connection_more() {
    let web = Web::new();
    drop(web.straight(web.to[0]));
    web.apply(&web.spec.clone().endpoints([&web.other]));
    let before = web.servers[0].peers().len();
    for _ in 0..20 {
        assert!(web.is_straight(&web.dial(web.to[0])));
    }
    assert_eq!(web.servers[0].peers().len(), before);
    web.apply(&web.spec.clone().endpoints(Vec::<&Pod>::new()));
    assert_refused(&web.set.neighbour, web.to[0]);
}

#[test]
fn policy_and_enrolment_hold_for_services_too() {
    let web = Web::new();
    let open = web.straight(web.to[0]);
    apply(&web.set.pair, "policy.yaml", &authorization_policy(NO_NEIGHBOURS));
    for stream in &open {
        ping(stream, "still here?\n").expect_err("it is open");
    }
    assert_refused(&web.set.neighbour, web.to[0]);
}

#[test]
fn a_service_with_a_waypoint_does_not_go_straight() {
    let web = Web::new();
    drop(web.straight(web.to[0]));
    web.apply(&web.spec.clone().label("istio.io/use-waypoint", "nobody"));
    assert_refused(&web.set.neighbour, web.to[0]);
    let refused = record(&web.set.pair.far, |record| record["reason"] == "no_ready_waypoint");
    assert_eq!(refused["dst_service"], "web.shop.svc.cluster.local");
}

#[test]
fn a_service_is_reached_without_an_agent() {
    let mut web = Web::new();
    let open = web.straight(web.to[0]);
    web.set.pair.far.kill().unwrap();
    for _ in 0..20 {
        assert!(web.is_straight(&web.dial(web.to[0])));
    }
    open.iter().for_each(|stream| ping(stream, "still here?\n").unwrap());
    web.set.pair.far.restart().unwrap();
    for _ in 0..20 {
        assert!(web.is_straight(&web.dial(web.to[0])));
    }
    open.iter().for_each(|stream| ping(stream, "and now?\n").unwrap());
}
