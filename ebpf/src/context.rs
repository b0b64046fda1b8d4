//! The one reader and writer of hook contexts and socket storage: all of the crate's raw access.
//!
//! The verifier allows context loads and stores of exact sizes only, hence the volatile words.

use core::{arch::asm, mem::size_of, ptr};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_CURRENT_NETNS, BPF_TCP_LISTEN, bpf_sk_lookup, bpf_sock, bpf_sock_addr, bpf_sock_ops,
        bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1 as Addresses,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
    },
    btf_maps::{SkStorage, SockHash},
    helpers::generated::{
        bpf_bind, bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_prandom_u32,
        bpf_getsockopt, bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_setsockopt, bpf_sk_ancestor_cgroup_id,
        bpf_sk_release, bpf_sk_storage_delete, bpf_sk_storage_get, bpf_skc_lookup_tcp,
    },
    programs::{SkLookupContext, SockAddrContext, SockContext, SockOpsContext},
};
use orlop_common::{Address, Endpoint, Flow, ListenerKey, TCP, TrustedFlow, UDP};

pub use crate::address::{is_ipv4, is_ipv6_link_local, is_loopback, mapped, same};
use crate::address::{split, words};
pub use packet::{Datagram, is_from_or_to_loopback, packet_ends, socket_of};

/// `AF_INET`
pub const AF_INET: u32 = 2;
const AF_INET6: u16 = 10;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
/// `IPPROTO_MPTCP`
const MPTCP: u32 = 262;
/// `IPPROTO_SMC`, since Linux 6.11
const SMC: u32 = 256;
const BPF_SK_STORAGE_GET_F_CREATE: u64 = 1;
const TCP_CONGESTION: i32 = 13;
const TCP_SYNCNT: i32 = 7;
/// Ticks of the kernel's clock, of which there are 250 or 1,000 a second as a rule.
const FIRST_RETRY: u32 = 5;
/// 2^6 times that is a second, or a third of one, after which the kernel retries first by itself.
const MORE_RETRIES: u32 = 6;
/// `net.ipv4.tcp_syn_retries` by default (ip-sysctl.rst). Who asks for more has time.
const USUAL_RETRIES: u32 = 6;
/// Always built in, and it never paces.
const RENO: [u8; 5] = *b"reno\0";

/// Reads one word of a context field.
macro_rules! load {
    ($context:expr, $($field:tt)+) => {
        // SAFETY: the kernel hands each hook a valid context, and the verifier checks the load.
        unsafe { ptr::read_volatile(&raw const (*$context).$($field)+) }
    };
}

/// Writes one word of a context field.
macro_rules! store {
    ($value:expr => $context:expr, $($field:tt)+) => {
        // SAFETY: as for `load`; the verifier checks that the hook may write the field.
        unsafe { ptr::write_volatile(&raw mut (*$context).$($field)+, $value) }
    };
}

/// Reads the four words of an IPv6 address, in a function of its own: next to the load of an IPv4 address
/// LLVM would share one load between both, through a computed pointer, which the verifier refuses.
macro_rules! load_ipv6 {
    ($name:ident, $context:ty, $field:ident) => {
        #[inline(never)]
        fn $name(context: *mut $context) -> Address {
            words([
                load!(context, $field[0]),
                load!(context, $field[1]),
                load!(context, $field[2]),
                load!(context, $field[3]),
            ])
        }
    };
}

mod packet;

load_ipv6!(user_ip6, bpf_sock_addr, user_ip6);
load_ipv6!(src_ip6, bpf_sock, src_ip6);
load_ipv6!(ops_local_ip6, bpf_sock_ops, local_ip6);
load_ipv6!(ops_remote_ip6, bpf_sock_ops, remote_ip6);
load_ipv6!(lookup_local_ip6, bpf_sk_lookup, local_ip6);
load_ipv6!(lookup_remote_ip6, bpf_sk_lookup, remote_ip6);

/// The counterpart for writing.
#[inline(never)]
fn set_user_ip6(context: *mut bpf_sock_addr, address: &Address) {
    let ip = split(*address);
    store!(ip[0] => context, user_ip6[0]);
    store!(ip[1] => context, user_ip6[1]);
    store!(ip[2] => context, user_ip6[2]);
    store!(ip[3] => context, user_ip6[3]);
}

/// Any number.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: the helper has no conditions.
    unsafe { bpf_get_prandom_u32() }
}

/// Four bits that spread endpoints that are alike (Fibonacci hashing).
#[inline(always)]
pub fn hash(endpoint: &Endpoint) -> u32 {
    const GOLDEN_RATIO: u32 = 0x9e37_79b9;
    let [a, b, c, d] = split(endpoint.address);
    let address = (a ^ b ^ c ^ u32::from_be(d)).wrapping_mul(GOLDEN_RATIO);
    address.wrapping_add(u32::from(endpoint.port)).wrapping_mul(GOLDEN_RATIO) >> 28
}

/// `struct sockaddr_in` of linux/in.h.
#[repr(C)]
struct SockaddrIn {
    family: u16,
    port_be: u16,
    address: u32,
    zero: [u8; 8],
}

/// `struct sockaddr_in6` of linux/in6.h.
#[repr(C)]
struct SockaddrIn6 {
    family: u16,
    port_be: u16,
    flowinfo: u32,
    address: Address,
    scope: u32,
}

/// A context of a `cgroup/` hook that is about an address. A hook of one family may not touch the other's fields.
pub struct SockAddr<const IPV4: bool>(*mut bpf_sock_addr);

impl<const IPV4: bool> SockAddr<IPV4> {
    #[inline(always)]
    pub fn new(ctx: &SockAddrContext) -> Self {
        Self(ctx.sock_addr)
    }

    #[inline(always)]
    pub fn netns(&self) -> u64 {
        // SAFETY: the helper accepts any context of this program type.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        load!(self.0, type_) == SOCK_STREAM && load!(self.0, protocol) == TCP
    }

    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        load!(self.0, type_) == SOCK_DGRAM && load!(self.0, protocol) == UDP
    }

    /// The address that the call was made with, or is about to return.
    #[inline(always)]
    pub fn endpoint(&self) -> Endpoint {
        let address = if IPV4 { mapped(load!(self.0, user_ip4)) } else { user_ip6(self.0) };
        Endpoint { address, port: u16::from_be(load!(self.0, user_port) as u16), reserved: 0 }
    }

    /// Replaces [`Self::endpoint`]. An IPv6 address does not fit an IPv4 context: then nothing is written.
    #[inline(always)]
    pub fn set_endpoint(&self, endpoint: &Endpoint) {
        if IPV4 {
            if !is_ipv4(&endpoint.address) {
                return;
            }
            let [.., ip] = split(endpoint.address);
            store!(ip => self.0, user_ip4);
        } else {
            set_user_ip6(self.0, &endpoint.address);
        }
        store!(u32::from(endpoint.port.to_be()) => self.0, user_port);
    }

    #[inline(always)]
    pub fn socket(&self) -> *mut bpf_sock {
        load!(self.0, __bindgen_anon_1.sk)
    }

    /// The port that the socket was bound to, or 0.
    #[inline(always)]
    pub fn source_port(&self) -> u16 {
        let socket = self.socket();
        if socket.is_null() {
            return 0;
        }
        load!(socket, src_port) as u16
    }

    /// Whether the socket was bound to an address other than `own`.
    #[inline(always)]
    pub fn is_bound_elsewhere(&self, own: &Address) -> bool {
        let socket = self.socket();
        if socket.is_null() {
            return true;
        }
        let bound = if IPV4 { mapped(load!(socket, src_ip4)) } else { src_ip6(socket) };
        !is_loopback(&bound) && !same(&bound, own)
    }

    /// Whether there is a connection, of whatever state, from a port of this netns's `address` to another port
    /// of it.
    #[inline(always)]
    pub fn is_connected(&self, address: &Address, from: u16, to: u16) -> bool {
        let ip = split(*address);
        let (sport, dport) = (to.to_be(), from.to_be());
        let (addresses, size) = if IPV4 {
            let ipv4 = Tuple4 { saddr: ip[3], daddr: ip[3], sport, dport };
            (Addresses { ipv4 }, size_of::<Tuple4>())
        } else {
            let ipv6 = Tuple6 { saddr: ip, daddr: ip, sport, dport };
            (Addresses { ipv6 }, size_of::<Tuple6>())
        };
        let mut tuple = bpf_sock_tuple { __bindgen_anon_1: addresses };
        // SAFETY: the helper accepts any context of this program type (5.2), and reads `size` bytes of the
        // tuple, which are those of its family.
        let found = unsafe {
            bpf_skc_lookup_tcp(self.0.cast(), &raw mut tuple, size as u32, BPF_F_CURRENT_NETNS as u64, 0)
        };
        if found.is_null() {
            return false;
        }
        let state = load!(found, state);
        // SAFETY: it was found just now, and is not looked at again.
        unsafe { bpf_sk_release(found.cast()) };
        state != BPF_TCP_LISTEN
    }

    /// The address that the socket was bound to; unspecified if it was not.
    #[inline(always)]
    pub fn source(&self) -> Address {
        if IPV4 { mapped(load!(self.socket(), src_ip4)) } else { src_ip6(self.socket()) }
    }

    /// Binds a socket that has no port yet, in a connect hook (5.8). False if the port is taken.
    #[inline(always)]
    pub fn bind(&self, port: u16) -> bool {
        let address = self.source();
        let port_be = port.to_be();
        // SAFETY: the helper reads as many bytes of the address as it is told.
        let result = unsafe {
            if IPV4 {
                let [.., address] = split(address);
                let mut name = SockaddrIn { family: AF_INET as u16, port_be, address, zero: [0; 8] };
                bpf_bind(self.0, (&raw mut name).cast(), size_of::<SockaddrIn>() as i32)
            } else {
                let mut name = SockaddrIn6 { family: AF_INET6, port_be, flowinfo: 0, address, scope: 0 };
                bpf_bind(self.0, (&raw mut name).cast(), size_of::<SockaddrIn6>() as i32)
            }
        };
        result == 0
    }
}

/// A `sock_ops` context.
pub struct SockOps(*mut bpf_sock_ops);

impl SockOps {
    #[inline(always)]
    pub fn new(ctx: &SockOpsContext) -> Self {
        Self(ctx.ops)
    }

    #[inline(always)]
    pub fn op(&self) -> u32 {
        load!(self.0, op)
    }

    /// Second argument of the callback: the new state, for a state callback.
    #[inline(always)]
    pub fn new_state(&self) -> u32 {
        load!(self.0, __bindgen_anon_1.args[1])
    }

    /// What TCP knows of the connection: bytes acknowledged and received, smoothed round-trip time in
    /// microseconds, segments sent again.
    #[inline(always)]
    pub fn figures(&self) -> (u64, u64, u32, u32) {
        (
            load!(self.0, bytes_acked),
            load!(self.0, bytes_received),
            // The kernel keeps eight times the time.
            load!(self.0, srtt_us) >> 3,
            load!(self.0, total_retrans),
        )
    }

    /// The socket, or null while the kernel has only a request for one.
    #[inline(always)]
    pub fn socket(&self) -> *mut bpf_sock {
        load!(self.0, __bindgen_anon_2.sk)
    }

    /// Chooses plain congestion control for a connection that never leaves its pod's netns: what a node's
    /// administrator chose for the network, BBR for one, would pace it by timers. The kernel has not begun
    /// congestion control at the callbacks where this is used. A failure leaves the node's choice.
    #[inline(always)]
    pub fn stays_in_pod(&self) {
        let mut name = RENO;
        // SAFETY: the helper accepts any context of this program type (4.13), and reads `name` alone.
        unsafe {
            bpf_setsockopt(
                self.0.cast(),
                TCP as i32,
                TCP_CONGESTION,
                name.as_mut_ptr().cast(),
                name.len() as i32,
            );
        }
    }

    /// At `TIMEOUT_INIT`: has the first SYN sent again after some ticks of the kernel's clock, and so many times more that
    /// all of them take about as long as they would have. Whether that could be; then [`Self::usual_retries`] takes it
    /// back.
    #[inline(always)]
    pub fn first_retry_soon(&self) -> bool {
        let retries = self.syn_retries();
        let hurried = (1..=USUAL_RETRIES).contains(&retries) && self.set_syn_retries(retries + MORE_RETRIES);
        if hurried {
            store!(FIRST_RETRY => self.0, __bindgen_anon_1.reply);
        }
        hurried
    }

    #[inline(always)]
    pub fn usual_retries(&self) {
        let retries = self.syn_retries();
        if retries > MORE_RETRIES {
            self.set_syn_retries(retries - MORE_RETRIES);
        }
    }

    /// 0 where the kernel can't tell (before 6.1).
    #[inline(always)]
    fn syn_retries(&self) -> u32 {
        let mut retries = 0u32;
        let (value, length) = ((&raw mut retries).cast(), size_of::<u32>() as i32);
        // SAFETY: the helper accepts any context of this program type (4.15), and writes `retries` alone.
        match unsafe { bpf_getsockopt(self.0.cast(), TCP as i32, TCP_SYNCNT, value, length) } {
            0 => retries,
            _ => 0,
        }
    }

    #[inline(always)]
    fn set_syn_retries(&self, mut retries: u32) -> bool {
        let (value, length) = ((&raw mut retries).cast(), size_of::<u32>() as i32);
        // SAFETY: the helper accepts any context of this program type (4.13), and reads `retries` alone.
        unsafe { bpf_setsockopt(self.0.cast(), TCP as i32, TCP_SYNCNT, value, length) == 0 }
    }

    #[inline(always)]
    pub fn netns(&self) -> u64 {
        // SAFETY: the helper accepts any context of this program type (5.15).
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    #[inline(always)]
    pub fn local(&self) -> Endpoint {
        let address = if load!(self.0, family) == AF_INET {
            mapped(load!(self.0, local_ip4))
        } else {
            ops_local_ip6(self.0)
        };
        Endpoint { address, port: load!(self.0, local_port) as u16, reserved: 0 }
    }

    #[inline(always)]
    pub fn remote(&self) -> Endpoint {
        let address = if load!(self.0, family) == AF_INET {
            mapped(load!(self.0, remote_ip4))
        } else {
            ops_remote_ip6(self.0)
        };
        Endpoint { address, port: u32::from_be(load!(self.0, remote_port)) as u16, reserved: 0 }
    }

    /// The connection that this socket dials.
    #[inline(always)]
    pub fn flow(&self) -> Flow {
        flow(self.netns(), &self.local(), self.remote().port)
    }

    /// The connection that this socket accepts, as the dialling side names it with [`Self::flow`].
    #[inline(always)]
    pub fn peers_flow(&self) -> Flow {
        flow(self.netns(), &self.remote(), self.local().port)
    }
}

/// The connection from `source`, as its dialling side names it, in the pod `netns`.
#[inline(always)]
pub fn flow(netns: u64, source: &Endpoint, destination_port: u16) -> Flow {
    Flow { netns, source: source.address, source_port: source.port, destination_port, reserved: 0 }
}

/// The connection from `source` to `destination`, which is in the pod `netns`.
#[inline(always)]
pub fn trusted_flow(netns: u64, source: &Endpoint, destination: &Endpoint) -> TrustedFlow {
    TrustedFlow {
        netns,
        source: source.address,
        destination: destination.address,
        source_port: source.port,
        destination_port: destination.port,
        reserved: 0,
    }
}

/// A `sk_lookup` context.
pub struct Lookup(*mut bpf_sk_lookup);

impl Lookup {
    #[inline(always)]
    pub fn new(ctx: &SkLookupContext) -> Self {
        Self(ctx.as_ptr().cast())
    }

    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        load!(self.0, protocol) == TCP
    }

    /// Whom the packet is for.
    #[inline(always)]
    pub fn local(&self) -> Endpoint {
        let address = if load!(self.0, family) == AF_INET {
            mapped(load!(self.0, local_ip4))
        } else {
            lookup_local_ip6(self.0)
        };
        Endpoint { address, port: load!(self.0, local_port) as u16, reserved: 0 }
    }

    /// Whom the packet says it is from.
    #[inline(always)]
    pub fn remote(&self) -> Endpoint {
        let address = if load!(self.0, family) == AF_INET {
            mapped(load!(self.0, remote_ip4))
        } else {
            lookup_remote_ip6(self.0)
        };
        Endpoint { address, port: u16::from_be(load!(self.0, remote_port)), reserved: 0 }
    }
}

/// Netns cookie of a socket that is being made.
#[inline(always)]
pub fn netns_of_new(ctx: &SockContext) -> u64 {
    // SAFETY: the helper accepts any context of this program type (5.7).
    unsafe { bpf_get_netns_cookie(ctx.sock.cast()) }
}

/// Whether it is a UDP socket.
#[inline(always)]
pub fn is_new_udp(ctx: &SockContext) -> bool {
    load!(ctx.sock, type_) == SOCK_DGRAM && load!(ctx.sock, protocol) == UDP
}

/// Whether it is carried by others that the kernel makes for it: MPTCP (RFC 8684) and SMC (RFC 7609).
#[inline(always)]
pub fn is_new_carried(ctx: &SockContext) -> bool {
    let protocol = load!(ctx.sock, protocol);
    protocol == MPTCP || protocol == SMC
}

/// `number`, or what its lowest four bits are. The verifier sees that it is below 16 where LLVM, which does not,
/// would do the check on another register.
#[inline(always)]
pub fn below_16(number: u32) -> usize {
    let mut index = u64::from(number);
    // SAFETY: changes the register that it is given.
    unsafe {
        asm!("{index} &= 15", index = inout(reg) index);
    }
    index as usize
}

/// Adds in one step, since other CPUs may do the same. `core` has no such thing for this target.
#[inline(always)]
pub fn add_atomically(to: &mut u64, number: u64) {
    // SAFETY: BPF's own instruction for it (3.18), on a word that may be written.
    unsafe {
        asm!("lock *(u64 *)({to} + 0) += {number}", to = in(reg) to, number = in(reg) number);
    }
}

/// Id of the calling task's ancestor cgroup at this depth below the root; 0 if it is not that deep.
#[inline(always)]
pub fn ancestor_cgroup(level: i32) -> u64 {
    // SAFETY: the helper takes any number; for hooks of connect(2) since 5.7.
    unsafe { bpf_get_current_ancestor_cgroup_id(level) }
}

/// The same of a whole socket, by who made it.
#[inline(always)]
pub fn ancestor_cgroup_of(socket: *mut bpf_sock, level: i32) -> u64 {
    // SAFETY: the helper takes any whole socket, in hooks of packets (5.8).
    unsafe { bpf_sk_ancestor_cgroup_id(socket.cast(), level) }
}

/// The monotonic clock, in nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

/// A number that the agent set when it loaded the program.
#[inline(always)]
pub fn constant(number: &'static u64) -> u64 {
    // SAFETY: a plain read; volatile, so that the value of load time is used.
    unsafe { ptr::read_volatile(number) }
}

/// What `map` keeps with `socket`.
#[inline(always)]
pub fn stored<T: Copy>(map: &SkStorage<T>, socket: *mut bpf_sock) -> Option<T> {
    // SAFETY: a null value pointer and no flags make this a plain lookup; what it returns lives as
    // long as the socket, which the hook holds.
    unsafe {
        let value = bpf_sk_storage_get(map_ptr(map), socket.cast(), ptr::null_mut(), 0);
        value.cast::<T>().as_ref().copied()
    }
}

/// Keeps `value` with `socket`. False if the kernel has no memory for it.
#[inline(always)]
pub fn store_with<T: Copy>(map: &SkStorage<T>, socket: *mut bpf_sock, value: &T) -> bool {
    // SAFETY: as for `stored`; the kernel copies `value` into a new slot, and an old slot is
    // overwritten by us alone, since one socket is in one connect call at a time.
    unsafe {
        let slot = bpf_sk_storage_get(
            map_ptr(map),
            socket.cast(),
            ptr::from_ref(value).cast_mut().cast(),
            BPF_SK_STORAGE_GET_F_CREATE,
        );
        match slot.cast::<T>().as_mut() {
            Some(slot) => {
                *slot = *value;
                true
            }
            None => false,
        }
    }
}

/// Forgets what `map` keeps with `socket`.
#[inline(always)]
pub fn forget<T>(map: &SkStorage<T>, socket: *mut bpf_sock) {
    // SAFETY: deleting what is not there is an error that changes nothing.
    unsafe {
        bpf_sk_storage_delete(map_ptr(map), socket.cast());
    }
}

/// Whether `map` has a socket for `key`: it goes when the socket is closed.
#[inline(always)]
pub fn has_socket<const N: usize>(map: &SockHash<ListenerKey, N>, key: &ListenerKey) -> bool {
    // SAFETY: the key is as large as the map's, and what is found is released once and not looked at.
    unsafe {
        let map = ptr::from_ref(map).cast_mut().cast();
        let socket = bpf_map_lookup_elem(map, ptr::from_ref(key).cast_mut().cast());
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket);
        true
    }
}

#[inline(always)]
fn map_ptr<T>(map: &SkStorage<T>) -> *mut core::ffi::c_void {
    ptr::from_ref(map).cast_mut().cast()
}
