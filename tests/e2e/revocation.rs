//! Open connections are judged again when the world changes: at once, all of them, and only those that are no
//! longer allowed are cut.

use std::io;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use orlop_tests::traffic::ReadUninterrupted;
use orlop_tests::{AgentOptions, Pod, PodSpec, Process, traffic, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::pair::{Pair, TIMEOUT, apply, assert_refused, dial, record};
use crate::pattern::assert_reset;
use crate::policy::{NO_BUYERS, authorization_policy};
use crate::upgrade::PATIENCE;

const CONNECTIONS: usize = 10_000;
/// For anything that is done to all of them. Generous: other tests run at the same time.
const ALL: Duration = Duration::from_secs(60);

#[test]
fn ten_thousand_open_connections_are_judged_again_at_once() {
    let pair = Pair::with(AgentOptions {
        args: ["--log-format", "json", "--max-connections", "20000", "--max-connections-per-pod", "20000"]
            .map(str::to_owned)
            .into(),
        ..AgentOptions::default()
    });
    let other = pair.pod(&pair.near, "other", PodSpec::new().service_account("other"));
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let _server = start_echo_server(&pair.server);
    let to = [pair.server.addr(80), pair.server.addr6(80)];
    assert!(wait_for(PATIENCE, || to.iter().all(|to| dial(&pair.client, *to).is_ok())));
    let forbidden = open(&runtime, &pair.client, to, CONNECTIONS / 2);
    let allowed = open(&runtime, &other, to, CONNECTIONS / 2);

    let start = Instant::now();
    let policy = authorization_policy("no-buyers", NO_BUYERS);
    pair.testbed.world().write("policy.yaml", &policy).unwrap();
    let ends = runtime.block_on(async {
        let mut ends = JoinSet::new();
        for mut stream in forbidden {
            ends.spawn(async move {
                let end = stream.read(&mut [0; 1]).await;
                (end.map_err(|error| error.kind()), start.elapsed())
            });
        }
        timeout(ALL, ends.join_all()).await.expect("all are cut")
    });
    let cut = ends.iter().filter(|(end, _)| *end == Err(io::ErrorKind::ConnectionReset)).count();
    let last = ends.iter().map(|(_, time)| *time).max().unwrap_or_default();
    println!("{cut} of {CONNECTIONS} connections cut within {last:.2?} of the change");
    assert_eq!(cut, CONNECTIONS / 2);

    // The others have noticed nothing.
    runtime.block_on(async { timeout(ALL, ping_all(allowed)).await.unwrap() }).unwrap();
    let denied = || pair.far.metric("orlop_connections_failed_total", &["reason=\"policy_denied\""]).unwrap();
    assert!(wait_for(TIMEOUT, || denied() == (CONNECTIONS / 2) as f64), "{}", denied());
}

#[test]
fn a_label_that_brings_a_pod_under_a_policy_cuts_its_connections() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let spec = "{selector: {matchLabels: {locked: 'yes'}}, action: DENY, rules: [{}]}";
    apply(&pair, "policy.yaml", &authorization_policy("locked", spec));
    let open = [server.addr(), server.addr6()].map(|to| dial(&pair.client, to).unwrap());

    pair.server.set_label("locked", Some("yes")).unwrap();
    for mut stream in &open {
        let end = stream.read_uninterrupted(&mut [0; 1]);
        assert!(end.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset), "{end:?}");
    }
    let cut = record(&pair.far, |record| record["result"] == "cut");
    assert_eq!((&cut["reason"], &cut["policy"]), (&"policy_denied".into(), &"shop/locked".into()));
    assert_refused(&pair.client, server.addr());

    pair.server.set_label("locked", None).unwrap();
    assert!(wait_for(TIMEOUT, || dial(&pair.client, server.addr()).is_ok()), "no way back");
}

#[test]
fn a_client_that_becomes_someone_else_loses_what_it_had_open() {
    let pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    let spec = "{action: ALLOW, rules: [{from: [{source: {ipBlocks: [BLOCK]}}]}]}";
    let only = |block: &str| authorization_policy("from", &spec.replace("BLOCK", &format!("'{block}'")));
    apply(&pair, "policy.yaml", &only(&pair.client.ipv4().to_string()));
    let stream = dial(&pair.client, server.addr()).unwrap();
    apply(&pair, "policy.yaml", &only("192.0.2.0/24"));
    assert_reset(&stream);
}

/// The policy is there, and nobody can tell what it says: an agent that has never read it serves nobody.
#[test]
fn a_policy_that_is_there_but_was_never_loaded_denies() {
    let mut pair = Pair::new();
    let server = pair.server.serve_echo(80).unwrap();
    pair.far.kill().unwrap();
    let bad = authorization_policy("typo", "{action: ALOW, rules: [{}]}");
    pair.testbed.world().write("policy.yaml", &bad).unwrap();
    pair.far.start_again().unwrap();
    assert!(!pair.far.wait(PATIENCE).unwrap().success());
    assert_refused(&pair.client, server.addr());
    assert_refused(&pair.client, server.addr6());

    pair.testbed.world().remove("policy.yaml").unwrap();
    pair.far.restart().unwrap();
    assert!(wait_for(TIMEOUT, || dial(&pair.client, server.addr()).is_ok()), "no way back");
}

/// In a process of its own: a process may have only so many descriptors, and this one needs one for each connection.
fn start_echo_server(pod: &Pod) -> Process {
    let mut command = pod.command(&std::env::current_exe().unwrap().to_string_lossy()).unwrap();
    command.args(["--exact", "revocation::echo_server", "--nocapture"]).env(SERVER, "");
    Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null())).unwrap()
}

const SERVER: &str = "ORLOP_TEST_ECHO_SERVER";

/// Proves nothing: it is what [`start_echo_server`] starts.
#[test]
fn echo_server() {
    if std::env::var_os(SERVER).is_none() {
        return;
    }
    Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let listener = TcpListener::bind("[::]:80").await.unwrap();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                // How a connection ends is the client's to judge.
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
}

/// Opens so many connections from the pod, half of them to each address, and hears of each.
fn open(runtime: &Runtime, from: &Pod, to: [SocketAddr; 2], count: usize) -> Vec<TcpStream> {
    let dial = |to| -> io::Result<std::net::TcpStream> {
        let stream = traffic::connect(to, ALL)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let mut streams = Vec::new();
    // A few at a time, as the listeners' queues are not endless.
    while streams.len() < count {
        let batch: io::Result<Vec<_>> =
            from.run(|| (0..200).map(|number| dial(to[number % 2])).collect()).unwrap();
        let opened = runtime.block_on(async {
            let batch = batch?.into_iter().map(TcpStream::from_std).collect::<io::Result<Vec<_>>>();
            timeout(ALL, ping_all(batch?)).await?
        });
        streams.extend(opened.unwrap());
    }
    streams
}

/// Asks all at once, and gives them back once all have answered.
async fn ping_all(streams: Vec<TcpStream>) -> io::Result<Vec<TcpStream>> {
    let mut asked = JoinSet::new();
    for mut stream in streams {
        asked.spawn(async move {
            stream.write_all(b"?").await?;
            stream.read_exact(&mut [0; 1]).await?;
            Ok(stream)
        });
    }
    asked.join_all().await.into_iter().collect()
}
