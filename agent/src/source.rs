//! The source of an agent's world.

use std::sync::Arc;

use orlop_kube::{ClusterWorld, Kinds, Pods, WorldDirectory, WorldFile};
use orlop_model::World;
use tokio::{sync::watch, task::JoinSet};

use crate::{cli::NodeArguments, last_world};

/// Where the world comes from.
pub enum Source {
    Directory(Box<WorldDirectory>),
    /// And where it is kept.
    Cluster(Box<ClusterWorld>, WorldFile),
}

impl Source {
    /// As the arguments say: once the API server has answered, or its last known world is to do.
    pub async fn open(arguments: &NodeArguments) -> anyhow::Result<Self> {
        match &arguments.world.directory {
            Some(directory) => Ok(Self::Directory(Box::new(WorldDirectory::open(directory)?))),
            None => {
                let at = &arguments.place;
                let file = WorldFile::new(&at.state_dir, &at.node);
                let kept = last_world::instead(file.clone(), &at.run_dir);
                let kubeconfig = arguments.world.kubeconfig.as_deref();
                let pods = Pods::OfNode(&at.node);
                let cluster = ClusterWorld::open_or(kubeconfig, Kinds::OfNodes, pods, kept).await?;
                Ok(Self::Cluster(Box::new(cluster), file))
            }
        }
    }

    /// Whether it can't be asked yet, and its world is from disk.
    pub fn is_kept(&self) -> bool {
        matches!(self, Self::Cluster(cluster, _) if cluster.world().as_of.is_some())
    }

    /// What it has to say is also kept on disk, where it may be away one day, for as long as `keeping` is.
    pub fn watch(self, keeping: &mut JoinSet<()>) -> watch::Receiver<Arc<World>> {
        match self {
            Self::Directory(directory) => directory.watch(),
            Self::Cluster(cluster, file) => {
                let worlds = cluster.watch();
                keeping.spawn(last_world::keep(file, worlds.clone()));
                worlds
            }
        }
    }
}
