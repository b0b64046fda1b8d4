//! What nobody may do: each attempt is refused for a reason that log and metrics give, and others go on.

pub mod floods;
pub mod forge;
mod handshakes;
mod impostors;
mod ports;
mod requests;
mod takeover;

use std::io::{self, Read, Write};
use std::net::TcpStream;

use orlop_tests::traffic::{EchoServer, echo};
use orlop_tests::{Pod, PodSpec};
use serde_json::Value;

use crate::mesh::{Mesh, TIMEOUT, await_value, failed, records};

/// A mesh at work, and a pod outside of it, on the client's node, that wants to do harm to the server.
struct Siege {
    /// A connection that is to outlive everything.
    open: TcpStream,
    echo: EchoServer,
    attacker: Pod,
    mesh: Mesh,
}

impl Siege {
    fn new() -> Self {
        Self::with(&[])
    }

    /// More arguments for both agents.
    fn with(args: &[&str]) -> Self {
        let mesh = Mesh::with(args);
        let attacker = mesh.nodes[0].pod("outside", "attacker", PodSpec::new()).unwrap();
        let echo = mesh.server.serve_echo(80).unwrap();
        let open = mesh.client.connect(echo.addr(), TIMEOUT).unwrap();
        let siege = Self { open, echo, attacker, mesh };
        siege.assert_serves();
        siege
    }

    /// Does `attack`; it must be refused for `reason`, in the access log and in the metrics. Gives the
    /// record.
    #[track_caller]
    fn assert_refused(&self, reason: &str, attack: impl FnOnce()) -> Value {
        let agent = self.mesh.server_agent();
        let before = failed(agent, reason);
        attack();
        await_value(true, || failed(agent, reason) > before);
        let by = format!("{}:", self.attacker.ipv4());
        let is_it = |record: &Value| {
            record["reason"] == reason && record["src"].as_str().is_some_and(|src| src.starts_with(&by))
        };
        await_value(true, || records(agent).iter().any(is_it));
        self.assert_serves();
        records(agent).into_iter().find(is_it).unwrap()
    }

    /// The connection that was open goes on, and a new one works.
    #[track_caller]
    fn assert_serves(&self) {
        let mut open = &self.open;
        open.write_all(b"ping").unwrap();
        let mut answer = [0; 4];
        open.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"ping");
        let new = self.mesh.client.connect(self.echo.addr(), TIMEOUT).unwrap();
        assert_eq!(echo(&new, b"hello").unwrap(), b"hello");
    }
}

/// The other side says nothing but how it ends; at most an alert.
#[track_caller]
fn assert_closed(mut stream: &TcpStream) {
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("it stays open"),
        _ => assert!(said.len() < 64, "it talks: {said:?}"),
    }
}

/// The proxy takes the connection, and says nothing but how it ends; perhaps before connect returned.
#[track_caller]
fn assert_turned_away(connected: io::Result<TcpStream>) {
    match connected {
        Ok(stream) => assert_closed(&stream),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
    }
}

/// The kernel refuses the connection.
#[track_caller]
fn assert_connection_refused(connected: io::Result<TcpStream>) {
    let error = connected.expect_err("it connects");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
}
