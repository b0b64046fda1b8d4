//! The kernel side from user space: loads the eBPF programs, keeps their maps in step with the pods
//! that are enrolled, and answers for redirected sockets. Only this crate knows the ABI.
//!
//! Everything is pinned below one directory and outlives the agent:
//!
//! ```text
//! BPFFS/vN/maps/PODS …            the maps
//! BPFFS/vN/links/orlop_connect4 … links at the cgroup2 root
//! BPFFS/vN/pods/<netns cookie>    one sk_lookup link a pod
//! ```
//!
//! `N` is the version of the layout: what an agent of another one has pinned is in force until this one has
//! enrolled the same pods, and never read, but for the maps of the boot gate, which all layouts share.

mod cgroup;
mod code;
mod diag;
mod error;
mod events;
mod features;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gate;
mod layouts;
mod links;
mod maps;
mod object;
mod ring;
mod services;
mod sockets;
mod sys;
mod udp;
mod verdicts;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    net::IpAddr,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sys::statfs;
pub use orlop_common::ABI_VERSION;
use orlop_common::{
    Address, DNS_PORT, HBONE_PORT, INBOUND_PLAINTEXT_PORT, ListenerKey, OUTBOUND_PORT, Pod, PodPort, Refusal,
    TCP, UDP,
};
use orlop_model::Snapshot;

pub use crate::{
    code::let_go_of_code,
    diag::{Wanted, can_close},
    error::DatapathError,
    events::{Ending, Event, Events, RefusedConnection, VouchedConnection},
    features::{Feature, Version, capabilities, features},
    gate::{CgroupId, Gate},
    services::Services,
    sockets::Sockets,
    udp::{UdpExchange, UdpTraffic},
    verdicts::{AllowedPair, Verdicts},
};
use crate::{maps::Map, object::Constants, udp::Udp};

/// `SO_NETNS_COOKIE` of a pod: unique for as long as the machine runs.
pub type NetnsCookie = u64;

/// Where the data path is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Everything is pinned below it.
    pub bpffs: &'a Path,
    /// The cgroup2 hierarchy to attach to; its mount, if `None`.
    pub cgroup: Option<&'a Path>,
    /// The cgroup that every pod's is below; if `None`, what kubelet calls it, if that is there.
    pub pods_cgroup: Option<&'a Path>,
    /// The netns of the node itself, from which kubelet probes pods.
    pub node: NetnsCookie,
    /// Whether pods in [`Datapath::gate`] are held.
    pub boot_gate: bool,
}
/// Every socket that a pod may have in `LISTENERS`.
const LISTENERS: [(u32, u16); 5] = [
    (TCP, OUTBOUND_PORT),
    (TCP, INBOUND_PLAINTEXT_PORT),
    (TCP, HBONE_PORT),
    (TCP, DNS_PORT),
    (UDP, DNS_PORT),
];

/// A pod to enrol.
#[derive(Debug)]
pub struct Enrolment<'a> {
    /// The pod's netns.
    pub netns: BorrowedFd<'a>,
    /// The cookie of that netns.
    pub cookie: NetnsCookie,
    /// The pod's addresses: the first of each family counts.
    pub addresses: &'a [IpAddr],
    /// The proxy's listening sockets in that netns, by the port they stand for.
    pub listeners: &'a [(u16, BorrowedFd<'a>)],
    /// The proxy's UDP socket for DNS in that netns; without one the pod's DNS is left alone.
    pub dns: Option<BorrowedFd<'a>>,
}

/// The pinned maps and links.
#[derive(Debug)]
pub struct Datapath {
    directory: PathBuf,
    constants: Constants,
    cgroup: File,
    pods: Map<NetnsCookie, Pod>,
    addresses: Map<Address, NetnsCookie>,
    listeners: Map<ListenerKey, u32>,
    strict: Map<PodPort, u32>,
    probes: Map<PodPort, u32>,
    refused: OwnedFd,
    lost: OwnedFd,
    udp: Udp,
    verdicts: Verdicts,
    services: Services,
    sockets: Sockets,
    gate: Gate,
}

impl Datapath {
    /// Adopts the maps that are pinned and makes those that are not.
    pub fn open(place: &Place<'_>) -> Result<Self, DatapathError> {
        let directory = layouts::own(place.bpffs);
        for part in ["maps", "links", "pods"] {
            make_directory(&directory.join(part))?;
        }
        require_bpffs(&directory)?;
        let cgroup = match place.cgroup {
            Some(path) => path.to_owned(),
            None => cgroup2_mount()?,
        };
        let pods_cgroup = match pods_cgroup(&cgroup, place.pods_cgroup) {
            // Its inode's number is its id (5.5).
            Some(path) => fs::metadata(&path).map_err(file("look at", &path))?.ino(),
            None => 0,
        };
        let root = cgroup.clone();
        let cgroup = File::open(&cgroup).map_err(file("open", &cgroup))?;
        let hierarchy = cgroup.try_clone().map_err(file("open", &root))?;
        layouts::share_gate(&directory)?;
        let boot_gate = place.boot_gate.into();
        let constants = Constants { pod: 0, node: place.node, pods_cgroup, boot_gate };
        let mut loaded = object::load(Some(&directory.join("maps")), &constants)?;
        let addresses = loaded.take_map("POD_ADDRESSES")?;
        let shared = addresses.try_clone().map_err(map_error("share", "POD_ADDRESSES"))?;
        let verdicts = Verdicts::new(loaded.take_map("VERDICTS")?, loaded.take_map("EPOCH")?, shared);
        Ok(Self {
            constants,
            verdicts: verdicts.map_err(map_error("read", "EPOCH"))?,
            pods: Map::new(loaded.take_map("PODS")?),
            addresses: Map::new(addresses),
            listeners: Map::new(loaded.take_map("LISTENERS")?),
            strict: Map::new(loaded.take_map("STRICT")?),
            probes: Map::new(loaded.take_map("PROBES")?),
            refused: loaded.take_map("REFUSED")?,
            lost: loaded.take_map("LOST")?,
            udp: Udp::new(loaded.take_map("UDP_PODS")?, loaded.take_map("UDP_PEERS")?),
            gate: Gate::new(loaded.take_map("GATED")?, root, hierarchy),
            services: Services::new(loaded.take_map("SERVICES")?, loaded.take_map("LAST")?),
            sockets: Sockets::new(
                loaded.take_map("REDIRECTED")?,
                loaded.take_map("RESOLVERS")?,
                loaded.take_map("AGENT_SOCKETS")?,
            ),
            directory,
            cgroup,
        })
    }

    /// Puts this build's programs for the cgroup in force, those of an earlier agent replaced without a gap.
    pub fn attach(&self) -> Result<(), DatapathError> {
        let loaded = object::load(Some(&self.directory.join("maps")), &self.constants)?;
        links::attach_cgroup(&loaded, self.cgroup.as_fd(), &self.directory.join("links"))
    }

    /// What the proxy asks about single sockets.
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Hands a pod's sockets to the proxy, from the next connection on. Doing it again replaces the
    /// listeners, the program and the addresses, with the pod enrolled all the while.
    ///
    /// The listeners come first, so that nothing is refused on the way; an error in between leaves the
    /// pod refused or as it was, never half in clear.
    pub fn enrol(&self, enrolment: &Enrolment<'_>) -> Result<(), DatapathError> {
        let listeners = enrolment.listeners.iter().map(|(port, socket)| (TCP, *port, *socket));
        let dns = enrolment.dns.map(|socket| (UDP, DNS_PORT, socket));
        for (protocol, port, socket) in listeners.chain(dns) {
            let key = listener_key(enrolment.cookie, protocol, port);
            self.listeners
                .insert(key, socket.as_raw_fd().cast_unsigned())
                .map_err(map_error("write", "LISTENERS"))?;
        }
        for address in enrolment.addresses {
            self.addresses
                .insert(sockets::address(*address), enrolment.cookie)
                .map_err(map_error("write", "POD_ADDRESSES"))?;
        }
        self.udp.count(enrolment.cookie).map_err(map_error("write", "UDP_PODS"))?;
        let constants = Constants { pod: enrolment.cookie, ..self.constants };
        let loaded = object::load(Some(&self.directory.join("maps")), &constants)?;
        links::attach_inbound(&loaded, enrolment.netns, &self.pin_of(enrolment.cookie))?;
        let first = |ipv4: bool| {
            let address = enrolment.addresses.iter().find(|address| address.is_ipv4() == ipv4);
            address.map_or([0; 16], |address| sockets::address(*address))
        };
        let pod = Pod { ipv4: first(true), ipv6: first(false), dns: enrolment.dns.is_some().into() };
        self.pods.insert(enrolment.cookie, pod).map_err(map_error("write", "PODS"))?;
        let has = |address: Address| enrolment.addresses.iter().any(|own| sockets::address(*own) == address);
        self.forget_addresses(enrolment.cookie, has).map_err(map_error("write", "POD_ADDRESSES"))?;
        layouts::leave_pod(&self.directory, enrolment.cookie)
    }

    /// Removes what agents of other layouts have left, once everything that they served is enrolled here or withdrawn.
    /// Returns which layouts these were.
    pub fn remove_other_layouts(&self) -> Result<Vec<PathBuf>, DatapathError> {
        layouts::remove_others(&self.directory)
    }

    /// Leaves a pod's next connections alone.
    pub fn withdraw(&self, cookie: NetnsCookie) -> Result<(), DatapathError> {
        self.pods.remove(cookie).map_err(map_error("write", "PODS"))?;
        links::detach(&self.pin_of(cookie))?;
        for (protocol, port) in LISTENERS {
            let key = listener_key(cookie, protocol, port);
            self.listeners.remove(key).map_err(map_error("write", "LISTENERS"))?;
        }
        self.udp.forget(cookie).map_err(map_error("write", "UDP_PEERS"))?;
        self.forget_addresses(cookie, |_| false).map_err(map_error("write", "POD_ADDRESSES"))?;
        self.set_strict(cookie, &BTreeMap::new())?;
        self.set_probes(cookie, Some(&BTreeSet::new()))?;
        layouts::leave_pod(&self.directory, cookie)
    }

    /// Refuses in the kernel what comes to a pod without mutual TLS, on the ports that `strict` says; what it
    /// says of port 0 is for all others. What it says nothing of is the proxy's to decide.
    pub fn set_strict(&self, cookie: NetnsCookie, strict: &BTreeMap<u16, bool>) -> Result<(), DatapathError> {
        let strict = strict.iter().map(|(&port, &strict)| (port, u32::from(strict))).collect();
        set_ports(&self.strict, cookie, &strict).map_err(map_error("write", "STRICT"))
    }

    /// Lets the node's own probes come to these ports of a pod, whatever its policy; where nobody says which they
    /// are, to every port.
    pub fn set_probes(
        &self,
        cookie: NetnsCookie,
        ports: Option<&BTreeSet<u16>>,
    ) -> Result<(), DatapathError> {
        let ports = match ports {
            Some(ports) => ports.iter().map(|&port| (port, 1)).collect(),
            None => [(0, 1)].into(),
        };
        set_ports(&self.probes, cookie, &ports).map_err(map_error("write", "PROBES"))
    }

    /// Which pods of this node may talk without the proxy.
    pub fn verdicts(&self) -> &Verdicts {
        &self.verdicts
    }

    /// Judges every pair of pods that talks without the proxy anew, as [`Verdicts::renew`].
    pub fn renew_verdicts(
        &self,
        generation: u64,
        allowed: impl Fn(&AllowedPair) -> bool,
    ) -> Result<Vec<AllowedPair>, DatapathError> {
        self.verdicts.renew(generation, allowed).map_err(map_error("write", "VERDICTS"))
    }

    /// The kernel need not know of these any more, as [`Verdicts::forget`].
    pub fn forget_verdicts(
        &self,
        revoked: impl IntoIterator<Item = AllowedPair>,
    ) -> Result<(), DatapathError> {
        self.verdicts.forget(revoked).map_err(map_error("write", "VERDICTS"))
    }

    /// Which pods are held until they are enrolled.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The services of which the hooks choose endpoints.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// Has the hooks choose the endpoints of the services of this snapshot, or, without one, of none.
    pub fn renew_services(&self, snapshot: Option<&Arc<Snapshot>>) -> Result<(), DatapathError> {
        self.services.renew(snapshot).map_err(map_error("write", "SERVICES"))
    }

    /// Closes, with a reset, the connections of a netns that are wanted. Returns how many.
    pub fn close(&self, netns: BorrowedFd<'_>, wanted: &[Wanted]) -> Result<usize, DatapathError> {
        diag::close(netns, wanted).map_err(DatapathError::Close)
    }

    /// What the hooks tell.
    pub fn events(&self) -> Result<Events, DatapathError> {
        let maps = self.directory.join("maps");
        let ring = sys::object_get(&maps.join("EVENTS")).map_err(map_error("open", "EVENTS"))?;
        Events::open(ring, &maps)
    }

    /// How many events were lost, since they came too often or nobody read them, since the maps were made.
    pub fn lost_events(&self) -> Result<u64, DatapathError> {
        let counts = maps::per_cpu(self.lost.as_fd(), 0, possible_cpus()?);
        Ok(counts.map_err(map_error("read", "LOST"))?.iter().sum())
    }

    /// What each enrolled pod exchanged over UDP since it was enrolled.
    pub fn udp_of_pods(&self) -> Result<Vec<(NetnsCookie, UdpTraffic)>, DatapathError> {
        self.udp.of_pods().map_err(map_error("read", "UDP_PODS"))
    }

    /// What enrolled pods exchanged over UDP by peer; of many peers those of late.
    pub fn udp_exchanges(&self) -> Result<Vec<UdpExchange>, DatapathError> {
        self.udp.exchanges().map_err(map_error("read", "UDP_PEERS"))
    }

    /// Those that the pod has no longer.
    fn forget_addresses(&self, cookie: NetnsCookie, has: impl Fn(Address) -> bool) -> io::Result<()> {
        for address in self.addresses.keys()?.into_iter().filter(|address| !has(*address)) {
            // Another pod may have it by now.
            if self.addresses.get(address)? == Some(cookie) {
                self.addresses.remove(address)?;
            }
        }
        Ok(())
    }

    /// The pods that are enrolled in the kernel, by this agent or an earlier one, whatever its layout.
    pub fn enrolled(&self) -> Result<Vec<NetnsCookie>, DatapathError> {
        let mut cookies = self.pods.keys().map_err(map_error("list", "PODS"))?;
        // A link without an entry is left by an agent that died between the two.
        let pins = layouts::list(&self.directory.join("pods"))?;
        cookies.extend(pins.iter().filter_map(|pin| layouts::cookie_of(pin)));
        cookies.extend(layouts::pods(&self.directory)?);
        cookies.sort_unstable();
        cookies.dedup();
        Ok(cookies)
    }

    /// Whether the netns of an enrolled pod is gone for good. What can't be told is there.
    pub fn is_gone(&self, cookie: NetnsCookie) -> Result<bool, DatapathError> {
        layouts::lost_netns(&self.directory, cookie)
    }

    /// How often the hooks refused by themselves, by reason, since they were first pinned.
    pub fn refused(&self) -> Result<Vec<(&'static str, u64)>, DatapathError> {
        let cpus = possible_cpus()?;
        Refusal::ALL
            .into_iter()
            .map(|refusal| {
                let counts = maps::per_cpu(self.refused.as_fd(), refusal as u32, cpus)
                    .map_err(map_error("read", "REFUSED"))?;
                Ok((refusal.as_str(), counts.iter().sum()))
            })
            .collect()
    }

    fn pin_of(&self, cookie: NetnsCookie) -> PathBuf {
        self.directory.join("pods").join(cookie.to_string())
    }
}

/// Removes everything below `bpffs`: the kernel detaches every hook, and pods talk in clear again.
pub fn remove(bpffs: &Path) -> Result<(), DatapathError> {
    if !bpffs.exists() {
        return Ok(());
    }
    require_bpffs(bpffs)?;
    layouts::list(bpffs)?.iter().try_for_each(|layout| layouts::remove(layout))?;
    fs::remove_dir_all(bpffs).map_err(file("remove", bpffs))
}

/// Has exactly these ports of a pod in a map.
fn set_ports(map: &Map<PodPort, u32>, cookie: NetnsCookie, ports: &BTreeMap<u16, u32>) -> io::Result<()> {
    let key = |port: u16| PodPort { netns: cookie, port: u32::from(port), reserved: 0 };
    for (&port, &value) in ports {
        map.insert(key(port), value)?;
    }
    let wanted = |known: &PodPort| ports.keys().any(|&port| key(port) == *known);
    let stale = map.keys()?.into_iter().filter(|known| known.netns == cookie && !wanted(known));
    stale.into_iter().try_for_each(|stale| map.remove(stale))
}

fn listener_key(netns: NetnsCookie, protocol: u32, port: u16) -> ListenerKey {
    ListenerKey { netns, port: u32::from(port), protocol }
}

fn make_directory(path: &Path) -> Result<(), DatapathError> {
    fs::create_dir_all(path).map_err(file("make", path))
}

fn require_bpffs(path: &Path) -> Result<(), DatapathError> {
    let found = statfs::statfs(path).map_err(|errno| file("look at", path)(errno.into()))?;
    if found.filesystem_type() == statfs::BPF_FS_MAGIC {
        return Ok(());
    }
    Err(DatapathError::NotBpffs(path.to_owned()))
}

/// Mount point of the cgroup2 hierarchy, which on a hybrid machine is not /sys/fs/cgroup.
pub fn cgroup2_mount() -> Result<PathBuf, DatapathError> {
    let mounts = Path::new("/proc/mounts");
    let mounts = fs::read_to_string(mounts).map_err(file("read", mounts))?;
    mounts
        .lines()
        .find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path))
        })
        .ok_or(DatapathError::NoCgroup)
}

/// The cgroup that every pod's is below: the one `named`, else what kubelet calls it, if `root` has it.
pub fn pods_cgroup(root: &Path, named: Option<&Path>) -> Option<PathBuf> {
    let usual =
        || ["kubepods.slice", "kubepods"].map(|name| root.join(name)).into_iter().find(|p| p.is_dir());
    named.map(Path::to_owned).or_else(usual)
}

/// Highest possible CPU plus one, as per-CPU maps count them.
fn possible_cpus() -> Result<usize, DatapathError> {
    let path = Path::new("/sys/devices/system/cpu/possible");
    let text = fs::read_to_string(path).map_err(file("read", path))?;
    let highest = text.trim().rsplit(['-', ',']).next().and_then(|cpu| cpu.parse::<usize>().ok());
    highest
        .map(|highest| highest + 1)
        .ok_or_else(|| file("understand", path)(io::ErrorKind::InvalidData.into()))
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DatapathError {
    let path = path.to_owned();
    move |source| DatapathError::File { action, path, source }
}

fn map_error(action: &'static str, map: &'static str) -> impl Fn(io::Error) -> DatapathError {
    move |source| DatapathError::Map { action, map, source }
}
