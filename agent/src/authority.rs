//! Who signs the certificates of this node's pods.

use std::{future::Future, pin::Pin, sync::Arc};

use anyhow::Context as _;
use orlop_identity::{CertificateAuthority, EmbeddedCa, RemoteCa};
use orlop_model::TrustDomain;

use crate::cli::AuthorityArguments;

/// The authority, and what keeps it up to date as long as it runs.
pub struct Authority {
    pub ca: Arc<dyn CertificateAuthority>,
    pub upkeep: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Authority {
    /// The embedded authority, or one elsewhere.
    pub fn open(arguments: &AuthorityArguments, trust_domain: &TrustDomain) -> anyhow::Result<Self> {
        if let Some(address) = &arguments.ca_address {
            let ca = RemoteCa::open(address.clone(), &arguments.ca_root, &arguments.ca_token, trust_domain)?;
            let ca = Arc::new(ca);
            return Ok(Self { ca: Arc::clone(&ca) as _, upkeep: Box::pin(async move { ca.run().await }) });
        }
        let dir = arguments.ca_dir.as_deref().context("neither --ca-dir nor --ca-address is given")?;
        let ca = Arc::new(EmbeddedCa::open(dir, trust_domain)?);
        Ok(Self { ca: Arc::clone(&ca) as _, upkeep: Box::pin(async move { ca.run().await }) })
    }
}
