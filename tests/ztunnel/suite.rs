use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::thread;

use orlop_tests::{Pod, Ztunnel, traffic};

use crate::mesh::{Mesh, NAMESPACE, TIMEOUT, record};
use crate::pattern::{receive, send};

const PORT: u16 = 8080;
const MIB: u64 = 1 << 20;

/// In the place of the agent of this pod's node.
fn ztunnel(mesh: &Mesh, pod: &Pod) -> Ztunnel {
    let binary = Ztunnel::binary().expect("set ZTUNNEL to the path of a ztunnel");
    let me = std::env::current_exe().unwrap();
    // Tests are in target/PROFILE/deps, examples in target/PROFILE/examples.
    let authority = me.ancestors().nth(2).unwrap().join("examples/istio-ca");
    let host = mesh.testbed.node("ztunnel").unwrap();
    Ztunnel::start(&binary, &authority, &host, &[pod], &[&mesh.client, &mesh.server]).unwrap()
}

/// 32 MiB each way at once on one connection, then each end closes its half.
fn exchange(mesh: &Mesh) {
    let listener = mesh.server.listen(false, PORT).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (stream, peer) = listener.accept().unwrap();
            assert_eq!(peer.ip(), mesh.client.ipv4(), "the server must see the client");
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            both_ways(&stream, 1, 2);
        });
        let stream = mesh.client.connect(mesh.server.addr(PORT), TIMEOUT).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), mesh.server.addr(PORT));
        both_ways(&stream, 2, 1);
    });
}

fn both_ways(mut stream: &std::net::TcpStream, sent: u8, received: u8) {
    thread::scope(|scope| {
        scope.spawn(|| {
            send(stream, sent, 32 * MIB, &[1, 70_000, 16_384, 333]).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        receive(stream, received, 32 * MIB).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the other half is closed in order");
    });
}

/// 200 connections at once, each with an answer of its own.
fn many(mesh: &Mesh) {
    let server = mesh.server.serve_echo(PORT).unwrap();
    let to: SocketAddr = server.addr();
    let open: Vec<_> = (0..200).map(|_| mesh.client.connect(to, TIMEOUT).unwrap()).collect();
    for (number, stream) in open.iter().enumerate() {
        let text = format!("connection {number}");
        assert_eq!(traffic::echo(stream, text.as_bytes()).unwrap(), text.as_bytes());
    }
}

pub fn orlop_dials_ztunnel() {
    let mesh = Mesh::first_only(&[]);
    let _ztunnel = ztunnel(&mesh, &mesh.server);
    exchange(&mesh);
    many(&mesh);
    let record = record(mesh.client_agent(), &[("direction", "outbound"), ("result", "ok")]);
    assert!(record["tunnel"].is_string(), "{record:#}");
    assert_eq!(record["dst_identity"], format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/server"));
}

pub fn ztunnel_dials_orlop() {
    let mesh = Mesh::second_only(&[]);
    let _ztunnel = ztunnel(&mesh, &mesh.client);
    exchange(&mesh);
    many(&mesh);
    let record = record(mesh.server_agent(), &[("direction", "inbound"), ("result", "ok")]);
    assert!(record["tunnel"].is_string(), "{record:#}");
    assert_eq!(record["src_identity"], format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/client"));
}

pub fn orlop_refuses_ztunnel_by_policy() {
    let mesh = Mesh::second_only(&[]);
    let _ztunnel = ztunnel(&mesh, &mesh.client);
    let server = mesh.server.serve_echo(PORT).unwrap();
    let mut stream = mesh.client.connect(server.addr(), TIMEOUT).unwrap();
    let mut answer = [0; 6];
    stream.write_all(b"before").unwrap();
    stream.read_exact(&mut answer).unwrap();
    let policy = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: no-client, namespace: \
         {NAMESPACE}}}\nspec:\n  action: DENY\n  rules:\n  - from:\n    - source:\n        principals: \
         [cluster.local/ns/{NAMESPACE}/sa/client]\n"
    );
    mesh.testbed.world().write("policy.yaml", &policy).unwrap();
    record(mesh.server_agent(), &[("reason", "policy_denied")]);
    // Towards its own pod ztunnel ends in good order what a peer resets or refuses.
    assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)));
    let refused = mesh.client.connect(server.addr(), TIMEOUT).and_then(|mut stream| stream.read(&mut [0; 8]));
    assert!(matches!(refused, Ok(0) | Err(_)), "{refused:?}");
    assert_eq!(server.peers().len(), 1, "the second must not have reached the server");
}
