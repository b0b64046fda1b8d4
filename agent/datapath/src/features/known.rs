//! Names of linux/bpf.h's numbers, and the first kernels with each. What is not listed is told by its number.

use super::Version;
use crate::sys::ProgramKind;

/// The section that libbpf would put such a program in.
pub fn program(kind: ProgramKind) -> (&'static str, Version) {
    match kind {
        ProgramKind::SockOps => ("sockops", Version(4, 13)),
        ProgramKind::Connect4 => ("cgroup/connect4", Version(4, 17)),
        ProgramKind::Connect6 => ("cgroup/connect6", Version(4, 17)),
        ProgramKind::Getpeername4 => ("cgroup/getpeername4", Version(5, 8)),
        ProgramKind::Getpeername6 => ("cgroup/getpeername6", Version(5, 8)),
        ProgramKind::SocketMade => ("cgroup/sock_create", Version(4, 10)),
        ProgramKind::Ingress => ("cgroup_skb/ingress", Version(4, 10)),
        ProgramKind::Egress => ("cgroup_skb/egress", Version(4, 10)),
        ProgramKind::UdpSend4 => ("cgroup/sendmsg4", Version(4, 18)),
        ProgramKind::UdpSend6 => ("cgroup/sendmsg6", Version(4, 18)),
        ProgramKind::UdpReceive4 => ("cgroup/recvmsg4", Version(5, 2)),
        ProgramKind::UdpReceive6 => ("cgroup/recvmsg6", Version(5, 2)),
        ProgramKind::SkLookup => ("sk_lookup", Version(5, 9)),
    }
}

const MAP_TYPES: &[(u32, &str, Version)] = &[
    (1, "hash", Version(3, 19)),
    (2, "array", Version(3, 19)),
    (5, "per-CPU hash", Version(4, 6)),
    (6, "per-CPU array", Version(4, 6)),
    (9, "LRU hash", Version(4, 10)),
    (10, "per-CPU LRU hash", Version(4, 10)),
    (11, "LPM trie", Version(4, 11)),
    (15, "sockmap", Version(4, 14)),
    (18, "sockhash", Version(4, 18)),
    (24, "socket storage", Version(5, 2)),
    (27, "ring buffer", Version(5, 8)),
];
/// A map type.
pub fn map_type(number: u32) -> (String, Option<Version>) {
    match MAP_TYPES.iter().find(|(known, ..)| *known == number) {
        Some((_, name, since)) => ((*name).to_owned(), Some(*since)),
        None => (format!("{number}"), None),
    }
}

const HELPERS: &[(i32, &str, Version)] = &[
    (1, "map_lookup_elem", Version(3, 19)),
    (2, "map_update_elem", Version(3, 19)),
    (3, "map_delete_elem", Version(3, 19)),
    (5, "ktime_get_ns", Version(4, 1)),
    (7, "get_prandom_u32", Version(4, 1)),
    (8, "get_smp_processor_id", Version(4, 1)),
    (14, "get_current_pid_tgid", Version(4, 2)),
    (26, "skb_load_bytes", Version(4, 5)),
    (46, "get_socket_cookie", Version(4, 12)),
    (49, "setsockopt", Version(4, 13)),
    (57, "getsockopt", Version(4, 15)),
    (59, "sock_ops_cb_flags_set", Version(4, 16)),
    // To a port that the program names; 4.17 without.
    (64, "bind", Version(5, 8)),
    (80, "get_current_cgroup_id", Version(4, 18)),
    (84, "sk_lookup_tcp", Version(4, 20)),
    (85, "sk_lookup_udp", Version(4, 20)),
    (86, "sk_release", Version(4, 20)),
    (93, "spin_lock", Version(5, 1)),
    (94, "spin_unlock", Version(5, 1)),
    (95, "sk_fullsock", Version(5, 1)),
    (99, "skc_lookup_tcp", Version(5, 2)),
    (107, "sk_storage_get", Version(5, 3)),
    (108, "sk_storage_delete", Version(5, 3)),
    (122, "get_netns_cookie", Version(5, 7)),
    (123, "get_current_ancestor_cgroup_id", Version(5, 7)),
    (124, "sk_assign", Version(5, 9)),
    (125, "ktime_get_boot_ns", Version(5, 8)),
    (129, "sk_ancestor_cgroup_id", Version(5, 8)),
    (130, "ringbuf_output", Version(5, 8)),
    (131, "ringbuf_reserve", Version(5, 8)),
    (132, "ringbuf_submit", Version(5, 8)),
    (133, "ringbuf_discard", Version(5, 8)),
];
const GET_NETNS_COOKIE: i32 = 122;

/// A helper in one kind of program: sockops got some later than the others.
pub fn helper(number: i32, kind: ProgramKind) -> (String, Option<Version>) {
    match HELPERS.iter().find(|(known, ..)| *known == number) {
        Some((GET_NETNS_COOKIE, name, _)) if kind == ProgramKind::SockOps => {
            ((*name).to_owned(), Some(Version(5, 15)))
        }
        Some((_, name, since)) => ((*name).to_owned(), Some(*since)),
        None => (format!("helper_{number}"), None),
    }
}
