use std::net::IpAddr;

use super::Headers;
use crate::identity::{Identity, TrustDomain};
use crate::map::Map;
use crate::name::NamespacedName;
use crate::world::World;
use crate::world::gateway::Gateway;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// The gateways, who alone are believed when they say for whom they ask. Their pods' service account has the Gateway's
/// name.
#[derive(Clone, Debug, Default)]
pub(super) struct Gateways {
    all: Map<NamespacedName, Gateway>,
    trust_domain: Option<TrustDomain>,
}

impl Gateways {
    pub fn new(world: &World, trust_domain: &TrustDomain) -> Self {
        Self { all: world.gateways.clone(), trust_domain: Some(trust_domain.clone()) }
    }

    /// The address of the client for whom this one asks: its own, or of a gateway's requests what that has put last;
    /// `None` where it names no address.
    pub fn remote(
        &self,
        client: Option<&Identity>,
        address: IpAddr,
        headers: Option<&dyn Headers>,
    ) -> Option<IpAddr> {
        if !client.is_some_and(|client| self.include(client)) {
            return Some(address.to_canonical());
        }
        // A gateway writes one.
        let [named] = &headers?.values(FORWARDED_FOR)[..] else { return None };
        let last: IpAddr = named.rsplit(',').next()?.trim().parse().ok()?;
        Some(last.to_canonical())
    }

    fn include(&self, client: &Identity) -> bool {
        let name = NamespacedName::new(client.namespace(), client.service_account());
        self.trust_domain.as_ref().is_some_and(|own| own.as_str() == client.trust_domain())
            && self.all.get(&name).is_some_and(|gateway| gateway.is_entrance())
    }
}
