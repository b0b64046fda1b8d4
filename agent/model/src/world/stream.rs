//! How connections are routed in which no HTTP is read: `tls` and `tcp` of a VirtualService, and names of servers.

use super::Labels;
use super::routing::Destination;
use super::security::IpBlock;

/// An entry of `spec.tls` or `spec.tcp` of a VirtualService.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamRule {
    /// `match`; empty, which only one of `tcp` may be, matches every connection.
    pub matches: Vec<StreamMatch>,
    /// `route`: never empty, and not all weights 0.
    pub route: Vec<WeightedStream>,
}

/// An entry of `match`: all that it says must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamMatch {
    /// `sniHosts`; empty only in a rule of `tcp`.
    pub names: Vec<HostPattern>,
    /// `destinationSubnets`: where the client meant to go; empty is anywhere.
    pub destinations: Vec<IpBlock>,
    /// `port`: of the service.
    pub port: Option<u16>,
    /// `sourceLabels`
    pub source_labels: Labels,
    /// `sourceNamespace`
    pub source_namespace: Option<String>,
    /// `gateways`: instead of the VirtualService's, where there are any.
    pub gateways: Vec<String>,
}

/// An entry of `route`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightedStream {
    /// `destination`
    pub destination: Destination,
    /// `weight`; that of a single entry is 1.
    pub weight: u32,
}

/// A host in lower case, `*`, or `*.` and the end of a host, before which there must be something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern(pub String);

impl HostPattern {
    /// Whether the host, in lower case, is one of these.
    pub fn matches(&self, host: &str) -> bool {
        match self.0.strip_prefix('*') {
            None => self.0 == host,
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
        }
    }

    /// How much it says: a whole host before the end of one, more characters before fewer.
    pub fn rank(&self) -> (bool, usize) {
        (!self.0.starts_with('*'), self.0.len())
    }
}

/// What a client's TLS says whom it wants to reach (RFC 6066, section 3), as far as anybody can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sni<'a> {
    /// Nobody has looked, or what is there could be read in several ways: it is no name that a rule asks for, and may
    /// be any that a rule refuses.
    #[default]
    Unknown,
    /// There is none: it is no TLS, or TLS that names nobody.
    Absent,
    /// This host, in lower case.
    Name(&'a str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_of_the_end_of_a_host() {
        let is = |pattern: &str, host| HostPattern(pattern.to_owned()).matches(host);
        assert!(is("a.b", "a.b") && is("*.b", "a.b") && is("*.b", "x.a.b") && is("*", "a"));
        assert!(!is("a.b", "x.a.b") && !is("*.b", "b") && !is("*.b", ".b") && !is("*.b", "ab"));
        assert!(!is("*", ""));
    }
}
