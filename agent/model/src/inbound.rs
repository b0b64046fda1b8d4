use std::net::{IpAddr, SocketAddr};

use crate::ports::is_reserved;
use crate::reason::Reason;
use crate::snapshot::Workload;

/// Decides whether a tunnel that arrived at `local` inside `pod` may lead to `authority`, the CONNECT target.
///
/// Both must be addresses of the pod, and the port not one of the proxy's own; else [`Reason::NotThisPod`].
/// Loopback is refused as well, since apps serve there what only the pod itself may reach.
pub fn admit_connect(local: IpAddr, pod: &Workload, authority: SocketAddr) -> Result<(), Reason> {
    let has = |address: IpAddr| !address.is_loopback() && pod.addresses.contains(&address);
    let port = authority.port();
    if has(local.to_canonical()) && has(authority.ip().to_canonical()) && port != 0 && !is_reserved(port) {
        Ok(())
    } else {
        Err(Reason::NotThisPod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::name::NamespacedName;
    use crate::owner::names_of;
    use crate::snapshot::WorkloadKind;
    use crate::world::Labels;

    #[test]
    fn the_pods_own_addresses_are_admitted() {
        for (local, authority) in [
            ("10.0.0.1", "10.0.0.1:80"),
            ("fd00::1", "[fd00::1]:80"),
            ("10.0.0.1", "[fd00::1]:65535"),
            ("::ffff:10.0.0.1", "[::ffff:10.0.0.1]:80"),
        ] {
            assert_eq!(admit(local, authority), Ok(()), "{authority} at {local}");
        }
    }

    #[test]
    fn other_targets_are_refused() {
        for (local, authority) in [
            ("10.0.0.1", "10.0.0.2:80"),
            ("10.0.0.2", "10.0.0.1:80"),
            ("10.0.0.1", "127.0.0.1:80"),
            ("10.0.0.1", "[::1]:80"),
            ("10.0.0.1", "[::ffff:127.0.0.1]:80"),
            ("10.0.0.1", "0.0.0.0:80"),
            ("10.0.0.1", "[::]:80"),
            ("10.0.0.1", "224.0.0.1:80"),
            ("10.0.0.1", "169.254.169.254:80"),
            ("127.0.0.1", "10.0.0.1:80"),
            ("10.0.0.1", "10.0.0.1:0"),
            ("10.0.0.1", "10.0.0.1:15001"),
            ("10.0.0.1", "10.0.0.1:15006"),
            ("10.0.0.1", "10.0.0.1:15008"),
            ("10.0.0.1", "10.0.0.1:15053"),
        ] {
            assert_eq!(admit(local, authority), Err(Reason::NotThisPod), "{authority} at {local}");
        }
    }

    #[test]
    fn loopback_is_refused_even_as_an_address_of_the_pod() {
        let pod = pod(&["127.0.0.1"]);
        let local = "127.0.0.1".parse().unwrap();
        assert_eq!(admit_connect(local, &pod, SocketAddr::new(local, 80)), Err(Reason::NotThisPod));
    }

    fn admit(local: &str, authority: &str) -> Result<(), Reason> {
        admit_connect(local.parse().unwrap(), &pod(&["10.0.0.1", "fd00::1"]), authority.parse().unwrap())
    }

    fn pod(addresses: &[&str]) -> Workload {
        Workload {
            name: NamespacedName::new("default", "web"),
            kind: WorkloadKind::Pod,
            uid: Default::default(),
            identity: Identity::new(&"cluster.local".parse().unwrap(), "default", "default"),
            node: "one".into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            enrolled: true,
            names: names_of(&Labels::new(), "web".into(), "Kubernetes"),
        }
    }
}
