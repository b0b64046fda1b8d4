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
use crate::limits::is_out_of_descriptors;

/// A file of a Secret has no more than that, as all of it.
const MAX_FILE: usize = 1 << 20;

pub struct Credentials {
    dir: PathBuf,
    held: Arc<ClientCredentials>,
    known: BTreeMap<NamespacedName, Known>,
}

/// What was found of one Secret.
#[derive(Default)]
struct Known {
    /// `None` as long as nobody could look.
    files: Option<Files>,
    /// The last that was good, as long as there is any.
    credential: Option<Arc<ClientCredential>>,
}

/// Of `ca.crt`, `ca.crl`, `tls.crt` and `tls.key`, or what Istio calls them, what is there.
#[derive(PartialEq, Eq)]
struct Files {
    roots: Found,
    revoked: Found,
    certificate: Found,
    key: Found,
}

/// A file, if there is one, or why it can't be read.
type Found = Result<Option<Vec<u8>>, String>;

/// A Secret of this name with that ending has `ca.crt` and `ca.crl` instead, each where there is one.
const ROOTS_ENDING: &str = "-cacert";
/// What a list of what is revoked is called.
const LISTS: [&str; 2] = ["ca.crl", "crl"];

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
        let known = self.known.entry(name.clone()).or_default();
        let files = match Files::read(&dir, &name.name) {
            Ok(files) => files,
            Err(error) => {
                let kept = known.credential.is_some();
                tracing::error!(secret = %name, %error, kept, "no file can be opened just now");
                return false;
            }
        };
        if known.files.as_ref() == Some(&files) {
            return false;
        }
        let credential = match files.load() {
            Ok(None) => {
                tracing::error!(secret = %name, dir = %dir.display(), "there is neither ca.crt nor tls.crt");
                None
            }
            Ok(credential) => {
                tracing::info!(secret = %name, "it counts from now on");
                credential.map(Arc::new)
            }
            Err(error) => {
                let outlasts = known.files.as_ref().is_some_and(|before| before.outlast(&files));
                let last = known.credential.take().filter(|_| outlasts);
                tracing::error!(secret = %name, error, kept = last.is_some(), "it can't be used");
                last
            }
        };
        *known = Known { files: Some(files), credential };
        true
    }
}

impl Files {
    /// An error where there is no look at them to be had.
    fn read(dir: &Path, name: &str) -> io::Result<Self> {
        let (own, beside) = (dir.join(name), dir.join(format!("{name}{ROOTS_ENDING}")));
        let believed = |names| match either(&beside, names)? {
            Ok(None) => either(&own, names),
            there => Ok(there),
        };
        Ok(Self {
            roots: believed(["ca.crt", "cacert"])?,
            revoked: believed(LISTS)?,
            certificate: either(&own, ["tls.crt", "cert"])?,
            key: either(&own, ["tls.key", "key"])?,
        })
    }

    /// Whether what was made of these stays in force while `new` can't be used. Whom a list takes the belief from that they
    /// didn't have, perhaps one that nobody can read, is not believed by them.
    fn outlast(&self, new: &Self) -> bool {
        new.revoked == Ok(None) || new.revoked == self.revoked
    }

    /// `None` where there is nothing.
    fn load(&self) -> Result<Option<ClientCredential>, String> {
        let authorities = self.authorities()?;
        let shown = match (there(&self.certificate)?, there(&self.key)?) {
            (Some(certificate), Some(key)) => {
                Some(ServedCertificate::from_pem(certificate, key).map_err(|error| error.to_string())?)
            }
            _ => None,
        };
        let is_any = authorities.is_some() || shown.is_some();
        Ok(is_any.then(|| ClientCredential::new(authorities, shown)))
    }

    fn authorities(&self) -> Result<Option<Arc<Authorities>>, String> {
        let revoked = there(&self.revoked)?;
        match there(&self.roots)? {
            Some(roots) => {
                let read = Authorities::from_pem(roots, revoked);
                Ok(Some(Arc::new(read.map_err(|error| format!("ca.crt, ca.crl: {error}"))?)))
            }
            None if revoked.is_some() => Err("there is a ca.crl, and no ca.crt".to_owned()),
            None => Ok(None),
        }
    }
}

fn there(found: &Found) -> Result<Option<&[u8]>, String> {
    found.as_ref().map(Option::as_deref).map_err(String::clone)
}

fn either(dir: &Path, [name, other]: [&str; 2]) -> io::Result<Found> {
    let read = |name: &str| found(name, fs::read(dir.join(name)));
    match read(name)? {
        Ok(None) => read(other),
        there => Ok(there),
    }
}

fn found(name: &str, read: io::Result<Vec<u8>>) -> io::Result<Found> {
    Ok(match read {
        // As there is in the Secrets of some who sign. A list that is empty is one that somebody is writing.
        Ok(bytes) if bytes.is_empty() && !LISTS.contains(&name) => Ok(None),
        Ok(bytes) if bytes.len() > MAX_FILE => Err(format!("{name} has more than {MAX_FILE} bytes")),
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if is_out_of_descriptors(&error) => return Err(error),
        Err(error) => Err(format!("{name}: {error}")),
    })
}

#[cfg(test)]
mod tests {
    use std::{env, process};

    use nix::errno::Errno;

    use super::*;

    fn files(roots: &str, revoked: &Found) -> Files {
        let roots = Ok(Some(roots.as_bytes().to_vec()));
        Files { roots, revoked: revoked.clone(), certificate: Ok(None), key: Ok(None) }
    }

    #[test]
    fn of_each_file_that_counts_which_is_beside_before_the_secrets_own() {
        let dir = env::temp_dir().join(format!("orlop-credential-files-{}", process::id()));
        let read = |put: &[(&str, &str)]| {
            for (path, text) in put {
                let path = dir.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            let found = Files::read(&dir, "s").unwrap();
            fs::remove_dir_all(&dir).unwrap();
            (found.roots, found.revoked)
        };
        let is = |text: &str| Ok(Some(text.as_bytes().to_vec()));
        assert_eq!(read(&[("s/ca.crt", ""), ("s/cacert", "own")]), (is("own"), Ok(None)));
        let own = [("s/ca.crt", "own"), ("s/crl", "list"), ("s-cacert/cacert", "beside")];
        assert_eq!(read(&own), (is("beside"), is("list")));
        assert_eq!(read(&[("s/ca.crt", "own"), ("s-cacert/ca.crl", "list")]), (is("own"), is("list")));
        // An empty list is not that there is none.
        assert_eq!(read(&[("s/ca.crt", "own"), ("s/ca.crl", "")]), (is("own"), is("")));
        assert_eq!(read(&[("s-cacert/ca.crl", ""), ("s/ca.crl", "list")]), (Ok(None), is("")));
        let long = "x".repeat(MAX_FILE + 1);
        let (roots, revoked) = read(&[("s/ca.crt", "own"), ("s/ca.crl", &long)]);
        assert_eq!((roots, revoked.is_err()), (is("own"), true));
    }

    #[test]
    fn only_a_file_that_is_not_there_is_none() {
        let read = |code: Errno| found("ca.crt", Err(io::Error::from(code)));
        assert_eq!(read(Errno::ENOENT).unwrap(), Ok(None));
        assert!(read(Errno::EACCES).unwrap().is_err());
        assert!(read(Errno::EMFILE).is_err() && read(Errno::ENFILE).is_err());
    }

    #[test]
    fn nothing_outlasts_a_list_that_it_did_not_have() {
        let list = |text: &str| Ok(Some(text.as_bytes().to_vec()));
        let (none, unread) = (Ok(None), Err("ca.crl: no".to_owned()));
        for (before, now, stays) in [
            (&none, &none, true),
            (&list("a"), &list("a"), true),
            (&list("a"), &none, true),
            (&none, &list("a"), false),
            (&list("a"), &list("b"), false),
            (&list("a"), &list(""), false),
            (&list("a"), &unread, false),
            (&none, &unread, false),
        ] {
            assert_eq!(files("a", before).outlast(&files("b", now)), stays, "{before:?} {now:?}");
        }
        assert_eq!(files("a", &unread).load().unwrap_err(), "ca.crl: no");
    }
}
