use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    net::SocketAddr,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::Path,
};

use anyhow::{Context as _, bail};
use orlop_model::NamespacedName;
use orlop_proxy::{Passthrough, Pod, Proxy};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_seqpacket::UnixSeqpacketListener;

use super::{
    PATIENCE, PREPARATION, VERSION,
    wire::{Message, Peer, Socket},
};

/// Where the next agent comes to take over.
pub struct Door(UnixSeqpacketListener);

impl Door {
    /// Opens it in `run_dir`, which is made if it is not there.
    pub fn open(run_dir: &Path) -> anyhow::Result<Self> {
        let path = super::door(run_dir);
        let open = || {
            DirBuilder::new().recursive(true).mode(0o700).create(run_dir)?;
            match fs::remove_file(&path) {
                // Of an agent that is gone.
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let listener = UnixSeqpacketListener::bind(&path)?;
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            Ok(Self(listener))
        };
        open().with_context(|| format!("cannot listen on {}; choose another --run-dir", path.display()))
    }

    /// The one of the agent before.
    pub fn inherit(socket: OwnedFd) -> anyhow::Result<Self> {
        UnixSeqpacketListener::try_from(socket).map(Self).context("the socket in --run-dir is of no use")
    }

    /// Waits until somebody comes, who may do so as root alone. May be dropped while it waits.
    pub async fn knock(&mut self) -> Successor {
        loop {
            match self.0.accept().await.map(Peer::new) {
                Ok(peer) if peer.is_root() => return Successor(peer),
                Ok(_) => tracing::warn!("somebody who is not root came to take over"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept in --run-dir");
                    tokio::time::sleep(PATIENCE).await;
                }
            }
        }
    }
}

/// A new agent that wants to take over.
#[derive(Debug)]
pub struct Successor(Peer);

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
        self.send(&Message::Socket(Socket::Door), estate.door.0.as_fd()).await?;
        let enrolled = estate.pods.iter().map(|(name, _)| name.to_string()).collect();
        self.0.send(&Message::Enrolled(enrolled)).await?;
        match self.0.hear(PREPARATION).await?.message {
            Message::Ready => Ok(self.0.send(&Message::Yours).await?),
            other => bail!("it says {other:?} instead of being ready"),
        }
    }

    /// Moves connections for as long as there are some to move. If the new agent takes no more, `proxy` keeps
    /// them.
    pub async fn move_all(&self, leaving: &mut UnboundedReceiver<Passthrough>, proxy: &Proxy) {
        while let Some(passthrough) = leaving.recv().await {
            self.move_one(passthrough, leaving, proxy).await;
        }
    }

    /// Moves those that wait to be moved.
    pub async fn move_rest(&self, leaving: &mut UnboundedReceiver<Passthrough>, proxy: &Proxy) {
        while let Ok(passthrough) = leaving.try_recv() {
            self.move_one(passthrough, leaving, proxy).await;
        }
    }

    async fn move_one(
        &self,
        passthrough: Passthrough,
        leaving: &mut UnboundedReceiver<Passthrough>,
        proxy: &Proxy,
    ) {
        let Passthrough { state, sockets, rest } = &passthrough;
        let message = Message::Passthrough { state: state.clone(), to_server: rest[0].len() };
        let sockets = sockets.each_ref().map(|socket| socket.as_fd());
        if let Err(error) = self.0.send_with(&message, rest, &sockets).await {
            tracing::warn!(%error, "the new agent takes no more connections; they stay here");
            leaving.close();
            proxy.resume(passthrough);
            while let Ok(passthrough) = leaving.try_recv() {
                proxy.resume(passthrough);
            }
        }
    }

    async fn is_one_of_us(&self, node: &str) -> anyhow::Result<()> {
        let reason = match self.0.hear(PATIENCE).await?.message {
            Message::Hello { version: VERSION, layout: orlop_datapath::ABI_VERSION, node: its }
                if its == node =>
            {
                return Ok(());
            }
            Message::Hello { version: VERSION, layout: orlop_datapath::ABI_VERSION, node: its } => {
                format!("this is the agent of node {node}, not of {its}: each needs a --run-dir of its own")
            }
            Message::Hello { version, layout, .. } => format!(
                "this agent hands over by version {VERSION} with maps of layout {}, not by {version} with {layout}: \
                 stop it first",
                orlop_datapath::ABI_VERSION
            ),
            other => bail!("it says {other:?} instead of hello"),
        };
        self.0.send(&Message::Refused { reason: reason.clone() }).await?;
        bail!(reason)
    }

    async fn send(&self, message: &Message, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.0.send_with(message, &[], &[socket]).await
    }
}
