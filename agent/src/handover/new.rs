use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, anyhow, bail};
use orlop_model::NamespacedName;
use orlop_proxy::{Expected, Inherited, Passthrough, Proxy};
use tokio::{spawn, task::JoinHandle, time::sleep};

use super::{
    BEAT, LOOK_AGAIN, PATIENCE, VERSION,
    wire::{Message, Socket},
};
use crate::seqpacket::{Packet, Peer};

/// Listening sockets of the node's own HTTP endpoints, by address.
pub type ServerSockets = HashMap<SocketAddr, OwnedFd>;

/// Whom an agent that comes finds in the run directory.
#[derive(Debug)]
pub enum Meeting {
    /// Nobody serves.
    Nobody,
    /// One that hands over.
    Predecessor(Box<Predecessor>),
    /// One that never hands over to this one.
    Foreigner(Foreigner),
}

/// An agent that runs and is of another version, so that its successor has to wait for its end.
#[derive(Debug)]
pub struct Foreigner {
    peer: Peer,
    /// What it says of it.
    pub reason: String,
}

impl Foreigner {
    /// Until it has ended, which it does once it is told to and has drained.
    pub async fn ended(self) {
        while let Ok(Some(_)) = self.peer.receive::<Message>().await {}
        // What it listened on is closed in the same moment, not before.
        sleep(LOOK_AGAIN).await;
    }
}

/// The agent that runs, which has given its sockets and serves until [`Predecessor::take_over`].
#[derive(Debug)]
pub struct Predecessor {
    peer: Arc<Peer>,
    /// Says every second that this agent is at work.
    heart: AbortOnDrop,
    enrolled: HashSet<String>,
    /// The sockets of its pods.
    pub pods: Inherited,
    /// Its HTTP endpoints.
    pub servers: ServerSockets,
    /// Where it listens for its successor.
    pub door: OwnedFd,
}

impl Predecessor {
    /// Asks the agent that listens in `run_dir` for its sockets.
    pub async fn meet(run_dir: &Path, node: &str) -> anyhow::Result<Meeting> {
        let path = super::door(run_dir);
        let Some(peer) = Peer::connect(&path).await? else { return Ok(Meeting::Nobody) };
        Self::ask(peer, node).await.with_context(|| {
            format!("cannot take over from the agent at {}, which serves on", path.display())
        })
    }

    async fn ask(peer: Peer, node: &str) -> anyhow::Result<Meeting> {
        anyhow::ensure!(peer.is_root(), "it is not root's");
        let layout = orlop_datapath::ABI_VERSION;
        peer.send(&Message::Hello { version: VERSION, layout, node: node.to_owned() }).await?;
        let (mut pods, mut servers, mut door) = (Inherited::default(), HashMap::new(), None);
        loop {
            let Packet { message, mut descriptors, .. } = peer.hear(PATIENCE).await?;
            match message {
                Message::Socket(socket) => {
                    let descriptor = descriptors.pop().context("a socket without its descriptor")?;
                    match socket {
                        Socket::Pod(name) => pods.put(name, descriptor),
                        Socket::Server(address) => drop(servers.insert(address, descriptor)),
                        Socket::Door => door = Some(descriptor),
                    }
                }
                Message::Enrolled(enrolled) => {
                    let door = door.context("it has not given its socket in --run-dir")?;
                    let (peer, enrolled) = (Arc::new(peer), enrolled.into_iter().collect());
                    let heart = AbortOnDrop(spawn(beat(Arc::clone(&peer))));
                    let predecessor = Self { peer, heart, enrolled, pods, servers, door };
                    return Ok(Meeting::Predecessor(Box::new(predecessor)));
                }
                Message::Refused { reason, for_good: true } => {
                    return Ok(Meeting::Foreigner(Foreigner { peer, reason }));
                }
                Message::Refused { reason, .. } => bail!(reason),
                other => bail!("it says {other:?} instead of handing over"),
            }
        }
    }

    /// Whether none of the pods that it serves would be lost: these could not be enrolled, and why.
    pub fn loses(&self, failed: &BTreeMap<NamespacedName, String>) -> Option<String> {
        let (name, error) = failed.iter().find(|(name, _)| self.enrolled.contains(&name.to_string()))?;
        Some(format!("{name}: {error}"))
    }

    /// Until it has given this agent up, and serves on: says why. May be dropped while it waits.
    pub async fn gives_up(&self) -> anyhow::Error {
        let why = match self.peer.receive().await {
            Ok(Some(Packet { message: Message::Refused { reason, .. }, .. })) => reason,
            Ok(Some(Packet { message, .. })) => format!("it says {message:?}"),
            Ok(None) => "it has gone".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        anyhow!("the agent that runs does not hand over: {why}")
    }

    /// Has it leave everything to this agent, which must serve at once.
    pub async fn take_over(&self) -> anyhow::Result<()> {
        self.heart.0.abort();
        self.peer.send(&Message::Ready).await?;
        match self.peer.hear(PATIENCE).await?.message {
            Message::Yours => Ok(()),
            other => bail!("it says {other:?} instead of leaving"),
        }
    }

    /// Takes the connections that it can move, until it has ended. This agent does not end before.
    pub async fn receive_all(self, proxy: &Proxy, expected: Expected) {
        let mut moved = 0;
        let result = loop {
            match self.peer.receive().await {
                Ok(Some(packet)) => match passthrough(packet) {
                    Ok(passthrough) => proxy.resume(passthrough),
                    Err(error) => break Err(error),
                },
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
            moved += 1;
        };
        drop(expected);
        match result {
            Ok(()) => tracing::info!(moved, "the agent before has ended"),
            Err(error) => {
                tracing::error!(moved, error = format!("{error:#}"), "cannot take more connections")
            }
        }
    }
}

#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn beat(peer: Arc<Peer>) {
    // Who is gone is noticed elsewhere.
    while peer.send(&Message::Preparing).await.is_ok() {
        sleep(BEAT).await;
    }
}

fn passthrough(packet: Packet<Message>) -> anyhow::Result<Passthrough> {
    let Packet { message: Message::Passthrough { state, to_server }, mut payload, descriptors } = packet
    else {
        bail!("it says {:?} instead of moving a connection", packet.message);
    };
    let sockets =
        <[OwnedFd; 2]>::try_from(descriptors).ok().context("a connection without its two sockets")?;
    anyhow::ensure!(to_server <= payload.len(), "less of a connection than there was");
    let to_server = payload.split_to(to_server);
    Ok(Passthrough { state, sockets, rest: [to_server, payload] })
}
