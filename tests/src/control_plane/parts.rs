//! The programs of a control plane and their flags.

use std::fs::{self, File};
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
    Scheduler,
}

/// Whom an API server serves.
#[derive(Clone, Copy, Debug)]
pub(super) enum Serves {
    /// Whoever is on its loopback.
    Loopback,
    /// Nodes, at this address of one of them.
    Nodes(Ipv4Addr),
}

impl Part {
    /// Those of a control plane without nodes.
    pub(super) const ALL: [Self; 3] = [Self::Etcd, Self::Api, Self::Controllers];

    /// Starts it in `dir`, with its log there.
    pub(super) fn start(
        self,
        mut command: Command,
        dir: &Path,
        port: u16,
        serves: Serves,
    ) -> Result<Process> {
        let path = dir.join(self.name()).with_extension("log");
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("opening {}", path.display()))?;
        let errors = log.try_clone().context("sharing the log")?;
        command.arg(self.name()).args(self.flags(port, serves)).current_dir(dir);
        // Their heaps are small: there is more memory to spare than processor time.
        command.env("GOGC", "400");
        Process::spawn(command.stdin(Stdio::null()).stdout(log).stderr(errors))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Api => "kube-apiserver",
            Self::Controllers => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
        }
    }

    fn flags(self, port: u16, serves: Serves) -> Vec<String> {
        let flags: &[&str] = match self {
            Self::Etcd => ETCD,
            Self::Api => API,
            Self::Controllers => CONTROLLERS,
            Self::Scheduler => SCHEDULER,
        };
        let mut flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        match (self, serves) {
            (Self::Api, Serves::Loopback) => {
                flags.extend(LOOPBACK_API.map(str::to_owned));
                flags.push(format!("--secure-port={port}"));
            }
            (Self::Api, Serves::Nodes(address)) => {
                flags.extend(NODES_API.map(str::to_owned));
                flags.extend([format!("--secure-port={port}"), format!("--advertise-address={address}")]);
            }
            (Self::Controllers, Serves::Nodes(_)) => {
                flags.push(format!("--controllers={CONTROLLER_NAMES},{NODE_CONTROLLER_NAMES}"));
            }
            (Self::Controllers, Serves::Loopback) => flags.push(format!("--controllers={CONTROLLER_NAMES}")),
            _ => {}
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
    "--kubelet-client-certificate=kubelet-client.crt",
    "--kubelet-client-key=kubelet-client.key",
    "--kubelet-preferred-address-types=InternalIP",
    "--profiling=false",
];

/// What service accounts ask for is written down, but for those of Kubernetes' own controllers.
const AUDIT_POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: None, userGroups: ["system:serviceaccounts:kube-system"]}
  - {level: Metadata, userGroups: ["system:serviceaccounts"]}
  - {level: None}
"#;

const LOOPBACK_API: [&str; 6] = [
    "--audit-policy-file=audit-policy.yaml",
    "--audit-log-path=audit.log",
    "--bind-address=127.0.0.1",
    "--advertise-address=127.0.0.1",
    // Another socket keeps the port for it.
    "--permit-port-sharing",
    // No pod could reach it.
    "--endpoint-reconciler-type=none",
];

const NODES_API: [&str; 1] = ["--bind-address=0.0.0.0"];

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
];

const CONTROLLER_NAMES: &str = "\
    serviceaccount-token-controller,serviceaccount-controller,root-ca-certificate-publisher-controller,\
    namespace-controller,garbage-collector-controller,endpointslice-controller,clusterrole-aggregation-controller,\
    deployment-controller,replicaset-controller,daemonset-controller,disruption-controller";

/// What there must be for nodes.
const NODE_CONTROLLER_NAMES: &str = "node-lifecycle-controller,pod-garbage-collector-controller";

const SCHEDULER: &[&str] =
    &["--kubeconfig=scheduler.kubeconfig", "--leader-elect=false", "--secure-port=0", "--profiling=false"];

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

/// Makes the certificates, keys and kubeconfigs in `dir`, and what says whose requests are written down.
pub(super) fn credentials(binary: &Path, dir: &Path, port: u16, serves: Serves) -> Result<()> {
    let mut command = Command::new(binary);
    let url = format!("https://127.0.0.1:{port}");
    command.arg("credentials").arg(dir).args([&url, "127.0.0.1", "::1", "10.96.0.1"]);
    if let Serves::Nodes(address) = serves {
        command.arg(address.to_string());
    }
    checked(&mut command, "making the cluster's credentials")?;
    let policy = dir.join("audit-policy.yaml");
    fs::write(&policy, AUDIT_POLICY).with_context(|| format!("writing {}", policy.display()))
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
    tails(dir, &[Part::Etcd, Part::Api, Part::Controllers, Part::Scheduler].map(Part::name))
}

/// The last lines of these logs in a directory, of those that are there.
pub(crate) fn tails(dir: &Path, names: &[&str]) -> String {
    let tail = |name: &&str| {
        let log = fs::read(dir.join(name).with_extension("log")).ok()?;
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<_> = log.lines().rev().take(8).collect();
        let lines: Vec<_> = lines.into_iter().rev().collect();
        Some(format!("-- {name}\n{}\n", lines.join("\n")))
    };
    names.iter().filter_map(tail).collect()
}
