//! What DestinationRules name by `credentialName`: files, as Secrets are mounted, read again as they change.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use orlop_identity::{ClientCredential, ClientCredentials, OutsideRoots, ServedCertificate, outside_config};
use orlop_model::{NamespacedName, Snapshot};

use super::certificates::LOOK;

/// A file of a Secret has no more than that, as all of it.
const MAX_FILE: usize = 1 << 20;

pub struct Credentials {
    dir: PathBuf,
    held: Arc<ClientCredentials>,
    known: BTreeMap<NamespacedName, Known>,
}

/// What was found of one Secret.
struct Known {
    files: Result<Files, String>,
    /// The last that was good, as long as there is any.
    credential: Option<ClientCredential>,
}

/// Of `ca.crt`, `tls.crt`, `tls.key` and `ca.crl`, or what Istio calls them, what is there.
type Files = [Option<Vec<u8>>; 4];

impl Credentials {
    pub fn new(dir: PathBuf, held: Arc<ClientCredentials>) -> Self {
        Self { dir, held, known: BTreeMap::new() }
    }

    /// Reads those that this snapshot wants and that have changed. One that can't be used leaves in force what was there;
    /// one that is gone counts no more.
    pub fn read(&mut self, snapshot: &Snapshot) {
        let wanted = snapshot.routes().credentials();
        let before = self.known.len();
        self.known.retain(|name, _| wanted.contains(name));
        let mut changed = self.known.len() != before;
        for name in wanted {
            changed |= self.read_one(name);
        }
        if changed {
            let all = self.known.iter();
            let all = all.filter_map(|(name, known)| Some((name.clone(), known.credential.clone()?)));
            self.held.replace(all.collect::<HashMap<_, _>>());
        }
    }

    /// When to look again.
    pub fn again(&self) -> Option<Duration> {
        (!self.known.is_empty()).then_some(LOOK)
    }

    /// Whether there is something else now.
    fn read_one(&mut self, name: &NamespacedName) -> bool {
        let dir = self.dir.join(name.namespace.as_str()).join(name.name.as_str());
        let files = files(&dir);
        let known = self.known.get(name);
        if known.is_some_and(|known| known.files == files) {
            return false;
        }
        let last = known.and_then(|known| known.credential.clone());
        let credential = match files.as_ref().map_err(String::clone).and_then(load) {
            _ if matches!(&files, Ok([.., Some(_)])) => {
                tracing::error!(secret = %name, "it lists what is revoked, which is not verified: nothing goes by it");
                None
            }
            Ok(None) => {
                tracing::error!(secret = %name, dir = %dir.display(), "there is neither ca.crt nor tls.crt");
                None
            }
            Ok(credential) => {
                tracing::info!(secret = %name, "it counts from now on");
                credential
            }
            Err(error) => {
                tracing::error!(secret = %name, error, kept = last.is_some(), "it can't be used");
                last
            }
        };
        self.known.insert(name.clone(), Known { files, credential });
        true
    }
}

fn files(dir: &Path) -> Result<Files, String> {
    let read = |name: &str| match fs::read(dir.join(name)) {
        // As there is in the Secrets of some who sign.
        Ok(bytes) if bytes.is_empty() => Ok(None),
        Ok(bytes) if bytes.len() > MAX_FILE => Err(format!("{name} has more than {MAX_FILE} bytes")),
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{name}: {error}")),
    };
    let either = |name: &str, other: &str| match read(name)? {
        None => read(other),
        there => Ok(there),
    };
    Ok([
        either("ca.crt", "cacert")?,
        either("tls.crt", "cert")?,
        either("tls.key", "key")?,
        either("ca.crl", "crl")?,
    ])
}

/// `None` where there is nothing.
fn load([roots, certificate, key, _]: &Files) -> Result<Option<ClientCredential>, String> {
    let roots = roots.as_ref().map(|roots| String::from_utf8(roots.clone()));
    let roots = roots.transpose().map_err(|_| "ca.crt is no PEM".to_owned())?;
    if let Some(roots) = &roots {
        let usable = outside_config(OutsideRoots::Only(roots), &[], None, None);
        usable.map_err(|error| format!("ca.crt: {error}"))?;
    }
    let shown = match (certificate, key) {
        (Some(certificate), Some(key)) => {
            Some(ServedCertificate::from_pem(certificate, key).map_err(|error| error.to_string())?)
        }
        _ => None,
    };
    let is_any = roots.is_some() || shown.is_some();
    Ok(is_any.then(|| ClientCredential { roots: roots.map(Arc::from), shown }))
}
