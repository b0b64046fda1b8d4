use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use orlop_common::{Address, Pair, Verdict};

use crate::{NetnsCookie, maps::Map, sockets};

/// Further pairs of one pod go through the proxy, so that it can't take the room of all.
const MAX_OF_A_POD: usize = 4096;
/// An epoch that is earlier than any that is in force.
const NEVER: u64 = 0;

/// Which pods of this node may talk without the proxy. Cheap to clone; used from every thread at once.
///
/// The kernel's map is a cache of what policy says: each entry is of an epoch, and one number puts all entries of
/// earlier epochs out of force, such as those that another agent wrote. No entry is pushed out by others, so that every
/// pair that may have connections open is known until it is judged anew.
#[derive(Clone, Debug)]
pub struct Verdicts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pairs: Map<Pair, Verdict>,
    epoch: Map<u32, u64>,
    addresses: Map<Address, NetnsCookie>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Of the snapshot that the kernel is in step with; 0 before the first.
    generation: u64,
    epoch: u64,
    /// What is in the kernel.
    known: HashMap<Pair, Verdict>,
    of_pod: HashMap<NetnsCookie, usize>,
}

/// A pair that the kernel has been told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AllowedPair {
    /// The netns of the pod that dials.
    pub source: NetnsCookie,
    /// The address it dials from.
    pub source_ip: IpAddr,
    /// What it dials.
    pub destination: SocketAddr,
    /// The netns of the pod that has this address.
    pub pod: NetnsCookie,
}

impl Verdicts {
    pub(crate) fn new(pairs: OwnedFd, epoch: OwnedFd, addresses: OwnedFd) -> io::Result<Self> {
        let (pairs, epoch) = (Map::new(pairs), Map::new(epoch));
        let current = epoch.get(0)?.unwrap_or(0);
        let state = State { generation: 0, epoch: current, known: HashMap::new(), of_pod: HashMap::new() };
        let addresses = Map::new(addresses);
        Ok(Self(Arc::new(Inner { pairs, epoch, addresses, state: Mutex::new(state) })))
    }

    /// Lets `source`, which dials from `source_ip`, reach `destination` without the proxy, as the snapshot of this
    /// generation says. Does nothing if that is not the one in force, or if there is no room: the proxy carries
    /// the connection then.
    pub fn allow(
        &self,
        generation: u64,
        source: NetnsCookie,
        source_ip: IpAddr,
        destination: SocketAddr,
    ) -> io::Result<()> {
        let key = key(source, destination);
        let mut state = self.state();
        let full = state.of_pod.get(&source).is_some_and(|pairs| *pairs >= MAX_OF_A_POD);
        if generation != state.generation || state.known.contains_key(&key) || full {
            return Ok(());
        }
        let Some(pod) = self.0.addresses.get(key.destination)? else { return Ok(()) };
        let verdict = Verdict { pod, source: sockets::address(source_ip), epoch: state.epoch };
        match self.0.pairs.insert(key, verdict) {
            Err(error) if error.raw_os_error() == Some(nix::libc::E2BIG) => return Ok(()),
            result => result?,
        }
        state.add(key, verdict);
        Ok(())
    }

    /// Judges every pair anew for the snapshot of this generation, and puts out of force all that `allowed` does not
    /// allow any more. Returns those: their connections may still be open, and the kernel has them until they are
    /// [forgotten](Self::forget), so that the next agent is told of them too if this one ends before.
    ///
    /// Pairs that stay are in force all the time. If this fails none is.
    pub fn renew(
        &self,
        generation: u64,
        allowed: impl Fn(&AllowedPair) -> bool,
    ) -> io::Result<Vec<AllowedPair>> {
        let mut state = self.state();
        let epoch = self.0.epoch.get(0)?.unwrap_or(0);
        let renewed = self.judge(&mut state, epoch, allowed);
        match &renewed {
            Ok(_) => state.generation = generation,
            // The next one reads what is there.
            Err(_) => self.0.epoch.insert(0, epoch.max(state.epoch) + 1)?,
        }
        renewed
    }

    fn judge(
        &self,
        state: &mut State,
        epoch: u64,
        allowed: impl Fn(&AllowedPair) -> bool,
    ) -> io::Result<Vec<AllowedPair>> {
        // The first time, and where another agent has been here, as during an upgrade.
        let is_foreign = state.generation == 0 || epoch != state.epoch;
        let pairs = match is_foreign {
            true => self.0.pairs.entries()?,
            false => state.known.iter().map(|(key, verdict)| (*key, *verdict)).collect(),
        };
        let mut pods = HashMap::new();
        let (mut known, mut revoked) = (Vec::new(), Vec::new());
        for (key, verdict) in pairs {
            let pod = match pods.entry(key.destination) {
                Entry::Occupied(pod) => *pod.get(),
                Entry::Vacant(pod) => *pod.insert(self.0.addresses.get(key.destination)?),
            };
            let pair = pair(&key, &verdict);
            let is_allowed = pod == Some(verdict.pod) && allowed(&pair);
            let list = if is_allowed { &mut known } else { &mut revoked };
            list.push((key, verdict));
        }
        if is_foreign {
            state.epoch = epoch.max(state.epoch) + 1;
            for (key, verdict) in &mut known {
                // In force already: it is of a later epoch than the current one.
                verdict.epoch = state.epoch;
                self.0.pairs.insert(*key, *verdict)?;
            }
            self.0.epoch.insert(0, state.epoch)?;
        }
        if !is_foreign {
            for (key, verdict) in &revoked {
                self.0.pairs.insert(*key, Verdict { epoch: NEVER, ..*verdict })?;
            }
        }
        (state.known, state.of_pod) = Default::default();
        known.into_iter().for_each(|(key, verdict)| state.add(key, verdict));
        Ok(revoked.iter().map(|(key, verdict)| pair(key, verdict)).collect())
    }

    /// None of their connections is open any more.
    pub fn forget(&self, revoked: impl IntoIterator<Item = AllowedPair>) -> io::Result<()> {
        let state = self.state();
        let keys = revoked.into_iter().map(|pair| key(pair.source, pair.destination));
        // One may be allowed again by now.
        keys.filter(|key| !state.known.contains_key(key)).try_for_each(|key| self.0.pairs.remove(key))
    }

    /// How many pairs talk without the proxy.
    pub fn pairs(&self) -> usize {
        self.state().known.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, key: Pair, verdict: Verdict) {
        self.known.insert(key, verdict);
        *self.of_pod.entry(key.source).or_default() += 1;
    }
}

fn key(source: NetnsCookie, destination: SocketAddr) -> Pair {
    Pair {
        source,
        destination: sockets::address(destination.ip()),
        port: u32::from(destination.port()),
        reserved: 0,
    }
}

fn pair(key: &Pair, verdict: &Verdict) -> AllowedPair {
    AllowedPair {
        source: key.source,
        source_ip: sockets::ip(verdict.source),
        destination: SocketAddr::new(sockets::ip(key.destination), key.port as u16),
        pod: verdict.pod,
    }
}
