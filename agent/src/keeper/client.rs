use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail, ensure};
use orlop_proxy::{Inherited, Pod, SocketName};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{LOOK_AGAIN, PATIENCE, VERSION, Word};
use crate::seqpacket::{Packet, Peer};

/// What the keeper is to hold.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// The sockets of these.
    pub pods: Vec<Arc<Pod>>,
    /// Nothing that an earlier agent had is waited for any more.
    pub settled: bool,
}

/// An agent's side of the keeper, which may come and go.
pub struct Keeping {
    run_dir: PathBuf,
    met: Option<Keeper>,
    wish: watch::Sender<Wish>,
    /// Whether a keeper holds all that it is to.
    holds: watch::Sender<bool>,
    following: JoinSet<()>,
}

/// What is wanted of a keeper.
#[derive(Clone, Debug, Default)]
enum Wish {
    /// To hold what it has.
    #[default]
    Wait,
    /// To hold this, while the agent serves.
    Hold(Kept),
    /// To hold what it has for a while, as the agent takes nobody any more.
    Leave,
}

impl Keeping {
    /// Asks the keeper in `run_dir`, if there is one, for what an agent that has died has left with it.
    pub async fn arrive(run_dir: &Path) -> (Self, Inherited) {
        let met = Keeper::meet(run_dir).await;
        let met = met.unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "the keeper is of no use: who dialled it is lost");
            None
        });
        let (met, inherited) = met.map(|(keeper, inherited)| (Some(keeper), inherited)).unwrap_or_default();
        (Self { met, ..Self::new(run_dir) }, inherited)
    }

    /// Nothing is left with a keeper while the agent before serves.
    pub fn new(run_dir: &Path) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            met: None,
            wish: watch::Sender::default(),
            holds: watch::Sender::default(),
            following: JoinSet::new(),
        }
    }

    /// From now on this agent serves, and what it listens on is held.
    pub fn begin(&mut self) {
        let (met, wish, holds) = (self.met.take(), self.wish.subscribe(), self.holds.clone());
        self.following.spawn(follow(self.run_dir.clone(), met, wish, holds));
    }

    /// This is what the keeper is to hold now.
    pub fn renew(&self, kept: Kept) {
        self.wish.send_replace(Wish::Hold(kept));
    }

    /// Another agent says from now on what is to be held.
    pub fn hand_over(&mut self) {
        self.following.abort_all();
    }

    /// This agent takes nobody any more, and no other does. Whether who dials waits all the same, until [`Self::lost`].
    pub fn leave(&self) -> bool {
        self.wish.send_replace(Wish::Leave);
        self.holds()
    }

    /// Whether a keeper holds what this agent listens on.
    pub fn holds(&self) -> bool {
        *self.holds.borrow()
    }

    /// Until none does.
    pub async fn lost(&self) {
        // The sender is ours.
        let _ = self.holds.subscribe().wait_for(|holds| !holds).await;
    }
}

async fn follow(
    run_dir: PathBuf,
    mut met: Option<Keeper>,
    mut wish: watch::Receiver<Wish>,
    holds: watch::Sender<bool>,
) {
    let mut said = String::new();
    while !matches!(*wish.borrow(), Wish::Leave) {
        let keeper = match met.take() {
            Some(keeper) => Ok(Some(keeper)),
            // What it has is of no use to an agent that has begun.
            None => Keeper::meet(&run_dir).await.map(|met| met.map(|(keeper, _)| keeper)),
        };
        // What it has of an agent before is what this one listens on, too.
        let has_some = |met: &Option<Keeper>| met.as_ref().is_some_and(|keeper| !keeper.unclaimed.is_empty());
        holds.send_replace(keeper.as_ref().is_ok_and(has_some));
        let ended = match keeper {
            Ok(None) => Ok(()),
            Ok(Some(keeper)) => keeper.follow(&mut wish, &holds).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            let error = format!("{error:#}");
            if error != said {
                tracing::warn!(error, "no keeper holds what this agent listens on");
            }
            said = error;
        }
        holds.send_replace(false);
        sleep(LOOK_AGAIN).await;
    }
}

/// A keeper that runs.
struct Keeper {
    peer: Peer,
    /// What it has of agents before this one, which has no pod for it so far.
    unclaimed: HashSet<SocketName>,
    /// What it has been given, once it has.
    given: Option<HashMap<SocketName, Arc<Pod>>>,
}

impl Keeper {
    /// With the sockets that it has. `None` if there is no keeper.
    async fn meet(run_dir: &Path) -> anyhow::Result<Option<(Self, Inherited)>> {
        let path = super::door(run_dir);
        let Some(peer) = Peer::connect(&path).await? else { return Ok(None) };
        let met = Self::ask(peer).await.with_context(|| format!("at {}", path.display()))?;
        Ok(Some(met))
    }

    async fn ask(peer: Peer) -> anyhow::Result<(Self, Inherited)> {
        ensure!(peer.is_root(), "the keeper is not root's");
        peer.send(&Word::Hello { version: VERSION }).await?;
        let (mut unclaimed, mut inherited) = (HashSet::new(), Inherited::default());
        loop {
            let Packet { message, mut descriptors, .. } = peer.hear(PATIENCE).await?;
            match message {
                Word::Socket(name) => {
                    let socket = descriptors.pop().context("a socket without its descriptor")?;
                    inherited.put(name, socket);
                    unclaimed.insert(name);
                }
                Word::All => return Ok((Self { peer, unclaimed, given: None }, inherited)),
                Word::Refused { reason } => bail!(reason),
                other => bail!("the keeper says {other:?}"),
            }
        }
    }

    /// Has it do what is wished, until it has gone.
    async fn follow(
        mut self,
        wish: &mut watch::Receiver<Wish>,
        holds: &watch::Sender<bool>,
    ) -> anyhow::Result<()> {
        loop {
            let wished = wish.borrow_and_update().clone();
            match wished {
                Wish::Wait => {}
                Wish::Hold(kept) => {
                    timeout(PATIENCE, self.give(kept)).await.context("the keeper hangs")??;
                    holds.send_replace(true);
                }
                Wish::Leave => {
                    timeout(PATIENCE, self.peer.send(&Word::Leaving)).await.context("the keeper hangs")??
                }
            }
            tokio::select! {
                changed = wish.changed() => changed?,
                said = self.peer.receive::<Word>() => {
                    said?;
                    bail!("the keeper has gone");
                }
            }
        }
    }

    async fn give(&mut self, Kept { pods, settled }: Kept) -> anyhow::Result<()> {
        let given = self.given.take();
        let serves = given.is_some();
        let given = given.unwrap_or_default();
        // First: it must not let go of what it gets.
        if !serves {
            self.peer.send(&Word::Serving).await?;
        }
        let now: HashMap<_, _> =
            pods.iter().flat_map(|pod| pod.sockets().map(move |(name, _)| (name, Arc::clone(pod)))).collect();
        for (name, pod) in &now {
            // A pod that left the mesh and came again has others of the same name.
            if given.get(name).is_some_and(|before| Arc::ptr_eq(before, pod)) {
                continue;
            }
            let Some((_, socket)) = pod.sockets().find(|(its, _)| its == name) else { continue };
            self.peer.send_with(&Word::Socket(*name), &[], &[socket]).await?;
            self.unclaimed.remove(name);
        }
        let mut gone: Vec<_> = given.into_keys().filter(|name| !now.contains_key(name)).collect();
        if settled {
            gone.extend(self.unclaimed.drain());
        }
        for name in gone {
            self.peer.send(&Word::Forget(name)).await?;
        }
        self.given = Some(now);
        if !serves {
            tracing::info!(pods = pods.len(), "a keeper holds what this agent listens on");
        }
        Ok(())
    }
}
