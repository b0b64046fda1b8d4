//! Typed access to maps, shared by many threads without a lock.

use std::{
    io,
    marker::PhantomData,
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    ptr,
};

use nix::libc;
use orlop_common::{
    Address, Client, Dialled, Endpoint, Event, Flow, Last, ListenerKey, Pair, Pod, PodPort, Service, Traffic,
    UdpPeer, Verdict,
};

use crate::sys;

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;

/// A type that crosses into the kernel as its bytes.
///
/// # Safety
/// `repr(C)` or a primitive, without padding, and every bit pattern is a value.
pub unsafe trait Plain: Copy {}

// SAFETY: orlop-common's layout tests hold all of these to the contract.
unsafe impl Plain for Pod {}
// SAFETY: as above.
unsafe impl Plain for Endpoint {}
// SAFETY: as above.
unsafe impl Plain for Flow {}
// SAFETY: as above.
unsafe impl Plain for ListenerKey {}
// SAFETY: as above.
unsafe impl Plain for PodPort {}
// SAFETY: as above.
unsafe impl Plain for Event {}
// SAFETY: as above.
unsafe impl Plain for Traffic {}
// SAFETY: as above.
unsafe impl Plain for UdpPeer {}
// SAFETY: as above.
unsafe impl Plain for Pair {}
// SAFETY: as above.
unsafe impl Plain for Verdict {}
// SAFETY: as above.
unsafe impl Plain for Dialled {}
// SAFETY: as above.
unsafe impl Plain for Service {}
// SAFETY: as above.
unsafe impl Plain for Client {}
// SAFETY: as above.
unsafe impl Plain for Last {}
// SAFETY: bytes.
unsafe impl Plain for Address {}
// SAFETY: a primitive.
unsafe impl Plain for u32 {}
// SAFETY: a primitive.
unsafe impl Plain for u64 {}
// SAFETY: a primitive.
unsafe impl Plain for i32 {}

/// More than any of our maps holds: a map that others fill as fast as we read it would have no end.
const MAX_KEYS: usize = 1 << 18;

/// A map of any type whose key and value sizes are those of `K` and `V`.
#[derive(Debug)]
pub struct Map<K, V> {
    fd: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// Takes the descriptor of a map.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, types: PhantomData }
    }

    /// Inserts or replaces.
    pub fn insert(&self, key: K, value: V) -> io::Result<()> {
        self.element(BPF_MAP_UPDATE_ELEM, ptr::from_ref(&key), ptr::from_ref(&value).cast_mut().cast())
    }

    /// Looks up.
    pub fn get(&self, key: K) -> io::Result<Option<V>> {
        self.read(BPF_MAP_LOOKUP_ELEM, key)
    }

    /// Removes; that there was nothing to remove is no error.
    pub fn remove(&self, key: K) -> io::Result<()> {
        found(self.element(BPF_MAP_DELETE_ELEM, ptr::from_ref(&key), ptr::null_mut())).map(drop)
    }

    /// Every key, at most [`MAX_KEYS`]. Entries that come or go meanwhile may be seen or not, others twice: the kernel
    /// begins anew where it is asked for what follows a key that is gone.
    pub fn keys(&self) -> io::Result<Vec<K>> {
        let mut keys = Vec::new();
        let mut next = MaybeUninit::<K>::uninit();
        while keys.len() < MAX_KEYS {
            let previous = keys.last().map_or(ptr::null(), ptr::from_ref);
            if !found(self.element(BPF_MAP_GET_NEXT_KEY, previous, next.as_mut_ptr().cast()))? {
                return Ok(keys);
            }
            // SAFETY: the kernel wrote a whole key, and K takes any bits.
            keys.push(unsafe { next.assume_init() });
        }
        Ok(keys)
    }

    /// Every entry, with the same reservation.
    pub fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let entry = |key| Ok(self.get(key)?.map(|value| (key, value)));
        self.keys()?.into_iter().filter_map(|key| entry(key).transpose()).collect()
    }

    fn read(&self, command: libc::c_int, key: K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        if found(self.element(command, ptr::from_ref(&key), value.as_mut_ptr().cast()))? {
            // SAFETY: the kernel wrote a whole value, and V takes any bits.
            return Ok(Some(unsafe { value.assume_init() }));
        }
        Ok(None)
    }

    fn element(&self, command: libc::c_int, key: *const K, value: *mut u8) -> io::Result<()> {
        // SAFETY: key and value point to a K and a V (or K for the next key, or are null where the command
        // takes none), which are as large as the map's own, as the map was made from the same ABI.
        unsafe { sys::element(command, self.fd.as_fd(), key.cast(), value) }
    }
}

/// Removes an entry of a map whose values may be of any size; that there was nothing to remove is no error.
pub fn remove(map: BorrowedFd<'_>, key: u64) -> io::Result<()> {
    // SAFETY: the caller has a map with keys of eight bytes, and the command takes no value.
    found(unsafe { sys::element(BPF_MAP_DELETE_ELEM, map, ptr::from_ref(&key).cast(), ptr::null_mut()) })
        .map(drop)
}

/// Values of one slot of a per-CPU array of u64: one for each possible CPU.
pub fn per_cpu(map: BorrowedFd<'_>, index: u32, cpus: usize) -> io::Result<Vec<u64>> {
    let mut values = vec![0u64; cpus];
    // SAFETY: `values` holds 8 bytes for every possible CPU, which is what the kernel writes.
    unsafe {
        sys::element(BPF_MAP_LOOKUP_ELEM, map, ptr::from_ref(&index).cast(), values.as_mut_ptr().cast())
    }?;
    Ok(values)
}

fn found(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
