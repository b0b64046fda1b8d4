//! The world directory: what changes in it takes effect at once, and where connections go by it.

use std::net::SocketAddr;

use orlop_tests::{Endpoint, Pod, PodSpec, ServiceSpec, TargetPort, wait_for};
use serde_json::Value;

use crate::pair::{Pair, TIMEOUT, assert_refused, dial, ping, record, wait_enrolled};
use crate::upgrade::PATIENCE;

#[test]
fn a_namespaces_label_takes_effect_live_both_ways() {
    let pair = Pair::new();
    let world = pair.testbed.world();
    let server = pair.far.node().pod("bazaar", "server", PodSpec::new()).unwrap();
    let echo = server.serve_echo(80).unwrap();
    pair.wait_known(&server, false);
    assert!(pair.in_clear(&pair.client, echo.addr()), "not in the mesh yet");
    for _ in 0..2 {
        world.enrolled_namespace("bazaar").unwrap();
        pair.wait_known(&server, true);
        wait_enrolled(&pair.far, &server, true);
        assert!(!pair.in_clear(&pair.client, echo.addr()), "opted in");
        world.namespace("bazaar", &[]).unwrap();
        pair.wait_known(&server, false);
        wait_enrolled(&pair.far, &server, false);
        assert!(pair.in_clear(&pair.client, echo.addr()), "opted out");
    }
}

#[test]
fn istios_namespace_label_opts_in_as_well() {
    let pair = Pair::new();
    let server = pair.outsider(pair.far.node(), "server");
    let echo = server.serve_echo(80).unwrap();
    let ambient = [("istio.io/dataplane-mode", "ambient")];
    pair.testbed.world().namespace("street", &ambient).unwrap();
    pair.wait_known(&server, true);
    wait_enrolled(&pair.far, &server, true);
    assert!(!pair.in_clear(&pair.client, echo.addr()));
}

#[test]
fn a_pods_label_takes_effect_live_both_ways() {
    let pair = Pair::new();
    let echo = pair.server.serve_echo(80).unwrap();
    for _ in 0..2 {
        assert!(!pair.in_clear(&pair.client, echo.addr()), "opted in");
        pair.server.opt_out().unwrap();
        pair.wait_known(&pair.server, false);
        wait_enrolled(&pair.far, &pair.server, false);
        assert!(pair.in_clear(&pair.client, echo.addr()), "the server opted out");
        pair.server.opt_in().unwrap();
        pair.wait_known(&pair.server, true);
        wait_enrolled(&pair.far, &pair.server, true);
    }
    pair.client.opt_out().unwrap();
    pair.wait_known(&pair.client, false);
    wait_enrolled(&pair.near, &pair.client, false);
    assert!(pair.in_clear(&pair.client, echo.addr()), "the client opted out");
    let seen = dial(&pair.client, echo.addr()).unwrap().local_addr().unwrap();
    assert_eq!(echo.peers().last(), Some(&seen), "without the mesh too the server sees its client");
}

#[test]
fn a_connection_survives_the_opt_out_of_its_pods() {
    let pair = Pair::new();
    let echo = pair.server.serve_echo(80).unwrap();
    let stream = dial(&pair.client, echo.addr()).unwrap();
    for pod in [&pair.client, &pair.server] {
        pod.opt_out().unwrap();
        pair.wait_known(pod, false);
    }
    wait_enrolled(&pair.near, &pair.client, false);
    wait_enrolled(&pair.far, &pair.server, false);
    let ((), frames) = pair.captured(|| ping(&stream, "still through the tunnel\n").unwrap());
    assert!(!frames.contains(b"still through the tunnel"));
}

#[test]
fn a_bad_file_is_reported_by_line_and_changes_nothing() {
    let pair = Pair::new();
    let world = pair.testbed.world();
    let echo = pair.server.serve_echo(80).unwrap();
    world.write("broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata: [\n").unwrap();
    for agent in [&pair.near, &pair.far] {
        agent.wait_log(|log| log.lines().any(|line| line.contains("broken.yaml:")), TIMEOUT).unwrap();
    }
    // The label is what the agents would act on, were the file not bad further down.
    let opted_out = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: server\n  namespace: shop\n  labels:\n    \
                     orlop.dev/mesh: disabled\nstatus:\n  podIPs: 7\n";
    let before = std::fs::read_to_string(world.dir().join("pod.shop.server.yaml")).unwrap();
    world.write("pod.shop.server.yaml", opted_out).unwrap();
    for agent in [&pair.near, &pair.far] {
        agent.wait_log(|log| log.contains("pod.shop.server.yaml:9"), TIMEOUT).unwrap();
    }
    assert!(!pair.in_clear(&pair.client, echo.addr()), "the last good state is in force");

    // Other files go on having effect, and the bad ones do as soon as they are good.
    let other = pair.pod(&pair.far, "other", PodSpec::new());
    dial(&pair.client, other.serve_echo(80).unwrap().addr()).unwrap();
    world.write("pod.shop.server.yaml", &before).unwrap();
    pair.far.wait_log(|log| log.contains("pod.shop.server.yaml: good again"), TIMEOUT).unwrap();
    pair.server.opt_out().unwrap();
    pair.wait_known(&pair.server, false);
}

#[test]
fn a_service_spreads_over_its_endpoints() {
    let pair = Pair::new();
    let near = pair.pod(&pair.near, "near", PodSpec::new());
    let outside = pair.outsider(pair.far.node(), "outside");
    let servers = [&pair.server, &near].map(|pod| pod.serve_echo(8080).unwrap());
    let _unused = outside.serve_echo(8080).unwrap();
    let vip = pair.testbed.vip();
    let port = TargetPort::Name("http".to_owned(), 8080);
    let service = ServiceSpec::new("shop", "web", 80, port).cluster_ips(vip.clone());
    add_service(&pair, &service.endpoints([&pair.server, &near]), 4);
    for ip in vip {
        let to = SocketAddr::new(ip, 80);
        let counts = || {
            let same_family = |peer: &&SocketAddr| peer.is_ipv4() == ip.is_ipv4();
            servers.each_ref().map(|server| server.peers().iter().filter(same_family).count())
        };
        // One that is slow to close has fewer: it seems to have more to do.
        for dialled in 1..=600 {
            let stream = dial(&pair.client, to).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), to);
            assert_eq!(counts().iter().sum::<usize>(), dialled, "{to} leads to endpoints of its family");
            if dialled >= 30 && counts().iter().all(|count| *count > 2) {
                break;
            }
        }
        assert!(counts().iter().all(|count| *count > 2), "{:?}", counts());
    }
}

#[test]
fn a_service_leads_to_the_endpoint_with_less_to_do() {
    let pair = Pair::new();
    let near = pair.pod(&pair.near, "near", PodSpec::new());
    let servers = [&pair.server, &near].map(|pod| pod.serve_echo(80).unwrap());
    let vip = pair.testbed.vip();
    let service = ServiceSpec::new("shop", "web", 80, TargetPort::Number(80)).cluster_ips(vip.clone());
    add_service(&pair, &service.endpoints([&pair.server, &near]), 4);
    // All are kept open: the one that has fewer is always the next.
    let kept: Vec<_> = (0..10).map(|_| dial(&pair.client, SocketAddr::new(vip[0], 80)).unwrap()).collect();
    assert_eq!(servers.map(|server| server.peers().len()), [5, 5]);
    drop(kept);
}

#[test]
fn an_endpoint_outside_the_mesh_is_reached_in_clear() {
    let pair = Pair::new();
    let outside = pair.outsider(pair.far.node(), "outside");
    let echo = outside.serve_echo(8080).unwrap();
    let vip = pair.testbed.vip();
    let service = ServiceSpec::new("street", "web", 80, TargetPort::Number(8080)).cluster_ips(vip.clone());
    add_service(&pair, &service.endpoints([&outside]), 2);
    assert!(pair.in_clear(&pair.client, SocketAddr::new(vip[0], 80)));
    assert_eq!(echo.peers()[0].ip(), pair.client.ipv4());
}

#[test]
fn a_headless_service_is_reached_by_its_pods_addresses() {
    let pair = Pair::new();
    let echo = pair.server.serve_echo(8080).unwrap();
    let service = ServiceSpec::new("shop", "web", 80, TargetPort::Number(8080));
    add_service(&pair, &service.endpoints([&pair.server]), 2);
    for to in [echo.addr(), echo.addr6()] {
        assert!(!pair.in_clear(&pair.client, to));
    }
}

#[test]
fn a_service_without_a_ready_endpoint_is_refused_with_a_reason() {
    let pair = Pair::new();
    let _echo = pair.server.serve_echo(80).unwrap();
    let vip = pair.testbed.vip();
    let service = ServiceSpec::new("shop", "web", 80, TargetPort::Number(80)).cluster_ips(vip.clone());
    let unready = Endpoint { ready: false, ..Endpoint::from(&pair.server) };
    add_service(&pair, &service.endpoints([unready]), 2);
    refused_with(&pair, SocketAddr::new(vip[0], 80), "no_healthy_endpoint");
    refused_with(&pair, SocketAddr::new(vip[1], 80), "no_healthy_endpoint");
}

#[test]
fn a_port_that_a_service_does_not_have_is_refused_with_a_reason() {
    let pair = Pair::new();
    let _echo = pair.server.serve_echo(81).unwrap();
    let vip = pair.testbed.vip();
    let service = ServiceSpec::new("shop", "web", 80, TargetPort::Number(81)).cluster_ips(vip.clone());
    add_service(&pair, &service.endpoints([&pair.server]), 2);
    refused_with(&pair, SocketAddr::new(vip[0], 81), "no_service_port");
}

#[test]
fn an_endpoint_that_goes_gets_nothing_more() {
    let pair = Pair::new();
    let near = pair.pod(&pair.near, "near", PodSpec::new());
    let [staying, going] = [&pair.server, &near].map(|pod| pod.serve_echo(80).unwrap());
    let vip = pair.testbed.vip();
    let service = ServiceSpec::new("shop", "web", 80, TargetPort::Number(80)).cluster_ips(vip.clone());
    let to = SocketAddr::new(vip[0], 80);
    add_service(&pair, &service.clone().endpoints([&pair.server, &near]), 4);
    let open: Vec<_> = (0..8).map(|_| dial(&pair.client, to).unwrap()).collect();
    let before = going.peers().len();
    add_service(&pair, &service.endpoints([&pair.server]), 2);
    for _ in 0..20 {
        dial(&pair.client, to).unwrap();
    }
    assert_eq!(going.peers().len(), before);
    assert_eq!(staying.peers().len(), 28 - before);
    open.iter().for_each(|stream| ping(stream, "still open\n").unwrap());
}

#[test]
fn out_of_the_mesh_a_pod_keeps_its_own_address() {
    let pair = Pair::new();
    let outsider = pair.outsider(pair.far.node(), "outsider");
    let echo = outsider.serve_echo(80).unwrap();
    for (to, own) in [(echo.addr(), pair.client.addr(0).ip()), (echo.addr6(), pair.client.addr6(0).ip())] {
        assert!(pair.in_clear(&pair.client, to));
        assert_eq!(echo.peers().last().unwrap().ip(), own);
    }
}

#[test]
fn a_pod_outside_the_mesh_reaches_into_it() {
    let pair = Pair::new();
    let outsider = pair.outsider(pair.near.node(), "outsider");
    let echo = pair.server.serve_echo(80).unwrap();
    for to in [echo.addr(), echo.addr6()] {
        let stream = dial(&outsider, to).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to);
        assert_eq!(echo.peers().last(), Some(&stream.local_addr().unwrap()), "the server sees its client");
    }
    let labels = ["reporter=\"destination\"", "connection_security_policy=\"unknown\""];
    assert_eq!(pair.far.metric("istio_tcp_connections_opened_total", &labels).unwrap(), 2.0);
}

#[test]
fn an_address_used_again_is_the_new_pods() {
    let pair = Pair::new();
    let (old, far) = (&pair.server, pair.far.node());
    dial(&pair.client, old.serve_echo(80).unwrap().addr()).unwrap();
    let ip = old.ipv4();
    old.delete().unwrap();
    let new = far.pod("shop", "new", PodSpec::new().service_account("heir")).unwrap();
    new.output("ip", &["addr", "add", &format!("{ip}/16"), "dev", "eth0"]).unwrap();
    // What a CNI plugin announces with a gratuitous ARP.
    assert!(far.command("ip").unwrap().args(["neigh", "flush", "nud", "all"]).status().unwrap().success());
    let echo = new.serve_echo(80).unwrap();
    let object = std::fs::read_to_string(pair.testbed.world().dir().join("pod.shop.new.yaml")).unwrap();
    let object = object.replace(&format!("\"{}\"", new.ipv4()), &format!("\"{ip}\""));
    pair.testbed.world().write("pod.shop.new.yaml", &object).unwrap();
    pair.wait_both(|snapshot| {
        let names = |key: &str| Some(find(&snapshot["workloads"], "shop/new")?[key].to_string());
        find(&snapshot["workloads"], "shop/server").is_none()
            && names("addresses").is_some_and(|all| all.contains(&ip.to_string()))
    });
    pair.far.wait_enrolled([&new]).unwrap();

    let stream = dial(&pair.client, SocketAddr::from((ip, 80))).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), SocketAddr::from((ip, 80)));
    assert_eq!(echo.peers(), [stream.local_addr().unwrap()]);
    let heir = ["reporter=\"source\"", "destination_principal=\"spiffe://cluster.local/ns/shop/sa/heir\""];
    assert_eq!(pair.near.metric("istio_tcp_connections_opened_total", &heir).unwrap(), 1.0);
}

#[test]
fn a_deleted_pod_leaves_no_pin() {
    let pair = Pair::new();
    let pod = pair.pod(&pair.near, "brief", PodSpec::new());
    pod.delete().unwrap();
    pair.near.wait_enrolled([&pair.client]).unwrap();
    let pins = std::fs::read_dir(pair.near.node().pins_dir().unwrap().join("pods")).unwrap().count();
    assert_eq!(pins, 1, "its link is gone from the pins");
}

/// Adds or replaces a service and waits until both agents know this many endpoints of it.
fn add_service(pair: &Pair, service: &ServiceSpec, endpoints: usize) {
    pair.testbed.world().service(service).unwrap();
    let name = format!("{}/{}", service.namespace, service.name);
    pair.wait_both(|snapshot| {
        let service = find(&snapshot["services"], &name);
        service.is_some_and(|service| {
            service["ports"][0]["endpoints"].as_array().map(Vec::len) == Some(endpoints)
        })
    });
}

fn find<'a>(objects: &'a Value, name: &str) -> Option<&'a Value> {
    objects.as_array()?.iter().find(|object| object["name"] == name)
}

fn refused_with(pair: &Pair, to: SocketAddr, reason: &str) {
    let label = format!("reason=\"{reason}\"");
    let failed = || pair.near.metric("orlop_connections_failed_total", &[&label]).unwrap();
    let before = failed();
    assert_refused(&pair.client, to);
    let record = record(&pair.near, |record| record["dst"] == to.to_string());
    assert_eq!((&record["result"], &record["reason"]), (&"refused".into(), &reason.into()), "{record}");
    assert!(failed() > before);
}

#[test]
fn objects_of_ten_megabytes_hold_up_nobody_else() {
    let pair = Pair::new();
    let world = pair.testbed.world();
    let echo = pair.server.serve_echo(80).unwrap();
    dial(&pair.client, echo.addr()).unwrap();
    let policy = |name: &str, annotation: &str, blocks: &str| {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: shop\n  \
             annotations: {{note: \"{annotation}\"}}\nspec:\n  selector: {{matchLabels: {{app: nobody}}}}\n  rules:\n  \
             - from: [{{source: {{ipBlocks: [{blocks}]}}}}]\n"
        );
        world.write(&format!("{name}.yaml"), &text).unwrap();
    };
    policy("noted", &"x".repeat(10 << 20), "10.0.0.0/8");
    let blocks: Vec<_> =
        (0..200_000_u32).map(|n| format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255)).collect();
    policy("listed", "", &blocks.join(","));
    policy("odd", &"y".repeat(10 << 20), "10.0.0.0/99");
    // While they are read, and after.
    let read = wait_for(PATIENCE, || {
        dial(&pair.client, echo.addr()).unwrap();
        let has_read = |log: &str| log.contains("odd.yaml") && log.contains("10.0.0.0/99");
        [&pair.near, &pair.far].iter().all(|agent| agent.log().is_ok_and(|log| has_read(&log)))
    });
    assert!(read, "not read:\n{}", pair.near.log().unwrap());
    dial(&pair.client, echo.addr()).unwrap();
    // By what is served, as the dump has all the blocks.
    let goes = |pod: &Pod, to: SocketAddr, how: &str| {
        let labels = [
            "reporter=\"source\"".to_owned(),
            format!("destination_workload=\"{}\"", pod.name()),
            format!("connection_security_policy=\"{how}\""),
        ];
        let labels = labels.each_ref().map(String::as_str);
        let opened = || pair.near.metric("istio_tcp_connections_opened_total", &labels).unwrap_or_default();
        let before = opened();
        assert!(
            wait_for(PATIENCE, || dial(&pair.client, to).is_ok() && opened() > before),
            "{} {how}:\n{}",
            pod.name(),
            pair.near.metrics().unwrap(),
        );
    };
    let other = pair.far.node().pod("shop", "other", PodSpec::new()).unwrap();
    let of_other = other.serve_echo(80).unwrap();
    goes(&other, of_other.addr(), "mutual_tls");
    pair.server.opt_out().unwrap();
    goes(&pair.server, echo.addr(), "unknown");
}
