//! ServiceEntries whose endpoints DNS gives.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use orlop_tests::{AgentOptions, Pod, wait_for};

use crate::pair::{Pair, TIMEOUT, assert_refused, dial};

pub const SERVER: &str = "127.0.0.1:5300";

/// A pair whose first agent asks a DNS server of ours, and an address of a service of each family.
struct Named {
    server: NameServer,
    vip: Vec<IpAddr>,
    pair: Pair,
}

impl Named {
    fn new() -> Self {
        let args = ["--log-format", "json", "--host-resolver", SERVER];
        let options = AgentOptions { args: args.map(str::to_owned).into(), ..AgentOptions::default() };
        let pair = Pair::with(options);
        let server = NameServer::start(&pair);
        let vip = pair.testbed.vip();
        Self { server, vip, pair }
    }

    /// The ServiceEntry `api.example.com`, whose port 80 leads to 8080.
    fn entry(&self, spec: &str) {
        let addresses: Vec<_> = self.vip.iter().map(|ip| format!("{:?}", ip.to_string())).collect();
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: shop}}\n\
             spec: {{hosts: [api.example.com], addresses: [{}], ports: [{{number: 80, name: tcp, targetPort: 8080}}], \
             {spec}}}\n",
            addresses.join(", "),
        );
        self.pair.change(|world| world.write("api.yaml", &text));
    }

    fn at(&self) -> [SocketAddr; 2] {
        [SocketAddr::new(self.vip[0], 80), SocketAddr::new(self.vip[1], 80)]
    }

    /// Dials until an endpoint answers.
    #[track_caller]
    fn reach(&self, to: SocketAddr) {
        assert!(wait_for(TIMEOUT, || dial(&self.pair.client, to).is_ok()), "{to} is not reached");
    }
}

#[test]
fn a_host_is_resolved_and_followed_when_it_moves() {
    let named = Named::new();
    let [old, new] = ["old", "new"].map(|name| named.pair.outsider(named.pair.far.node(), name));
    let [at_old, at_new] = [&old, &new].map(|pod| pod.serve_echo(8080).unwrap());
    named.server.set("api.example.com", &old.ips());
    named.entry("resolution: DNS");
    for to in named.at() {
        named.reach(to);
    }
    assert_eq!(at_old.peers().len(), 2);
    named.server.set("api.example.com", &new.ips());
    for (to, wanted) in named.at().into_iter().zip([1, 2]) {
        let moved = || dial(&named.pair.client, to).is_ok() && at_new.peers().len() >= wanted;
        assert!(wait_for(TIMEOUT, moved), "{to} stays where it was");
    }
}

#[test]
fn a_host_that_is_a_pod_of_the_mesh_is_reached_by_its_tunnel() {
    let named = Named::new();
    let _echo = named.pair.server.serve_echo(8080).unwrap();
    named.server.set("vm.example.com", &named.pair.server.ips());
    named.entry("resolution: DNS, endpoints: [{address: vm.example.com}]");
    for to in named.at() {
        named.reach(to);
        assert!(!named.pair.in_clear(&named.pair.client, to));
    }
}

#[test]
fn round_robin_takes_the_first_address() {
    let named = Named::new();
    let [first, second] = ["first", "second"].map(|name| named.pair.outsider(named.pair.far.node(), name));
    let [at_first, at_second] = [&first, &second].map(|pod: &Pod| pod.serve_echo(8080).unwrap());
    named.server.set("api.example.com", &[first.ips(), second.ips()].concat());
    named.entry("resolution: DNS_ROUND_ROBIN");
    for to in named.at() {
        named.reach(to);
        for _ in 0..4 {
            drop(dial(&named.pair.client, to).unwrap());
        }
    }
    assert_eq!((at_first.peers().len(), at_second.peers().len()), (10, 0));
}

#[test]
fn without_an_answer_the_last_one_counts_and_without_a_name_nothing_is_reached() {
    let named = Named::new();
    let pod = named.pair.outsider(named.pair.far.node(), "outside");
    let _echo = pod.serve_echo(8080).unwrap();
    named.entry("resolution: DNS");
    assert_refused(&named.pair.client, named.at()[0]);
    named.server.set("api.example.com", &pod.ips());
    named.reach(named.at()[0]);
    named.server.silence();
    let log = |agent: &orlop_tests::Agent| agent.log().unwrap().matches("cannot resolve a host").count();
    let before = log(&named.pair.near);
    assert!(wait_for(Duration::from_secs(30), || log(&named.pair.near) > before), "it was not asked again");
    for to in named.at() {
        drop(dial(&named.pair.client, to).unwrap());
    }
}

/// Answers, for a second each; a name that it hasn't does not exist.
pub struct NameServer(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    names: BTreeMap<String, Vec<IpAddr>>,
    silent: bool,
    over: bool,
}

impl NameServer {
    /// On the loopback of the first node.
    fn start(pair: &Pair) -> Self {
        Self::serve(pair.near.node().run(|| UdpSocket::bind(SERVER).unwrap()).unwrap())
    }

    pub fn serve(socket: UdpSocket) -> Self {
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            let mut query = [0; 1024];
            while !shared.lock().unwrap().over {
                let Ok((length, client)) = socket.recv_from(&mut query) else { continue };
                let state = shared.lock().unwrap();
                if !state.silent {
                    let _ = socket.send_to(&state.answer(&query[..length]), client);
                }
            }
        });
        Self(state)
    }

    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        self.0.lock().unwrap().names.insert(name.to_owned(), addresses.to_vec());
    }

    fn silence(&self) {
        self.0.lock().unwrap().silent = true;
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.0.lock().unwrap().over = true;
    }
}

impl State {
    /// RFC 1035, section 4: the header, the question as it came, and addresses of the type that was asked for.
    fn answer(&self, query: &[u8]) -> Vec<u8> {
        let mut labels = Vec::new();
        let mut at = 12;
        while query[at] != 0 {
            let length = usize::from(query[at]);
            labels.push(String::from_utf8_lossy(&query[at + 1..=at + length]).into_owned());
            at += 1 + length;
        }
        let (kind, end) = (query[at + 2], at + 5);
        let found = self.names.get(&labels.join("."));
        let of_kind = found.into_iter().flatten().filter(|ip| ip.is_ipv4() == (kind == 1));
        let of_kind: Vec<_> = of_kind.filter(|_| matches!(kind, 1 | 28)).collect();
        let code = if found.is_some() { 0 } else { 3 };
        let mut answer = query[..2].to_vec();
        answer.extend([0x81, 0x80 | code, 0, 1, 0, of_kind.len() as u8, 0, 0, 0, 0]);
        answer.extend(&query[12..end]);
        for ip in of_kind {
            let data = match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            // The name is the question's; class IN, one second.
            answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 1, 0, data.len() as u8]);
            answer.extend(data);
        }
        answer
    }
}
