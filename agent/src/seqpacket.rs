//! Messages between processes of a node, with descriptors: JSON in packets of a Unix socket (unix(7), SOCK_SEQPACKET).

use std::{
    fs::{self, DirBuilder, Permissions},
    io::{self, IoSlice},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use bytes::{Buf as _, Bytes};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{sleep, timeout};
use tokio_seqpacket::{
    UnixSeqpacket, UnixSeqpacketListener,
    ancillary::{AncillaryMessageWriter, OwnedAncillaryMessage},
};

/// Room for a message: what a connection has on its way is the largest part, at most 64 KiB each way.
const MAX_PACKET: usize = 192 << 10;
/// Room for the descriptors of a message, with their header (cmsg(3)).
const MAX_DESCRIPTORS: usize = 64;
/// Before another attempt to accept.
const PAUSE: Duration = Duration::from_secs(1);

/// Where others come.
#[derive(Debug)]
pub struct Door(pub UnixSeqpacketListener);

impl Door {
    /// Opens it at `path`, whose directory is made if it is not there, instead of whatever is there.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let open = || {
            if let Some(directory) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            }
            match fs::remove_file(path) {
                // Of a process that is gone.
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let listener = UnixSeqpacketListener::bind(path)?;
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            Ok(Self(listener))
        };
        open().with_context(|| format!("cannot listen on {}; choose another --run-dir", path.display()))
    }

    /// Waits until somebody comes, who may do so as root alone. May be dropped while it waits.
    pub async fn knock(&mut self) -> Peer {
        loop {
            match self.0.accept().await.map(Peer::new) {
                Ok(peer) if peer.is_root() => return peer,
                Ok(_) => tracing::warn!("somebody who is not root came to --run-dir"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept in --run-dir");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// A message as it arrives.
#[derive(Debug)]
pub struct Packet<M> {
    pub message: M,
    /// What came after it.
    pub payload: Bytes,
    pub descriptors: Vec<OwnedFd>,
}

/// The other process.
#[derive(Debug)]
pub struct Peer(UnixSeqpacket);

impl Peer {
    /// Whoever listens at `path`; `None` if nobody does.
    pub async fn connect(path: &Path) -> anyhow::Result<Option<Self>> {
        match UnixSeqpacket::connect(path).await {
            Err(error)
                if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&error.kind()) =>
            {
                Ok(None)
            }
            result => {
                let socket = result.with_context(|| format!("cannot connect to {}", path.display()))?;
                Ok(Some(Self::new(socket)))
            }
        }
    }

    fn new(socket: UnixSeqpacket) -> Self {
        Self(socket)
    }

    /// Only root may take what a node agent has, or be believed to be one.
    pub fn is_root(&self) -> bool {
        self.0.peer_cred().is_ok_and(|peer| peer.uid() == 0)
    }

    pub async fn send(&self, message: &impl Serialize) -> io::Result<()> {
        self.send_with(message, &[], &[]).await
    }

    /// Sends in one packet.
    pub async fn send_with(
        &self,
        message: &impl Serialize,
        payload: &[Bytes],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let head = serde_json::to_vec(message)?;
        let length = u32::try_from(head.len()).map_err(io::Error::other)?.to_be_bytes();
        let mut parts = vec![IoSlice::new(&length), IoSlice::new(&head)];
        parts.extend(payload.iter().map(|part| IoSlice::new(part)));
        let mut buffer = [0; MAX_DESCRIPTORS];
        let mut ancillary = AncillaryMessageWriter::new(&mut buffer);
        if !descriptors.is_empty() {
            ancillary.add_fds(descriptors.iter().copied()).map_err(io::Error::other)?;
        }
        self.0.send_vectored_with_ancillary(&parts, &mut ancillary).await.map(drop)
    }

    /// The next message, or `None` once the other process has gone.
    pub async fn receive<M: DeserializeOwned>(&self) -> anyhow::Result<Option<Packet<M>>> {
        let (mut data, mut buffer) = (vec![0; MAX_PACKET], [0; MAX_DESCRIPTORS]);
        let received = self.0.recv_with_ancillary(&mut data, &mut buffer).await;
        let (info, ancillary) = match received {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            result => result.context("cannot hear the other process")?,
        };
        ensure!(!info.truncated() && !info.ancillary_truncated(), "the other process's message is too long");
        let mut descriptors = Vec::new();
        for message in ancillary.into_messages() {
            if let OwnedAncillaryMessage::FileDescriptors(received) = message {
                descriptors.extend(received);
            }
        }
        data.truncate(info.bytes_read());
        if data.is_empty() {
            return Ok(None);
        }
        let mut payload = Bytes::from(data);
        ensure!(payload.len() >= size_of::<u32>(), "the other process's message is too short");
        let length = payload.get_u32() as usize;
        ensure!(payload.len() >= length, "the other process's message is too short");
        let message = serde_json::from_slice(&payload.split_to(length))
            .context("the other process says what this one does not understand")?;
        Ok(Some(Packet { message, payload, descriptors }))
    }

    /// The next message, within `patience`.
    pub async fn hear<M: DeserializeOwned>(&self, patience: Duration) -> anyhow::Result<Packet<M>> {
        let heard = timeout(patience, self.receive()).await;
        let heard = heard.with_context(|| format!("the other process says nothing for {patience:?}"))?;
        heard?.context("the other process has gone")
    }
}
