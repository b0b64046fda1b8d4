use std::{
    io::{self, ErrorKind},
    ops::{Deref, DerefMut},
    sync::Arc,
};

use bytes::{Buf as _, BytesMut};
use rustls::{
    ClientConfig, CommonState, Error, ExtractedSecrets, ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    kernel::KernelConnection,
    pki_types::{CertificateDer, ServerName},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedConnectionCommon, UnbufferedStatus},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::{
    record::{HEADER, Keys, invalid},
    stream::TlsStream,
};

/// A flight of a handshake with a chain of certificates is a few KiB.
const READ: usize = 8 << 10;
/// More than a peer can need for a flight: rustls limits a message to 64 KiB.
const MAX_FLIGHT: usize = 128 << 10;

/// What a handshake found out about the peer.
pub(crate) struct Session {
    /// The protocol agreed on.
    pub(crate) alpn: Option<Vec<u8>>,
    /// Verified, leaf first.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
}

/// Shakes hands as the client. `config` must allow the extraction of secrets.
///
/// What rustls finds wrong is told to the peer, and is inside of the error.
pub(crate) async fn connect(
    tcp: TcpStream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<(TlsStream, Session)> {
    shake_hands(tcp, UnbufferedClientConnection::new(config, name).map_err(invalid)?).await
}

/// Shakes hands as the server. `config` must allow the extraction of secrets.
pub(crate) async fn accept(tcp: TcpStream, config: Arc<ServerConfig>) -> io::Result<(TlsStream, Session)> {
    shake_hands(tcp, UnbufferedServerConnection::new(config).map_err(invalid)?).await
}

/// Either end of a connection whose buffers are ours.
trait Unbuffered: DerefMut<Target = UnbufferedConnectionCommon<Self::Data>> {
    type Data;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn into_keys(self) -> Result<(ExtractedSecrets, Keys), Error>;
}

impl Unbuffered for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Keys), Error> {
        let (secrets, connection): (_, KernelConnection<_>) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Keys::Client(connection)))
    }
}

impl Unbuffered for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Keys), Error> {
        let (secrets, connection): (_, KernelConnection<_>) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Keys::Server(connection)))
    }
}

async fn shake_hands<C: Unbuffered>(
    mut tcp: TcpStream,
    mut connection: C,
) -> io::Result<(TlsStream, Session)> {
    let mut incoming = Incoming::default();
    let mut outgoing = Vec::new();
    loop {
        match step(&mut connection, &mut incoming, &mut outgoing) {
            Ok(Step::Again) => {}
            Ok(Step::Send) => {
                tcp.write_all(&outgoing).await?;
                outgoing.clear();
            }
            Ok(Step::Receive) => incoming.widen(&tcp).await?,
            Ok(Step::Done) => break,
            Err(error) => {
                // The alert is a courtesy: what went wrong is known here. rustls must not be asked for more than
                // the alert it has ready: it would go on with the input, and panic.
                while connection.wants_write()
                    && let Ok(Step::Again) = step(&mut connection, &mut Incoming::default(), &mut outgoing)
                {
                }
                let _ = tcp.try_write(&outgoing);
                return Err(invalid(error));
            }
        }
    }
    let state: &CommonState = connection.deref().deref();
    let certificates = state.peer_certificates().unwrap_or_default();
    let session = Session {
        alpn: state.alpn_protocol().map(<[u8]>::to_vec),
        certificates: certificates.iter().map(|certificate| certificate.clone().into_owned()).collect(),
    };
    let (secrets, keys) = connection.into_keys().map_err(invalid)?;
    Ok((TlsStream::new(tcp, keys, secrets, incoming.bytes)?, session))
}

/// What has arrived, of which rustls is shown one record after the other: it must not begin with one that follows the
/// handshake, which would be half its and half ours.
#[derive(Default)]
struct Incoming {
    bytes: BytesMut,
    /// The end of what rustls is shown.
    shown: usize,
    /// Where the last record that it is shown begins, if that has not all arrived.
    partial: Option<usize>,
}

impl Incoming {
    fn shown(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.shown]
    }

    fn discard(&mut self, length: usize) {
        self.bytes.advance(length);
        self.shown -= length;
        self.partial = self.partial.map(|start| start.saturating_sub(length));
    }

    /// Shows one record more, or more of the last one.
    async fn widen(&mut self, tcp: &TcpStream) -> io::Result<()> {
        let start = self.partial.take().unwrap_or(self.shown);
        loop {
            if let Some(length) = record_length(&self.bytes[start..]) {
                self.shown = start + length;
                return Ok(());
            }
            // Whether it is a record at all can be seen from its beginning.
            if self.shown < self.bytes.len() {
                (self.shown, self.partial) = (self.bytes.len(), Some(start));
                return Ok(());
            }
            receive(tcp, &mut self.bytes).await?;
        }
    }
}

/// With its header; nothing if it has not all arrived.
fn record_length(bytes: &[u8]) -> Option<usize> {
    let [_, _, _, high, low] = bytes.first_chunk::<HEADER>()?;
    let length = HEADER + usize::from(u16::from_be_bytes([*high, *low]));
    (length <= bytes.len()).then_some(length)
}

enum Step {
    Again,
    Send,
    Receive,
    Done,
}

fn step<C: Unbuffered>(
    connection: &mut C,
    incoming: &mut Incoming,
    outgoing: &mut Vec<u8>,
) -> Result<Step, Error> {
    let UnbufferedStatus { discard, state } = connection.process(incoming.shown());
    let step = match state {
        Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, outgoing).map(|()| Step::Again),
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Step::Send)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Step::Receive),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Done),
        // The peer has closed, or sent data before it could be known.
        Ok(_) => Err(Error::HandshakeNotComplete),
        Err(error) => Err(error),
    };
    incoming.discard(discard);
    step
}

fn encode<Data>(data: &mut EncodeTlsData<'_, Data>, outgoing: &mut Vec<u8>) -> Result<(), Error> {
    let start = outgoing.len();
    // The first call tells the size.
    let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) else { return Ok(()) };
    outgoing.resize(start + size.required_size, 0);
    data.encode(&mut outgoing[start..]).map(drop).map_err(|error| Error::General(error.to_string()))
}

async fn receive(tcp: &TcpStream, incoming: &mut BytesMut) -> io::Result<()> {
    if incoming.len() > MAX_FLIGHT {
        return Err(invalid(Error::General("a flight that does not end".to_owned())));
    }
    incoming.reserve(READ);
    loop {
        tcp.readable().await?;
        match tcp.try_read_buf(incoming) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "closed during the TLS handshake")),
            result => return result.map(drop),
        }
    }
}
