//! bpf(2) where aya has no call for it: shared, lock-free map access from many threads, taking an
//! entry in one step, and links whose program can be replaced.

use std::{
    ffi::CString,
    io,
    marker::PhantomData,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr,
};

use nix::libc;
use orlop_common::{Endpoint, Flow, ListenerKey, Pod};

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;

/// `enum bpf_attach_type` of linux/bpf.h, as far as we attach.
#[repr(u32)]
#[derive(Clone, Copy, Debug)]
pub enum AttachType {
    /// `sock_ops` at a cgroup.
    CgroupSockOps = 3,
    /// connect(2), IPv4.
    CgroupInet4Connect = 10,
    /// connect(2), IPv6.
    CgroupInet6Connect = 11,
    /// getpeername(2) and accept(2), IPv4 (5.8).
    CgroupInet4Getpeername = 29,
    /// getpeername(2) and accept(2), IPv6 (5.8).
    CgroupInet6Getpeername = 30,
    /// Socket lookup in a netns (5.9).
    SkLookup = 36,
}

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
// SAFETY: a primitive.
unsafe impl Plain for u32 {}
// SAFETY: a primitive.
unsafe impl Plain for u64 {}
// SAFETY: a primitive.
unsafe impl Plain for i32 {}

/// A map of any type whose key and value sizes are those of `K` and `V`.
#[derive(Debug)]
pub struct Map<K, V> {
    fd: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

#[repr(C)]
struct Element {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// Takes the descriptor of a map.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, types: PhantomData }
    }

    /// Inserts or replaces.
    pub fn insert(&self, key: K, value: V) -> io::Result<()> {
        self.element(BPF_MAP_UPDATE_ELEM, ptr::from_ref(&key).cast(), ptr::from_ref(&value).cast_mut().cast())
    }

    /// Looks up and removes in one step (5.14 for hash maps).
    pub fn take(&self, key: K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        let key = ptr::from_ref(&key).cast();
        match self.element(BPF_MAP_LOOKUP_AND_DELETE_ELEM, key, value.as_mut_ptr().cast()) {
            // SAFETY: the kernel wrote a whole value, and V takes any bits.
            Ok(()) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes; that there was nothing to remove is no error.
    pub fn remove(&self, key: K) -> io::Result<()> {
        match self.element(BPF_MAP_DELETE_ELEM, ptr::from_ref(&key).cast(), ptr::null_mut()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Every key. Entries that come or go meanwhile may or may not be seen.
    pub fn keys(&self) -> io::Result<Vec<K>> {
        let mut keys = Vec::new();
        let mut next = MaybeUninit::<K>::uninit();
        loop {
            let previous = keys.last().map_or(ptr::null(), |key: &K| ptr::from_ref(key).cast());
            match self.element(BPF_MAP_GET_NEXT_KEY, previous, next.as_mut_ptr().cast()) {
                // SAFETY: the kernel wrote a whole key, and K takes any bits.
                Ok(()) => keys.push(unsafe { next.assume_init() }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(keys),
                Err(error) => return Err(error),
            }
        }
    }

    fn element(&self, command: libc::c_int, key: *const u8, value: *mut u8) -> io::Result<()> {
        let attributes = Element {
            map_fd: self.fd.as_raw_fd().cast_unsigned(),
            reserved: 0,
            key: key as u64,
            value: value as u64,
            flags: 0,
        };
        // SAFETY: key and value point to a K and a V (or are null where the command takes none), which
        // are as large as the map's own since the map was made from the same ABI.
        unsafe { bpf(command, &attributes) }.map(drop)
    }
}

/// Values of a per-CPU map with 8-byte values: one for each possible CPU.
pub fn per_cpu(fd: BorrowedFd<'_>, index: u32, cpus: usize) -> io::Result<Vec<u64>> {
    let mut values = vec![0u64; cpus];
    let attributes = Element {
        map_fd: fd.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: ptr::from_ref(&index) as u64,
        value: values.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: `values` holds 8 bytes for every possible CPU, which is what the kernel writes.
    unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &attributes) }?;
    Ok(values)
}

/// Opens a pinned object.
pub fn object_get(pin: &Path) -> io::Result<OwnedFd> {
    let pathname = CString::new(pin.as_os_str().as_bytes())?;
    let attributes = Object { pathname: pathname.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the path is a C string that outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &attributes) }?;
    // SAFETY: the kernel made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an object.
pub fn object_pin(object: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    let pathname = CString::new(pin.as_os_str().as_bytes())?;
    let attributes = Object {
        pathname: pathname.as_ptr() as u64,
        bpf_fd: object.as_raw_fd().cast_unsigned(),
        file_flags: 0,
    };
    // SAFETY: the path is a C string that outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &attributes) }.map(drop)
}

/// Attaches `program` to a cgroup or netns (5.7, 5.9).
pub fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_fd: target.as_raw_fd().cast_unsigned(),
        attach_type: attach_type as u32,
        flags: 0,
    };
    // SAFETY: the command reads descriptors only.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &attributes) }?;
    // SAFETY: the kernel made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts `program` behind `link` in one step (5.7): no packet or call meets neither or both.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = LinkUpdate {
        link_fd: link.as_raw_fd().cast_unsigned(),
        new_prog_fd: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: the command reads descriptors only.
    unsafe { bpf(BPF_LINK_UPDATE, &attributes) }.map(drop)
}

/// # Safety
/// `attributes` must be what `command` takes, and its pointers valid for what the command does.
unsafe fn bpf<A>(command: libc::c_int, attributes: &A) -> io::Result<RawFd> {
    // SAFETY: the caller's contract; the kernel reads size_of::<A>() bytes of `attributes`.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_ref(attributes), size_of::<A>()) };
    match RawFd::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
