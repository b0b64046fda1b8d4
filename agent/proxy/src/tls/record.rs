//! The record layer of TLS 1.3 (RFC 8446, section 5), with rustls' ciphers and keys.

use std::io;

use rustls::{
    ConnectionTrafficSecrets, ContentType, Error, InvalidMessage, PeerMisbehaved, ProtocolVersion,
    Tls13CipherSuite,
    client::ClientConnectionData,
    crypto::cipher::{
        InboundOpaqueMessage, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
    },
    kernel::KernelConnection,
    server::ServerConnectionData,
};

/// Type, version and length in front of every record.
pub(super) const HEADER: usize = 5;
/// The most plaintext a record may hold.
pub(super) const MAX_PLAINTEXT: usize = 1 << 14;
/// The most that may follow a header.
pub(super) const MAX_CIPHERTEXT: usize = MAX_PLAINTEXT + 256;

/// Derives the next keys of either direction.
pub(super) enum Keys {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

/// A sequence number and what to make a cipher of.
pub(super) type Secrets = (u64, ConnectionTrafficSecrets);

impl Keys {
    pub(super) fn suite(&self) -> Result<&'static Tls13CipherSuite, Error> {
        let suite = match self {
            Self::Client(keys) => keys.negotiated_cipher_suite(),
            Self::Server(keys) => keys.negotiated_cipher_suite(),
        };
        suite.tls13().ok_or(Error::HandshakeNotComplete)
    }

    pub(super) fn next_sending(&mut self) -> Result<Secrets, Error> {
        match self {
            Self::Client(keys) => keys.update_tx_secret(),
            Self::Server(keys) => keys.update_tx_secret(),
        }
    }

    pub(super) fn next_receiving(&mut self) -> Result<Secrets, Error> {
        match self {
            Self::Client(keys) => keys.update_rx_secret(),
            Self::Server(keys) => keys.update_rx_secret(),
        }
    }
}

/// Opens what the peer sealed, record after record.
pub(super) struct Opener {
    cipher: Box<dyn MessageDecrypter>,
    sequence: u64,
}

impl Opener {
    pub(super) fn new(suite: &Tls13CipherSuite, (sequence, secrets): Secrets) -> Self {
        let (key, iv) = parts(secrets);
        Self { cipher: suite.aead_alg.decrypter(key, iv), sequence }
    }

    /// Opens the record that follows a header, in place: its type, and how many bytes at its front are content.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<(ContentType, usize), Error> {
        let message =
            InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, record);
        let opened = self.cipher.decrypt(message, self.sequence)?;
        self.sequence = self.sequence.checked_add(1).ok_or(Error::DecryptError)?;
        Ok((opened.typ, opened.payload.len()))
    }
}

/// Seals what is sent, record after record.
pub(super) struct Sealer {
    cipher: Box<dyn MessageEncrypter>,
    sequence: u64,
    /// Records that may be sealed with one key.
    limit: u64,
}

impl Sealer {
    pub(super) fn new(suite: &Tls13CipherSuite, (sequence, secrets): Secrets) -> Self {
        let (key, iv) = parts(secrets);
        let limit = suite.common.confidentiality_limit;
        Self { cipher: suite.aead_alg.encrypter(key, iv), sequence, limit }
    }

    /// Whether the next record must be the last with this key.
    pub(super) fn is_worn(&self) -> bool {
        self.sequence + 1 >= self.limit
    }

    /// A whole record with this content, at most [`MAX_PLAINTEXT`].
    pub(super) fn seal(&mut self, typ: ContentType, content: OutboundChunks<'_>) -> Result<Vec<u8>, Error> {
        if self.sequence >= self.limit {
            return Err(Error::EncryptError);
        }
        let message = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_3, payload: content };
        let sealed = self.cipher.encrypt(message, self.sequence)?;
        self.sequence += 1;
        Ok(sealed.encode())
    }

    #[cfg(test)]
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }
}

fn parts(secrets: ConnectionTrafficSecrets) -> (rustls::crypto::cipher::AeadKey, rustls::crypto::cipher::Iv) {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv),
        _ => unreachable!("rustls has no other cipher for TLS 1.3"),
    }
}

/// The length that a header announces. After the handshake all records look like application data.
pub(super) fn length(header: [u8; HEADER]) -> Result<usize, Error> {
    let [typ, _, _, high, low] = header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if typ != u8::from(ContentType::ApplicationData) {
        return Err(InvalidMessage::InvalidContentType.into());
    }
    if length > MAX_CIPHERTEXT {
        return Err(Error::PeerSentOversizedRecord);
    }
    Ok(length)
}

/// What a handshake message after the handshake asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Post {
    /// For resumption, which we don't do.
    Ticket,
    /// The peer has new keys; `true` if we shall have too.
    KeyUpdate(bool),
}

/// The messages of a record (RFC 8446, section 4.6). Each must be whole: nobody needs to split messages this small.
pub(super) fn post_handshake(mut content: &[u8]) -> Result<Vec<Post>, Error> {
    const NEW_SESSION_TICKET: u8 = 4;
    const KEY_UPDATE: u8 = 24;
    let mut messages = Vec::new();
    while let [typ, a, b, c, rest @ ..] = content {
        let length = u32::from_be_bytes([0, *a, *b, *c]);
        let (body, rest) = usize::try_from(length)
            .ok()
            .and_then(|length| rest.split_at_checked(length))
            .ok_or(InvalidMessage::MessageTooShort)?;
        messages.push(match (*typ, body) {
            (NEW_SESSION_TICKET, _) => Post::Ticket,
            (KEY_UPDATE, [asked @ (0 | 1)]) if rest.is_empty() => Post::KeyUpdate(*asked == 1),
            (KEY_UPDATE, [0 | 1]) => return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into()),
            (KEY_UPDATE, _) => return Err(InvalidMessage::InvalidKeyUpdate.into()),
            _ => return Err(InvalidMessage::UnexpectedMessage("after the handshake").into()),
        });
        content = rest;
    }
    if !content.is_empty() || messages.is_empty() {
        return Err(InvalidMessage::MessageTooShort.into());
    }
    Ok(messages)
}

/// `KeyUpdate { update_not_requested }`
pub(super) const KEY_UPDATE: &[u8] = &[24, 0, 0, 1, 0];

/// As tokio-rustls wraps it.
pub(super) fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
