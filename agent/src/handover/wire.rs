use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use bytes::{Buf as _, Bytes};
use orlop_proxy::{PassthroughState, SocketName};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tokio_seqpacket::{
    UnixSeqpacket,
    ancillary::{AncillaryMessageWriter, OwnedAncillaryMessage},
};

/// Room for a message: what a connection has on its way is the largest part, at most 64 KiB each way.
const MAX_PACKET: usize = 192 << 10;
/// Room for the descriptors of a message, with their header (cmsg(3)).
const MAX_DESCRIPTORS: usize = 64;

/// `Hello` and `Refused` stay as they are in all versions, so that agents of different ones know of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    Hello {
        version: u32,
        /// Of the pinned maps.
        layout: u32,
        node: String,
    },
    Refused {
        reason: String,
        /// Whether it is for the agent that asks to wait until the other has ended: they never hand over to each other.
        #[serde(default)]
        for_good: bool,
    },
    /// With its descriptor.
    Socket(Socket),
    /// The pods that are enrolled, as `namespace/name`. All sockets have been sent.
    Enrolled(Vec<String>),
    /// It is at work, and not hung.
    Preparing,
    Ready,
    Yours,
    /// With the descriptors of client and server, and what is to be written to the server and to the client.
    Passthrough {
        state: PassthroughState,
        to_server: usize,
    },
}

/// What a listening socket is for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Socket {
    Pod(SocketName),
    /// One of the node's own HTTP endpoints.
    Server(SocketAddr),
    /// The one that this conversation came through.
    Door,
}

/// A message as it arrives.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) message: Message,
    pub(super) payload: Bytes,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// The other agent.
#[derive(Debug)]
pub(super) struct Peer(UnixSeqpacket);

impl Peer {
    pub(super) fn new(socket: UnixSeqpacket) -> Self {
        Self(socket)
    }

    /// Only root may take what a node agent has, or be believed to be one.
    pub(super) fn is_root(&self) -> bool {
        self.0.peer_cred().is_ok_and(|peer| peer.uid() == 0)
    }

    pub(super) async fn send(&self, message: &Message) -> io::Result<()> {
        self.send_with(message, &[], &[]).await
    }

    /// Sends in one packet.
    pub(super) async fn send_with(
        &self,
        message: &Message,
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

    /// The next message, or `None` once the other agent has gone.
    pub(super) async fn receive(&self) -> anyhow::Result<Option<Packet>> {
        let (mut data, mut buffer) = (vec![0; MAX_PACKET], [0; MAX_DESCRIPTORS]);
        let received = self.0.recv_with_ancillary(&mut data, &mut buffer).await;
        let (info, ancillary) = match received {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            result => result.context("cannot hear the other agent")?,
        };
        ensure!(!info.truncated() && !info.ancillary_truncated(), "the other agent's message is too long");
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
        ensure!(payload.len() >= size_of::<u32>(), "the other agent's message is too short");
        let length = payload.get_u32() as usize;
        ensure!(payload.len() >= length, "the other agent's message is too short");
        let message = serde_json::from_slice(&payload.split_to(length))
            .context("the other agent says what this one does not understand")?;
        Ok(Some(Packet { message, payload, descriptors }))
    }

    /// The next message, within `patience`.
    pub(super) async fn hear(&self, patience: Duration) -> anyhow::Result<Packet> {
        let heard = timeout(patience, self.receive()).await;
        let heard = heard.with_context(|| format!("the other agent says nothing for {patience:?}"))?;
        heard?.context("the other agent has gone")
    }
}
