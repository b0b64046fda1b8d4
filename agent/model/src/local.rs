use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::compile::{Settings, live};
use crate::mutual_tls::{Modes, PeerAuthentications};
use crate::name::NamespacedName;
use crate::optin::{opted_in, outside};
use crate::policy::{Policies, Prepared};
use crate::snapshot::{LocalPod, Snapshot, Workload};
use crate::workloads::Workloads;
use crate::world::{Labels, Pod, World};

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
        let pods = own.map(|(pod, workload)| local_pod(pod, workload));
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

/// A pod of this node that is not in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outsider {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Why it is not, and what would have it in.
    pub why: String,
    /// Whether its namespace asks for the mesh, as against this pod of it.
    pub namespace_asks: bool,
}

pub(crate) fn is_local(workload: &Workload, settings: &Settings) -> bool {
    workload.enrolled && workload.node == settings.node
}

impl Snapshot {
    /// The live pods of this node that are not in the mesh, sorted by name. Costs a look at all pods.
    pub fn outsiders(&self) -> Vec<Outsider> {
        let Some(input) = &self.input else { return Vec::new() };
        let of_node = live(&self.world).filter(|(_, pod)| pod.node.as_deref() == Some(&*input.settings.node));
        let none = Labels::new();
        let found = of_node.filter_map(|(name, pod)| {
            let namespace = self.world.namespaces.get(&name.namespace).map_or(&none, |of| &of.labels);
            let why = match outside(namespace, &pod.labels) {
                Some(why) => why,
                None if pod.host_network => {
                    "it has its node's network (hostNetwork), and none of its own".to_owned()
                }
                None if pod.windows => "it is for Windows, where there is no agent".to_owned(),
                None => return None,
            };
            Some(Outsider { name: name.clone(), why, namespace_asks: opted_in(namespace, &none) })
        });
        found.collect()
    }

    /// Whether another live pod of this node says that it has the same UID. Costs a look at all pods.
    pub fn is_contested(&self, pod: &Workload) -> bool {
        live(&self.world).any(|(name, other)| {
            other.uid == pod.uid && *name != pod.name && other.node.as_deref() == Some(&*pod.node)
        })
    }

    /// The live pods of this node that are not in the mesh. Costs a look at all pods.
    pub fn pods_outside(&self) -> impl Iterator<Item = LocalPod> {
        let of_node = |workload: &Workload| {
            self.input
                .as_ref()
                .is_some_and(|input| !workload.enrolled && workload.node == input.settings.node)
        };
        live(&self.world).filter_map(move |(name, pod)| {
            Some(local_pod(pod, self.workloads.pods.get(name).filter(|workload| of_node(workload))?))
        })
    }

    /// The pod of this name, if it lives.
    pub(crate) fn live_pod(&self, name: &NamespacedName) -> Option<&Arc<Pod>> {
        self.world.pods.get(name).filter(|pod| !pod.phase.is_terminal())
    }
}

fn local_pod(pod: &Pod, workload: &Arc<Workload>) -> LocalPod {
    LocalPod {
        workload: Arc::clone(workload),
        claim: pod.claim.clone(),
        netns: netns(pod),
        probed: pod.probed.clone(),
    }
}

/// A relative path would depend on where the agent was started.
fn netns(pod: &Pod) -> Option<PathBuf> {
    pod.annotations.get(NETNS).map(|path| PathBuf::from(path.as_str())).filter(|path| path.is_absolute())
}
