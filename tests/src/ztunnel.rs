use std::fs::{self, File};
use std::io::{IoSlice, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, bind, listen,
    recv, sendmsg, shutdown, socket,
};

use crate::protobuf::field;
use crate::{Node, Pod, Process, wait_for};

const READY_TIMEOUT: Duration = Duration::from_secs(15);
const CA_PORT: u16 = 15012;
const READY_PORT: u16 = 15021;

/// An Istio ztunnel that somebody built, as the proxy of some pods of the testbed: in its usual mode, one process
/// that opens its sockets inside the pods.
///
/// It learns workloads from a file, pods and their namespaces from us as the CNI agent (ZDS), and has its
/// certificates signed by the testbed's CA. What Istio's CNI plugin does with netfilter inside the pods is done here
/// by a ruleset of nftables, IPv4 alone.
#[derive(Debug)]
pub struct Ztunnel {
    process: Process,
    _authority: Process,
    // Ends when the process closes its end.
    _zds: Zds,
}

impl Ztunnel {
    /// What `$ZTUNNEL` names.
    pub fn binary() -> Option<PathBuf> {
        std::env::var_os("ZTUNNEL").map(PathBuf::from)
    }

    /// Starts `binary` for `pods`, which share a node, on `host`: a node without an agent, as both want the same
    /// ports of their node. `mesh` are all pods that speak HBONE.
    ///
    /// `authority` is the program `istio-ca`, an example of this package.
    pub fn start(binary: &Path, authority: &Path, host: &Node, pods: &[&Pod], mesh: &[&Pod]) -> Result<Self> {
        let dir = host.lab().dir.join(format!("ztunnel-{}", host.name()));
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        for pod in pods {
            redirect(pod)?;
        }
        let root = dir.join("ca.pem");
        let authority = start_authority(authority, host, &root)?;
        let world = dir.join("world.yaml");
        fs::write(&world, workloads(mesh)).with_context(|| format!("writing {}", world.display()))?;
        let zds = Zds::serve(&dir.join("zds"), pods)?;

        let log = dir.join("log");
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let node = pods.first().map_or(host.name(), |pod| pod.node().name());
        let mut command = host.command(&binary.to_string_lossy())?;
        command
            .arg("proxy")
            .arg("ztunnel")
            .env("PROXY_MODE", "shared")
            .env("INPOD_UDS", zds.path())
            .env("LOCAL_XDS_PATH", &world)
            .env("XDS_ADDRESS", "")
            .env("CA_ADDRESS", format!("https://localhost:{CA_PORT}"))
            .env("CA_ROOT_CA", &root)
            .env("NODE_NAME", node)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("sharing the log")?)
            .stderr(output);
        let mut ztunnel = Self { process: Process::spawn(&mut command)?, _authority: authority, _zds: zds };
        ztunnel.wait_ready(host, &log)?;
        Ok(ztunnel)
    }

    /// CPU time used so far, user and system.
    pub fn cpu_time(&self) -> Result<Duration> {
        self.process.cpu_time()
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> Result<u64> {
        self.process.rss()
    }

    fn wait_ready(&mut self, host: &Node, log: &Path) -> Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let url = SocketAddr::from(([127, 0, 0, 1], READY_PORT));
        loop {
            let answer = host
                .connect(url, Duration::from_secs(1))
                .and_then(|stream| crate::traffic::get(stream, "localhost", "/healthz/ready"));
            if answer.is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            if !self.process.is_running() || Instant::now() > deadline {
                let log = fs::read_to_string(log).unwrap_or_default();
                bail!("the ztunnel on {} is not ready; its log is:\n{log}", host.name());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Inside a pod: what it dials goes to 15001 and what comes goes to 15006, but for ztunnel's own traffic (packet mark
/// 0x539), which keeps the client's address on the way to the app (connection mark 0x111).
fn redirect(pod: &Pod) -> Result<()> {
    const RULES: &str = "table ip ztunnel {
        chain mark_in {
            type filter hook prerouting priority mangle;
            meta mark & 0xfff == 0x539 ct mark set 0x111
        }
        chain mark_out {
            type route hook output priority mangle;
            ct mark & 0xfff == 0x111 meta mark set ct mark
        }
        chain dialled {
            type nat hook output priority -100;
            meta mark & 0xfff == 0x111 accept
            meta mark & 0xfff == 0x539 accept
            oifname lo accept
            ip daddr != 127.0.0.0/8 meta l4proto tcp redirect to :15001
        }
        chain coming {
            type nat hook prerouting priority dstnat;
            meta mark & 0xfff == 0x539 accept
            iifname lo accept
            tcp dport != 15008 redirect to :15006
        }
    }";
    pod.output("nft", &[RULES])?;
    pod.output("ip", &["rule", "add", "fwmark", "0x111/0xfff", "lookup", "100"])?;
    pod.output("ip", &["route", "add", "local", "0.0.0.0/0", "dev", "lo", "table", "100"])?;
    Ok(())
}

fn start_authority(program: &Path, host: &Node, root: &Path) -> Result<Process> {
    let mut command = host.command(&program.to_string_lossy())?;
    command.arg(host.lab().ca_dir()).arg(CA_PORT.to_string()).arg(root).stdin(Stdio::null());
    let mut authority = Process::spawn(&mut command)?;
    if !wait_for(READY_TIMEOUT, || root.exists() || !authority.is_running()) || !root.exists() {
        bail!("{} does not start", program.display());
    }
    Ok(authority)
}

/// The format of ztunnel's `LOCAL_XDS_PATH`.
fn workloads(pods: &[&Pod]) -> String {
    let workload = |pod: &&Pod| {
        format!(
            "- {{uid: {uid}, name: {name}, namespace: {namespace}, serviceAccount: {account}, trustDomain: \
             cluster.local, workloadIps: [{ip}], protocol: HBONE, node: {node}, services: {{}}}}\n",
            uid = uid(pod),
            name = pod.name(),
            namespace = pod.namespace(),
            account = pod.service_account(),
            ip = pod.ipv4(),
            node = pod.node().name(),
        )
    };
    format!("workloads:\n{}", pods.iter().map(workload).collect::<String>())
}

fn uid(pod: &Pod) -> String {
    format!("Kubernetes//Pod/{}/{}", pod.namespace(), pod.name())
}

/// Plays Istio's CNI agent: tells ztunnel of its pods and hands over their namespaces, over a socket of packets.
#[derive(Debug)]
struct Zds {
    path: PathBuf,
    listener: UnixListener,
    thread: Option<JoinHandle<()>>,
}

impl Zds {
    fn serve(path: &Path, pods: &[&Pod]) -> Result<Self> {
        let workloads = pods
            .iter()
            .map(|pod| {
                let netns = pod.netns_path();
                let file = File::open(&netns).with_context(|| format!("opening {}", netns.display()))?;
                Ok((add(pod), file))
            })
            .collect::<Result<Vec<_>>>()?;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        bind(listener.as_raw_fd(), &UnixAddr::new(path)?)
            .with_context(|| format!("binding {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).context("protecting the ZDS socket")?;
        listen(&listener, Backlog::new(1)?)?;
        let listener = UnixListener::from(listener);
        let accepting = listener.try_clone().context("sharing the ZDS socket")?;
        let thread = thread::spawn(move || {
            if let Err(error) = speak(&accepting, &workloads) {
                let _ = writeln!(std::io::stderr(), "ZDS: {error:#}");
            }
        });
        Ok(Self { path: path.to_owned(), listener, thread: Some(thread) })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Zds {
    fn drop(&mut self) {
        // Wakes a thread that nobody has connected to; the other end is gone by now.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One client's session, until it closes: its hello, our workloads, each acknowledged, the end of the list.
fn speak(listener: &UnixListener, workloads: &[(Vec<u8>, File)]) -> Result<()> {
    let Ok((stream, _)) = listener.accept() else { return Ok(()) };
    let mut buffer = [0; 1024];
    let mut answer =
        || recv(stream.as_raw_fd(), &mut buffer, MsgFlags::empty()).context("waiting for ztunnel");
    answer()?;
    for (message, netns) in workloads {
        let rights = [netns.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&rights)];
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(message)], &rights, MsgFlags::empty(), None)?;
        answer()?;
    }
    let sent = field(3, &[]);
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&sent)], &[], MsgFlags::empty(), None)?;
    while answer()? > 0 {}
    Ok(())
}

/// `WorkloadRequest { add: AddWorkload { uid, workload_info: { name, namespace, service_account } } }`
fn add(pod: &Pod) -> Vec<u8> {
    let info = [
        field(1, pod.name().as_bytes()),
        field(2, pod.namespace().as_bytes()),
        field(3, pod.service_account().as_bytes()),
    ];
    field(1, &[field(1, uid(pod).as_bytes()), field(2, &info.concat())].concat())
}
