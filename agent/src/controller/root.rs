//! From what the Secret holds to what signs.

use std::{pin::Pin, time::SystemTime};

use anyhow::Context as _;
use futures_util::{Stream, StreamExt as _};
use orlop_identity::{GivenCa, IdentityError, Signer, Trust};
use orlop_kube::controller::{RootFound, RootPair, RootSecret, RootStore};
use orlop_model::TrustDomain;

/// Waits for a root that can be used, and makes one if there is none.
pub async fn first<S: Stream<Item = RootFound>>(
    store: &RootStore,
    mut found: Pin<&mut S>,
    trust_domain: &TrustDomain,
) -> anyhow::Result<GivenCa> {
    let root = generate(trust_domain).context("cannot make a root")?;
    store.ensure(move || root).await?;
    loop {
        let found = found.next().await.context("the Secret of the root is followed no more")?;
        match use_of(&found, trust_domain).and_then(|(signer, trust)| GivenCa::new(signer, trust)) {
            Ok(ca) => {
                tracing::info!(secret = found.secret, "signing");
                return Ok(ca);
            }
            Err(error) => {
                tracing::error!(secret = found.secret, %error, "no certificates until this is put right")
            }
        }
    }
}

/// Has `ca` sign with what the Secret holds, for ever. What can't be used changes nothing.
pub async fn keep<S: Stream<Item = RootFound>>(
    ca: &GivenCa,
    mut found: Pin<&mut S>,
    trust_domain: &TrustDomain,
) {
    while let Some(found) = found.next().await {
        let used = use_of(&found, trust_domain).and_then(|(signer, trust)| ca.replace(signer, trust));
        match used {
            Ok(()) => tracing::info!(secret = found.secret, "the root has changed"),
            Err(error) => {
                tracing::error!(secret = found.secret, %error, "what was read before stays in force");
            }
        }
    }
}

/// A new root; `None` after an error, which is logged.
pub fn generate(trust_domain: &TrustDomain) -> Option<RootPair> {
    match Signer::generate(trust_domain, SystemTime::now()) {
        Ok(root) => {
            Some(RootPair { key: root.key.as_bytes().to_vec(), certificate: root.certificate.into_bytes() })
        }
        Err(error) => {
            tracing::error!(%error, "cannot make a root");
            None
        }
    }
}

fn use_of(found: &RootFound, trust_domain: &TrustDomain) -> Result<(Signer, Trust), IdentityError> {
    let root = found.root.as_ref().map_err(|reason| IdentityError::Authority { reason: reason.clone() })?;
    let RootSecret { key, certificate, chain, roots } = root;
    let signer = Signer::from_pem(key, certificate, chain, trust_domain, SystemTime::now())?;
    Ok((signer, Trust::from_pem(roots)?))
}
