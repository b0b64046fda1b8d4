//! A process in a pod, which does what it is told: what a test's own threads do is not in the pod's cgroup.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{ChildStdin, ChildStdout, Stdio};

use nix::libc::EPERM;
use orlop_tests::{Pod, Process};

const PROGRAM: &str = include_str!("inside.pl");

pub struct Inside {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _process: Process,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Ok,
    /// With this number.
    Error(i32),
    Other(String),
}

impl Inside {
    pub fn of(pod: &Pod) -> Self {
        let mut command = pod.command("perl").unwrap();
        command.args(["-e", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(&mut command).unwrap();
        let (input, output) = (process.child().stdin.take().unwrap(), process.child().stdout.take().unwrap());
        Self { input, output: BufReader::new(output), _process: process }
    }

    pub fn tell(&mut self, line: &str) -> Said {
        self.begin(line);
        self.hear()
    }

    /// Tells it something, whose outcome it will say.
    pub fn begin(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    pub fn hear(&mut self) -> Said {
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        match answer.trim().split_once(' ') {
            None if answer.trim() == "ok" => Said::Ok,
            Some(("error", number)) => Said::Error(number.parse().unwrap()),
            _ => Said::Other(answer.trim().to_owned()),
        }
    }

    /// About an address and a port.
    pub fn to(&mut self, command: &str, to: SocketAddr) -> Said {
        self.tell(&format!("{command} {} {}", to.ip(), to.port()))
    }

    /// Asks an echo server.
    pub fn dial(&mut self, to: SocketAddr) -> Said {
        self.to("dial", to)
    }

    /// Sends an echo request, as ping does.
    pub fn raw(&mut self, to: IpAddr) -> Said {
        self.tell(&format!("raw {to}"))
    }

    /// How many datagrams have come to a port that was bound.
    pub fn heard(&mut self, port: u16) -> usize {
        match self.tell(&format!("heard {port}")) {
            Said::Other(count) => count.parse().unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

/// What a caller is told who is held.
pub const HELD: Said = Said::Error(EPERM);
