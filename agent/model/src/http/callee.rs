use std::sync::Arc;

use crate::compile::Settings;
use crate::service::{Endpoint, Service, ServiceKind};
use crate::world::World;
use crate::world::gateway_api::ReferenceGrant;

/// The group of ExtensionProvider and RateLimit.
const GROUP: &str = "orlop.dev";

/// An object that names a service for waypoints to ask about requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker<'a> {
    /// `ExtensionProvider` or `RateLimit`.
    pub kind: &'static str,
    /// Its own.
    pub namespace: &'a str,
}

/// Whom waypoints may be made to ask. They ask under their own name, so whoever can write an [`Asker`] would have
/// their say of services that do not let that one in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Callees {
    root: String,
    grants: Vec<Arc<ReferenceGrant>>,
}

impl Callees {
    pub(crate) fn new(world: &World, settings: &Settings) -> Self {
        Self {
            root: settings.root_namespace.clone(),
            grants: world.reference_grants.values().cloned().collect(),
        }
    }

    /// Objects of the root namespace may name any service, others those of their own namespace, and of another what a
    /// ReferenceGrant there lets them.
    pub(crate) fn permits(&self, asker: &Asker<'_>, service: &Service) -> bool {
        let namespace = &service.name.namespace;
        if asker.namespace == self.root || asker.namespace == *namespace {
            return true;
        }
        let to = match service.kind {
            ServiceKind::Service => ("", "Service"),
            ServiceKind::ServiceEntry => ("networking.istio.io", "ServiceEntry"),
        };
        let mut there = self.grants.iter().filter(|grant| grant.name.namespace == *namespace);
        there.any(|grant| grant.grants((GROUP, asker.kind, asker.namespace), to, &service.name.name))
    }
}

/// Whether an endpoint is a pod of another namespace than the service that names it: that one's word is not enough to
/// have it asked.
pub fn is_foreign(service: &Service, endpoint: &Endpoint) -> bool {
    endpoint.workload.as_ref().is_some_and(|workload| workload.name.namespace != service.name.namespace)
}
