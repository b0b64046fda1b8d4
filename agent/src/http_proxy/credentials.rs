//! What DestinationRules name by `credentialName`: files, as Secrets are mounted, read again as they change.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use orlop_identity::{Authorities, ClientCredential, ClientCredentials, ServedCertificate};
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
    credential: Option<Arc<ClientCredential>>,
}

/// Of `ca.crt`, `ca.crl`, `tls.crt` and `tls.key`, or what Istio calls them, what is there.
#[derive(PartialEq, Eq)]
struct Files {
    roots: Option<Vec<u8>>,
    revoked: Option<Vec<u8>>,
    certificate: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
}

/// A Secret of this name with that ending has `ca.crt` and `ca.crl` instead, where it has any.
const ROOTS_ENDING: &str = "-cacert";

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
        let dir = self.dir.join(name.namespace.as_str());
        let files = Files::read(&dir, &name.name);
        let known = self.known.get(name);
        if known.is_some_and(|known| known.files == files) {
            return false;
        }
        let last = known.and_then(|known| known.credential.clone());
        let credential = match files.as_ref().map_err(String::clone).and_then(Files::load) {
            Ok(None) => {
                tracing::error!(secret = %name, dir = %dir.display(), "there is neither ca.crt nor tls.crt");
                None
            }
            Ok(credential) => {
                tracing::info!(secret = %name, "it counts from now on");
                credential.map(Arc::new)
            }
            Err(error) => {
                // Whom a list that nobody can read takes the belief from is not believed by what there was before.
                let is_list = |files: &Files| files.revoked.is_some() && files.authorities().is_err();
                let last = last.filter(|_| !files.as_ref().is_ok_and(is_list));
                tracing::error!(secret = %name, error, kept = last.is_some(), "it can't be used");
                last
            }
        };
        self.known.insert(name.clone(), Known { files, credential });
        true
    }
}

impl Files {
    fn read(dir: &Path, name: &str) -> Result<Self, String> {
        let (own, beside) = (dir.join(name), dir.join(format!("{name}{ROOTS_ENDING}")));
        let believed =
            |dir: &Path| Ok::<_, String>((either(dir, "ca.crt", "cacert")?, either(dir, "ca.crl", "crl")?));
        let (roots, revoked) = match believed(&beside)? {
            (None, None) => believed(&own)?,
            there => there,
        };
        let (certificate, key) = (either(&own, "tls.crt", "cert")?, either(&own, "tls.key", "key")?);
        Ok(Self { roots, revoked, certificate, key })
    }

    /// `None` where there is nothing.
    fn load(&self) -> Result<Option<ClientCredential>, String> {
        let authorities = self.authorities()?;
        let shown = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                Some(ServedCertificate::from_pem(certificate, key).map_err(|error| error.to_string())?)
            }
            _ => None,
        };
        let is_any = authorities.is_some() || shown.is_some();
        Ok(is_any.then(|| ClientCredential::new(authorities, shown)))
    }

    fn authorities(&self) -> Result<Option<Arc<Authorities>>, String> {
        let revoked = self.revoked.as_deref();
        match &self.roots {
            Some(roots) => {
                let read = Authorities::from_pem(roots, revoked);
                Ok(Some(Arc::new(read.map_err(|error| format!("ca.crt, ca.crl: {error}"))?)))
            }
            None if revoked.is_some() => Err("there is a ca.crl, and no ca.crt".to_owned()),
            None => Ok(None),
        }
    }
}

fn either(dir: &Path, name: &str, other: &str) -> Result<Option<Vec<u8>>, String> {
    let read = |name: &str| match fs::read(dir.join(name)) {
        // As there is in the Secrets of some who sign.
        Ok(bytes) if bytes.is_empty() => Ok(None),
        Ok(bytes) if bytes.len() > MAX_FILE => Err(format!("{name} has more than {MAX_FILE} bytes")),
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{name}: {error}")),
    };
    match read(name)? {
        None => read(other),
        there => Ok(there),
    }
}
