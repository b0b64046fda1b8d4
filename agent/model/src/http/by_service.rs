use std::collections::HashMap;

use crate::name::NamespacedName;
use crate::service::{Service, ServiceKind};

/// What is kept of services, which are told apart though several bear one host name.
#[derive(Clone, Debug)]
pub(super) struct ByService<T>(HashMap<String, Vec<(Owner, T)>>);

type Owner = (ServiceKind, NamespacedName);

impl<T> Default for ByService<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> ByService<T> {
    pub fn get(&self, service: &Service) -> Option<&T> {
        let mut of_host = self.0.get(&service.hostname)?.iter();
        let own = of_host.find(|((kind, name), _)| (*kind, name) == (service.kind, &service.name));
        own.map(|(_, value)| value)
    }

    pub fn insert(&mut self, service: &Service, value: T) {
        let of_host = self.0.entry(service.hostname.clone()).or_default();
        let owner = (service.kind, service.name.clone());
        of_host.retain(|(other, _)| *other != owner);
        of_host.push((owner, value));
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.values().flatten().map(|(_, value)| value)
    }
}
