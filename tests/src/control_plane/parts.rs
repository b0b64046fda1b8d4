//! The programs of a control plane and their flags.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt,
};

use super::checked;
use crate::Process;

#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Etcd,
    Api,
    Controllers,
}

impl Part {
    pub(super) const ALL: [Self; 3] = [Self::Etcd, Self::Api, Self::Controllers];

    /// Starts it in `dir`, with its log there.
    pub(super) fn start(self, mut command: Command, dir: &Path, port: u16) -> Result<Process> {
        let path = dir.join(self.name()).with_extension("log");
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("opening {}", path.display()))?;
        let errors = log.try_clone().context("sharing the log")?;
        command.arg(self.name()).args(self.flags(port)).current_dir(dir);
        Process::spawn(command.stdin(Stdio::null()).stdout(log).stderr(errors))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Api => "kube-apiserver",
            Self::Controllers => "kube-controller-manager",
        }
    }

    fn flags(self, port: u16) -> Vec<String> {
        let flags: &[&str] = match self {
            Self::Etcd => ETCD,
            Self::Api => API,
            Self::Controllers => CONTROLLERS,
        };
        let mut flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        if let Self::Api = self {
            flags.push(format!("--secure-port={port}"));
        }
        flags
    }
}

/// Sockets in its directory: no port that somebody else could have by then.
const ETCD: &[&str] = &[
    "--data-dir=etcd",
    "--listen-client-urls=unix://etcd.sock:0",
    "--advertise-client-urls=unix://etcd.sock:0",
    "--listen-peer-urls=unix://peer.sock:0",
    "--initial-advertise-peer-urls=unix://peer.sock:0",
    "--initial-cluster=default=unix://peer.sock:0",
    "--unsafe-no-fsync",
    "--log-level=warn",
];

const API: &[&str] = &[
    "--etcd-servers=unix://etcd.sock:0",
    "--bind-address=127.0.0.1",
    "--advertise-address=127.0.0.1",
    // Another socket keeps the port for it.
    "--permit-port-sharing",
    "--tls-cert-file=apiserver.crt",
    "--tls-private-key-file=apiserver.key",
    "--client-ca-file=ca.crt",
    "--authorization-mode=Node,RBAC",
    "--enable-admission-plugins=NodeRestriction",
    "--allow-privileged",
    "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
    "--service-account-key-file=tokens.key",
    "--service-account-signing-key-file=tokens.key",
    "--service-cluster-ip-range=10.96.0.0/16,fd00:96::/108",
    "--endpoint-reconciler-type=none",
    "--profiling=false",
];

/// What runs no cluster of virtual machines.
const CONTROLLERS: &[&str] = &[
    "--kubeconfig=controllers.kubeconfig",
    "--use-service-account-credentials",
    "--service-account-private-key-file=tokens.key",
    "--root-ca-file=ca.crt",
    "--leader-elect=false",
    "--secure-port=0",
    "--profiling=false",
    "--concurrent-namespace-syncs=20",
    "--controllers=\
     serviceaccount-token-controller,serviceaccount-controller,root-ca-certificate-publisher-controller,\
     namespace-controller,garbage-collector-controller,endpointslice-controller,clusterrole-aggregation-controller,\
     deployment-controller,replicaset-controller,daemonset-controller,disruption-controller",
];

/// A free port of 127.0.0.1 that stays ours for as long as the socket is open, and that a server can have which sets
/// `SO_REUSEPORT`: this one does not listen.
pub(super) fn port() -> Result<(OwnedFd, u16)> {
    let open = || -> nix::Result<_> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        setsockopt(&socket, sockopt::ReusePort, &true)?;
        bind(socket.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)))?;
        let port = getsockname::<SockaddrIn>(socket.as_raw_fd())?.port();
        Ok((socket, port))
    };
    open().context("finding a free port on the loopback")
}

/// Makes the certificates, keys and kubeconfigs in `dir`.
pub(super) fn credentials(binary: &Path, dir: &Path, port: u16) -> Result<()> {
    let mut command = Command::new(binary);
    let url = format!("https://127.0.0.1:{port}");
    command.arg("credentials").arg(dir).args([&url, "127.0.0.1", "::1", "10.96.0.1"]);
    checked(&mut command, "making the cluster's credentials")
}

/// Waits for the `api`, or for the `controllers`.
pub(super) fn wait_ready(
    command: &mut Command,
    kubeconfig: &Path,
    what: &str,
    timeout: Duration,
) -> Result<()> {
    command.arg("ready").arg(kubeconfig).args([what, &format!("{}s", timeout.as_secs())]);
    checked(command, "waiting for the control plane")
}

/// The last lines that each part logged.
pub(super) fn log_tails(dir: &Path) -> String {
    let tail = |part: Part| {
        let log = std::fs::read(dir.join(part.name()).with_extension("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<_> = log.lines().rev().take(8).collect();
        let lines: Vec<_> = lines.into_iter().rev().collect();
        format!("-- {}\n{}\n", part.name(), lines.join("\n"))
    };
    Part::ALL.map(tail).concat()
}
