use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::netns::Netns;
use crate::process::command_in;
use crate::testbed::Lab;
use crate::{Agent, AgentOptions, Pod, PodCgroups, PodSpec, cgroup, traffic};

/// A node: a network namespace with a bridge for its pods and a link to the wire. Routes, never NATs.
///
/// Node number `k` has the pod ranges `10.k.0.0/16` and `fd00:10:k::/64`, and on the wire the addresses
/// `172.30.0.k` and `fd00:172::k`. Clones are handles to the same node.
#[derive(Clone, Debug)]
pub struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    lab: Arc<Lab>,
    name: String,
    number: u8,
    netns: Netns,
    cgroup: PathBuf,
    next_pod: AtomicU16,
}

impl Node {
    pub(crate) fn create(lab: &Arc<Lab>, name: &str) -> Result<Self> {
        // Held until the end: a node added at the same time must see this one's routes.
        let mut nodes = lab.nodes();
        let number = lab.next_number(&nodes)?;
        let cgroup = lab.cgroup.join(format!("n-{name}"));
        if cgroup.exists() {
            bail!("there is a node {name} already");
        }
        cgroup::create(&cgroup)?;
        let netns = Netns::create(format!("{}-n-{name}", lab.id))?;
        netns.sysctl("net/ipv4/ip_forward", "1")?;
        netns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let mut script = setup_script(number, lab.wire.name());
        for (other, other_netns) in nodes.iter() {
            script += &route_script(*other);
            other_netns.ip(&route_script(number))?;
        }
        netns.ip(&script)?;
        lab.wire.ip(&format!("link set n{number} master br0 up\n"))?;
        lab.wire.await_link(&format!("n{number}"))?;
        netns.await_link("eth0")?;
        nodes.push((number, netns.clone()));
        let inner = Inner {
            lab: Arc::clone(lab),
            name: name.to_owned(),
            number,
            netns,
            cgroup,
            next_pod: AtomicU16::new(2),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Adds a pod: makes its namespace, addresses and cgroup, and its `Pod` object.
    ///
    /// Its Kubernetes namespace is added to the world without labels if nobody did so before.
    pub fn pod(&self, namespace: &str, name: &str, spec: PodSpec) -> Result<Pod> {
        Pod::create(self, namespace, name, spec)
    }

    /// Adds a pod as kubelet does: with the cgroups that it would make, and without an object in the world.
    pub fn pod_as_kubelet(&self, namespace: &str, name: &str, uid: &str, cgroups: PodCgroups) -> Result<Pod> {
        Pod::create_as_kubelet(self, namespace, name, uid, cgroups)
    }

    /// The cgroup of a pod as kubelet makes it, before anything runs in it.
    pub fn pod_cgroup(&self, cgroups: PodCgroups, uid: &str) -> Result<PathBuf> {
        let pod = cgroups.pod(&self.lab().kubelet_cgroup(self.name()), uid);
        cgroup::create(&pod).map(|()| pod)
    }

    /// The cgroup that all pods are below which kubelet has made so.
    pub fn pods_cgroup(&self, cgroups: PodCgroups) -> Result<PathBuf> {
        let root = cgroups.root(&self.lab().kubelet_cgroup(self.name()));
        cgroup::create(&root).map(|()| root)
    }

    /// Starts this node's agent and waits until it is ready.
    pub fn agent(&self, options: AgentOptions) -> Result<Agent> {
        Agent::start(self, options)
    }

    /// The node's name, as in a Pod's `spec.nodeName`.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The node's address on the wire.
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, 0, self.inner.number)
    }

    /// The node's address on the wire.
    pub fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x172, 0, 0, 0, 0, 0, self.inner.number.into())
    }

    /// The path of the node's network namespace.
    pub fn netns_path(&self) -> PathBuf {
        self.inner.netns.path()
    }

    /// Where this node's agent pins its maps and links.
    pub fn bpffs_dir(&self) -> PathBuf {
        self.lab().bpffs.join(self.name())
    }

    /// Where in it those of the layout that is in force are.
    pub fn pins_dir(&self) -> Result<PathBuf> {
        let directory = self.bpffs_dir();
        let entries = fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))?;
        let mut layouts: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        match (layouts.pop(), layouts.is_empty()) {
            (Some(layout), true) => Ok(layout),
            found => bail!("not one layout in {}: {found:?}", directory.display()),
        }
    }

    /// Where this node's agent hands over to its next one.
    pub fn run_dir(&self) -> PathBuf {
        self.lab().dir.join(format!("run-{}", self.name()))
    }

    /// A command that runs in the node's network namespace, outside any pod's cgroup, as kubelet does.
    pub fn command(&self, program: &str) -> Result<Command> {
        command_in(program, &self.inner.netns, &self.inner.cgroup)
    }

    /// Runs `f` on a fresh thread in the node's network namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.inner.netns.enter(f)
    }

    /// Connects from the node, outside any pod, as kubelet's probes do.
    pub fn connect(&self, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        self.run(|| traffic::connect(to, timeout)).map_err(io::Error::other)?
    }

    pub(crate) fn lab(&self) -> &Arc<Lab> {
        &self.inner.lab
    }

    pub(crate) fn netns(&self) -> &Netns {
        &self.inner.netns
    }

    /// The next free place on the bridge: the node's interface for it, and the pod's addresses, on the link too.
    pub(crate) fn next_port(&self) -> (String, Ipv4Addr, Ipv6Addr, String) {
        let n = self.inner.next_pod.fetch_add(1, Ordering::Relaxed);
        let [high, low] = n.to_be_bytes();
        let number = self.inner.number;
        let ipv6 = Ipv6Addr::new(0xfd00, 0x10, number.into(), 0, 0, 0, 0, n);
        let link = format!("02:00:0b:{number:02x}:{high:02x}:{low:02x}");
        (format!("p{n}"), Ipv4Addr::new(10, number, high, low), ipv6, link)
    }

    /// The address of the bridge on the link.
    pub(crate) fn bridge(&self) -> String {
        bridge(self.inner.number)
    }

    /// The pods' default gateways.
    pub(crate) fn gateways(&self) -> [IpAddr; 2] {
        gateways(self.inner.number)
    }
}

fn setup_script(number: u8, wire: &str) -> String {
    let [gateway4, gateway6] = gateways(number);
    let bridge = bridge(number);
    // The bridge's own address is fixed: else it follows its ports', and pods' neighbour entries go stale.
    // eth0's index is one its peer can't have: the kernel takes a link with its peer's index for no link
    // to hurry with, and the bridge at the other end forwards up to a second later.
    format!(
        "link set lo up\n\
         link add br0 address {bridge} type bridge mcast_snooping 0\n\
         addr add {gateway4}/16 dev br0\n\
         addr add {gateway6}/64 dev br0 nodad\n\
         link set br0 up\n\
         link add eth0 index 1000 type veth peer name n{number} netns {wire}\n\
         addr add 172.30.0.{number}/24 dev eth0\n\
         addr add fd00:172::{number:x}/64 dev eth0 nodad\n\
         link set eth0 up\n"
    )
}

fn route_script(to: u8) -> String {
    format!(
        "route add 10.{to}.0.0/16 via 172.30.0.{to}\n\
         route add fd00:10:{to:x}::/64 via fd00:172::{to:x}\n"
    )
}

fn bridge(number: u8) -> String {
    format!("02:00:0a:{number:02x}:00:01")
}

fn gateways(number: u8) -> [IpAddr; 2] {
    [IpAddr::from([10, number, 0, 1]), IpAddr::from([0xfd00, 0x10, number.into(), 0, 0, 0, 0, 1])]
}
