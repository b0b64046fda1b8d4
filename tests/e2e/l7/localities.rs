//! Where requests go by region and zone, as a DestinationRule's `localityLbSetting` has it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use orlop_tests::PodSpec;
use orlop_tests::traffic::request;

use super::Stage;
use super::scripted::{Reply, Scripted};
use crate::mesh::{NAMESPACE, TIMEOUT};

const GET: &str = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";

/// The waypoint and those that are `near` are in `eu/a`, `far` is in `us/b`.
struct Places {
    stage: Stage,
    near: Vec<Scripted>,
    far: Scripted,
}

impl Places {
    fn new(status: fn() -> u16) -> Self {
        Self::with(&["near"], status)
    }

    /// So many are near.
    fn with(near: &[&str], status: fn() -> u16) -> Self {
        let stage = Stage::new();
        let pod = |node: usize, name: &str| {
            let spec = PodSpec::new().service_account(name);
            stage.mesh.nodes[node].pod(NAMESPACE, name, spec).unwrap()
        };
        let near: Vec<_> = near.iter().map(|name| pod(1, name)).collect();
        let far = pod(0, "far");
        stage.mesh.server_agent().wait_enrolled(near.iter().chain([&stage.mesh.server])).unwrap();
        stage.mesh.client_agent().wait_enrolled([&stage.mesh.client, &far]).unwrap();
        let node = |node: usize, region: &str, zone: &str| {
            format!(
                "apiVersion: v1\nkind: Node\nmetadata:\n  name: {}\n  labels: {{topology.kubernetes.io/region: {region}, \
                 topology.kubernetes.io/zone: {zone}}}\n---\n",
                stage.mesh.nodes[node].name()
            )
        };
        stage.change(|| {
            let world = stage.mesh.testbed.world();
            world.write("nodes.yaml", &(node(0, "us", "b") + &node(1, "eu", "a"))).unwrap();
            world.service(&super::web(&stage.vip).endpoints(near.iter().chain([&far]))).unwrap();
        });
        let answer = move |pod| Scripted::start(pod, move |_| Reply::Answer(status(), String::new()));
        let near = near.iter().map(answer).collect();
        let far = Scripted::status(&far, 200);
        Self { stage, near, far }
    }

    fn treat(&self, policy: &str) {
        let rule = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: shop}}\n\
             spec:\n  host: web\n  trafficPolicy: {{{policy}}}\n"
        );
        self.stage.change(|| self.stage.mesh.testbed.world().write("rule.yaml", &rule).unwrap());
    }

    /// How many of so many requests each gets, and their answers.
    fn ask(&self, count: usize) -> ([usize; 2], BTreeMap<u16, usize>) {
        let counts = || [self.near.iter().map(Scripted::count).sum(), self.far.count()];
        let before: [usize; 2] = counts();
        let mut stream = self.stage.connect();
        let mut statuses = BTreeMap::new();
        for _ in 0..count {
            *statuses.entry(request(&mut stream, GET).unwrap().status).or_default() += 1;
        }
        let [near, far] = counts();
        ([near - before[0], far - before[1]], statuses)
    }
}

#[test]
fn requests_are_distributed_by_locality() {
    let places = Places::new(|| 200);
    let distribute = |to: &str| {
        places.treat(&format!(
            "loadBalancer: {{localityLbSetting: {{distribute: [{{from: eu/*, to: {{{to}}}}}]}}}}"
        ));
    };
    distribute("eu/a/*: 80, us: 20");
    let ([near, far], _) = places.ask(200);
    assert!((158..=162).contains(&near) && near + far == 200, "{near} {far}");
    distribute("us: 100");
    assert_eq!(places.ask(20).0, [0, 20]);
    // Nobody is there.
    distribute("asia: 100");
    assert_eq!(places.ask(2).1, [(503, 2)].into());
    // What is for others does not matter.
    places.treat("loadBalancer: {localityLbSetting: {distribute: [{from: us, to: {us: 100}}]}}");
    assert!(places.ask(100).0.iter().all(|count| *count > 0));
}

#[test]
fn what_is_near_comes_first_until_it_fails() {
    static FAILS: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    let places = Places::new(|| if FAILS.load(std::sync::atomic::Ordering::SeqCst) { 503 } else { 200 });
    // Without outliers nothing fails over, and all are alike.
    places.treat("loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}]}}");
    assert!(places.ask(100).0.iter().all(|count| *count > 0));
    let outlier = "outlierDetection: {consecutive5xxErrors: 1, interval: 100ms, baseEjectionTime: 1s, \
                   maxEjectionPercent: 100}";
    let setting = |setting: &str| {
        places.treat(&format!("{outlier}, loadBalancer: {{localityLbSetting: {{{setting}}}}}"));
    };
    setting("enabled: false");
    assert!(places.ask(100).0.iter().all(|count| *count > 0));
    for priority in
        ["", "failover: [{from: eu, to: us}]", "failoverPriority: [topology.kubernetes.io/region]"]
    {
        setting(priority);
        assert_eq!(places.ask(20).0, [20, 0], "{priority}");
    }
    // The other one's, by a value that is written.
    setting("failoverPriority: [\"topology.kubernetes.io/zone=b\"]");
    assert_eq!(places.ask(20).0, [0, 20]);
    setting("");
    FAILS.store(true, std::sync::atomic::Ordering::SeqCst);
    let start = Instant::now();
    assert_eq!(places.ask(1), ([1, 0], [(503, 1)].into()));
    FAILS.store(false, std::sync::atomic::Ordering::SeqCst);
    // It comes back once its time is over, and not before: its clock has milliseconds.
    loop {
        let (shares, statuses) = places.ask(1);
        assert_eq!(statuses, [(200, 1)].into());
        if shares == [1, 0] {
            break;
        }
        assert!(start.elapsed() < TIMEOUT, "it does not come back");
    }
    assert!(start.elapsed() >= Duration::from_millis(990), "it is back after {:?}", start.elapsed());
    assert_eq!(places.ask(5).0, [5, 0]);
}

#[test]
fn a_retry_goes_to_another_locality_where_that_is_asked_for() {
    let places = Places::with(&["near", "near-too"], || 503);
    // They fail, and stay those that come first.
    places.treat("outlierDetection: {consecutive5xxErrors: 100000}");
    let route = |more: &str| {
        let service = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: shop}}\n\
             spec:\n  hosts: [web]\n  http:\n  - retries: {{attempts: 1, retryOn: \"503\"{more}}}\n    \
             route: [{{destination: {{host: web}}}}]\n"
        );
        places.stage.change(|| places.stage.mesh.testbed.world().write("routes.yaml", &service).unwrap());
    };
    route("");
    assert_eq!(places.ask(10), ([20, 0], [(503, 10)].into()));
    route(", retryRemoteLocalities: true");
    assert_eq!(places.ask(10), ([10, 10], [(200, 10)].into()));
}
