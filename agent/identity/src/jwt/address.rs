use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where clouds answer machines about themselves, beside the link-local address that they share.
const METADATA: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// Says why keys must not be asked for at this address: who may write a RequestAuthentication must not make of the
/// proxy a way to where only the node, or the proxy itself, can go.
pub(super) fn refused(address: IpAddr, own: &[IpAddr]) -> Option<&'static str> {
    let address = address.to_canonical();
    if own.iter().any(|own| own.to_canonical() == address) {
        return Some("is of the node itself");
    }
    if METADATA.contains(&address) {
        return Some("is a cloud's metadata service");
    }
    match address {
        IpAddr::V4(ip) => of_v4(ip),
        IpAddr::V6(ip) => of_v6(ip, own),
    }
}

fn of_v4(ip: Ipv4Addr) -> Option<&'static str> {
    match ip.octets() {
        [127, ..] => Some("is a loopback address"),
        [169, 254, ..] => Some("is link-local"),
        [0, ..] => Some("is unspecified"),
        [224..=239, ..] => Some("is multicast"),
        [240..=255, ..] => Some("is nobody's"),
        _ => None,
    }
}

fn of_v6(ip: Ipv6Addr, own: &[IpAddr]) -> Option<&'static str> {
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        refused(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), own)
    };
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("is unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("is a loopback address"),
        // An address of IPv4 in one of IPv6: compatible, translated (RFC 6052, RFC 6145), and 6to4.
        [0, 0, 0, 0, 0, 0, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => embedded(high, low),
        // Whatever is translated there is the network's own affair, and nobody's whom we could ask.
        [0x64, 0xff9b, 1, ..] => Some("is translated locally"),
        [0x2001, 0, ..] => Some("is of a tunnel"),
        [0xfe80..=0xfebf, ..] => Some("is link-local"),
        [0xfec0..=0xfeff, ..] => Some("is site-local"),
        [0xff00..=0xffff, ..] => Some("is multicast"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_the_node_can_reach_is_refused_in_every_spelling() {
        let own = ["192.0.2.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        for text in [
            "127.0.0.1",
            "127.255.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "2001::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "168.63.129.16",
            "64:ff9b::6464:64c8",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "::ffff:0.0.0.0",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.7",
            "::ffff:192.0.2.7",
            "::192.0.2.7",
            "64:ff9b::192.0.2.7",
            "2002:c000:207::1",
            "fd00::7",
        ] {
            assert!(refused(text.parse().unwrap(), &own).is_some(), "{text}");
        }
        for text in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "8.8.8.8",
            "fd00::8",
            "2606:4700::1",
            "64:ff9b::808:808",
        ] {
            assert_eq!(refused(text.parse().unwrap(), &own), None, "{text}");
        }
    }
}
