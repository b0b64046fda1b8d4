//! The agent dies, comes back and is replaced while pods of its node talk without it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use orlop_tests::{Agent, Pod, wait_for};

use super::services::Web;
use crate::pair::{TIMEOUT, ping};

/// Connections that were made, and that were made and ended well.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    made: AtomicUsize,
}

impl Load {
    /// Dials in turn, one connection after another, each with a question and an answer.
    fn run(&self, pod: &Pod, to: &[SocketAddr]) -> io::Result<()> {
        pod.run(|| {
            for to in to.iter().cycle() {
                if self.stop.load(Ordering::Relaxed) {
                    break;
                }
                let mut stream = TcpStream::connect_timeout(to, TIMEOUT)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.write_all(b"x")?;
                stream.read_exact(&mut [0])?;
                self.made.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
        .map_err(io::Error::other)?
    }

    /// Waits for so many more.
    fn more(&self, n: usize, ended: impl Fn() -> bool) {
        let wanted = self.made.load(Ordering::Relaxed) + n;
        wait_for(TIMEOUT, || self.made.load(Ordering::Relaxed) >= wanted || ended());
    }
}

/// Does something to the agent while pods talk by each other's address and by a service's, on connections that
/// stay open and on new ones.
fn costs_no_connection(change: impl Fn(&mut Agent)) {
    let mut web = Web::new();
    let [v4, v6] = web.to;
    let open: Vec<_> = web.to.into_iter().flat_map(|to| web.straight(to)).collect();
    // What the service's endpoints are allowed for holds when they are dialled themselves.
    let to = [v4, v6, web.servers[0].addr(), web.servers[1].addr6()];
    let (load, neighbour) = (Load::default(), web.set.neighbour.clone());
    thread::scope(|scope| {
        let new = scope.spawn(|| load.run(&neighbour, &to));
        let old = scope.spawn(|| -> io::Result<()> {
            while !load.stop.load(Ordering::Relaxed) {
                open.iter().try_for_each(|stream| ping(stream, "still here?\n"))?;
            }
            Ok(())
        });
        load.more(50, || new.is_finished());
        change(&mut web.set.pair.far);
        load.more(200, || new.is_finished());
        load.stop.store(true, Ordering::Relaxed);
        old.join().unwrap().unwrap();
        new.join().unwrap().unwrap();
    });
    assert!(load.made.load(Ordering::Relaxed) >= 250);
    let away =
        |record: &serde_json::Value| record["src_workload"] == "shop/neighbour" && record["result"] != "ok";
    assert_eq!(web.set.records(away), 0);
}

#[test]
fn an_agent_that_is_killed_costs_no_connection() {
    costs_no_connection(|agent| {
        agent.kill().unwrap();
        agent.restart().unwrap();
    });
}

#[test]
fn an_agent_that_is_replaced_costs_no_connection() {
    costs_no_connection(|agent| {
        for _ in 0..2 {
            let mut old = agent.upgrade().unwrap();
            assert!(old.wait(TIMEOUT * 10).unwrap().success());
        }
    });
}
