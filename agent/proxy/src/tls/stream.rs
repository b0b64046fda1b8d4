use std::{
    collections::VecDeque,
    future::Future as _,
    io::{self, ErrorKind, IoSlice},
    ops::Range,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use rustls::{
    AlertDescription, ContentType, Error, ExtractedSecrets, InvalidMessage, PeerMisbehaved, Tls13CipherSuite,
    crypto::cipher::OutboundChunks,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::coop,
};

use super::record::{
    HEADER, KEY_UPDATE, Keys, MAX_CIPHERTEXT, MAX_PLAINTEXT, Opener, Post, Sealer, invalid, length,
    post_handshake,
};

/// Read from the socket at once: nearly four full records.
const READ: usize = 64 << 10;
/// The longest record.
const RECORD: usize = HEADER + MAX_CIPHERTEXT;
/// Sealed records beyond this wait for the socket before more is taken.
const MAX_QUEUED: usize = 64 << 10;
/// Taken from the writer at once: four full records.
const MAX_TAKEN: usize = 4 * MAX_PLAINTEXT;
/// Records or pieces of a write that go into one system call.
const MAX_SLICES: usize = 16;
/// Records in a row that carry no data: keys are changed now and then, not all the time.
pub(super) const MAX_WITHOUT_DATA: u32 = 32;

/// One TLS 1.3 connection after its handshake.
pub(crate) struct TlsStream {
    tcp: TcpStream,
    suite: &'static Tls13CipherSuite,
    keys: Keys,
    opener: Opener,
    sealer: Sealer,
    /// As received, but for the first record, which may be open. Without memory while it is empty.
    incoming: BytesMut,
    /// Where the first record's plaintext is in `incoming`, as far as nobody has read it.
    plain: Range<usize>,
    /// The length of the first record with its header, if it is open.
    open: usize,
    without_data: u32,
    /// The peer asked for a new key of ours. It gets it with what we next have to say (RFC 8446, section 4.6.3):
    /// whoever asks often and reads nothing fills no memory.
    owes_key: bool,
    /// The peer has said that it sends no more.
    ended: bool,
    /// Records on their way, the first without its `sent` first bytes.
    outgoing: VecDeque<Vec<u8>>,
    sent: usize,
    queued: usize,
    /// We have said that we send no more.
    closed: bool,
    /// What the peer did wrong: nothing more is read.
    broken: Option<Error>,
}

impl TlsStream {
    /// `incoming` is what the handshake has left over: whole records, and perhaps a part of one.
    pub(super) fn new(
        tcp: TcpStream,
        keys: Keys,
        secrets: ExtractedSecrets,
        incoming: BytesMut,
    ) -> io::Result<Self> {
        let suite = keys.suite().map_err(invalid)?;
        if secrets.tx.0 != 0 {
            // AWS-LC masks its nonces with the first that it sees, which must be that of the key's first record.
            return Err(invalid(Error::General("the handshake has used up sending keys".to_owned())));
        }
        Ok(Self {
            tcp,
            suite,
            keys,
            opener: Opener::new(suite, secrets.rx),
            sealer: Sealer::new(suite, secrets.tx),
            incoming,
            plain: 0..0,
            open: 0,
            without_data: 0,
            owes_key: false,
            ended: false,
            outgoing: VecDeque::new(),
            sent: 0,
            queued: 0,
            closed: false,
            broken: None,
        })
    }

    /// Gives out what has been opened.
    fn take(&mut self, buffer: &mut ReadBuf<'_>) {
        let length = self.plain.len().min(buffer.remaining());
        buffer.put_slice(&self.incoming[self.plain.start..self.plain.start + length]);
        self.plain.start += length;
    }

    /// Opens the next record. False if it has not all arrived.
    fn open_next(&mut self) -> Result<bool, Error> {
        self.incoming.advance(self.open);
        (self.open, self.plain) = (0, 0..0);
        let Some(header) = self.incoming.first_chunk::<HEADER>() else { return Ok(false) };
        let end = HEADER + length(*header)?;
        let Some(record) = self.incoming.get_mut(HEADER..end) else { return Ok(false) };
        let (typ, content) = self.opener.open(record)?;
        self.open = end;
        let content = HEADER..HEADER + content;
        if typ == ContentType::ApplicationData && !content.is_empty() {
            self.without_data = 0;
            self.plain = content;
            return Ok(true);
        }
        self.without_data += 1;
        if self.without_data > MAX_WITHOUT_DATA {
            return Err(PeerMisbehaved::TooManyKeyUpdateRequests.into());
        }
        match typ {
            ContentType::ApplicationData => {}
            ContentType::Handshake => self.post_handshake(content)?,
            ContentType::Alert => match self.incoming[content] {
                [_, description] if description == u8::from(AlertDescription::CloseNotify) => {
                    self.ended = true
                }
                // Says only that a close_notify follows.
                [_, description] if description == u8::from(AlertDescription::UserCanceled) => {}
                [_, description] => return Err(Error::AlertReceived(description.into())),
                _ => return Err(InvalidMessage::MessageTooShort.into()),
            },
            _ => return Err(InvalidMessage::InvalidContentType.into()),
        }
        Ok(true)
    }

    fn post_handshake(&mut self, content: Range<usize>) -> Result<(), Error> {
        for message in post_handshake(&self.incoming[content])? {
            match (message, &self.keys) {
                (Post::Ticket, Keys::Client(_)) => {}
                (Post::Ticket, Keys::Server(_)) => {
                    return Err(InvalidMessage::UnexpectedMessage("a ticket from a client").into());
                }
                (Post::KeyUpdate(ours_too), _) => {
                    self.opener = Opener::new(self.suite, self.keys.next_receiving()?);
                    self.owes_key |= ours_too;
                }
            }
        }
        Ok(())
    }

    /// Announces a new key with the old one.
    pub(super) fn change_key(&mut self) -> Result<(), Error> {
        let record = self.sealer.seal(ContentType::Handshake, OutboundChunks::Single(KEY_UPDATE))?;
        self.queue(record);
        self.sealer = Sealer::new(self.suite, self.keys.next_sending()?);
        Ok(())
    }

    pub(super) fn seal(&mut self, typ: ContentType, content: OutboundChunks<'_>) -> Result<(), Error> {
        if self.sealer.is_worn() || std::mem::take(&mut self.owes_key) {
            self.change_key()?;
        }
        let record = self.sealer.seal(typ, content)?;
        self.queue(record);
        Ok(())
    }

    pub(super) fn queue(&mut self, record: Vec<u8>) {
        self.queued += record.len();
        self.outgoing.push_back(record);
    }

    /// Reads from the socket what there is.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.tcp.poll_read_ready(cx)?.is_pending() {
                if self.incoming.is_empty() {
                    self.incoming = BytesMut::new();
                }
                return Poll::Pending;
            }
            // What is there is less than a record: with so little room left, it fits in front of where it is, and is
            // moved there. A larger buffer is never needed.
            if self.incoming.capacity() - self.incoming.len() < READ - 2 * RECORD {
                self.incoming.reserve(READ - self.incoming.len());
            }
            // Unlike `try_read_buf`, this knows from a short read that there is no more.
            match pin!(self.tcp.read_buf(&mut self.incoming)).poll(cx)? {
                Poll::Ready(0) => return Poll::Ready(Err(ErrorKind::UnexpectedEof.into())),
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => {}
            }
        }
    }

    /// Writes to the socket until at most `left` bytes are queued.
    fn poll_send(&mut self, cx: &mut Context<'_>, left: usize) -> Poll<io::Result<()>> {
        while self.queued > left {
            match self.send_now() {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.tcp.poll_write_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes to the socket once.
    fn send_now(&mut self) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut count = 0;
        for (slice, record) in slices.iter_mut().zip(&self.outgoing) {
            *slice = IoSlice::new(if count == 0 { &record[self.sent..] } else { record });
            count += 1;
        }
        match self.tcp.try_write_vectored(&slices[..count])? {
            0 => Err(ErrorKind::WriteZero.into()),
            written => {
                self.sent(written);
                Ok(())
            }
        }
    }

    fn sent(&mut self, written: usize) {
        self.queued -= written;
        self.sent += written;
        while let Some(first) = self.outgoing.front()
            && self.sent >= first.len()
        {
            self.sent -= first.len();
            self.outgoing.pop_front();
        }
    }

    /// Reads no more, and tells the peer why, as far as the socket takes it now.
    fn give_up(&mut self, error: Error) {
        let description = match &error {
            Error::DecryptError => AlertDescription::BadRecordMac,
            Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
            Error::InvalidMessage(InvalidMessage::MessageTooShort) => AlertDescription::DecodeError,
            Error::InvalidMessage(InvalidMessage::InvalidKeyUpdate) => AlertDescription::IllegalParameter,
            _ => AlertDescription::UnexpectedMessage,
        };
        if !matches!(error, Error::AlertReceived(_)) {
            self.alert(FATAL, description);
            let _ = self.send_now();
        }
        self.broken = Some(error);
    }

    /// The last thing we say.
    fn alert(&mut self, level: u8, description: AlertDescription) {
        if !self.closed {
            self.closed = true;
            let content = [level, u8::from(description)];
            let _ = self.seal(ContentType::Alert, OutboundChunks::Single(&content));
        }
    }
}

#[cfg(test)]
impl TlsStream {
    pub(super) fn sealer_mut(&mut self) -> &mut Sealer {
        &mut self.sealer
    }

    /// After an own announcement of a new key.
    pub(super) fn next_sending_key(&mut self) {
        self.sealer = Sealer::new(self.suite, self.keys.next_sending().expect("keys can be derived"));
    }

    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// The same connection over another socket.
    pub(super) fn over(self, tcp: TcpStream) -> Self {
        Self { tcp, ..self }
    }
}

const WARNING: u8 = 1;
const FATAL: u8 = 2;

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        loop {
            this.take(buffer);
            if this.ended || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if this.broken.is_none() {
                match this.open_next() {
                    Ok(true) if !this.plain.is_empty() => continue,
                    Ok(true) => {
                        // Records without data cost as much as others: they must not keep this thread from all else.
                        match coop::poll_proceed(cx) {
                            Poll::Ready(budget) => budget.made_progress(),
                            Poll::Pending if buffer.filled().len() > before => return Poll::Ready(Ok(())),
                            Poll::Pending => return Poll::Pending,
                        }
                        continue;
                    }
                    Ok(false) => {}
                    Err(error) => this.give_up(error),
                }
            }
            // What came before an error is the reader's.
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = &this.broken {
                return Poll::Ready(Err(invalid(error.clone())));
            }
            ready!(this.poll_receive(cx))?;
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    /// Seals and queues; [`poll_flush`](Self::poll_flush) sends.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.closed {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        ready!(this.poll_send(cx, MAX_QUEUED))?;
        let mut chunks: [&[u8]; MAX_SLICES] = [&[]; MAX_SLICES];
        let mut total = 0;
        for (chunk, slice) in chunks.iter_mut().zip(slices) {
            *chunk = slice;
            total += slice.len();
        }
        let taken = total.min(MAX_TAKEN);
        let mut start = 0;
        while start < taken {
            let end = taken.min(start + MAX_PLAINTEXT);
            let content = OutboundChunks::Multiple { chunks: &chunks, start, end };
            this.seal(ContentType::ApplicationData, content).map_err(invalid)?;
            start = end;
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx, 0)
    }

    /// Says close_notify and ends the sending half.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.alert(WARNING, AlertDescription::CloseNotify);
        ready!(this.poll_send(cx, 0))?;
        Pin::new(&mut this.tcp).poll_shutdown(cx)
    }
}
