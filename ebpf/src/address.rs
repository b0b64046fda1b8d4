//! What the hooks ask of addresses.

use core::mem::transmute;

use orlop_common::{Address, IPV4_MAPPED};

/// `ip` (network order, as every context has it) as an IPv4-mapped address.
#[inline(always)]
pub fn mapped(ip: u32) -> Address {
    words([0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), ip])
}

/// Whether `address` is IPv4-mapped.
#[inline(always)]
pub fn is_ipv4(address: &Address) -> bool {
    let [a, b, c, _] = split(*address);
    let [x, y, z, _] = split(mapped(0));
    a == x && b == y && c == z
}

/// Whether two addresses are the same.
#[inline(always)]
pub fn same(a: &Address, b: &Address) -> bool {
    let (a, b) = (split(*a), split(*b));
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
}

/// Whether the address names this very host: loopback or unspecified.
#[inline(always)]
pub fn is_loopback(address: &Address) -> bool {
    let [a, b, c, d] = split(*address);
    if is_ipv4(address) {
        return address[IPV4_MAPPED.len()] == 127 || d == 0;
    }
    a == 0 && b == 0 && c == 0 && u32::from_be(d) <= 1
}

/// Whether the address is in fe80::/10.
#[inline(always)]
pub fn is_ipv6_link_local(address: &Address) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}

#[inline(always)]
pub fn words(words: [u32; 4]) -> Address {
    // SAFETY: plain bytes of the same size; the words are in network order already.
    unsafe { transmute(words) }
}

#[inline(always)]
pub fn split(address: Address) -> [u32; 4] {
    // SAFETY: as above.
    unsafe { transmute(address) }
}
