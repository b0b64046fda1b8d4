//! The certificates of a gateway's listeners: files, as Secrets are mounted, read again as they change.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use orlop_identity::{ServedCertificate, ServedCertificates};
use orlop_model::{NamespacedName, Snapshot};

/// Between two looks at the files.
pub const LOOK: Duration = Duration::from_secs(2);

pub struct Certificates {
    dir: PathBuf,
    served: Arc<ServedCertificates>,
    known: HashMap<NamespacedName, Known>,
}

/// What was found of one Secret.
struct Known {
    stamp: Option<[Stamp; 2]>,
    /// The last that was good, as long as there is any.
    certificate: Option<ServedCertificate>,
}

/// Inode, size and time of a file: a Secret that changes is mounted as other files.
type Stamp = (u64, u64, i64, i64);

impl Certificates {
    pub fn new(dir: PathBuf, served: Arc<ServedCertificates>) -> Self {
        Self { dir, served, known: HashMap::new() }
    }

    /// Reads those that this snapshot wants and that have changed. One that can't be used leaves in force what was there;
    /// one that is gone is shown no more.
    pub fn read(&mut self, snapshot: &Snapshot) {
        let wanted: BTreeSet<&NamespacedName> = snapshot.routes().certificates().collect();
        let before = self.known.len();
        self.known.retain(|name, _| wanted.contains(name));
        let mut changed = before != self.known.len();
        for name in wanted {
            let dir = self.dir.join(name.namespace.as_str()).join(name.name.as_str());
            let stamp = stamp(&dir);
            if self.known.get(name).is_some_and(|known| known.stamp == stamp) {
                continue;
            }
            changed = true;
            let last = self.known.remove(name).and_then(|known| known.certificate);
            let certificate = match load(&dir) {
                Ok(certificate) => {
                    tracing::info!(secret = %name, "its certificate is shown from now on");
                    Some(certificate)
                }
                Err(Problem::Missing) => {
                    tracing::error!(secret = %name, dir = %dir.display(), "there is no tls.crt with its tls.key");
                    None
                }
                Err(Problem::Unusable(error)) => {
                    tracing::error!(secret = %name, error, kept = last.is_some(), "its certificate can't be shown");
                    last
                }
            };
            self.known.insert(name.clone(), Known { stamp, certificate });
        }
        if changed {
            let all = self
                .known
                .iter()
                .filter_map(|(name, known)| Some((name.clone(), known.certificate.clone()?)));
            self.served.replace(all.collect());
        }
    }

    /// When to look again.
    pub fn again(&self) -> Option<Duration> {
        (!self.known.is_empty()).then_some(LOOK)
    }
}

enum Problem {
    Missing,
    Unusable(String),
}

fn load(dir: &Path) -> Result<ServedCertificate, Problem> {
    let read = |name: &str| {
        fs::read(dir.join(name)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Problem::Missing,
            _ => Problem::Unusable(format!("{name}: {error}")),
        })
    };
    ServedCertificate::from_pem(&read("tls.crt")?, &read("tls.key")?)
        .map_err(|error| Problem::Unusable(error.to_string()))
}

fn stamp(dir: &Path) -> Option<[Stamp; 2]> {
    let of = |name: &str| {
        let found = fs::metadata(dir.join(name)).ok()?;
        Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
    };
    Some([of("tls.crt")?, of("tls.key")?])
}
