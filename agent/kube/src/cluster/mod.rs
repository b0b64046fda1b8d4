//! A Kubernetes API server as the source of the world.

mod head;
mod item;
mod pods;
mod seen;
mod store;
mod watch;

use std::collections::BTreeMap;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use orlop_model::World;
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::object::{Kind, Kinds};
pub(crate) use head::Head;
#[cfg(test)]
pub(crate) use head::Parents;
pub(crate) use item::Item;
pub use pods::Pods;
pub(crate) use seen::Seen;
use store::{Store, Update};
pub(crate) use watch::{Definitions, describe, resource, watch_definitions};
use watch::{Problem, Telling, Watched, watch_kind};

/// How long it must be quiet before a change is seen, so that one of many objects is seen as one.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// How long to wait at most for that.
const MAX_SETTLE: Duration = Duration::from_millis(200);
/// How long a TCP connection to the API server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take to list everything for somebody who waits for it.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Updates on their way to the keeper.
const QUEUE: usize = 1024;

/// The objects of a Kubernetes cluster, watched from now on.
#[derive(Debug)]
pub struct ClusterWorld {
    keeper: Keeper,
    world: World,
    /// What has been listed so far, where the world is another one, of the past.
    listing: Option<World>,
}

/// Why a cluster can't be watched.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No kubeconfig that can be read.
    #[error("{}: can't use the kubeconfig: {source}", .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// No such context in `$KUBECONFIG` or `~/.kube/config`, or one of no use.
    #[error("can't use the context {name}: {source}; `kubectl config get-contexts` lists them")]
    Context {
        /// As somebody named it.
        name: String,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// Neither in a cluster nor told of one.
    #[error(
        "can't tell which cluster to watch: {0}; run in a pod with a service account, or name a kubeconfig"
    )]
    Unknown(#[source] kube::config::InferConfigError),
    /// The credentials are of no use.
    #[error("can't make a client of the Kubernetes API: {0}")]
    Client(#[source] kube::Error),
    /// A kind can't be read.
    #[error("can't read objects of kind {kind} of the Kubernetes API: {problem}")]
    Failing {
        /// Its name.
        kind: &'static str,
        /// What the client or the server said.
        problem: String,
    },
    /// It takes too long to list everything.
    #[error(
        "the Kubernetes API has not listed everything within {0:?}; it must be let list the kinds that Orlop reads, \
         and customresourcedefinitions"
    )]
    Late(Duration),
    /// The watches ended, which they never should.
    #[error("the watches of the Kubernetes API have ended")]
    Ended,
}

impl ClusterWorld {
    /// Lists everything of these kinds once, but of pods these alone. Without a kubeconfig it is the cluster that this pod
    /// runs in, or that `$KUBECONFIG` names. Waits for an API server that does not answer; nothing is known before it has.
    pub async fn open(kubeconfig: Option<&Path>, kinds: Kinds, pods: Pods<'_>) -> Result<Self, ClusterError> {
        Self::open_or(kubeconfig, kinds, pods, pending()).await
    }

    /// Like [`Self::open`], but if `kept` is there first, it is the world until everything has been listed.
    pub async fn open_or(
        kubeconfig: Option<&Path>,
        kinds: Kinds,
        pods: Pods<'_>,
        kept: impl Future<Output = World>,
    ) -> Result<Self, ClusterError> {
        let mut keeper = Keeper::start(&client(kubeconfig, None).await?, kinds, pods);
        let mut listed = World::default();
        tokio::select! {
            result = keeper.list(&mut listed) => {
                result?;
                Ok(Self { keeper, world: listed, listing: None })
            }
            world = kept => Ok(Self { keeper, world, listing: Some(listed) }),
        }
    }

    /// What there is of these kinds now, for somebody who waits for it: fails with the first thing that can't be asked,
    /// unless that may pass.
    /// A context names another cluster than the kubeconfig's current one.
    pub async fn read(
        kubeconfig: Option<&Path>,
        context: Option<&str>,
        kinds: Kinds,
    ) -> Result<World, ClusterError> {
        let mut keeper = Keeper::start(&client(kubeconfig, context).await?, kinds, Pods::All);
        let mut world = World::default();
        let late = Instant::now() + READ_TIMEOUT;
        let mut failing = BTreeMap::new();
        while !keeper.store.is_complete() {
            let Ok(update) = timeout_at(late, keeper.updates.recv()).await else {
                return Err(failing.pop_first().map_or(ClusterError::Late(READ_TIMEOUT), failed));
            };
            match update.ok_or(ClusterError::Ended)? {
                // What was listed needs no watch.
                Update::Failing(kind, _) if !keeper.store.is_missing(kind) => {}
                Update::Failing(kind, problem) if problem.may_pass => drop(failing.insert(kind, problem)),
                Update::Failing(kind, problem) => return Err(failed((kind, problem))),
                update => {
                    if let Update::Works(kind) = &update {
                        failing.remove(kind);
                    }
                    keeper.store.apply(&mut world, update);
                }
            }
        }
        Ok(world)
    }

    /// The world as it was listed, or kept.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Watches it until the receiver and all its clones are dropped.
    ///
    /// A change is there within some 10 ms. An object that can't be understood is logged with its field, and its
    /// last good state stays in force; a policy that never was good stands for one that lets nothing pass. While
    /// the API server is away, everything stays in force. A world that was kept stays until everything has been
    /// listed, and then gives way to what is, in one step.
    pub fn watch(self) -> channel::Receiver<Arc<World>> {
        let Self { mut keeper, world, listing } = self;
        let (sender, receiver) = channel::channel(Arc::new(world));
        tokio::spawn(async move {
            tokio::select! {
                () = sender.closed() => {}
                () = keeper.run(&sender, listing) => {}
            }
        });
        receiver
    }
}

fn failed((kind, problem): (Kind, Problem)) -> ClusterError {
    ClusterError::Failing { kind: kind.name(), problem: problem.text }
}

#[derive(Debug)]
struct Keeper {
    store: Store,
    updates: mpsc::Receiver<Update>,
    // They end with this.
    watches: JoinSet<()>,
}

impl Keeper {
    fn start(client: &Client, kinds: Kinds, pods: Pods<'_>) -> Self {
        let (definitions, known) = channel::channel(None);
        let mut keeper = Self::start_with(client, kinds, pods, Telling::Objects, &known);
        keeper.watches.spawn(watch_definitions(client.clone(), definitions));
        keeper
    }

    /// With the definitions that somebody else watches.
    fn start_with(
        client: &Client,
        kinds: Kinds,
        pods: Pods<'_>,
        telling: Telling,
        known: &channel::Receiver<Definitions>,
    ) -> Self {
        let (sender, updates) = mpsc::channel(QUEUE);
        let mut watches = JoinSet::new();
        for watched in kinds.all().flat_map(|kind| Watched::of(kind, pods)) {
            let watch = watch_kind(watched, client.clone(), known.clone(), telling, sender.clone());
            watches.spawn(async move { drop(watch.await) });
        }
        Self { store: Store::of(kinds, pods), updates, watches }
    }

    /// Until every kind was listed once. May be dropped meanwhile, and called again with the same world.
    async fn list(&mut self, world: &mut World) -> Result<(), ClusterError> {
        while !self.store.is_complete() {
            let update = self.updates.recv().await.ok_or(ClusterError::Ended)?;
            self.store.apply(world, update);
        }
        Ok(())
    }

    async fn run(&mut self, sender: &channel::Sender<Arc<World>>, listing: Option<World>) {
        if let Some(mut world) = listing {
            if self.list(&mut world).await.is_err() {
                return;
            }
            tracing::info!("the Kubernetes API has answered: its world takes the place of the one from disk");
            sender.send_replace(Arc::new(world));
        }
        let mut batch = Vec::new();
        while self.gather(&mut batch).await {
            sender.send_if_modified(|world| {
                // In place, unless somebody still works with it.
                let world = Arc::make_mut(world);
                batch.drain(..).fold(false, |changed, update| self.store.apply(world, update) | changed)
            });
        }
    }

    /// Waits for an update and for those that come with it. False if none will.
    async fn gather(&mut self, batch: &mut Vec<Update>) -> bool {
        if self.updates.recv_many(batch, QUEUE).await == 0 {
            return false;
        }
        let limit = Instant::now() + MAX_SETTLE;
        loop {
            let quiet = (Instant::now() + DEBOUNCE).min(limit);
            match timeout_at(quiet, self.updates.recv_many(batch, QUEUE)).await {
                Ok(1..) if Instant::now() < limit => {}
                _ => return true,
            }
        }
    }
}

pub(crate) async fn client(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Client, ClusterError> {
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    let mut config = match (kubeconfig, context) {
        (Some(path), _) => {
            let failed = |source| ClusterError::Kubeconfig { path: path.to_owned(), source };
            let read = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(read, &options).await.map_err(failed)?
        }
        // Not what a pod has: a context is somebody's kubeconfig's.
        (None, Some(name)) => Config::from_kubeconfig(&options)
            .await
            .map_err(|source| ClusterError::Context { name: name.to_owned(), source })?,
        (None, None) => Config::infer().await.map_err(ClusterError::Unknown)?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config).map_err(ClusterError::Client)
}
