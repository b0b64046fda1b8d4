//! The certificates of a gateway's listeners: files, as Secrets are mounted, read again as they change.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use orlop_identity::{ServedCertificate, ServedCertificates};
use orlop_model::{NamespacedName, Snapshot, http::ListenerId};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
};

use crate::limits::is_out_of_descriptors;

/// Between two looks at the files.
pub const LOOK: Duration = Duration::from_secs(2);

pub struct Certificates {
    dir: PathBuf,
    served: Arc<ServedCertificates>,
    known: HashMap<NamespacedName, Known>,
    /// The Secrets whose certificates each listener shows.
    shown: HashMap<ListenerId, Vec<NamespacedName>>,
    states: SecretStates,
}

/// What was found of one Secret.
struct Known {
    stamp: Option<[Stamp; 2]>,
    /// The last that was good, as long as there is any.
    certificate: Option<ServedCertificate>,
    state: &'static str,
}

/// Inode, size and time of a file: a Secret that changes is mounted as other files.
type Stamp = (u64, u64, i64, i64);

impl Certificates {
    pub fn new(dir: PathBuf, served: Arc<ServedCertificates>, states: SecretStates) -> Self {
        Self { dir, served, known: HashMap::new(), shown: HashMap::new(), states }
    }

    /// Reads those that this snapshot wants and that have changed. One that can't be used leaves in force what was there;
    /// one that is gone is shown no more.
    pub fn read(&mut self, snapshot: &Snapshot) {
        let wanted: BTreeMap<&ListenerId, &[NamespacedName]> = snapshot.routes().certificates().collect();
        let before = wanted.keys().filter_map(|listener| self.shown.get(*listener)).flatten();
        let names: BTreeSet<_> = wanted.values().copied().flatten().chain(before).cloned().collect();
        let mut changed = false;
        for name in &names {
            changed |= self.read_one(name);
        }
        let shown = self.choose(&wanted);
        changed |= shown != self.shown;
        self.shown = shown;
        if !changed {
            return;
        }
        let is_needed = |name: &NamespacedName| {
            wanted.values().copied().chain(self.shown.values().map(Vec::as_slice)).any(|of| of.contains(name))
        };
        self.known.retain(|name, _| is_needed(name));
        let certificates = |names: &Vec<NamespacedName>| {
            names.iter().filter_map(|name| self.known.get(name)?.certificate.clone()).collect()
        };
        let all = self.shown.iter().map(|(listener, names)| (listener.clone(), certificates(names)));
        self.served.replace(all.collect());
        let states = self.known.iter().map(|(name, known)| (name.clone(), known.state));
        *self.states.0.lock().unwrap_or_else(PoisonError::into_inner) = states.collect();
    }

    /// When to look again.
    pub fn again(&self) -> Option<Duration> {
        self.shown.values().any(|names| !names.is_empty()).then_some(LOOK)
    }

    /// Whether there is something else now.
    fn read_one(&mut self, name: &NamespacedName) -> bool {
        let dir = self.dir.join(name.namespace.as_str()).join(name.name.as_str());
        let stamp = stamp(&dir);
        if self.known.get(name).is_some_and(|known| known.stamp == stamp) {
            return false;
        }
        let last = self.known.get(name).and_then(|known| known.certificate.clone());
        let (certificate, state) = match load(&dir) {
            Ok(certificate) => {
                tracing::info!(secret = %name, "its certificate is shown from now on");
                (Some(certificate), "shown")
            }
            Err(Problem::Missing) => {
                tracing::error!(secret = %name, dir = %dir.display(), "there is no tls.crt with its tls.key");
                (None, "missing")
            }
            // It is looked at again, changed or not.
            Err(Problem::NoLook(error)) => {
                tracing::error!(secret = %name, %error, kept = last.is_some(), "no file can be opened just now");
                return false;
            }
            Err(Problem::Unusable(error)) => {
                tracing::error!(secret = %name, error, kept = last.is_some(), "its certificate can't be shown");
                (last, "unusable")
            }
        };
        self.known.insert(name.clone(), Known { stamp, certificate, state });
        true
    }

    /// The Secrets that each listener is to show: those that it names, but what it had before as long as none of them has
    /// ever been there. A pod from before the listener's change has no other.
    fn choose(
        &self,
        wanted: &BTreeMap<&ListenerId, &[NamespacedName]>,
    ) -> HashMap<ListenerId, Vec<NamespacedName>> {
        let is_there =
            |name: &NamespacedName| self.known.get(name).is_some_and(|known| known.certificate.is_some());
        let choose = |listener, names: &[NamespacedName]| match self.shown.get(listener) {
            Some(before) if !names.iter().any(is_there) => before.clone(),
            _ => names.to_vec(),
        };
        wanted.iter().map(|(listener, names)| ((*listener).clone(), choose(*listener, names))).collect()
    }
}

/// How it is with each Secret, to be exported.
#[derive(Clone, Debug, Default)]
pub struct SecretStates(Arc<Mutex<BTreeMap<NamespacedName, &'static str>>>);

impl Collector for SecretStates {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let help = "Secrets with the gateway's certificates, by whether they are shown, missing or unusable";
        let mut family = encoder.encode_descriptor("orlop_gateway_secrets", help, None, MetricType::Gauge)?;
        for (name, state) in states.iter() {
            let labels = [("namespace", &*name.namespace), ("secret", &*name.name), ("state", state)];
            ConstGauge::new(1).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

enum Problem {
    Missing,
    /// There is no look at it to be had.
    NoLook(io::Error),
    Unusable(String),
}

fn load(dir: &Path) -> Result<ServedCertificate, Problem> {
    let read = |name: &str| {
        fs::read(dir.join(name)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Problem::Missing,
            _ if is_out_of_descriptors(&error) => Problem::NoLook(error),
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
