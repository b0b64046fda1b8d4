use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::Uid;

use crate::id::Id;
use crate::netns::{self, Netns};
use crate::sweep::{BPFFS, clean};
use crate::{Capture, Node, World, cgroup};

/// Nodes joined by a wire, and the world directory that describes them.
///
/// Owns everything: dropping it kills all processes and removes all namespaces, cgroups, pins and files,
/// whatever handles ([`Node`], [`Pod`](crate::Pod)) are still around.
#[derive(Debug)]
pub struct Testbed {
    lab: Arc<Lab>,
    cleanup: Cleanup,
}

/// What nodes and pods share with their testbed.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) id: Id,
    pub(crate) dir: PathBuf,
    pub(crate) cgroup: PathBuf,
    pub(crate) bpffs: PathBuf,
    pub(crate) wire: Netns,
    pub(crate) world: World,
    /// The nodes' numbers and namespaces.
    nodes: Mutex<Vec<(u8, Netns)>>,
    /// Whether other testbeds are in the same cluster.
    shared: bool,
    next_vip: AtomicU16,
}

impl Testbed {
    /// An empty testbed: a wire without nodes, a world without objects.
    pub fn new() -> Result<Self> {
        Self::make(false)
    }

    /// One whose nodes and pods have addresses that those of no other such testbed of this process have, so that
    /// they can be in one cluster. There are 200 such nodes.
    pub fn in_shared_cluster() -> Result<Self> {
        Self::make(true)
    }

    fn make(shared: bool) -> Result<Self> {
        if !Uid::effective().is_root() {
            bail!("the testbed makes network namespaces and loads eBPF: run this as root");
        }
        let id = Id::new()?;
        let cleanup = Cleanup { id: id.clone(), armed: true };
        let dir = std::env::temp_dir().join(id.to_string());
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let cgroup = cgroup::root()?.join(id.to_string());
        cgroup::create(&cgroup)?;
        mount_bpffs()?;
        let wire = Netns::create(format!("{id}-wire"))?;
        wire.ip("link add br0 type bridge mcast_snooping 0\nlink set br0 up\n")?;
        let lab = Lab {
            bpffs: Path::new(BPFFS).join(id.to_string()),
            world: World::create(&dir)?,
            nodes: Mutex::new(Vec::new()),
            shared,
            next_vip: AtomicU16::new(1),
            id,
            dir,
            cgroup,
            wire,
        };
        Ok(Self { lab: Arc::new(lab), cleanup })
    }

    /// A name no other testbed on the machine has.
    pub fn id(&self) -> String {
        self.lab.id.to_string()
    }

    /// The directory for logs and other files of this testbed.
    pub fn dir(&self) -> &Path {
        &self.lab.dir
    }

    /// The CA directory that the agents of all nodes share.
    pub fn ca_dir(&self) -> PathBuf {
        self.lab.ca_dir()
    }

    /// The objects that the agents see.
    pub fn world(&self) -> &World {
        &self.lab.world
    }

    /// Adds a node, joined to the others; at most 200.
    pub fn node(&self, name: &str) -> Result<Node> {
        Node::create(&self.lab, name)
    }

    /// Two addresses, IPv4 and IPv6, that no pod has and no route leads to: for a service.
    pub fn vip(&self) -> Vec<IpAddr> {
        let n = self.lab.next_vip.fetch_add(1, Ordering::Relaxed);
        let [high, low] = n.to_be_bytes();
        vec![IpAddr::from([10, 255, high, low]), IpAddr::from([0xfd00, 0xff, 0, 0, 0, 0, 0, n])]
    }

    /// Starts to capture every frame that crosses the wire between nodes.
    pub fn capture(&self) -> Result<Capture> {
        Capture::start(&self.lab.wire)
    }

    /// Leaves everything in place when this is dropped. A later [`sweep`](crate::sweep) removes it, once
    /// this process has ended.
    pub fn keep(&mut self) {
        self.cleanup.armed = false;
    }

    /// Whether [`keep`](Self::keep) was called.
    pub fn is_kept(&self) -> bool {
        !self.cleanup.armed
    }
}

impl Lab {
    pub(crate) fn ca_dir(&self) -> PathBuf {
        self.dir.join("ca")
    }

    /// What kubelet of a node has for its cgroups.
    pub(crate) fn kubelet_cgroup(&self, node: &str) -> PathBuf {
        self.cgroup.join(format!("k-{node}"))
    }

    /// The number of the next node, while `nodes` is locked.
    pub(crate) fn next_number(&self, nodes: &[(u8, Netns)]) -> Result<u8> {
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let number = match self.shared {
            true => usize::from(NEXT.fetch_add(1, Ordering::Relaxed)),
            false => nodes.len() + 1,
        };
        u8::try_from(number).ok().filter(|number| *number <= 200).context("a testbed has at most 200 nodes")
    }

    pub(crate) fn nodes(&self) -> std::sync::MutexGuard<'_, Vec<(u8, Netns)>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Apart from `Testbed`, so that a `new` that fails half way removes its half.
#[derive(Debug)]
struct Cleanup {
    id: Id,
    armed: bool,
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if let Err(error) = clean(&self.id) {
            eprintln!("cleaning up after {}: {error:#}", self.id);
        }
    }
}

fn mount_bpffs() -> Result<()> {
    // Every mount is a file system of its own: a second one would hide the pins in the first.
    let _lock = netns::lock()?;
    let mounted = || statfs(BPFFS).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
    if mounted() {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting the BPF filesystem on {BPFFS}"))
}
