//! Which endpoint a DestinationRule's balancer chooses, and which failures count against one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc;
use std::thread;

use orlop_tests::traffic::request;

use super::destinations::treat;
use super::routes::Versions;
use super::scripted::{Reply, Scripted};
use crate::mesh::await_value;

const GET: &str = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";

#[test]
fn whoever_has_fewer_requests_is_asked() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    // It answers nobody before it is told to.
    let busy = Scripted::start(&versions.pods[0], move |_| {
        let _ = released.lock().unwrap().recv();
        Reply::Answer(200, String::new())
    });
    let idle = Scripted::status(&versions.pods[1], 200);
    thread::scope(|scope| {
        let mut stream = stage.connect();
        let busy = &busy;
        scope.spawn(move || {
            // One of two draws it first.
            for _ in 0..100 {
                if busy.count() > 0 {
                    break;
                }
                assert_eq!(request(&mut stream, GET).unwrap().status, 200);
            }
        });
        await_value(1, || busy.count());
        let before = idle.count();
        let mut stream = stage.connect();
        for _ in 0..20 {
            assert_eq!(request(&mut stream, GET).unwrap().status, 200);
        }
        assert_eq!((busy.count(), idle.count() - before), (1, 20));
        drop(release);
    });
}

#[test]
fn turns_are_taken_or_drawn() {
    let versions = Versions::new();
    let _servers = versions.pods.each_ref().map(|pod| pod.serve_http(80).unwrap());
    let repeats = |balancer: &str| {
        treat(&versions, &format!("loadBalancer: {{simple: {balancer}}}"));
        let mut stream = versions.stage.connect();
        let pods: Vec<_> =
            (0..60).map(|_| request(&mut stream, GET).unwrap().field("pod").unwrap()).collect();
        pods.windows(2).filter(|pair| pair[0] == pair[1]).count()
    };
    assert_eq!(repeats("ROUND_ROBIN"), 0);
    // Fewer than 10 or more than 49 of 59 are 2 of 10 million.
    let drawn = repeats("RANDOM");
    assert!((10..50).contains(&drawn), "{drawn} of 59 were at the same endpoint as the one before");
}

#[test]
fn gateways_errors_are_counted_by_themselves() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let status = Arc::new(AtomicU16::new(500));
    let answers = Arc::clone(&status);
    let bad = Scripted::start(&versions.pods[0], move |_| {
        Reply::Answer(answers.load(Ordering::SeqCst), String::new())
    });
    let _good = Scripted::status(&versions.pods[1], 200);
    treat(
        &versions,
        "loadBalancer: {simple: ROUND_ROBIN}, \
         outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 3, interval: 100ms, baseEjectionTime: 60s}",
    );
    let mut stream = stage.connect();
    let mut ask = |times: usize| (0..times).for_each(|_| drop(request(&mut stream, GET).unwrap()));
    let ejected = || stage.waypoint.metric("orlop_endpoints_ejected_total", &[]).unwrap();
    ask(20);
    assert_eq!((bad.count(), ejected()), (10, 0.0));
    status.store(502, Ordering::SeqCst);
    ask(20);
    await_value(1.0, ejected);
    assert_eq!(bad.count(), 13);
}
