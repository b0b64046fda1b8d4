use std::net::{IpAddr, SocketAddr};

use crate::identity::Identity;

/// What rules ask of a connection. The texts are empty where the source has no identity: no value matches that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// `TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`
    pub principal: &'a str,
    /// `ns/NAMESPACE/sa/SERVICE_ACCOUNT`: a service account of whatever trust domain.
    pub service_account: &'a str,
    pub namespace: &'a str,
    pub source: IpAddr,
    pub destination: SocketAddr,
}

impl<'a> Facts<'a> {
    pub fn new(identity: Option<&'a Identity>, source: IpAddr, destination: SocketAddr) -> Self {
        let principal = identity.and_then(|identity| identity.as_str().strip_prefix("spiffe://"));
        let principal = principal.unwrap_or_default();
        Self {
            principal,
            service_account: principal.split_once('/').map_or("", |(_, rest)| rest),
            namespace: principal.split('/').nth(2).unwrap_or_default(),
            source: source.to_canonical(),
            destination: SocketAddr::new(destination.ip().to_canonical(), destination.port()),
        }
    }
}
