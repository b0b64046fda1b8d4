//! The boot gate: a CSI driver that kubelet asks before it makes a pod's sandbox, and that has the kernel hold the
//! pod before it answers. A pod that has no volume of it is held from when the agent finds it, or, where `orlop gate`
//! runs, from when that does.

mod driver;
mod messages;
mod server;
pub mod start;
mod static_pods;
pub mod unit;
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
    /// The pods that kubelet has asked for, as it will after a reboot, when nothing is held any more.
    asked_for: HashSet<CgroupId>,
    /// What was the matter with the last step, which is told once.
    problem: Option<String>,
}

impl BootGate {
    /// For the kubelet whose `--root-dir` this is. Nobody is served yet.
    pub fn new(node: &str, kubelet: &Path, datapath: Arc<Datapath>, cgroups: PodCgroups) -> Self {
        let held = Arc::new(HeldPods { datapath, cgroups });
        let serving = JoinSet::new();
        let (node, kubelet) = (node.to_owned(), kubelet.to_owned());
        Self { node, kubelet, held, serving, asked_for: HashSet::new(), problem: None }
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

    /// Lets go of pods that are outside the mesh and of those that are gone, and holds every pod of the mesh, whether
    /// kubelet has asked for it or not. Says for which ones it has, if that can be told: they are held after a reboot
    /// too, all of them where `orlop gate` runs `from_start` on. A pod that can't be dealt with stays as it is, and holds
    /// nobody else up.
    pub fn keep(&mut self, snapshot: &Snapshot, from_start: bool) -> Option<BTreeSet<NamespacedName>> {
        let (gated, problem) = match self.step(snapshot, from_start) {
            Ok((gated, problem)) => (Some(gated), problem),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        match &problem {
            Some(error) if problem != self.problem => {
                tracing::error!(error, "the boot gate is not as it should be");
            }
            None if self.problem.is_some() => tracing::info!("the boot gate is as it should be again"),
            _ => {}
        }
        self.problem = problem;
        gated
    }

    /// Those that are held after a reboot too, and what is the matter with others.
    fn step(
        &mut self,
        snapshot: &Snapshot,
        from_start: bool,
    ) -> anyhow::Result<(BTreeSet<NamespacedName>, Option<String>)> {
        let gate = self.held.datapath.gate();
        // Before the cgroups are listed: what is held now was made before.
        let before: HashSet<CgroupId> = gate.held()?.into_iter().collect();
        let cgroups = self.held.cgroups.all().context("cannot list the pods' cgroups")?;
        // Nobody is held who is outside, whatever another object says of the same static pod; and nobody let go of, by what
        // is from disk.
        let pods_outside: Vec<_> = snapshot.pods_outside().collect();
        let outside: HashSet<_> = pods_outside.iter().map(|pod| &*pod.workload.uid).collect();
        let claimed_outside: HashSet<_> =
            pods_outside.iter().filter_map(|pod| pod.claim.as_deref()).collect();
        let mut local = HashMap::new();
        for pod in snapshot.local_pods() {
            // Until kubelet says more of a static pod, whose object it makes before anything runs.
            if let Some(claim) = pod.claim.as_deref().filter(|claim| !claimed_outside.contains(claim)) {
                local.entry(claim).or_insert(&pod.workload.name);
            }
            local.insert(&*pod.workload.uid, &pod.workload.name);
        }
        let is_present = snapshot.as_of().is_none();
        let mut gone: BTreeSet<_> = before.iter().copied().collect();
        self.asked_for.retain(|id| before.contains(id));
        let (kubelet, asked_for) = (&self.kubelet, &mut self.asked_for);
        let mut gated = BTreeSet::new();
        let mut pod = |uid: &str, path: &Path| {
            let id = match gate.id(path) {
                // It is gone since it was listed.
                Err(DatapathError::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
                    return Ok(());
                }
                id => id?,
            };
            gone.remove(&id);
            if outside.contains(uid) {
                if is_present && before.contains(&id) {
                    tracing::info!(uid, "not held any more, as it is outside the mesh");
                    gate.release(id)?;
                }
                return Ok(());
            }
            let Some(name) = local.get(uid) else { return Ok(()) };
            if !before.contains(&id) {
                gate.hold(id)?;
            }
            // It takes its directory back before the pod is gone.
            if asked_for.contains(&id) || Target::of(kubelet, uid).is_dir() {
                asked_for.insert(id);
            }
            if from_start || asked_for.contains(&id) {
                gated.insert((*name).clone());
            }
            Ok(())
        };
        let pods = each(&cgroups, |(uid, path)| pod(uid, path));
        // It may be there all the same.
        let released = each(&gone, |id| gate.release_gone(*id));
        Ok((gated, pods.or(released)))
    }
}

/// Does `one` for each of them, whatever becomes of the others. The first error, and how many more there were.
fn each<T>(
    all: impl IntoIterator<Item = T>,
    one: impl FnMut(T) -> Result<(), DatapathError>,
) -> Option<String> {
    let mut errors = all.into_iter().map(one).filter_map(Result::err);
    let first = errors.next()?;
    Some(match errors.count() {
        0 => first.to_string(),
        more => format!("{first}, and so for {more} more"),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_done_for_one_is_done_for_the_others() {
        let (mut done, refuse) = (Vec::new(), [1, 3]);
        let told = each(1..=4, |id| match refuse.contains(&id) {
            true => Err(DatapathError::NotGateable(format!("/{id}").into())),
            false => {
                done.push(id);
                Ok(())
            }
        });
        assert_eq!(done, [2, 4]);
        let told = told.unwrap();
        assert!(told.contains("/1") && told.ends_with(", and so for 1 more"), "{told}");
        assert_eq!(each(1..=4, |_| Ok(())), None);
    }
}
