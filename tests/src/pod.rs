use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::kubelet::{PodCgroups, Sandbox};
use crate::netns::Netns;
use crate::objects::{MESH_LABEL, PodObject};
use crate::process::command_in;
use crate::traffic::{self, EchoServer, HttpServer};
use crate::{Node, Process, cgroup};

/// What a pod should be like.
#[derive(Clone, Debug)]
pub struct PodSpec {
    labels: Vec<(String, String)>,
    service_account: String,
    ports: Vec<(String, u16)>,
}

impl Default for PodSpec {
    fn default() -> Self {
        Self::new()
    }
}

impl PodSpec {
    /// No labels, service account `default`.
    pub fn new() -> Self {
        Self { labels: Vec::new(), service_account: "default".to_owned(), ports: Vec::new() }
    }

    /// Adds a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Sets the service account.
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// Adds a named container port.
    pub fn port(mut self, name: &str, number: u16) -> Self {
        self.ports.push((name.to_owned(), number));
        self
    }

    /// Labels the pod out of its namespace's mesh.
    pub fn opt_out(self) -> Self {
        self.label(MESH_LABEL, "disabled")
    }
}

/// A pod: a network namespace with `lo` and `eth0`, a cgroup, and an object in the world.
///
/// Clones are handles to the same pod; [`delete`](Self::delete) or the testbed's end removes it.
#[derive(Clone, Debug)]
pub struct Pod {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    node: Node,
    netns: Netns,
    cgroup: PathBuf,
    /// Where its processes run: in `cgroup`, or below.
    container: PathBuf,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
    object: Mutex<PodObject>,
    namespace: String,
    name: String,
    _sandbox: Option<Sandbox>,
}

/// How a pod is joined to its node.
struct Wired {
    link: String,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

impl Pod {
    pub(crate) fn create(node: &Node, namespace: &str, name: &str, spec: PodSpec) -> Result<Self> {
        let lab = node.lab();
        let own_name = format!("p-{namespace}.{name}");
        let cgroup = lab.cgroup.join(&own_name);
        if cgroup.exists() {
            bail!("there is a pod {namespace}/{name} already");
        }
        cgroup::create(&cgroup)?;
        let netns = Netns::create(format!("{}-{own_name}", lab.id))?;
        let wired = wire(node, &netns)?;
        let object = object(node, namespace, name, spec, &netns, &wired);
        lab.world.namespace_if_missing(namespace)?;
        lab.world.put_pod(&object)?;
        Ok(Self::new(node, netns, cgroup.clone(), cgroup, wired, object, None))
    }

    /// A pod with the cgroups that kubelet would make, and without an object in the world.
    pub(crate) fn create_as_kubelet(
        node: &Node,
        namespace: &str,
        name: &str,
        uid: &str,
        cgroups: PodCgroups,
    ) -> Result<Self> {
        let (netns, wired) = new_sandbox(node, namespace, name)?;
        let mut object = object(node, namespace, name, PodSpec::new(), &netns, &wired);
        uid.clone_into(&mut object.uid);
        let cgroup = node.pod_cgroup(cgroups, uid)?;
        let sandbox = Sandbox::start(cgroups, &cgroup, &netns, node.netns())?;
        let container = sandbox.container.clone();
        Ok(Self::new(node, netns, cgroup, container, wired, object, Some(sandbox)))
    }

    /// Ends everything in the pod and starts it anew, with the same UID in another network namespace, as kubelet
    /// does when a sandbox has died. The pod before is of no use any more.
    pub fn restart_as_kubelet(self, cgroups: PodCgroups) -> Result<Self> {
        let (node, uid) = (self.inner.node.clone(), self.uid());
        let (namespace, name) = (self.namespace().to_owned(), self.name().to_owned());
        cgroup::kill(&self.inner.cgroup)?;
        crate::netns::remove(&self.netns_path())?;
        drop(self);
        Self::create_as_kubelet(&node, &namespace, &name, &uid, cgroups)
    }

    fn new(
        node: &Node,
        netns: Netns,
        cgroup: PathBuf,
        container: PathBuf,
        wired: Wired,
        object: PodObject,
        sandbox: Option<Sandbox>,
    ) -> Self {
        let Wired { ipv4, ipv6, .. } = wired;
        let (namespace, name) = (object.namespace.clone(), object.name.clone());
        let (node, object) = (node.clone(), Mutex::new(object));
        let inner =
            Inner { node, netns, cgroup, container, ipv4, ipv6, object, namespace, name, _sandbox: sandbox };
        Self { inner: Arc::new(inner) }
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.inner.namespace
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The pod's UID.
    pub fn uid(&self) -> String {
        self.inner.object.lock().unwrap_or_else(PoisonError::into_inner).uid.clone()
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> String {
        self.inner.object.lock().unwrap_or_else(PoisonError::into_inner).service_account.clone()
    }

    /// The node it runs on.
    pub fn node(&self) -> &Node {
        &self.inner.node
    }

    /// The IPv4 address of `eth0`.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.inner.ipv4
    }

    /// The IPv6 address of `eth0`.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.inner.ipv6
    }

    /// Both addresses, IPv4 first.
    pub fn ips(&self) -> [IpAddr; 2] {
        [IpAddr::V4(self.ipv4()), IpAddr::V6(self.ipv6())]
    }

    /// The IPv4 address with a port.
    pub fn addr(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.ipv4(), port))
    }

    /// The IPv6 address with a port.
    pub fn addr6(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.ipv6(), port))
    }

    /// The path of the pod's network namespace.
    pub fn netns_path(&self) -> PathBuf {
        self.inner.netns.path()
    }

    /// What the kernel tells its network namespace by, for as long as the machine runs.
    pub fn netns_cookie(&self) -> Result<u64> {
        self.run(crate::netns::cookie)?
    }

    /// The directory of the pod's cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.inner.cgroup
    }

    /// A command that runs in the pod: in its network namespace and its cgroup.
    pub fn command(&self, program: &str) -> Result<Command> {
        command_in(program, &self.inner.netns, &self.inner.container)
    }

    /// A command in the node's network namespace and in the pod's cgroup, as a pod with `hostNetwork` has it.
    pub fn host_network_command(&self, program: &str) -> Result<Command> {
        command_in(program, self.inner.node.netns(), &self.inner.container)
    }

    /// Starts a command in the pod, without input, killed when the guard is dropped.
    pub fn spawn(&self, program: &str, args: &[&str]) -> Result<Process> {
        Process::spawn(self.command(program)?.args(args).stdin(Stdio::null()))
    }

    /// Runs a command in the pod and gives what it printed; fails if it failed.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self
            .command(program)?
            .args(args)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("running {program}"))?;
        if !output.status.success() {
            bail!(
                "{program} {args:?}: {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `f` on a fresh thread in the pod's network namespace.
    ///
    /// The thread stays in this process's cgroup, and so do its sockets; what needs the pod's cgroup
    /// takes [`command`](Self::command).
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.inner.netns.enter(f)
    }

    /// Connects from the pod. Reads and writes on the stream get the same timeout.
    pub fn connect(&self, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        self.run(|| traffic::connect(to, timeout)).map_err(io::Error::other)?
    }

    /// Listens in the pod on all IPv4 (`v6` false) or all IPv6 addresses.
    pub fn listen(&self, v6: bool, port: u16) -> io::Result<TcpListener> {
        self.run(|| traffic::listen(v6, port)).map_err(io::Error::other)?
    }

    /// One GET from the pod on a connection of its own.
    pub fn http_get(&self, to: SocketAddr, path: &str, timeout: Duration) -> io::Result<traffic::Response> {
        traffic::get(self.connect(to, timeout)?, &to.to_string(), path)
    }

    /// Serves HTTP in the pod over IPv4 and IPv6.
    pub fn serve_http(&self, port: u16) -> Result<HttpServer> {
        HttpServer::start(self, port)
    }

    /// Serves echo in the pod over IPv4 and IPv6.
    pub fn serve_echo(&self, port: u16) -> Result<EchoServer> {
        EchoServer::start(self, port)
    }

    /// Sets (`Some`) or removes (`None`) a label of the pod's object.
    pub fn set_label(&self, key: &str, value: Option<&str>) -> Result<()> {
        self.update(|object| {
            match value {
                Some(value) => object.labels.insert(key.to_owned(), value.to_owned()),
                None => object.labels.remove(key),
            };
        })
    }

    /// Labels the pod out of the mesh.
    pub fn opt_out(&self) -> Result<()> {
        self.set_label(MESH_LABEL, Some("disabled"))
    }

    /// Removes the label of [`opt_out`](Self::opt_out).
    pub fn opt_in(&self) -> Result<()> {
        self.set_label(MESH_LABEL, None)
    }

    /// Sets the Ready condition.
    pub fn set_ready(&self, ready: bool) -> Result<()> {
        self.update(|object| object.ready = ready)
    }

    /// Sets the ports that kubelet probes; `None` leaves the pod's containers out, so that nobody knows.
    pub fn set_probes(&self, ports: Option<&[u16]>) -> Result<()> {
        self.update(|object| object.probes = ports.map(<[u16]>::to_vec))
    }

    /// Removes the pod's object, kills its processes and removes its namespace.
    pub fn delete(&self) -> Result<()> {
        self.inner.node.lab().world.remove_pod(self.namespace(), self.name())?;
        cgroup::remove(&self.inner.cgroup)?;
        crate::netns::remove(&self.netns_path())
    }

    /// Everything a mesh might change in the pod: firewall, rules, routes, addresses, sysctls.
    ///
    /// Two calls give the same text unless something changed. A tool that is not installed is an error: what
    /// nobody looked at can't be called unchanged.
    pub fn network_state(&self) -> Result<String> {
        let mut state = String::new();
        for (program, args) in STATE_COMMANDS {
            let output = self.command(program)?.args(*args).stdin(Stdio::null()).output();
            let output = output.with_context(|| {
                format!("running {program}; `cargo xtask setup` installs what the tests need")
            })?;
            state += &format!("# {program} {}\n", args.join(" "));
            if !output.status.success() {
                // For example a kernel without xfrm: it has nothing to change, and says so each time alike.
                state += &format!("failed: {}\n", String::from_utf8_lossy(&output.stderr).trim());
            }
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                // iptables-save: comments hold the time, `[packets:bytes]` counts traffic.
                if !line.starts_with('#') {
                    state += line.split(" [").next().unwrap_or(line).trim_end();
                    state.push('\n');
                }
            }
        }
        state += &self.run(sysctls)?;
        Ok(state)
    }

    fn update(&self, change: impl FnOnce(&mut PodObject)) -> Result<()> {
        let mut object = self.inner.object.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut object);
        self.inner.node.lab().world.put_pod(&object)
    }
}

/// A network namespace of a name that no other sandbox of the pod had, joined to its node.
fn new_sandbox(node: &Node, namespace: &str, name: &str) -> Result<(Netns, Wired)> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let netns = Netns::create(format!("{}-p{number}-{namespace}.{name}", node.lab().id))?;
    let wired = wire(node, &netns)?;
    Ok((netns, wired))
}

fn wire(node: &Node, netns: &Netns) -> Result<Wired> {
    let (link, ipv4, ipv6, address) = node.next_port();
    let ([gateway4, gateway6], bridge) = (node.gateways(), node.bridge());
    // Neighbours that are found out are few in a kernel, of all namespaces together.
    netns.ip(&format!(
        "link set lo up\n\
         link add eth0 address {address} type veth peer name {link} netns {}\n\
         addr add {ipv4}/16 dev eth0\n\
         addr add {ipv6}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add 0.0.0.0/0 via {gateway4}\n\
         route add ::/0 via {gateway6} dev eth0 onlink\n\
         neigh add {gateway4} lladdr {bridge} nud permanent dev eth0\n\
         neigh add {gateway6} lladdr {bridge} nud permanent dev eth0\n",
        node.netns().name(),
    ))?;
    node.netns().ip(&format!(
        "link set {link} master br0 up\n\
         neigh add {ipv4} lladdr {address} nud permanent dev br0\n\
         neigh add {ipv6} lladdr {address} nud permanent dev br0\n"
    ))?;
    node.netns().await_link(&link)?;
    netns.await_link("eth0")?;
    Ok(Wired { link, ipv4, ipv6 })
}

fn object(
    node: &Node,
    namespace: &str,
    name: &str,
    spec: PodSpec,
    netns: &Netns,
    wired: &Wired,
) -> PodObject {
    PodObject {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: format!("{}-{}", node.name(), wired.link),
        labels: spec.labels.into_iter().collect(),
        service_account: spec.service_account,
        ports: spec.ports,
        probes: Some(Vec::new()),
        node: node.name().to_owned(),
        host_ip: IpAddr::V4(node.ipv4()),
        netns: netns.path(),
        ips: vec![IpAddr::V4(wired.ipv4), IpAddr::V6(wired.ipv6)],
        ready: true,
    }
}

const STATE_COMMANDS: &[(&str, &[&str])] = &[
    ("iptables-save", &[]),
    ("ip6tables-save", &[]),
    ("nft", &["list", "ruleset"]),
    ("ip", &["rule"]),
    ("ip", &["-6", "rule"]),
    ("ip", &["route", "show", "table", "all"]),
    ("ip", &["-6", "route", "show", "table", "all"]),
    ("ip", &["-d", "addr"]),
    ("ip", &["xfrm", "policy"]),
];

fn sysctls() -> String {
    let mut lines = Vec::new();
    for family in ["ipv4", "ipv6"] {
        for link in ["all", "eth0", "lo"] {
            let dir = Path::new("/proc/sys/net").join(family).join("conf").join(link);
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if let Ok(value) = fs::read_to_string(entry.path()) {
                    lines.push(format!("{} = {}\n", entry.path().display(), value.trim()));
                }
            }
        }
    }
    lines.sort();
    lines.concat()
}
