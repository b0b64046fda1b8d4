//! `orlop controller`, as a Deployment runs it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use orlop_tests::{Process, binary, traffic, wait_for};

use super::api::Kubernetes;
use super::install::{CONTROLLER_ACCOUNT, SYSTEM, install};

/// For a controller that starts, on a machine that is busy with other things, or takes over from one that died.
pub const LONG: Duration = Duration::from_secs(60);

/// What waypoints are made with.
pub const IMAGE: &str = "orlop:test";

/// One replica, on a loopback address of its own. It may do what the manifests let it.
pub struct Replica {
    pub name: String,
    pub process: Process,
    /// Its certificate service.
    pub listen: SocketAddr,
    log: PathBuf,
}

impl Replica {
    /// The one that agents ask in the control plane which all tests share; it ends with that.
    pub fn shared(kubernetes: &Kubernetes) -> &'static Self {
        static SHARED: OnceLock<Replica> = OnceLock::new();
        SHARED.get_or_init(|| {
            install(kubernetes);
            let replica = Self::start(kubernetes, "shared", &[]);
            replica.wait_ready();
            replica
        })
    }

    /// Starts it.
    pub fn start(kubernetes: &Kubernetes, name: &str, args: &[&str]) -> Self {
        let address = own_address();
        let [listen, ready] = [15012, 15021].map(|port| SocketAddr::from((address, port)).to_string());
        let directory = kubernetes.plane.dir();
        let api = kubernetes.plane.address().to_string();
        let kubeconfig = kubernetes.kubeconfig(directory, SYSTEM, CONTROLLER_ACCOUNT, &api);
        let log = directory.join(format!("{name}.log"));
        let mut command = kubernetes.plane.command(&binary().unwrap()).unwrap();
        command.arg("controller").arg("--kubeconfig").arg(kubeconfig);
        command.args(["--namespace", SYSTEM, "--name", name, "--dns-name", "localhost"]);
        command.args(["--waypoint-image", IMAGE]);
        command.args(["--listen", &listen, "--ready", &ready]).args(args);
        let output = File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let process = Process::spawn(&mut command).unwrap();
        Self { name: name.to_owned(), process, listen: listen.parse().unwrap(), log }
    }

    /// Waits until it signs.
    pub fn wait_ready(&self) {
        let is_ready = || {
            let health = SocketAddr::new(self.listen.ip(), 15021);
            let answer =
                TcpStream::connect(health).and_then(|tcp| traffic::get(tcp, "localhost", "/healthz/ready"));
            answer.is_ok_and(|answer| answer.status == 200)
        };
        assert!(wait_for(LONG, is_ready), "{} is not ready:\n{}", self.name, self.log());
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

/// An address that no other process of this machine's tests listens at.
fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high | 0x80, low, NEXT.fetch_add(1, Ordering::Relaxed))
}
