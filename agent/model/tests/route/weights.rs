//! Endpoints with weights, and of other networks.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;

use orlop_model::world::{Backend, BackendAddress, ServiceEntry, ServicePort, World};
use orlop_model::{NamespacedName, Reason, Settings, compile};
use proptest::prelude::*;

use crate::Scripted;
use crate::worlds::{client, settings};

const VIP: &str = "192.0.2.1:80";

proptest! {
    #[test]
    fn each_gets_as_many_as_its_weight_says(weights in prop::collection::vec(1u32..20, 1..6)) {
        let entry = entry(weights.iter().map(|&weight| Backend { weight: NonZeroU32::new(weight), ..backend() }));
        let snapshot = compile(&entry, &settings(), 1);
        let mut found: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        // Every outcome of the first draw once, and of equals the first counts.
        for draw in 0..weights.iter().sum() {
            let mut balance = Scripted { draws: vec![0, draw as usize], load: |_| 0, last: None };
            let route = snapshot.route(&client("default"), VIP.parse().unwrap(), &mut balance).unwrap();
            *found.entry(route.upstream).or_default() += 1;
        }
        let unequal = weights.iter().any(|weight| *weight != weights[0]);
        let found: Vec<_> = found.into_values().collect();
        prop_assert!(!unequal || found == weights, "{found:?} for {weights:?}");
    }

    #[test]
    fn of_two_the_one_with_fewer_for_its_weight_is_taken(
        (heavy, light) in (2u32..9, 1u32..2), (on_heavy, on_light) in (0usize..20, 0usize..20), first in any::<bool>(),
    ) {
        let entry = entry([heavy, light].map(|weight| Backend { weight: NonZeroU32::new(weight), ..backend() }));
        let snapshot = compile(&entry, &settings(), 1);
        let load = |address: SocketAddr| if address.ip() == ip(0) { on_heavy } else { on_light };
        let draw = if first { 0 } else { heavy as usize };
        let mut balance = Scripted { draws: vec![0, draw], load, last: None };
        let route = snapshot.route(&client("default"), VIP.parse().unwrap(), &mut balance).unwrap();
        let (heavily, lightly) = (on_heavy * light as usize, on_light * heavy as usize);
        let wants_heavy = heavily < lightly || (heavily == lightly && first);
        prop_assert_eq!(route.upstream.ip() == ip(0), wants_heavy);
    }
}

#[test]
fn what_is_in_another_network_is_not_reached() {
    let network = |name: Option<&str>| Backend { network: name.map(str::to_owned), ..backend() };
    let reached = |own: Option<&str>, of: Option<&str>| {
        let settings = Settings { network: own.map(str::to_owned), ..settings() };
        let snapshot = compile(&entry([network(of)]), &settings, 1);
        let mut balance = Scripted { draws: vec![], load: |_| 0, last: None };
        snapshot
            .route(&client("default"), VIP.parse().unwrap(), &mut balance)
            .map(|route| route.upstream.ip())
    };
    for (own, of) in [(None, None), (None, Some("a")), (Some("a"), None), (Some("a"), Some("a"))] {
        assert_eq!(reached(own, of), Ok(ip(0)), "{own:?} {of:?}");
    }
    assert_eq!(reached(Some("a"), Some("b")), Err(Reason::NoHealthyEndpoint));
}

fn entry(backends: impl IntoIterator<Item = Backend>) -> World {
    let numbered = backends.into_iter().enumerate();
    let name = NamespacedName::new("default", "api");
    let entry = ServiceEntry {
        name: name.clone(),
        hosts: vec!["api.example".into()],
        addresses: vec!["192.0.2.1".parse().unwrap()],
        ports: vec![ServicePort { number: 80, ..ServicePort::default() }],
        endpoints: numbered
            .map(|(nth, backend)| Backend { address: BackendAddress::Ip(ip(nth)), ..backend })
            .collect(),
        ..ServiceEntry::default()
    };
    World { service_entries: [(name, entry)].into(), ..World::default() }
}

fn backend() -> Backend {
    Backend { service_account: "default".into(), ..Backend::default() }
}

fn ip(nth: usize) -> IpAddr {
    IpAddr::from([198, 51, 100, nth as u8 + 1])
}
