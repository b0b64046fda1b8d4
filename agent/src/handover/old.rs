use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, bail};
use orlop_model::NamespacedName;
use orlop_proxy::{Passthrough, Pod, Proxy};
use tokio::{sync::mpsc::UnboundedReceiver, time::timeout};

use super::{
    PATIENCE, PREPARATION, VERSION,
    wire::{Message, Socket},
};
use crate::seqpacket::{self, Peer};

/// Where the next agent comes to take over.
pub struct Door(seqpacket::Door);

impl Door {
    /// Opens it in `run_dir`, which is made if it is not there.
    pub fn open(run_dir: &Path) -> anyhow::Result<Self> {
        seqpacket::Door::open(&super::door(run_dir)).map(Self)
    }

    /// The one of the agent before.
    pub fn inherit(socket: OwnedFd) -> anyhow::Result<Self> {
        let listener = socket.try_into().context("the socket in --run-dir is of no use")?;
        Ok(Self(seqpacket::Door(listener)))
    }

    /// Waits until somebody comes, who may do so as root alone. May be dropped while it waits.
    pub async fn knock(&mut self) -> Successor {
        Successor(self.0.knock().await)
    }
}

/// A new agent that wants to take over.
#[derive(Debug)]
pub struct Successor(Peer);

/// The connections that go to it.
#[derive(Debug)]
pub struct Leaving {
    waiting: UnboundedReceiver<Passthrough>,
    /// On its way, so that it is not lost if the sending is broken off: a message is sent whole or not at all.
    next: Option<Passthrough>,
}

impl Leaving {
    pub fn new(waiting: UnboundedReceiver<Passthrough>) -> Self {
        Self { waiting, next: None }
    }

    /// Whether the new agent has taken all that it was given so far.
    pub fn is_open(&self) -> bool {
        !self.waiting.is_closed()
    }
}

/// What it is given.
pub struct Estate<'a> {
    pub node: &'a str,
    pub pods: &'a [(&'a NamespacedName, &'a Pod)],
    pub servers: &'a [(SocketAddr, BorrowedFd<'a>)],
    pub door: &'a Door,
}

impl Successor {
    /// Gives every listening socket, waits until the new agent is ready to serve, and tells it that everything
    /// is its own.
    pub async fn give(&self, estate: &Estate<'_>) -> anyhow::Result<()> {
        self.is_one_of_us(estate.node).await?;
        for (_, pod) in estate.pods {
            for (name, socket) in pod.sockets() {
                self.send(&Message::Socket(Socket::Pod(name)), socket).await?;
            }
        }
        for (address, socket) in estate.servers {
            self.send(&Message::Socket(Socket::Server(*address)), *socket).await?;
        }
        self.send(&Message::Socket(Socket::Door), estate.door.0.0.as_fd()).await?;
        let enrolled = estate.pods.iter().map(|(name, _)| name.to_string()).collect();
        self.0.send(&Message::Enrolled(enrolled)).await?;
        let ready = async {
            loop {
                match self.0.hear(PATIENCE).await?.message {
                    Message::Preparing => {}
                    Message::Ready => return Ok(()),
                    other => bail!("it says {other:?} instead of being ready"),
                }
            }
        };
        timeout(PREPARATION, ready)
            .await
            .with_context(|| format!("it is not ready after {PREPARATION:?}"))??;
        Ok(self.0.send(&Message::Yours).await?)
    }

    /// Tells a new agent that this one goes on. It may hear of it late, or never.
    pub async fn give_up(&self, reason: &str) {
        let refused = Message::Refused { reason: reason.to_owned(), for_good: false };
        let _ = timeout(PATIENCE, self.0.send(&refused)).await;
    }

    /// Until the new agent has ended.
    pub async fn ended(&self) {
        while let Ok(Some(_)) = self.0.receive::<Message>().await {}
    }

    /// Moves connections for as long as there are some to move. May be dropped meanwhile.
    pub async fn move_all(&self, leaving: &mut Leaving, proxy: &Proxy) {
        loop {
            if leaving.next.is_none() {
                leaving.next = leaving.waiting.recv().await;
            }
            if leaving.next.is_none() {
                return;
            }
            self.move_next(leaving, proxy).await;
        }
    }

    /// Moves those that wait to be moved.
    pub async fn move_rest(&self, leaving: &mut Leaving, proxy: &Proxy) {
        loop {
            if leaving.next.is_none() {
                leaving.next = leaving.waiting.try_recv().ok();
            }
            if leaving.next.is_none() {
                return;
            }
            self.move_next(leaving, proxy).await;
        }
    }

    /// If the new agent takes no more, `proxy` keeps it, and those after it.
    async fn move_next(&self, leaving: &mut Leaving, proxy: &Proxy) {
        let Some(Passthrough { state, sockets, rest }) = &leaving.next else { return };
        let message = Message::Passthrough { state: state.clone(), to_server: rest[0].len() };
        let sockets = sockets.each_ref().map(|socket| socket.as_fd());
        let sent = self.0.send_with(&message, rest, &sockets).await;
        let passthrough = leaving.next.take();
        if let Err(error) = sent {
            tracing::warn!(%error, "the new agent takes no more connections; they stay here");
            leaving.waiting.close();
            passthrough.into_iter().for_each(|passthrough| proxy.resume(passthrough));
            while let Ok(passthrough) = leaving.waiting.try_recv() {
                proxy.resume(passthrough);
            }
        }
    }

    async fn is_one_of_us(&self, node: &str) -> anyhow::Result<()> {
        let (reason, for_good) = match self.0.hear(PATIENCE).await?.message {
            Message::Hello { version: VERSION, layout: orlop_datapath::ABI_VERSION, node: its }
                if its == node =>
            {
                return Ok(());
            }
            Message::Hello { version: VERSION, layout: orlop_datapath::ABI_VERSION, node: its } => {
                let why = "each needs a --run-dir of its own";
                (format!("this is the agent of node {node}, not of {its}: {why}"), false)
            }
            Message::Hello { version, layout, .. } => {
                let ours = orlop_datapath::ABI_VERSION;
                let reason = format!(
                    "this agent hands over by version {VERSION} with maps of layout {ours}, not by {version} with \
                     {layout}: stop it first"
                );
                (reason, true)
            }
            other => bail!("it says {other:?} instead of hello"),
        };
        self.0.send(&Message::Refused { reason: reason.clone(), for_good }).await?;
        bail!(reason)
    }

    async fn send(&self, message: &Message, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.0.send_with(message, &[], &[socket]).await
    }
}
