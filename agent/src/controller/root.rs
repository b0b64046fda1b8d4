//! From what the Secret holds to what signs.

use std::{
    pin::Pin,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use futures_util::{Stream, StreamExt as _};
use orlop_identity::{GivenCa, IdentityError, Signer, Trust};
use orlop_kube::controller::{RootFound, RootJudge, RootPair, RootSecret, RootStore};
use orlop_model::TrustDomain;
use tokio::time::timeout;

/// Waits for a root that can be used, and makes one if there is none. Gives what signs, and what was found.
pub async fn first<S: Stream<Item = RootFound>>(
    store: &RootStore,
    mut found: Pin<&mut S>,
    judge: &Judge,
) -> anyhow::Result<(GivenCa, RootSecret)> {
    store.ensure(judge).await?;
    loop {
        let Ok(next) = timeout(LOOK, found.next()).await else {
            // Somebody may have plugged in what can be used.
            if let Err(error) = store.ensure(judge).await {
                tracing::warn!(%error, "no certificates meanwhile");
            }
            continue;
        };
        let RootFound { secret, root } = next.context("the Secret of the root is followed no more")?;
        let used =
            judge.read(root).and_then(|(root, signer, trust)| Ok((GivenCa::new(signer, trust)?, root)));
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
    judge: &Judge,
    mut tell: impl FnMut(RootSecret),
) {
    while let Some(RootFound { secret, root }) = found.next().await {
        let used =
            judge.read(root).and_then(|(root, signer, trust)| ca.replace(signer, trust).map(|()| root));
        match used {
            Ok(root) => {
                tracing::info!(secret, "the root has changed");
                tell(root);
            }
            Err(error) => tracing::error!(secret, %error, "what was read before stays in force"),
        }
    }
}

/// What can sign in a trust domain.
pub struct Judge(pub TrustDomain);

impl Judge {
    fn read(&self, root: Result<RootSecret, String>) -> Result<(RootSecret, Signer, Trust), IdentityError> {
        let root = root.map_err(|reason| IdentityError::Authority { reason })?;
        let (signer, trust) = (self.signer(&root)?, Trust::from_pem(&root.roots)?);
        Ok((root, signer, trust))
    }

    fn signer(&self, root: &RootSecret) -> Result<Signer, IdentityError> {
        let RootSecret { key, certificate, chain, .. } = root;
        Signer::from_pem(key, certificate, chain, &self.0, SystemTime::now())
    }
}

impl RootJudge for Judge {
    fn generate(&self) -> Option<RootPair> {
        match Signer::generate(&self.0, SystemTime::now()) {
            Ok(root) => Some(RootPair {
                key: root.key.as_bytes().to_vec(),
                certificate: root.certificate.into_bytes(),
            }),
            Err(error) => {
                tracing::error!(%error, "cannot make a root");
                None
            }
        }
    }

    fn usable(&self, root: &RootSecret) -> Result<RootSecret, String> {
        let said = |error: IdentityError| error.to_string();
        let (signer, trust) = (self.signer(root).map_err(said)?, Trust::from_pem(&root.roots).map_err(said)?);
        signer.leads_to(&trust).map_err(said)?;
        let roots = trust.led_by(&signer).map_err(said)?;
        Ok(RootSecret { roots: roots.to_pem().into_bytes(), ..root.clone() })
    }
}

/// How often it is looked whether there is something to sign with, as long as there is nothing.
const LOOK: Duration = Duration::from_secs(5);
