//! From what the Secret holds to what signs.

use std::{pin::Pin, time::SystemTime};

use anyhow::Context as _;
use futures_util::{Stream, StreamExt as _};
use orlop_identity::{GivenCa, IdentityError, Signer, Trust};
use orlop_kube::controller::{RootFound, RootPair, RootSecret, RootStore};
use orlop_model::TrustDomain;

/// Waits for a root that can be used, and makes one if there is none. Gives what signs, and what was found.
pub async fn first<S: Stream<Item = RootFound>>(
    store: &RootStore,
    mut found: Pin<&mut S>,
    trust_domain: &TrustDomain,
) -> anyhow::Result<(GivenCa, RootSecret)> {
    let root = generate(trust_domain).context("cannot make a root")?;
    store.ensure(move || root).await?;
    loop {
        let RootFound { secret, root } =
            found.next().await.context("the Secret of the root is followed no more")?;
        let used = usable(root, trust_domain)
            .and_then(|(root, signer, trust)| Ok((GivenCa::new(signer, trust)?, root)));
        match used {
            Ok(used) => {
                tracing::info!(secret, "signing");
                return Ok(used);
            }
            Err(error) => tracing::error!(secret, %error, "no certificates until this is put right"),
        }
    }
}

/// Has `ca` sign with what the Secret holds, for ever, and tells of what that is. What can't be used changes nothing.
pub async fn keep<S: Stream<Item = RootFound>>(
    ca: &GivenCa,
    mut found: Pin<&mut S>,
    trust_domain: &TrustDomain,
    mut tell: impl FnMut(RootSecret),
) {
    while let Some(RootFound { secret, root }) = found.next().await {
        let used = usable(root, trust_domain)
            .and_then(|(root, signer, trust)| ca.replace(signer, trust).map(|()| root));
        match used {
            Ok(root) => {
                tracing::info!(secret, "the root has changed");
                tell(root);
            }
            Err(error) => tracing::error!(secret, %error, "what was read before stays in force"),
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

fn usable(
    root: Result<RootSecret, String>,
    trust_domain: &TrustDomain,
) -> Result<(RootSecret, Signer, Trust), IdentityError> {
    let root = root.map_err(|reason| IdentityError::Authority { reason })?;
    let RootSecret { key, certificate, chain, roots } = &root;
    let signer = Signer::from_pem(key, certificate, chain, trust_domain, SystemTime::now())?;
    let trust = Trust::from_pem(roots)?;
    Ok((root, signer, trust))
}
