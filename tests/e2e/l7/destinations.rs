//! What a DestinationRule says of connections and of endpoints.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use orlop_tests::traffic::{ReadUninterrupted, request};

use super::routes::Versions;
use super::scripted::{Reply, Scripted};
use crate::mesh::{NAMESPACE, TIMEOUT, await_value};
use crate::pair::is_refusal;

const GET: &str = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";

/// Puts a DestinationRule for the service in force, with this `trafficPolicy`.
pub fn treat(versions: &Versions, policy: &str) {
    treat_as(versions, "", policy);
}

/// The same, with annotations.
fn treat_as(versions: &Versions, annotations: &str, policy: &str) {
    let rule = format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: web, namespace: shop, annotations: {{{annotations}}}}}\n\
         spec:\n  host: web\n  trafficPolicy: {{{policy}}}\n"
    );
    let stage = &versions.stage;
    stage.change(|| stage.mesh.testbed.world().write("subsets.yaml", &rule).unwrap());
}

/// How many of these requests each pod was asked.
fn shares(versions: &Versions, ask: impl Fn(usize) -> String, count: usize) -> BTreeMap<String, usize> {
    let mut stream = versions.stage.connect();
    let mut shares = BTreeMap::new();
    for nth in 0..count {
        let answer = request(&mut stream, &ask(nth)).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        *shares.entry(answer.field("pod").unwrap()).or_default() += 1;
    }
    shares
}

#[test]
fn what_is_alike_goes_to_one_endpoint_by_ring_and_by_maglev() {
    let versions = Versions::new();
    let _servers = versions.pods.each_ref().map(|pod| pod.serve_http(80).unwrap());
    for table in ["ringHash: {minimumRingSize: 512}", "maglev: {tableSize: 1009}"] {
        let hash = format!("loadBalancer: {{consistentHash: {{httpQueryParameterName: user, {table}}}}}");
        treat(&versions, &hash);
        let of = |user: usize| format!("GET /?x=1&user={user} HTTP/1.1\r\nhost: web\r\n\r\n");
        for user in 0..8 {
            assert_eq!(shares(&versions, |_| of(user), 5).len(), 1, "{table}: user {user}");
        }
        assert_eq!(shares(&versions, of, 40).len(), 2, "{table}");
    }
    // All of one client.
    treat(&versions, "loadBalancer: {consistentHash: {useSourceIp: true}}");
    assert_eq!(shares(&versions, |_| GET.to_owned(), 20).len(), 1);
    // A cookie is made once, and then counts.
    let cookie = "loadBalancer: {consistentHash: {httpCookie: {name: at, path: /, ttl: 60s, \
                  attributes: [{name: SameSite, value: Strict}]}}}";
    treat(&versions, cookie);
    let answer = versions.stage.get("/");
    let set = answer.header("set-cookie").unwrap();
    assert!(set.ends_with("; Max-Age=60; Path=/; SameSite=Strict; HttpOnly"), "{set}");
    let value = set.split(';').next().unwrap().to_owned();
    let again = shares(&versions, |_| format!("GET / HTTP/1.1\r\nhost: web\r\ncookie: {value}\r\n\r\n"), 10);
    assert_eq!(again.into_keys().collect::<Vec<_>>(), [answer.field("pod").unwrap()]);
}

#[test]
fn peak_ewma_asks_the_slow_one_less() {
    let versions = Versions::new();
    let slow = Scripted::start(&versions.pods[0], |_| {
        thread::sleep(Duration::from_millis(150));
        Reply::Answer(200, String::new())
    });
    let quick = Scripted::status(&versions.pods[1], 200);
    treat_as(&versions, "orlop.dev/load-balancer: PEAK_EWMA", "");
    let mut stream = versions.stage.connect();
    let mut share = || {
        let before = slow.count();
        for _ in 0..100 {
            assert_eq!(request(&mut stream, GET).unwrap().status, 200);
        }
        slow.count() - before
    };
    // It is asked where both that were drawn are the slow one: a quarter of all. 40 are more once in some thousand times,
    // or where the quick one was slow for once.
    let shares: Vec<_> = (0..3).map(|_| share()).take_while(|share| *share >= 40).collect();
    assert!(shares.len() < 3 && slow.count() > 0, "{shares:?} {}", quick.count());
}

#[test]
fn an_endpoint_that_is_new_gets_its_share_by_and_by() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let _servers = versions.pods.each_ref().map(|pod| pod.serve_http(80).unwrap());
    let only = |pods: &[&orlop_tests::Pod]| {
        let web = super::web(&stage.vip).endpoints(pods.iter().copied());
        stage.change(|| stage.mesh.testbed.world().service(&web).unwrap());
    };
    only(&[&versions.pods[0]]);
    treat(&versions, "loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 6s, minimumPercent: 5}}");
    assert_eq!(shares(&versions, |_| GET.to_owned(), 10).len(), 1);
    // By then the first is warm.
    thread::sleep(Duration::from_secs(6));
    only(&[&versions.pods[0], &versions.pods[1]]);
    let of_new =
        |count| shares(&versions, |_| GET.to_owned(), count).get("shop/v2").copied().unwrap_or_default();
    let first = of_new(20);
    assert!(first < 7, "{first} of 20 went to the new one at once");
    // It is warm once it is never passed over.
    await_value(true, || (0..5).all(|_| of_new(100) == 50));
}

#[test]
fn requests_wait_for_a_connection_as_far_as_may_be() {
    let versions = Versions::new();
    let release = Arc::new((std::sync::Mutex::new(false), std::sync::Condvar::new()));
    let held = Arc::clone(&release);
    let server = Scripted::start(&versions.pods[0], move |asked| {
        if asked.line.contains("/held") {
            let open = held.1.wait_while(held.0.lock().unwrap(), |open| !*open).unwrap();
            drop(open);
        }
        Reply::Answer(200, String::new())
    });
    let only = super::web(&versions.stage.vip).endpoints([&versions.pods[0]]);
    let stage = &versions.stage;
    stage.change(|| stage.mesh.testbed.world().service(&only).unwrap());
    treat(&versions, "connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}");
    let other = super::caller::other(stage);
    let refused = AtomicUsize::new(0);
    thread::scope(|scope| {
        let held = scope.spawn(|| stage.get("/held").status);
        await_value(1, || server.count());
        // One of the two waits, which makes the other one too many, as often as that asks.
        let asked = [&stage.mesh.client, &other].map(|caller| {
            let refused = &refused;
            scope.spawn(move || {
                loop {
                    let asked = Instant::now();
                    match caller.http_get(stage.web(), "/waiting", TIMEOUT).unwrap().status {
                        503 => refused.fetch_add(1, Ordering::SeqCst),
                        status => return (status, asked),
                    };
                }
            })
        });
        await_value(true, || refused.load(Ordering::SeqCst) > 0);
        // What is refused here is so once.
        stage.record(|record| {
            record["path"] == "/waiting" && record["flags"] == "UO" && record["attempts"].is_null()
        });
        let released = Instant::now();
        *release.0.lock().unwrap() = true;
        release.1.notify_all();
        let asked = asked.map(|one| one.join().unwrap());
        assert_eq!((held.join().unwrap(), asked.map(|(status, _)| status)), (200, [200, 200]));
        assert!(asked.iter().any(|(_, at)| *at < released));
        // Another caller's connection is none that it could have, but makes room.
        assert_eq!(other.http_get(stage.web(), "/after", TIMEOUT).unwrap().status, 200);
        assert_eq!(stage.get("/after").status, 200);
    });
}

#[test]
fn connections_end_after_so_many_requests_or_so_long() {
    let versions = Versions::new();
    let server = Scripted::status(&versions.pods[0], 200);
    let stage = &versions.stage;
    let only = super::web(&stage.vip).endpoints([&versions.pods[0]]);
    stage.change(|| stage.mesh.testbed.world().service(&only).unwrap());
    let connections = |requests: usize, pause: Duration| {
        let before = server.connections();
        let mut stream = stage.connect();
        for _ in 0..requests {
            assert_eq!(request(&mut stream, GET).unwrap().status, 200);
            thread::sleep(pause);
        }
        server.connections() - before
    };
    treat(&versions, "connectionPool: {http: {maxRequestsPerConnection: 3}}");
    assert_eq!(connections(9, Duration::ZERO), 3);
    treat(&versions, "connectionPool: {http: {idleTimeout: 50ms}}");
    connections(1, Duration::ZERO);
    await_value(0, || server.open());
    assert_eq!(connections(3, Duration::from_millis(100)), 3);
    treat(&versions, "connectionPool: {tcp: {maxConnectionDuration: 100ms}}");
    connections(1, Duration::ZERO);
    await_value(0, || server.open());
}

#[test]
fn http1_is_upgraded_to_http2_where_it_is_to_be() {
    let versions = Versions::new();
    let _servers = versions.pods.each_ref().map(|pod| super::h2c::Server::start(pod, 80));
    treat(&versions, "connectionPool: {http: {h2UpgradePolicy: UPGRADE}}");
    let answer = versions.stage.get("/upgraded");
    assert_eq!((answer.status, answer.header("seen-path")), (200, Some("/upgraded")));
    treat(&versions, "connectionPool: {http: {h2UpgradePolicy: UPGRADE, useClientProtocol: true}}");
    assert_ne!(versions.stage.get("/").status, 200);
}

#[test]
fn a_connection_begins_by_telling_who_its_client_is_and_ends_with_that() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let only = super::web(&stage.vip).endpoints([&versions.pods[0]]);
    stage.change(|| stage.mesh.testbed.world().service(&only).unwrap());
    treat(&versions, "proxyProtocol: {version: V1}");
    let listener = versions.pods[0].listen(false, 80).unwrap();
    let read = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = String::new();
        let mut buffer = [0; 1024];
        while !text.ends_with("\r\n\r\n") {
            let length = stream.read_uninterrupted(&mut buffer).unwrap();
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        // Nobody else can have it.
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let end = stream.read_uninterrupted(&mut buffer);
        assert!(end.as_ref().map_or_else(is_refusal, |length| *length == 0), "{end:?}");
        text
    });
    let mut stream = stage.connect();
    let client = stream.get_ref().local_addr().unwrap();
    assert_eq!(request(&mut stream, GET).unwrap().status, 200);
    drop(stream);
    let text = read.join().unwrap();
    let wanted =
        format!("PROXY TCP4 {} {} {} 80\r\nGET / HTTP/1.1\r\n", client.ip(), stage.vip[0], client.port());
    assert!(text.starts_with(&wanted), "{text}");
}

#[test]
fn a_refusal_by_policy_ejects_nobody_and_no_answer_does_as_it_is_counted() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let _servers = versions.pods.each_ref().map(|pod| Scripted::status(pod, 200));
    let outlier = "outlierDetection: {consecutive5xxErrors: 1, splitExternalLocalOriginErrors: true, \
                   consecutiveLocalOriginFailures: 2, interval: 100ms, baseEjectionTime: 60s, \
                   maxEjectionPercent: 100}";
    treat(&versions, outlier);
    let deny = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: v1, namespace: {NAMESPACE}}}\n\
         spec: {{action: DENY, rules: [{{}}], selector: {{matchLabels: {{version: v1}}}}}}\n"
    );
    stage.change(|| stage.mesh.testbed.world().write("policy.yaml", &deny).unwrap());
    let mut stream = stage.connect();
    let statuses: Vec<_> = (0..40).map(|_| request(&mut stream, GET).unwrap().status).collect();
    let ejected = || stage.waypoint.metric("orlop_endpoints_ejected_total", &[]).unwrap();
    assert_eq!(ejected(), 0.0, "{statuses:?}");
    stage.change(|| stage.mesh.testbed.world().remove("policy.yaml").unwrap());
    // One whose server is gone is ejected by its second failure in a row.
    let [gone, _left] = _servers;
    drop(gone);
    await_value(1.0, || {
        request(&mut stream, GET).unwrap();
        ejected()
    });
}

#[test]
fn as_it_was_dialled_it_goes_on() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let _servers = versions.pods.each_ref().map(|pod| pod.serve_http(80).unwrap());
    treat(&versions, "loadBalancer: {simple: PASSTHROUGH}");
    // The service's own address is no server's.
    assert_eq!(stage.get("/").status, 503);
    stage.record(|record| record["reason"] == "no_healthy_endpoint" && record["flags"] == "UH");
}

#[test]
fn retries_are_bounded_by_their_budget() {
    let versions = Versions::new();
    static FAILED: AtomicUsize = AtomicUsize::new(0);
    let server = Scripted::start(&versions.pods[0], |_| {
        FAILED.fetch_add(1, Ordering::SeqCst);
        Reply::Answer(503, String::new())
    });
    let only = super::web(&versions.stage.vip).endpoints([&versions.pods[0]]);
    let stage = &versions.stage;
    stage.change(|| stage.mesh.testbed.world().service(&only).unwrap());
    versions.route("- retries: {attempts: 2, retryOn: \"503\"}\n  route: [{destination: {host: web}}]");
    treat(&versions, "retryBudget: {percent: 0, minRetryConcurrency: 0}");
    assert_eq!(stage.get("/").status, 503);
    assert_eq!(server.count(), 1);
    treat(&versions, "retryBudget: {percent: 100}");
    assert_eq!(stage.get("/").status, 503);
    assert_eq!(server.count(), 4);
}
