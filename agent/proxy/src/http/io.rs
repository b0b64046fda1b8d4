//! One end of a client's or a server's connection: a stream of a tunnel, or a socket.

use std::{
    future::poll_fn,
    io::{self, ErrorKind},
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use orlop_model::Reason;
use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite as _, AsyncWriteExt as _, ReadBuf, ReadHalf, WriteHalf, split},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::pace::Pace;
use crate::copy::{send_all, stream_reason};

/// Read from a socket at once.
const READ: usize = 16 << 10;

/// A connection as hyper takes it.
pub(super) struct Io {
    pub(super) source: Source,
    pub(super) sink: Sink,
    /// Told of what is read.
    pub(super) pace: Option<Arc<Pace>>,
}

/// Where bytes come from.
pub(super) struct Source {
    /// Read already, and not yet given out.
    ahead: Bytes,
    /// Of what the stream has given, how much still takes up room in its window.
    unreleased: usize,
    from: From,
}

enum From {
    Stream(RecvStream),
    Tcp(OwnedReadHalf),
    Tls(Box<ReadHalf<Sealed>>),
}

/// TLS over another connection.
type Sealed = TlsStream<TokioIo<Io>>;

/// Where bytes go.
pub(super) enum Sink {
    Stream(SendStream<Bytes>),
    Tcp(OwnedWriteHalf),
    Tls(Box<WriteHalf<Sealed>>),
}

impl Io {
    pub(super) fn stream(send: SendStream<Bytes>, receive: RecvStream) -> Self {
        let source = Source { ahead: Bytes::new(), unreleased: 0, from: From::Stream(receive) };
        Self { source, sink: Sink::Stream(send), pace: None }
    }

    pub(super) fn tcp(tcp: TcpStream) -> Self {
        let (read, write) = tcp.into_split();
        let source = Source { ahead: Bytes::new(), unreleased: 0, from: From::Tcp(read) };
        Self { source, sink: Sink::Tcp(write), pace: None }
    }

    /// Speaks TLS in this connection.
    pub(super) async fn sealed(
        self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<(Self, Option<Vec<u8>>)> {
        let tls = TlsConnector::from(config).connect(name, TokioIo::new(self)).await?;
        let alpn = tls.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        Ok((Self::tls(tls.into()), alpn))
    }

    /// Takes TLS from the client in this connection. Gives the host that it has named, and the protocol that was agreed on.
    pub(super) async fn opened(
        self,
        config: Arc<ServerConfig>,
    ) -> io::Result<(Self, Option<String>, Option<Vec<u8>>)> {
        let tls = TlsAcceptor::from(config).accept(TokioIo::new(self)).await?;
        let connection = tls.get_ref().1;
        let host = connection.server_name().map(str::to_ascii_lowercase);
        let alpn = connection.alpn_protocol().map(<[u8]>::to_vec);
        Ok((Self::tls(tls.into()), host, alpn))
    }

    fn tls(tls: Sealed) -> Self {
        let (read, write) = split(tls);
        let source = Source { ahead: Bytes::new(), unreleased: 0, from: From::Tls(Box::new(read)) };
        Self { source, sink: Sink::Tls(Box::new(write)), pace: None }
    }
}

impl Source {
    /// What has been read ahead.
    pub(super) fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    /// Puts in front what somebody else has read.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        self.ahead = joined(bytes, std::mem::take(&mut self.ahead));
    }

    /// Reads on. False at the end. Whoever stops waiting for it loses nothing.
    pub(super) async fn read_ahead(&mut self) -> io::Result<bool> {
        let next = poll_fn(|cx| self.poll_next(cx)).await?;
        let ended = next.is_none();
        self.ahead = joined(std::mem::take(&mut self.ahead), next.unwrap_or_default());
        Ok(!ended)
    }

    /// Lets go of all that still comes, to the end.
    pub(super) async fn run_out(&mut self) -> io::Result<()> {
        while let Some(bytes) = self.next().await? {
            self.release(bytes.len());
        }
        Ok(())
    }

    /// The next bytes, as many as there are; `None` at the end.
    pub(super) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if !self.ahead.is_empty() {
            return Ok(Some(std::mem::take(&mut self.ahead)));
        }
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        match &mut self.from {
            From::Stream(receive) => {
                let frame = ready!(poll_frame(receive, cx))?;
                self.unreleased += frame.as_ref().map_or(0, Bytes::len);
                Poll::Ready(Ok(frame))
            }
            From::Tcp(read) => poll_socket(read, cx),
            From::Tls(read) => poll_sealed(read, cx),
        }
    }

    /// What was given out has been passed on: there is room for as much again.
    pub(super) fn release(&mut self, length: usize) {
        let length = length.min(self.unreleased);
        if let From::Stream(receive) = &mut self.from
            && length > 0
        {
            self.unreleased -= length;
            // Of a stream that is gone nobody waits for room.
            let _ = receive.flow_control().release_capacity(length);
        }
    }
}

impl Sink {
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), Reason> {
        match self {
            Self::Stream(send) => send_all(send, bytes).await,
            Self::Tcp(write) => write.write_all(&bytes).await.map_err(|_| Reason::Reset),
            // What is sealed waits for more until it is flushed.
            Self::Tls(write) => {
                write.write_all(&bytes).await.map_err(|_| Reason::Reset)?;
                write.flush().await.map_err(|_| Reason::Reset)
            }
        }
    }

    /// Says that nothing more comes.
    pub(super) async fn finish(&mut self) -> Result<(), Reason> {
        match self {
            Self::Stream(send) => {
                send.send_data(Bytes::new(), true).map_err(|error| stream_reason(Some(error)))
            }
            Self::Tcp(write) => write.shutdown().await.map_err(|_| Reason::Reset),
            Self::Tls(write) => write.shutdown().await.map_err(|_| Reason::Reset),
        }
    }

    /// Until the other side resets what is sent here: well, if it wants no more of it, and may have more to say.
    pub(super) async fn reset_by_peer(&mut self) -> Result<(), Reason> {
        match self {
            Self::Stream(send) => match poll_fn(|cx| send.poll_reset(cx)).await {
                Ok(h2::Reason::NO_ERROR) => Ok(()),
                reset => Err(stream_reason(reset.err())),
            },
            Self::Tcp(_) | Self::Tls(_) => std::future::pending().await,
        }
    }

    /// Breaks off, so that nobody takes what was sent for the whole.
    pub(super) fn reset(self) {
        match self {
            Self::Stream(mut send) => send.send_reset(h2::Reason::CANCEL),
            Self::Tcp(write) => drop(write.as_ref().set_zero_linger()),
            // Without the alert that ends it in good order nobody takes it for whole.
            Self::Tls(write) => drop(write),
        }
    }
}

fn joined(first: Bytes, second: Bytes) -> Bytes {
    match (first.is_empty(), second.is_empty()) {
        (true, _) => second,
        (_, true) => first,
        _ => [first, second].concat().into(),
    }
}

/// The next frame that holds anything; `None` at the end.
fn poll_frame(receive: &mut RecvStream, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
    loop {
        match ready!(receive.poll_data(cx)) {
            Some(Ok(frame)) if frame.is_empty() => {}
            Some(Ok(frame)) => return Poll::Ready(Ok(Some(frame))),
            Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            None => return Poll::Ready(Ok(None)),
        }
    }
}

/// The next bytes; `None` at the end. An empty buffer is not worth its memory while nothing arrives.
fn poll_socket(read: &OwnedReadHalf, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
    loop {
        ready!(read.as_ref().poll_read_ready(cx))?;
        let mut buffer = BytesMut::with_capacity(READ);
        match read.try_read_buf(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(0) => return Poll::Ready(Ok(None)),
            result => return Poll::Ready(result.map(|_| Some(buffer.freeze()))),
        }
    }
}

/// The next bytes; `None` at the end, which has to be said: a connection that is cut is an error.
fn poll_sealed(read: &mut ReadHalf<Sealed>, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
    // On the stack: whoever waits for more needs no memory for it.
    let mut buffer = [MaybeUninit::uninit(); READ];
    let mut into = ReadBuf::uninit(&mut buffer);
    ready!(Pin::new(read).poll_read(cx, &mut into))?;
    let read = into.filled();
    Poll::Ready(Ok((!read.is_empty()).then(|| Bytes::copy_from_slice(read))))
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(ErrorKind::ConnectionReset, error)
}

impl Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let source = &mut self.source;
        if source.ahead.is_empty() {
            match ready!(source.poll_next(cx))? {
                Some(bytes) => source.ahead = bytes,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = source.ahead.len().min(buffer.remaining());
        if let Some(pace) = &self.pace
            && !pace.read(&self.source.ahead[..length])
        {
            return Poll::Ready(Err(ErrorKind::OutOfMemory.into()));
        }
        let source = &mut self.source;
        buffer.put_slice(&source.ahead[..length]);
        source.ahead.advance(length);
        source.release(length);
        Poll::Ready(Ok(()))
    }
}

impl Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.sink {
            Sink::Tcp(write) => Pin::new(write).poll_write(cx, bytes),
            Sink::Tls(write) => Pin::new(write).poll_write(cx, bytes),
            Sink::Stream(send) => {
                let room = ready!(poll_room(send, cx, bytes.len()))?;
                let part = Bytes::copy_from_slice(&bytes[..room]);
                send.send_data(part, false).map_err(broken)?;
                Poll::Ready(Ok(room))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.sink {
            Sink::Tcp(write) => Pin::new(write).poll_flush(cx),
            Sink::Tls(write) => Pin::new(write).poll_flush(cx),
            Sink::Stream(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.sink {
            Sink::Tcp(write) => Pin::new(write).poll_shutdown(cx),
            Sink::Tls(write) => Pin::new(write).poll_shutdown(cx),
            // The peer may have reset it meanwhile.
            Sink::Stream(send) => {
                let _ = send.send_data(Bytes::new(), true);
                Poll::Ready(Ok(()))
            }
        }
    }
}

/// Room in the peer's window for some of `wanted` bytes.
fn poll_room(send: &mut SendStream<Bytes>, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
    if wanted == 0 {
        return Poll::Ready(Ok(0));
    }
    send.reserve_capacity(wanted);
    loop {
        let room = send.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room.min(wanted)));
        }
        match ready!(send.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            None => return Poll::Ready(Err(ErrorKind::BrokenPipe.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::AsyncWriteExt as _, net::TcpListener, time::timeout};

    use super::*;

    #[tokio::test]
    async fn who_stops_waiting_for_more_loses_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut io = Io::tcp(listener.accept().await.unwrap().0);
        client.write_all(b"abc").await.unwrap();
        assert!(io.source.read_ahead().await.unwrap());
        assert!(timeout(Duration::from_millis(10), io.source.read_ahead()).await.is_err());
        assert_eq!(io.source.ahead(), b"abc");
        client.write_all(b"def").await.unwrap();
        assert!(io.source.read_ahead().await.unwrap());
        assert_eq!(io.source.next().await.unwrap().unwrap(), "abcdef");
    }
}
