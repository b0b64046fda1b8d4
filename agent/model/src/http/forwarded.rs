use std::collections::HashSet;
use std::net::IpAddr;

use super::Headers;
use crate::identity::{Identity, TrustDomain};
use crate::world::World;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// The gateways, who alone are believed when they say for whom they ask. Their pods' service account has the Gateway's
/// name.
#[derive(Clone, Debug, Default)]
pub(super) struct Gateways(HashSet<Identity>);

impl Gateways {
    pub fn new(world: &World, trust_domain: &TrustDomain) -> Self {
        let gateways = world.gateways.values().filter(|gateway| gateway.is_entrance());
        let names = gateways.map(|gateway| &gateway.name);
        Self(names.map(|name| Identity::new(trust_domain, &name.namespace, &name.name)).collect())
    }

    /// The address of the client for whom this one asks: its own, or of a gateway's requests what that has put last;
    /// `None` where it names no address.
    pub fn remote(
        &self,
        client: Option<&Identity>,
        address: IpAddr,
        headers: Option<&dyn Headers>,
    ) -> Option<IpAddr> {
        if self.0.is_empty() || !client.is_some_and(|client| self.0.contains(client)) {
            return Some(address.to_canonical());
        }
        // A gateway writes one.
        let [named] = &headers?.values(FORWARDED_FOR)[..] else { return None };
        let last: IpAddr = named.rsplit(',').next()?.trim().parse().ok()?;
        Some(last.to_canonical())
    }
}
