//! The boot gate: a CSI driver that kubelet asks before it makes a pod's sandbox, and that has the kernel hold the
//! pod before it answers.

mod driver;
mod messages;
mod server;
mod volume;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt, fs,
    io::ErrorKind,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use orlop_datapath::{CgroupId, Datapath, DatapathError};
use orlop_model::{NamespacedName, Snapshot};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::Status;

use crate::sandboxes::PodCgroups;
use driver::{Driver, Registration};
use volume::Target;

/// The driver's name, which is that of the CSIDriver object.
const DRIVER: &str = "gate.orlop.dev";

/// The socket in kubelet's registry. kubelet makes the authority of its calls of the whole path, `%2Fvar%2Flib…`, which
/// is none by RFC 3986 and refused as such, but for what is before an `@`.
const REGISTRATION: &str = "gate.orlop.dev@reg.sock";

/// kubelet makes a pod's cgroup and asks for its volumes at the same time.
const PATIENCE: Duration = Duration::from_secs(5);
const MOMENT: Duration = Duration::from_millis(20);

/// Serves kubelet, and keeps what is held in step with the world.
pub struct BootGate {
    node: String,
    kubelet: PathBuf,
    held: Arc<HeldPods>,
    serving: JoinSet<()>,
}

impl BootGate {
    /// For the kubelet whose `--root-dir` this is. Nobody is served yet.
    pub fn new(node: &str, kubelet: &Path, datapath: Arc<Datapath>, cgroups: PodCgroups) -> Self {
        let held = Arc::new(HeldPods { datapath, cgroups });
        Self { node: node.to_owned(), kubelet: kubelet.to_owned(), held, serving: JoinSet::new() }
    }

    /// Registers with kubelet, in the place of an agent before. The hooks must be in force.
    pub fn serve(&mut self) -> anyhow::Result<()> {
        let directory = self.kubelet.join("plugins").join(DRIVER);
        let make = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        make.with_context(|| format!("cannot make {}", directory.display()))?;
        let endpoint = directory.join("csi.sock");
        let registry = self.kubelet.join("plugins_registry");
        let driver =
            Driver { node: self.node.clone(), kubelet: self.kubelet.clone(), held: Arc::clone(&self.held) };
        self.serving.spawn(server::serve(server::listen(&endpoint)?, Arc::new(driver)));
        // At last, as kubelet asks at once.
        let registered = server::listen(&registry.join(REGISTRATION)).with_context(|| {
            format!("is {} kubelet's --root-dir? name it with --kubelet-dir", self.kubelet.display())
        })?;
        self.serving.spawn(server::serve(registered, Arc::new(Registration { endpoint })));
        tracing::info!(kubelet = %self.kubelet.display(), "pods of the mesh wait for this agent");
        Ok(())
    }

    /// Lets go of pods that are outside the mesh and of those that are gone, and holds every other that kubelet has
    /// asked for. Says which pods of the mesh are held whenever they are not enrolled.
    pub fn keep(&self, snapshot: &Snapshot) -> anyhow::Result<BTreeSet<NamespacedName>> {
        let gate = self.held.datapath.gate();
        // Before the cgroups are listed: what is held now was made before.
        let before: HashSet<CgroupId> = gate.held()?.into_iter().collect();
        let cgroups = self.held.cgroups.all().context("cannot list the pods' cgroups")?;
        let local: HashMap<_, _> =
            snapshot.local_pods().iter().map(|local| (&*local.workload.uid, &local.workload.name)).collect();
        let mut outside = HashSet::new();
        if !before.is_empty() && snapshot.as_of().is_none() {
            let here = snapshot.workloads().filter(|pod| !pod.enrolled && pod.node == self.node);
            outside.extend(here.map(|pod| &*pod.uid));
        }
        let mut gone = before.clone();
        let mut gated = BTreeSet::new();
        for (uid, path) in &cgroups {
            let id = match gate.id(path) {
                Ok(id) => id,
                // It is gone since it was listed.
                Err(DatapathError::File { source, .. }) if source.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            gone.remove(&id);
            if outside.contains(uid.as_str()) {
                if before.contains(&id) {
                    tracing::info!(uid, "not held any more, as it is outside the mesh");
                    gate.release(id)?;
                }
                continue;
            }
            let Some(name) = local.get(uid.as_str()) else { continue };
            if !before.contains(&id) {
                if !Target::of(&self.kubelet, uid).is_dir() {
                    continue;
                }
                gate.hold(id)?;
            }
            gated.insert((*name).clone());
        }
        // It may be there all the same.
        gone.into_iter().try_for_each(|id| gate.release_gone(id))?;
        Ok(gated)
    }
}

/// How many pods there are behind the gate, as a metric.
#[derive(Debug)]
pub struct Behind(pub Arc<Datapath>);

impl Collector for Behind {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Ok(held) = self.0.gate().held() else { return Ok(()) };
        let help = "Pods that are held whenever they are not enrolled";
        let gauge = ConstGauge::new(i64::try_from(held.len()).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor("orlop_boot_gate_pods", help, None, MetricType::Gauge)?)
    }
}

/// The pods that are held until they are enrolled.
struct HeldPods {
    datapath: Arc<Datapath>,
    cgroups: PodCgroups,
}

impl HeldPods {
    /// Holds a pod, once it has a cgroup.
    async fn hold(&self, uid: &str) -> Result<(), Status> {
        let unavailable =
            |error: anyhow::Error| Status::unavailable(format!("the pod can't be held: {error:#}"));
        let start = Instant::now();
        let cgroup = loop {
            match self.cgroups.find(uid) {
                Ok(Some(cgroup)) => break cgroup,
                Err(error) => return Err(unavailable(error.into())),
                Ok(None) if start.elapsed() > PATIENCE => {
                    return Err(Status::unavailable(
                        "kubelet has made no cgroup (version 2) for the pod yet; if it has, the agent's --cgroup or \
                         --pods-cgroup is not kubelet's",
                    ));
                }
                Ok(None) => sleep(MOMENT).await,
            }
        };
        let gate = self.datapath.gate();
        gate.id(&cgroup).and_then(|id| gate.hold(id)).map_err(|error| unavailable(error.into()))
    }
}
