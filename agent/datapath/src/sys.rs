//! bpf(2), one function a command.

use std::{
    cmp,
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr,
};

use aya_obj::generated::bpf_insn;
use nix::libc;

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_TYPE_NETNS: u32 = 5;
const BPF_BTF_LOAD: libc::c_int = 18;
const BPF_MAP_FREEZE: libc::c_int = 22;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// Names in the kernel: 15 bytes and the end.
const NAME: usize = 16;
/// The verifier's log, asked for only after a refusal.
const LOG: usize = 1 << 20;
/// A signal ends the verifier's work with EAGAIN, and it may be begun again: so many times.
const INTERRUPTIONS: usize = 5;

/// The kinds of program that we have: type and attach type of linux/bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramKind {
    /// TCP callbacks of a cgroup's sockets (4.13).
    SockOps,
    /// connect(2), IPv4 (4.17).
    Connect4,
    /// connect(2), IPv6 (4.17).
    Connect6,
    /// getpeername(2) and accept(2), IPv4 (5.8).
    Getpeername4,
    /// getpeername(2) and accept(2), IPv6 (5.8).
    Getpeername6,
    /// sendto(2) and the like on an unconnected UDP socket, IPv4.
    UdpSend4,
    /// sendto(2) and the like on an unconnected UDP socket, IPv6.
    UdpSend6,
    /// recvfrom(2) and the like on a UDP socket, IPv4 (5.2).
    UdpReceive4,
    /// recvfrom(2) and the like on a UDP socket, IPv6 (5.2).
    UdpReceive6,
    /// Socket lookup in a netns (5.9).
    SkLookup,
    /// socket(2).
    SocketMade,
    /// Packets to a cgroup's sockets.
    Ingress,
    /// Packets from a cgroup's sockets.
    Egress,
}

impl ProgramKind {
    fn program_type(self) -> u32 {
        match self {
            Self::Ingress | Self::Egress => 8,
            Self::SocketMade => 9,
            Self::SockOps => 13,
            Self::Connect4
            | Self::Connect6
            | Self::Getpeername4
            | Self::Getpeername6
            | Self::UdpSend4
            | Self::UdpSend6
            | Self::UdpReceive4
            | Self::UdpReceive6 => 18,
            Self::SkLookup => 30,
        }
    }

    fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => 0,
            Self::Egress => 1,
            Self::SocketMade => 2,
            Self::SockOps => 3,
            Self::Connect4 => 10,
            Self::Connect6 => 11,
            Self::UdpSend4 => 14,
            Self::UdpSend6 => 15,
            Self::UdpReceive4 => 19,
            Self::UdpReceive6 => 20,
            Self::Getpeername4 => 29,
            Self::Getpeername6 => 30,
            Self::SkLookup => 36,
        }
    }
}

/// What BPF_MAP_CREATE takes.
#[derive(Debug)]
pub struct MapDefinition<'a> {
    /// Up to 15 bytes are kept.
    pub name: &'a str,
    /// `enum bpf_map_type`
    pub map_type: u32,
    /// In bytes.
    pub key_size: u32,
    /// In bytes.
    pub value_size: u32,
    /// How many.
    pub max_entries: u32,
    /// `BPF_F_*`
    pub flags: u32,
    /// BTF and the ids of the key's and the value's type in it.
    pub btf: Option<(BorrowedFd<'a>, (u32, u32))>,
}

/// What BPF_PROG_LOAD takes.
#[derive(Debug)]
pub struct ProgramDefinition<'a> {
    /// Up to 15 bytes are kept.
    pub name: &'a str,
    /// Type and attach type.
    pub kind: ProgramKind,
    /// Relocated.
    pub instructions: &'a [bpf_insn],
    /// Decides which helpers may be called.
    pub license: &'a CStr,
    /// What the two infos refer to; needed if there are any.
    pub btf: Option<BorrowedFd<'a>>,
    /// Records, and the size of one.
    pub func_info: (&'a [u8], usize),
    /// Records, and the size of one.
    pub line_info: (&'a [u8], usize),
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; NAME],
    map_ifindex: u32,
    btf_fd: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
}

#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    reserved: u32,
}

#[repr(C)]
struct BtfLoad {
    btf: u64,
    btf_log_buf: u64,
    btf_size: u32,
    btf_log_size: u32,
    btf_log_level: u32,
    reserved: u32,
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
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The first fields of `struct bpf_map_info`: what must be the same on both sides of a map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapShape {
    /// `enum bpf_map_type`
    pub map_type: u32,
    id: u32,
    /// In bytes.
    pub key_size: u32,
    /// In bytes.
    pub value_size: u32,
}

/// `struct bpf_link_info`, of a link to a netns.
#[repr(C)]
#[derive(Default)]
struct NetnsLinkInfo {
    /// `enum bpf_link_type`
    kind: u32,
    id: u32,
    prog_id: u32,
    reserved: u32,
    /// 0 once the netns is gone.
    netns_ino: u32,
    attach_type: u32,
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

/// Loads BTF.
pub fn btf_load(btf: &[u8]) -> io::Result<OwnedFd> {
    let attributes = BtfLoad {
        btf: btf.as_ptr() as u64,
        btf_log_buf: 0,
        btf_size: length(btf.len())?,
        btf_log_size: 0,
        btf_log_level: 0,
        reserved: 0,
    };
    // SAFETY: the kernel reads `btf_size` bytes at `btf`.
    unsafe { bpf_fd(BPF_BTF_LOAD, &attributes) }
}

/// Makes a map.
pub fn map_create(definition: &MapDefinition<'_>) -> io::Result<OwnedFd> {
    let mut attributes = MapCreate {
        map_type: definition.map_type,
        key_size: definition.key_size,
        value_size: definition.value_size,
        max_entries: definition.max_entries,
        map_flags: definition.flags,
        map_name: name(definition.name),
        ..MapCreate::default()
    };
    if let Some((btf, (key, value))) = definition.btf {
        attributes.btf_fd = btf.as_raw_fd().cast_unsigned();
        attributes.btf_key_type_id = key;
        attributes.btf_value_type_id = value;
    }
    // SAFETY: the command reads numbers only.
    unsafe { bpf_fd(BPF_MAP_CREATE, &attributes) }
}

/// What a map holds.
pub fn map_shape(map: BorrowedFd<'_>) -> io::Result<MapShape> {
    let mut shape = MapShape::default();
    let attributes = GetInfo {
        bpf_fd: map.as_raw_fd().cast_unsigned(),
        info_len: length(size_of::<MapShape>())?,
        info: ptr::from_mut(&mut shape) as u64,
    };
    // SAFETY: the kernel writes at most `info_len` bytes at `info`, and the shape takes any.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes) }?;
    Ok(shape)
}

/// Writes the one entry of an array map, whose value has the size of `value`.
pub fn map_fill(map: BorrowedFd<'_>, value: &[u8]) -> io::Result<()> {
    let key = 0u32;
    // SAFETY: an array's key is a u32, and the map was made for values of this size.
    unsafe { element(BPF_MAP_UPDATE_ELEM, map, ptr::from_ref(&key).cast(), value.as_ptr().cast_mut()) }
}

/// No more writes from user space, which lets the verifier take the values for constants.
pub fn map_freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = map.as_raw_fd().cast_unsigned();
    // SAFETY: the command reads a descriptor only.
    unsafe { bpf(BPF_MAP_FREEZE, &attributes) }.map(drop)
}

/// One of the commands that look at, write or remove an entry.
///
/// # Safety
/// `key` and `value` must be valid for what `command` does with them in this map, or null where it
/// takes none.
pub unsafe fn element(
    command: libc::c_int,
    map: BorrowedFd<'_>,
    key: *const u8,
    value: *mut u8,
) -> io::Result<()> {
    let attributes = Element {
        map_fd: map.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: key as u64,
        value: value as u64,
        flags: 0,
    };
    // SAFETY: the caller's contract.
    unsafe { bpf(command, &attributes) }.map(drop)
}

/// The clock of the hooks, in nanoseconds.
pub fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a clock that every kernel has, and room for its time.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Loads a program. If the kernel refuses it, says why in the verifier's words.
pub fn program_load(definition: &ProgramDefinition<'_>) -> Result<OwnedFd, (io::Error, String)> {
    let attributes = program_attributes(definition).map_err(|error| (error, String::new()))?;
    // SAFETY: every pointer is to a slice of `definition` and goes with its length.
    let load = || unsafe { bpf_fd(BPF_PROG_LOAD, &attributes) };
    let mut loaded = load();
    for _ in 0..INTERRUPTIONS {
        match &loaded {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => loaded = load(),
            _ => break,
        }
    }
    let error = match loaded {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    let mut log = vec![0u8; LOG];
    let attributes =
        ProgramLoad { log_level: 1, log_size: LOG as u32, log_buf: log.as_mut_ptr() as u64, ..attributes };
    // SAFETY: as above, and the kernel writes at most `log_size` bytes of log.
    let _ = unsafe { bpf_fd(BPF_PROG_LOAD, &attributes) };
    let log = CStr::from_bytes_until_nul(&log).unwrap_or_default();
    Err((error, log.to_string_lossy().into_owned()))
}

fn program_attributes(definition: &ProgramDefinition<'_>) -> io::Result<ProgramLoad> {
    let records = |(bytes, size): (&[u8], usize)| {
        Ok::<_, io::Error>((length(bytes.len().checked_div(size).unwrap_or(0))?, length(size)?))
    };
    let (func_info_cnt, func_info_rec_size) = records(definition.func_info)?;
    let (line_info_cnt, line_info_rec_size) = records(definition.line_info)?;
    Ok(ProgramLoad {
        prog_type: definition.kind.program_type(),
        insn_cnt: length(definition.instructions.len())?,
        insns: definition.instructions.as_ptr() as u64,
        license: definition.license.as_ptr() as u64,
        prog_name: name(definition.name),
        expected_attach_type: definition.kind.attach_type(),
        prog_btf_fd: definition.btf.map_or(0, |btf| btf.as_raw_fd().cast_unsigned()),
        func_info_rec_size,
        func_info: definition.func_info.0.as_ptr() as u64,
        func_info_cnt,
        line_info_rec_size,
        line_info: definition.line_info.0.as_ptr() as u64,
        line_info_cnt,
        ..ProgramLoad::default()
    })
}

/// Opens a pinned object.
pub fn object_get(pin: &Path) -> io::Result<OwnedFd> {
    let pathname = CString::new(pin.as_os_str().as_bytes())?;
    let attributes = Object { pathname: pathname.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the path is a C string that outlives the call.
    unsafe { bpf_fd(BPF_OBJ_GET, &attributes) }
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
    kind: ProgramKind,
) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_fd: target.as_raw_fd().cast_unsigned(),
        attach_type: kind.attach_type(),
        flags: 0,
    };
    // SAFETY: the command reads descriptors only.
    unsafe { bpf_fd(BPF_LINK_CREATE, &attributes) }
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

/// Takes `link` off what it is attached to, at once (5.9). Without it the kernel does so some time after the
/// last reference has gone.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the command reads a descriptor only.
    unsafe { bpf(BPF_LINK_DETACH, &link.as_raw_fd().cast_unsigned()) }.map(drop)
}

/// Whether what `link` is attached to is a netns that is gone, or `link` was taken off it (5.9).
pub fn lost_netns(link: BorrowedFd<'_>) -> io::Result<bool> {
    let mut link_info = NetnsLinkInfo::default();
    let attributes = GetInfo {
        bpf_fd: link.as_raw_fd().cast_unsigned(),
        info_len: length(size_of::<NetnsLinkInfo>())?,
        info: ptr::from_mut(&mut link_info) as u64,
    };
    // SAFETY: the kernel writes at most `info_len` bytes at `info`, which are numbers.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes) }?;
    if link_info.kind != BPF_LINK_TYPE_NETNS {
        return Err(io::Error::other("it is no link to a netns"));
    }
    Ok(link_info.netns_ino == 0)
}

fn name(text: &str) -> [u8; NAME] {
    let mut name = [0; NAME];
    let length = cmp::min(text.len(), NAME - 1);
    name[..length].copy_from_slice(&text.as_bytes()[..length]);
    name
}

fn length(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// # Safety
/// As for [`bpf`], and a success of `command` must be a new descriptor.
unsafe fn bpf_fd<A>(command: libc::c_int, attributes: &A) -> io::Result<OwnedFd> {
    // SAFETY: the caller's contract.
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: the kernel made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// `attributes` must be what `command` takes, and its pointers valid for what the command does.
unsafe fn bpf<A>(command: libc::c_int, attributes: &A) -> io::Result<RawFd> {
    // SAFETY: the caller's contract; the kernel reads size_of::<A>() bytes of `attributes`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_ref(attributes), size_of::<A>()) };
    match RawFd::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
