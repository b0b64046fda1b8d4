use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::compile::{Settings, live};
use crate::mutual_tls::{Modes, PeerAuthentications};
use crate::name::NamespacedName;
use crate::policy::{Policies, Prepared};
use crate::snapshot::{LocalPod, Snapshot, Workload};
use crate::workloads::Workloads;
use crate::world::{Pod, World};

/// Says where a local pod's network namespace is, for sources that have no container runtime behind them.
const NETNS: &str = "orlop.dev/netns";

/// What this node enforces: its own enrolled pods, and what applies to them.
#[derive(Debug, Default)]
pub(crate) struct Local {
    /// Sorted by name.
    pub pods: Vec<LocalPod>,
    pub policies: HashMap<NamespacedName, Policies>,
    pub mutual_tls: HashMap<NamespacedName, Modes>,
}

impl Local {
    /// With what was made of their policies.
    pub fn new(
        world: &World,
        settings: &Settings,
        workloads: &Workloads,
        prepared: &Prepared,
        names: &[NamespacedName],
    ) -> (Self, Prepared) {
        let own = names.iter().filter_map(|name| Some((world.pods.get(name)?, workloads.pods.get(name)?)));
        let peer_authentications = PeerAuthentications::new(world, settings);
        let (prepared, policies) = prepared.apply(own.clone().map(|(pod, _)| pod));
        let mutual_tls =
            own.clone().map(|(pod, _)| (pod.name.clone(), peer_authentications.of(pod))).collect();
        let pods = own.map(|(pod, workload)| LocalPod {
            workload: Arc::clone(workload),
            netns: netns(pod),
            probed: pod.probed.clone(),
        });
        (Self { pods: pods.collect(), policies, mutual_tls }, prepared)
    }
}

/// The names of the enrolled pods of this node, sorted.
pub(crate) fn names(world: &World, settings: &Settings, workloads: &Workloads) -> Vec<NamespacedName> {
    let of_node = live(world).filter(|(_, pod)| pod.node.as_deref().unwrap_or_default() == settings.node);
    let local =
        of_node.filter(|(name, _)| workloads.pods.get(*name).is_some_and(|of| is_local(of, settings)));
    local.map(|(name, _)| name.clone()).collect()
}

pub(crate) fn is_local(workload: &Workload, settings: &Settings) -> bool {
    workload.enrolled && workload.node == settings.node
}

impl Snapshot {
    /// The pod of this name, if it lives.
    pub(crate) fn live_pod(&self, name: &NamespacedName) -> Option<&Arc<Pod>> {
        self.world.pods.get(name).filter(|pod| !pod.phase.is_terminal())
    }
}

/// A relative path would depend on where the agent was started.
fn netns(pod: &Pod) -> Option<PathBuf> {
    pod.annotations.get(NETNS).map(|path| PathBuf::from(path.as_str())).filter(|path| path.is_absolute())
}
