use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use orlop_tests::traffic::uninterrupted;
use orlop_tests::{Endpoint, PodSpec, ServiceSpec, TargetPort, wait_for};

use super::ask::{WAYS, Way, addresses, ask, code, exchange, getent, query, socket};
use super::resolver::Resolver;
use crate::pair::{AT_ONCE, Pair, TIMEOUT, dial, ping};
use crate::upgrade;

const WEB: &str = "web.shop.svc.cluster.local.";

/// The service `shop/web`, and an address where no resolver is.
fn with_service() -> (Pair, Vec<IpAddr>, [IpAddr; 2]) {
    with_service_in(Pair::new())
}

fn with_service_in(pair: Pair) -> (Pair, Vec<IpAddr>, [IpAddr; 2]) {
    let (vips, nobody) = (pair.testbed.vip(), pair.testbed.vip());
    let mut web = ServiceSpec::new("shop", "web", 80, TargetPort::Number(8080));
    web.ports[0].name = "http".to_owned();
    let web = web.cluster_ips(vips.clone()).endpoints([&pair.server]);
    pair.testbed.world().service(&web).unwrap();
    pair.wait_both(|snapshot| snapshot["services"].as_array().is_some_and(|all| !all.is_empty()));
    (pair, vips, [nobody[0], nobody[1]])
}

#[test]
fn services_are_answered_in_every_way_without_a_resolver() {
    let (pair, vips, resolvers) = with_service();
    for resolver in resolvers {
        for way in WAYS {
            let answer = ask(&pair.client, way, resolver, WEB, RecordType::A).unwrap();
            assert_eq!((addresses(&answer), answer.answers[0].ttl), (vec![vips[0]], 30), "{way:?}");
            let answer =
                ask(&pair.client, way, resolver, "WeB.shop.svc.cluster.local.", RecordType::AAAA).unwrap();
            assert_eq!(addresses(&answer), vips[1..], "{way:?}");
            assert_eq!(answer.answers[0].name.to_ascii(), "WeB.shop.svc.cluster.local.");
        }
    }
    let counted = |labels: &[&str]| pair.near.metric("orlop_dns_requests_total", labels).unwrap();
    assert!((counted(&["protocol=\"udp\"", "source=\"cluster\"", "rcode=\"noerror\""]) - 12.0).abs() < 0.1);
    assert!((counted(&["protocol=\"tcp\"", "source=\"cluster\"", "rcode=\"noerror\""]) - 4.0).abs() < 0.1);
}

#[test]
fn ports_and_addresses_are_answered_too() {
    let (pair, vips, [resolver, _]) = with_service();
    let ask = |name: &str, kind| ask(&pair.client, Way::Connected, resolver, name, kind).unwrap();
    let srv = ask("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV);
    let [RData::SRV(record)] = [&srv.answers[0].data] else { panic!("{srv}") };
    assert_eq!((record.port, record.target.to_ascii()), (80, WEB.to_owned()));
    assert_eq!(srv.additionals.len(), 2);
    let IpAddr::V4(vip) = vips[0] else { panic!("IPv4 comes first") };
    let [a, b, c, d] = vip.octets();
    let ptr = ask(&format!("{d}.{c}.{b}.{a}.in-addr.arpa."), RecordType::PTR);
    let [RData::PTR(record)] = [&ptr.answers[0].data] else { panic!("{ptr}") };
    assert_eq!(record.0.to_ascii(), WEB);
    let nothing = ask(WEB, RecordType::MX);
    assert_eq!(
        (code(&nothing), nothing.answers.len(), nothing.authorities.len()),
        (ResponseCode::NoError, 0, 1)
    );
    let nobody = ask("nobody.shop.svc.cluster.local.", RecordType::A);
    assert_eq!((code(&nobody), nobody.authorities.len()), (ResponseCode::NXDomain, 1));
}

#[test]
fn every_form_of_a_search_path_finds_the_service() {
    let (pair, mut vips, resolvers) = with_service();
    vips.sort();
    for resolver in resolvers {
        for form in ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local", WEB] {
            assert_eq!(getent(&pair.client, resolver, form), vips, "{form}");
        }
    }
    assert_eq!(getent(&pair.client, resolvers[0], "web.street"), Vec::<IpAddr>::new());
}

#[test]
fn headless_services_and_their_pods_have_their_own_addresses() {
    let pair = Pair::new();
    let other = pair.pod(&pair.near, "other", PodSpec::new());
    let endpoint = |pod, hostname: Option<&str>| {
        let mut endpoint = Endpoint::from(pod);
        endpoint.hostname = hostname.map(str::to_owned);
        endpoint
    };
    let db = ServiceSpec::new("shop", "db", 5432, TargetPort::Number(5432))
        .endpoints([endpoint(&pair.server, Some("db-0")), endpoint(&other, None)]);
    pair.testbed.world().service(&db).unwrap();
    pair.wait_both(|snapshot| snapshot["services"].as_array().is_some_and(|all| !all.is_empty()));
    let resolver = pair.testbed.vip()[0];
    let mut all = [pair.server.ips(), other.ips()].concat();
    all.sort();
    assert_eq!(getent(&pair.client, resolver, "db"), all);
    let mut one = pair.server.ips().to_vec();
    one.sort();
    assert_eq!(getent(&pair.client, resolver, "db-0.db"), one);
    let dashed = format!("{}.db", other.ipv4().to_string().replace('.', "-"));
    assert_eq!(getent(&pair.client, resolver, &dashed), [IpAddr::V4(other.ipv4())]);
    assert_eq!(getent(&pair.client, resolver, "db-1.db"), Vec::<IpAddr>::new());
}

#[test]
fn a_killed_agents_pods_are_refused_dns_at_once() {
    let (mut pair, vips, resolvers) = with_service();
    let question = query(WEB, RecordType::A).to_vec().unwrap();
    let mut buffer = [0; 512];
    for resolver in resolvers.map(|ip| SocketAddr::new(ip, 53)) {
        let open = socket(&pair.client, resolver.is_ipv6()).unwrap();
        open.connect(resolver).unwrap();
        let asks = |buffer: &mut [u8]| open.send(&question).and_then(|_| uninterrupted(|| open.recv(buffer)));
        asks(&mut buffer).unwrap();
        pair.near.kill().unwrap();
        let start = Instant::now();
        assert_eq!(asks(&mut buffer).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        for (way, kind) in [
            (Way::Connected, ErrorKind::ConnectionRefused),
            (Way::Unconnected, ErrorKind::PermissionDenied),
            (Way::Mapped, ErrorKind::PermissionDenied),
            (Way::Tcp, ErrorKind::ConnectionRefused),
        ] {
            let error = exchange(&pair.client, way, resolver, &question).unwrap_err();
            assert_eq!(error.kind(), kind, "{way:?}: {error}");
        }
        assert!(start.elapsed() < AT_ONCE, "refused only after {:?}", start.elapsed());
        pair.near.restart().unwrap();
        let length = asks(&mut buffer).expect("the same socket is served by the next agent");
        assert_eq!(addresses(&Message::from_vec(&buffer[..length]).unwrap()), vips[..1]);
    }
}

#[test]
fn every_query_is_answered_while_the_agent_is_upgraded() {
    let (mut pair, vips, [resolver, _]) = with_service();
    let (client, near) = (&pair.client, &mut pair.near);
    let over = AtomicBool::new(false);
    let open = socket(client, false).unwrap();
    open.connect(SocketAddr::new(resolver, 53)).unwrap();
    let question = query(WEB, RecordType::A).to_vec().unwrap();
    let asks_on = || {
        let mut buffer = [0; 512];
        let length = open.send(&question).and_then(|_| uninterrupted(|| open.recv(&mut buffer))).unwrap();
        assert_eq!(addresses(&Message::from_vec(&buffer[..length]).unwrap()), vips[..1]);
    };
    let asked = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut asked = 0;
            while !over.load(Ordering::SeqCst) {
                asks_on();
                for way in WAYS {
                    let answer = ask(client, way, resolver, WEB, RecordType::A).unwrap();
                    assert_eq!(addresses(&answer), vips[..1], "{way:?}");
                    asked += 1;
                }
            }
            asked
        });
        let mut old = near.upgrade().unwrap();
        let status = old.wait(6 * TIMEOUT).unwrap();
        over.store(true, Ordering::SeqCst);
        assert!(status.success(), "{status}");
        asking.join().unwrap()
    });
    assert!(asked > 0);
    asks_on();
}

#[test]
fn a_pod_that_opts_out_asks_its_resolver_again() {
    let (pair, vips, _) = with_service();
    let street = pair.outsider(pair.far.node(), "resolver");
    let resolver = Resolver::start(&street, 60);
    let asks = |way| ask(&pair.client, way, street.ips()[0], WEB, RecordType::A).unwrap();
    assert_eq!(addresses(&asks(Way::Connected)), vips[..1]);
    assert_eq!(resolver.names(), Vec::<String>::new());
    pair.client.opt_out().unwrap();
    pair.near.wait_enrolled([]).unwrap();
    for way in WAYS {
        assert_eq!(code(&asks(way)), ResponseCode::NXDomain, "{way:?}");
    }
    assert_eq!(resolver.asked(WEB), [IpAddr::V4(pair.client.ipv4()); 4]);
}

#[test]
fn nobody_else_may_ask_a_pods_agent() {
    let (pair, ..) = with_service();
    let outsider = pair.outsider(pair.near.node(), "outsider");
    let question = query(WEB, RecordType::A).to_vec().unwrap();
    for ip in pair.client.ips() {
        let socket = socket(&outsider, ip.is_ipv6()).unwrap();
        socket.connect(SocketAddr::new(ip, 15053)).unwrap();
        socket.send(&question).unwrap();
        assert_eq!(
            uninterrupted(|| socket.recv(&mut [0; 512])).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
        let error = outsider.connect(SocketAddr::new(ip, 15053), TIMEOUT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn loopback_resolvers_and_other_udp_are_left_alone() {
    let (pair, ..) = with_service();
    let own = Resolver::start(&pair.client, 60);
    for ip in ["127.0.0.1".parse().unwrap(), pair.client.ips()[0], pair.client.ips()[1]] {
        for way in [Way::Connected, Way::Unconnected] {
            let answer = ask(&pair.client, way, ip, WEB, RecordType::A).unwrap();
            assert_eq!(code(&answer), ResponseCode::NXDomain, "{ip} {way:?}");
        }
    }
    assert_eq!(own.asked(WEB).len(), 6);
    for to in [pair.server.addr(5353), pair.server.addr6(5353)] {
        let server = pair.server.run(|| UdpSocket::bind(to)).unwrap().unwrap();
        server.set_read_timeout(Some(TIMEOUT)).unwrap();
        let client = socket(&pair.client, to.is_ipv6()).unwrap();
        client.send_to(b"not DNS", to).unwrap();
        let mut buffer = [0; 512];
        let (length, source) = uninterrupted(|| server.recv_from(&mut buffer)).unwrap();
        assert_eq!((&buffer[..length], pair.client.ips().contains(&source.ip())), (&b"not DNS"[..], true));
        server.send_to(b"indeed", source).unwrap();
        assert_eq!(uninterrupted(|| client.recv_from(&mut buffer)).unwrap(), (6, to));
    }
}

#[test]
fn malformed_queries_are_answered_or_dropped_and_do_no_harm() {
    let (pair, vips, [resolver, _]) = with_service();
    let to = SocketAddr::new(resolver, 53);
    let mut cut = query(WEB, RecordType::A).to_vec().unwrap();
    cut.truncate(20);
    let answer = exchange(&pair.client, Way::Connected, to, &cut).unwrap();
    assert_eq!(code(&Message::from_vec(&answer).unwrap()), ResponseCode::FormErr);
    let socket = socket(&pair.client, false).unwrap();
    for length in 0..64u8 {
        socket.send_to(&vec![length.wrapping_mul(37); length.into()], to).unwrap();
    }
    let mut stream = pair.client.connect(to, TIMEOUT).unwrap();
    std::io::Write::write_all(&mut stream, &[0, 3, 1, 2, 3]).unwrap();
    let answer = ask(&pair.client, Way::Connected, resolver, WEB, RecordType::A).unwrap();
    assert_eq!(addresses(&answer), vips[..1]);
}

#[test]
fn an_agent_beside_one_that_drains_answers_once_that_one_has_ended() {
    let (mut pair, vips, [resolver, _]) = with_service_in(Pair::with(upgrade::options(upgrade::PATIENCE)));
    let server = pair.server.serve_echo(80).unwrap();
    let held = dial(&pair.client, server.addr()).unwrap();
    let ask = |pair: &Pair| ask(&pair.client, Way::Connected, resolver, WEB, RecordType::A);
    assert_eq!(addresses(&ask(&pair).unwrap()), vips[..1]);
    pair.near.terminate().unwrap();
    pair.near.wait_log(|log| log.contains("\"draining\""), TIMEOUT).unwrap();

    let [admin, metrics, ready] = ["127.0.0.1:15100", "0.0.0.0:15120", "0.0.0.0:15121"];
    let args = ["--admin", admin, "--metrics", metrics, "--ready", ready];
    let _new = pair.near.start_beside(&args).unwrap();
    pair.near.wait_log(|log| log.contains("somebody has taken the port"), upgrade::PATIENCE).unwrap();
    assert!(wait_for(upgrade::PATIENCE, || dial(&pair.client, server.addr()).is_ok()), "nobody serves");
    ping(&held, "still there?\n").unwrap();
    drop(held);
    assert!(pair.near.wait(upgrade::PATIENCE).unwrap().success());
    assert!(wait_for(upgrade::PATIENCE, || ask(&pair).is_ok_and(|answer| addresses(&answer) == vips[..1])));
}
