//! The API server is down for a while, and agents are restarted, or die and start anew, meanwhile. The world is theirs
//! from disk, certificates are from a controller that goes by what it knew, and who dials waits in what keepers hold.

use std::fs;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kube::Api;
use kube::api::DeleteParams;
use orlop_tests::{Pod, Testbed, wait_for};
use serde_json::json;

use super::api::Kubernetes;
use super::controller::{agent, ask, certificate};
use super::install::{AUDIENCE, NODE_ACCOUNT, SYSTEM, roots};
use super::kubelet::Kubelet;
use super::replica::{LONG, Replica};
use crate::mesh::TIMEOUT;
use crate::pair::{dial, is_refusal, ping};
use crate::samenode::is_in_kernel;

const ENABLED: (&str, &str) = ("orlop.dev/mesh", "enabled");
/// How often each client dials after an agent has started anew.
const DIALS: usize = 25;
/// Of a keeper, as it comes.
const HOLD: Duration = Duration::from_secs(30);
/// Between two dials of one that goes on dialling: so short that every start is met, and no port is used up.
const PAUSE: Duration = Duration::from_millis(5);

/// `ORLOP_OUTAGE_MINUTES`, or a moment.
fn outage() -> Duration {
    let minutes = std::env::var("ORLOP_OUTAGE_MINUTES").ok().and_then(|minutes| minutes.parse::<f32>().ok());
    Duration::from_secs_f32(minutes.map_or(20.0, |minutes| minutes * 60.0))
}

/// Goes on dialling, whatever happens.
#[derive(Default)]
struct Dialling {
    made: AtomicUsize,
    /// Milliseconds.
    longest: AtomicUsize,
    /// From when to when each took that was not served.
    refused: Mutex<Vec<(Instant, Instant, io::Error)>>,
}

impl Dialling {
    fn run(&self, stop: &AtomicBool, dial: impl Fn() -> io::Result<()>) {
        while !stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            if let Err(error) = dial() {
                self.refused.lock().unwrap().push((start, Instant::now(), error));
            }
            self.longest.fetch_max(start.elapsed().as_millis() as usize, Ordering::Relaxed);
            self.made.fetch_add(1, Ordering::Relaxed);
            thread::sleep(PAUSE);
        }
    }
}

/// Ends those that go on dialling, also where a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn agents_that_restart_while_the_api_server_is_down_lose_no_connection_that_policy_allows() {
    let kubernetes = Kubernetes::own();
    kubernetes.define_istio();
    let testbed = Testbed::new().unwrap();
    let nodes = ["n1", "n2"].map(|name| Kubelet::start(&kubernetes, &testbed, name));
    let controller = Replica::start(&kubernetes, "signs", &[]);
    controller.wait_ready();
    let _ways = nodes.each_ref().map(|node| node.way_to(controller.listen));
    let [buys, sells] = ["buys", "sells"].map(|prefix| kubernetes.namespace(prefix, &[ENABLED]));
    kubernetes.apply(&json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "buyers", "namespace": sells},
        "spec": {"rules": [{"from": [{"source": {"namespaces": [buys]}}]}]},
    }));
    let client = nodes[0].run(&buys, "client", &[]);
    let stranger = nodes[0].run(&sells, "stranger", &[]);
    let neighbour = nodes[0].run(&sells, "neighbour", &[]);
    let server = nodes[1].run(&sells, "server", &[]);
    let mut agents = nodes.each_ref().map(agent);
    let _keepers = agents.each_ref().map(|agent| agent.keeper(HOLD).unwrap());
    agents[0].wait_enrolled([&client, &stranger, &neighbour]).unwrap();
    agents[1].wait_enrolled([&server]).unwrap();
    let _http = server.serve_http(8080).unwrap();
    let get = |pod: &Pod| pod.http_get(server.addr(8080), "/", TIMEOUT).map(|answer| answer.status).ok();
    assert!(wait_for(LONG, || get(&client) == Some(200)), "{}", agents[0].log().unwrap());
    assert!(wait_for(LONG, || get(&stranger).is_none()), "{}", agents[1].log().unwrap());
    let (near, far) = (neighbour.serve_echo(80).unwrap(), server.serve_echo(80).unwrap());
    let mut straight = None;
    let goes_straight = || {
        straight = dial(&client, near.addr()).ok();
        straight.as_ref().is_some_and(|open| is_in_kernel(&client, open.local_addr().unwrap().port(), 80))
    };
    assert!(wait_for(LONG, goes_straight), "it goes through the proxy: {}", agents[0].log().unwrap());
    let straight = straight.unwrap();
    for node in &nodes {
        let kept = || {
            let kept = fs::read_to_string(node.node.run_dir().join("state/world")).unwrap_or_default();
            let pods = [&client, &stranger, &neighbour, &server].map(|pod| format!("\"{}\"", pod.ipv4()));
            pods.iter().all(|address| kept.contains(address)) && kept.contains("buyers")
        };
        assert!(wait_for(LONG, kept), "the world is not on disk");
    }
    // Of a pod that is gone by then, and others that nobody should take.
    let gone = nodes[0].bind(&buys, "gone", &[]);
    let lasting = |seconds| kubernetes.lasting_token(&buys, "default", "client", AUDIENCE, seconds);
    let a_day = lasting(86_400);
    let tokens = [
        (kubernetes.bound_token(&buys, "default", "gone", AUDIENCE), "which it did not know"),
        (nodes[0].agent_token("https://kubernetes.default.svc.cluster.local"), "none of the audiences"),
        (kubernetes.token(SYSTEM, NODE_ACCOUNT), "none of the audiences"),
        (lasting(2 * 86_400), "good for more than 1day"),
        ("no.token.atall".to_owned(), "base64url"),
    ];
    let pods = Api::<k8s_openapi::api::core::v1::Pod>::namespaced(kubernetes.client.clone(), &buys);
    kubernetes.wait(pods.delete("gone", &DeleteParams::default().grace_period(0))).unwrap();
    assert!(!gone.is_empty());
    let token = nodes[0].agent_token(AUDIENCE);
    let root = testbed.dir().join("root.pem");
    fs::write(&root, roots(&kubernetes, SYSTEM)).unwrap();

    kubernetes.plane.stop_api();
    let ask = |token: &str, namespace: &str| ask(&nodes[0], &root, token, namespace);
    let start = Instant::now();
    let (mut dials, mut restarts, mut cut) = (0, 0, 0);
    // From when to when an agent was being killed.
    let mut kills = Vec::new();
    let (stop, by_kernel, tunnelled) = (AtomicBool::new(false), Dialling::default(), Dialling::default());
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| by_kernel.run(&stop, || dial(&client, near.addr()).map(drop)));
        scope.spawn(|| {
            tunnelled.run(&stop, || {
                let stream = client.connect(far.addr(), TIMEOUT)?;
                stream.set_read_timeout(Some(LONG))?;
                ping(&stream, "anybody there?\n")
            })
        });
        // Each is restarted, and then killed.
        for index in [0, 1].into_iter().cycle() {
            if kills.len() >= 2 && start.elapsed() > outage() {
                break;
            }
            for dies in [false, true] {
                let open = dial(&client, far.addr()).unwrap();
                if dies {
                    let killed = Instant::now();
                    agents[index].kill().unwrap();
                    kills.push((killed, Instant::now()));
                    // What the agent carried ends with it.
                    cut += usize::from(ping(&open, "still here?\n").is_err());
                } else {
                    let drained = |log: &str| log.matches("draining").count();
                    let before = drained(&agents[index].log().unwrap());
                    agents[index].terminate().unwrap();
                    agents[index].wait_log(|log| drained(log) > before, TIMEOUT).unwrap();
                    ping(&open, "still here?\n").unwrap();
                    drop(open);
                    assert!(agents[index].wait(LONG).unwrap().success());
                    restarts += 1;
                }
                agents[index].start_again().unwrap();
                agents[index].wait_ready().unwrap();
                agents[0].wait_enrolled([&client, &stranger, &neighbour]).unwrap();
                agents[1].wait_enrolled([&server]).unwrap();
                let log = || agents.each_ref().map(|agent| agent.log().unwrap()).concat();
                let is_valid =
                    |agent: usize, namespace| certificate(&agents[agent], namespace)["state"] == "valid";
                // One that asks in vain at first asks again.
                let valid = || is_valid(0, &buys) && is_valid(0, &sells) && is_valid(1, &sells);
                assert!(wait_for(LONG, valid), "{}\n{}", log(), controller.log());
                for _ in 0..DIALS {
                    assert_eq!(get(&client), Some(200), "{}", log());
                    assert_eq!(get(&stranger), None, "{}", log());
                    dials += 2;
                }
                ping(&straight, "still here?\n").unwrap();
            }
        }
    });
    for (start, end, error) in &*tunnelled.refused.lock().unwrap() {
        // What an agent has taken ends with it.
        let is_cut = kills.iter().any(|(from, to)| start <= to && end >= from);
        let last = kills.iter().rfind(|(_, to)| to <= start).map(|(_, to)| *start - *to);
        assert!(is_cut && is_refusal(error), "{error}, {last:?} after an agent had been killed");
    }
    // One dials after the other.
    let cuts = tunnelled.refused.lock().unwrap().len();
    assert!(cuts <= kills.len(), "{cuts} by {} kills", kills.len());
    let made = |of: &Dialling| (of.made.load(Ordering::Relaxed), of.refused.lock().unwrap().len());
    let (tunnelled, by_kernel, longest) =
        (made(&tunnelled), made(&by_kernel), tunnelled.longest.into_inner());
    println!(
        "API server down for {:.0?}: {restarts} agents restarted, each with one connection open, none of these cut; {} \
         agents killed, {cut} of theirs cut; {dials} dials once the next served; all the while {} dials to another node, \
         {} of these cut with an agent that was killed and none refused, none longer than {longest} ms; {} dials in the \
         kernel, {} refused",
        start.elapsed(),
        kills.len(),
        tunnelled.0,
        tunnelled.1,
        by_kernel.0,
        by_kernel.1,
    );
    assert_eq!(by_kernel.1, 0, "refused in the kernel");
    assert!(controller.log().contains("going by what it said before"), "{}", controller.log());
    ask(&token, &buys).unwrap();
    ask(&a_day, &buys).unwrap();
    for (token, why) in &tokens {
        let refused = ask(token, &buys).unwrap_err();
        assert!(refused.contains("the API server is away") && refused.contains(why), "{refused}");
    }

    kubernetes.plane.start_api().unwrap();
    // What it says counts again: no is no.
    let refused = || ask(&tokens[0].0, &buys).is_err_and(|why| why.contains("does not accept the token"));
    assert!(wait_for(LONG, refused), "{}", controller.log());
    assert_eq!(get(&client), Some(200));
}
