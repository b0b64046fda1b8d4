use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use orlop_tests::traffic::uninterrupted;
use orlop_tests::{AgentOptions, Pod, wait_for};

use super::ask::{WAYS, Way, addresses, ask, code, extended_error, getent, query, socket};
use super::resolver::Resolver;
use crate::pair::{AT_ONCE, Pair, TIMEOUT, assert_refused, dial, record};

const API: &str = "api.example.";
const STALE: u16 = 3;
const NO_REACHABLE_AUTHORITY: u16 = 22;

/// Where a resolver may be started; no agent answers for it.
fn with_street() -> (Pair, Pod) {
    let pair = Pair::new();
    let street = pair.outsider(pair.far.node(), "resolver");
    (pair, street)
}

#[test]
fn a_service_entry_without_addresses_is_given_some_that_lead_to_it() {
    let (pair, street) = with_street();
    let far = pair.outsider(pair.far.node(), "outside");
    let echo = far.serve_echo(9000).unwrap();
    let endpoints: Vec<_> =
        far.ips().iter().map(|ip| format!("{{address: \"{ip}\", ports: {{tcp: 9000}}}}")).collect();
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: bare, namespace: shop}}\n\
         spec:\n  hosts: [bare.example]\n  resolution: STATIC\n  endpoints: [{}]\n  \
         ports: [{{number: 80, name: tcp}}]\n",
        endpoints.join(", ")
    );
    pair.change(|world| world.write("bare.yaml", &text));
    let given = getent(&pair.client, street.ips()[0], "bare.example");
    assert_eq!(given.len(), 2, "{given:?}");
    for ip in given {
        assert!(!far.ips().contains(&ip), "{ip} is the endpoint's own");
        drop(dial(&pair.client, SocketAddr::new(ip, 80)).unwrap());
        assert_refused(&pair.client, SocketAddr::new(ip, 81));
    }
    assert_eq!(echo.peers().len(), 2);
    // The refusals may be told first.
    record(&pair.near, |record| record["dst_service"] == "bare.example" && record["result"] == "ok");
}

fn with_args(args: &[&str]) -> AgentOptions {
    AgentOptions { args: args.iter().map(|&arg| arg.to_owned()).collect(), ..AgentOptions::default() }
}

#[test]
fn an_outside_name_is_asked_for_once_by_the_pod_itself() {
    let (pair, street) = with_street();
    let resolver = Resolver::start(&street, 60);
    for ip in street.ips() {
        let found = getent(&pair.client, ip, "api.example");
        assert_eq!(found, ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
    }
    // A and AAAA of each resolver; nothing of the cluster's part of the search path, and the rest once.
    let own = |ip: IpAddr| pair.client.ips().contains(&ip);
    assert_eq!(resolver.names(), ["api.example.", "api.example.corp."]);
    for name in resolver.names() {
        let asked = resolver.asked(&name);
        assert!(asked.len() == 4 && asked.into_iter().all(own), "{name}: {:?}", resolver.asked(&name));
    }
    for ip in street.ips() {
        assert_eq!(getent(&pair.client, ip, "api.example").len(), 2);
    }
    assert_eq!(resolver.asked(API).len(), 4, "asked again within its TTL");
    let cached = pair.near.metric("orlop_dns_requests_total", &["source=\"cache\""]).unwrap();
    assert!(cached >= 8.0, "{cached}");
}

#[test]
fn service_entries_and_external_names_are_answered() {
    let (pair, street) = with_street();
    let resolver = Resolver::start(&street, 60);
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: wild, namespace: shop}\n\
                 spec:\n  hosts: ['*.wild.example']\n  addresses: [198.51.100.1]\n  resolution: STATIC\n  \
                 ports: [{number: 80, name: http, protocol: TCP}]\n---\n\
                 apiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: shop}\n\
                 spec: {type: ExternalName, externalName: api.example}\n";
    pair.testbed.world().write("external.yaml", entry).unwrap();
    pair.wait_both(|snapshot| snapshot["services"].as_array().is_some_and(|all| !all.is_empty()));
    assert_eq!(
        getent(&pair.client, street.ips()[0], "a.b.wild.example"),
        ["198.51.100.1".parse::<IpAddr>().unwrap()]
    );
    assert_eq!(resolver.names(), Vec::<String>::new());
    assert_eq!(getent(&pair.client, street.ips()[0], "api").len(), 2);
    assert_eq!(resolver.names(), [API]);
}

#[test]
fn every_way_of_asking_reaches_the_resolver() {
    let (pair, street) = with_street();
    let resolver = Resolver::start(&street, 60);
    for (index, ip) in street.ips().into_iter().enumerate() {
        for way in WAYS {
            let name = format!("x{index}-{way:?}.example.").to_lowercase();
            let answer = ask(&pair.client, way, ip, &name, RecordType::A).unwrap();
            assert_eq!(addresses(&answer), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
            assert_eq!(resolver.asked(&name), [pair.client.ips()[index]], "{name}");
        }
    }
}

#[test]
fn a_long_answer_is_truncated_and_whole_over_tcp() {
    let (pair, street) = with_street();
    let _resolver = Resolver::start(&street, 60);
    let cut = ask(&pair.client, Way::Connected, street.ips()[0], "200.example.", RecordType::A).unwrap();
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let whole = ask(&pair.client, Way::Tcp, street.ips()[0], "200.example.", RecordType::A).unwrap();
    assert_eq!(addresses(&whole).len(), 200);
}

#[test]
fn without_its_resolver_a_pod_gets_what_is_remembered_or_a_clear_failure() {
    let (pair, street) = with_street();
    let resolver = Resolver::start(&street, 1);
    let asks = |name| ask(&pair.client, Way::Connected, street.ips()[0], name, RecordType::A).unwrap();
    let fresh = asks(API);
    assert_eq!((extended_error(&fresh), fresh.answers[0].ttl), (None, 1));
    drop(resolver);
    let mut stale = None;
    assert!(wait_for(TIMEOUT, || {
        let answer = asks(API);
        let is_stale = extended_error(&answer) == Some(STALE);
        stale = Some(answer);
        is_stale
    }));
    let stale = stale.unwrap();
    assert_eq!((addresses(&stale), stale.answers[0].ttl), (addresses(&fresh), 30));
    let start = Instant::now();
    let failed = asks("unheard.example.");
    assert_eq!(
        (code(&failed), extended_error(&failed)),
        (ResponseCode::ServFail, Some(NO_REACHABLE_AUTHORITY))
    );
    assert!(start.elapsed() < AT_ONCE, "failed only after {:?}", start.elapsed());
}

#[test]
fn a_resolver_that_hangs_makes_nobody_hang() {
    let (pair, street) = with_street();
    let resolver = Resolver::start(&street, 60);
    resolver.silence(true);
    let socket = socket(&pair.client, false).unwrap();
    for n in 0..300u16 {
        let mut query = query(&format!("x{n}.example."), RecordType::A);
        query.metadata.id = n;
        socket.send_to(&query.to_vec().unwrap(), (street.ips()[0], 53)).unwrap();
    }
    // Those above the limit fail at once, and the names of the cluster are answered all the while.
    let mut buffer = [0; 512];
    for _ in 0..300 - 256 {
        let (length, _) = uninterrupted(|| socket.recv_from(&mut buffer)).unwrap();
        assert_eq!(code(&Message::from_vec(&buffer[..length]).unwrap()), ResponseCode::ServFail);
    }
    let answer =
        ask(&pair.client, Way::Connected, street.ips()[0], "svc.cluster.local.", RecordType::A).unwrap();
    assert_eq!(code(&answer), ResponseCode::NoError);
    let (length, _) = uninterrupted(|| socket.recv_from(&mut buffer))
        .expect("the others fail before their program gives up");
    assert_eq!(code(&Message::from_vec(&buffer[..length]).unwrap()), ResponseCode::ServFail);
    resolver.silence(false);
    let again = || ask(&pair.client, Way::Connected, street.ips()[0], API, RecordType::A);
    assert!(wait_for(TIMEOUT, || again().is_ok_and(|answer| code(&answer) == ResponseCode::NoError)));
}

#[test]
fn dns_can_be_left_alone_or_given_another_resolver() {
    let pair = Pair::with(with_args(&["--dns", "off"]));
    let street = pair.outsider(pair.far.node(), "resolver");
    let resolver = Resolver::start(&street, 60);
    for way in WAYS {
        let answer = ask(&pair.client, way, street.ips()[1], "cluster.local.", RecordType::A).unwrap();
        assert_eq!(code(&answer), ResponseCode::NXDomain, "{way:?}");
    }
    assert_eq!(resolver.asked("cluster.local.").len(), 4);
    drop(pair);

    let (pair, street) = with_street();
    let upstream = SocketAddr::new(street.ips()[0], 53).to_string();
    let node = pair.testbed.node("n3").unwrap();
    let client = node.pod("shop", "third", orlop_tests::PodSpec::new()).unwrap();
    let agent = node.agent(with_args(&["--dns-upstream", &upstream])).unwrap();
    agent.wait_enrolled([&client]).unwrap();
    let resolver = Resolver::start(&street, 60);
    let nobody = pair.testbed.vip()[0];
    assert_eq!(addresses(&ask(&client, Way::Connected, nobody, API, RecordType::A).unwrap()).len(), 1);
    assert_eq!(resolver.asked(API), [IpAddr::V4(node.ipv4())]);
    assert_eq!(addresses(&ask(&client, Way::Tcp, nobody, API, RecordType::A).unwrap()).len(), 1);
}
