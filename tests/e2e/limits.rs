//! At a limit new work is refused with the reason, what is open goes on, and service resumes by itself.

use std::net::TcpStream;
use std::time::Duration;

use orlop_tests::{AgentOptions, PodSpec, wait_for};

use crate::mesh::{await_value, failed};
use crate::pair::{Pair, assert_refused, dial, ping};
use crate::pattern;

/// Service resumes within this.
const SOON: Duration = Duration::from_secs(5);

fn options(args: &[&str]) -> AgentOptions {
    let args = ["--log-format", "json", "--workers", "1"].iter().chain(args);
    AgentOptions { args: args.map(|arg| (*arg).to_owned()).collect(), ..AgentOptions::default() }
}

/// Connections until one is refused, at most `most`.
fn until_refused(most: usize, dial: impl Fn() -> std::io::Result<TcpStream>) -> Vec<TcpStream> {
    (0..most).map_while(|_| dial().ok()).collect()
}

#[test]
fn a_pod_has_its_share_of_connections_and_no_more() {
    const SHARE: usize = 20;
    let pair = Pair::with(options(&["--max-connections-per-pod", "20"]));
    let other = pair.pod(&pair.near, "other", PodSpec::new());
    let outsider = pair.outsider(pair.far.node(), "outsider");
    let (server, outside) = (pair.server.serve_echo(80).unwrap(), outsider.serve_echo(80).unwrap());
    let mut open = until_refused(100, || dial(&pair.client, outside.addr()));
    assert_eq!(open.len(), SHARE);
    assert_refused(&pair.client, outside.addr6());
    await_value(2.0, || failed(&pair.near, "connection_limit"));
    dial(&other, outside.addr()).unwrap();
    open.iter().for_each(|stream| ping(stream, "still there?\n").unwrap());
    open.pop();
    assert!(wait_for(SOON, || dial(&pair.client, outside.addr()).is_ok()));
    drop(open);

    // A server's share is of what comes to it, its tunnels included.
    let streams = until_refused(100, || dial(&other, server.addr()));
    assert_eq!(streams.len(), SHARE - 1);
    await_value(1.0, || failed(&pair.far, "connection_limit"));
    drop(streams);
    assert!(wait_for(SOON, || dial(&other, server.addr()).is_ok()));
}

#[test]
fn without_descriptors_new_connections_are_refused_until_there_are_some() {
    let args =
        ["--max-connections", "10000", "--max-connections-per-pod", "10000", "--max-descriptors", "400"];
    let pair = Pair::with(options(&args));
    let outsider = pair.outsider(pair.far.node(), "outsider");
    let outside = outsider.serve_echo(80).unwrap();

    let open = until_refused(400, || dial(&pair.client, outside.addr()));
    assert!((100..200).contains(&open.len()), "{} with two descriptors each", open.len());
    for _ in 0..20 {
        assert_refused(&pair.client, outside.addr());
    }
    open.iter().for_each(|stream| ping(stream, "still there?\n").unwrap());
    assert_eq!(failed(&pair.near, "descriptor_limit"), 21.0);
    assert!(!pair.near.log().unwrap().contains("cannot accept"));
    drop(open);
    assert!(wait_for(SOON, || dial(&pair.client, outside.addr()).is_ok()));
}

#[test]
fn without_memory_new_connections_are_refused_until_there_is_some() {
    let idle = Pair::with(options(&[]));
    dial(&idle.client, idle.server.serve_echo(80).unwrap().addr()).unwrap();
    let limit = idle.far.rss().unwrap() + (16 << 20);
    drop(idle);
    let pair = Pair::with(options(&["--max-memory", &limit.to_string()]));
    let server = pair.server.serve_echo(80).unwrap();
    let stays = dial(&pair.client, server.addr()).unwrap();
    // Nobody reads, so that a tunnel's window of each fills in the server's agent.
    let unread = pair.server.listen(false, 81).unwrap();
    let mut hogs = Vec::new();
    let short = || failed(&pair.far, "memory_limit") > 0.0;
    while !short() {
        assert!(hogs.len() < 100, "{} MiB", pair.far.rss().unwrap() >> 20);
        if let Ok(stream) = pair.client.connect(pair.server.addr(81), SOON) {
            let _ = pattern::fill(&stream, 1, Duration::from_millis(20));
            hogs.push(stream);
        }
        let _ = dial(&pair.client, server.addr());
    }
    println!("{} connections took {} MiB", hogs.len(), pair.far.rss().unwrap() >> 20);
    assert_refused(&pair.client, server.addr());
    ping(&stays, "still there?\n").unwrap();
    drop((hogs, unread));
    assert!(
        wait_for(SOON, || dial(&pair.client, server.addr()).is_ok()),
        "{} MiB",
        pair.far.rss().unwrap() >> 20
    );
    ping(&stays, "and now?\n").unwrap();
}
