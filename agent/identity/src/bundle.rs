//! A file of roots, and of what they have revoked, that somebody else writes.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use tokio::sync::watch;

use crate::{IdentityError, Trust};

/// The roots of a PEM file, the first of which signs, and its revocation lists.
pub(crate) struct Bundle {
    path: PathBuf,
    trust: watch::Sender<Arc<Trust>>,
}

impl Bundle {
    pub(crate) fn open(path: &Path) -> Result<Self, IdentityError> {
        let trust = watch::Sender::new(Arc::new(read(path)?));
        Ok(Self { path: path.to_owned(), trust })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.subscribe()
    }

    /// Looks whether the file has changed, for ever. What can't be read is logged, and what was read before stays in
    /// force.
    pub(crate) async fn run(&self) {
        let mut known = None;
        loop {
            let stamp = stamp(&self.path);
            if known != Some(stamp) {
                match read(&self.path) {
                    Ok(trust) => self.replace(trust),
                    Err(error) => tracing::error!("{error} (what was read before stays in force)"),
                }
                known = Some(stamp);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn replace(&self, trust: Trust) {
        self.trust.send_if_modified(|current| {
            let changed = **current != trust;
            if changed {
                tracing::info!(roots = ?trust.root_serials(), revoked = trust.revoked(), "trust has changed");
                *current = Arc::new(trust);
            }
            changed
        });
    }
}

/// Trusts the certificates in a PEM text, the first of which signs.
pub(crate) fn trust_in(text: &[u8]) -> Result<Trust, String> {
    let roots = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    let mut roots = roots.map_err(|error| error.to_string())?.into_iter();
    let issuer = roots.next().ok_or("there is no certificate in it")?;
    let lists = CertificateRevocationListDer::pem_slice_iter(text).collect::<Result<_, _>>();
    let lists = lists.map_err(|error| error.to_string())?;
    Trust::new(issuer, roots, lists).map_err(|error| error.to_string())
}

fn read(path: &Path) -> Result<Trust, IdentityError> {
    let text = fs::read(path).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "; the controller publishes it as a ConfigMap: is it running?",
            _ => "",
        };
        IdentityError::Client { reason: format!("cannot read --ca-root {}: {error}{hint}", path.display()) }
    })?;
    trust_in(&text).map_err(|reason| IdentityError::Client {
        reason: format!("--ca-root {} can't be used: {reason}", path.display()),
    })
}

/// The kubelet swaps a link to the whole directory.
fn stamp(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(500);
