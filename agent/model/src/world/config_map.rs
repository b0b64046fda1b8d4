//! The ConfigMaps that have certificates.

use std::collections::BTreeMap;

use super::World;
use super::routing::Pem;
use crate::name::NamespacedName;

/// The key under which a ConfigMap has certificates.
pub const KEY: &str = "ca.crt";
/// Of a cluster, the one ConfigMap of a namespace that is read: what the controller has copied of those that policies of
/// the namespace name, each under its name. So nobody needs a right to read all.
pub const COPIES: &str = "orlop-backend-ca";
/// The ConfigMaps of a namespace that are copied.
pub const MAX_CONFIG_MAPS: usize = 64;
/// Their names and certificates together, in bytes. All waypoints and gateways of a cluster keep those of all namespaces.
pub const MAX_COPIES: usize = 256 << 10;

/// A `v1` ConfigMap, as far as it has certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigMap {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `data`: of [`COPIES`] all of it, of others what is under [`KEY`]. Certificates as PEM, or why it is none.
    pub certificates: BTreeMap<String, Result<Pem, String>>,
}

impl World {
    /// The certificates in the ConfigMap of this name, or why there are none.
    pub fn certificates_of(&self, name: &NamespacedName) -> Result<&Pem, &str> {
        let copies = NamespacedName::new(&*name.namespace, COPIES);
        let own = self.config_maps.get(name).and_then(|map| map.certificates.get(KEY));
        let copy = || self.config_maps.get(&copies)?.certificates.get(&*name.name);
        match own.or_else(copy) {
            Some(found) => found.as_ref().map_err(String::as_str),
            None => Err("there is none of this name that has a ca.crt"),
        }
    }
}
