//! Carries bytes both ways until both sides have ended, with half-close, resets and backpressure kept.
//!
//! Both directions run in one task. A buffer is held only while it holds bytes, so that an idle
//! connection costs no memory here.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::{Future, poll_fn},
    io::{self, ErrorKind, IoSlice},
    task::Poll,
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use orlop_model::Reason;
use tokio::{net::TcpStream, time::sleep};

use crate::{meter::Meter, socket};

/// Reads of a connection start at this size and follow what arrives.
const MIN_READ: usize = 4 << 10;
/// With an HTTP/2 frame header in front, exactly four full TLS records, which is what rustls takes at once.
const MAX_READ: usize = (64 << 10) - 9;
/// Frames that are written to a socket in one call.
const MAX_FRAMES: usize = 32;

/// Carries bytes between a socket, which resets unless whole, and a stream of a tunnel. `up` counts from the socket
/// into the tunnel.
pub(crate) async fn tcp_and_stream(
    tcp: &TcpStream,
    send: &mut SendStream<Bytes>,
    receive: &mut RecvStream,
    up: &Meter,
    down: &Meter,
    idle_timeout: Duration,
) -> Result<(), Reason> {
    let both =
        async { tokio::try_join!(tcp_to_stream(tcp, send, up), stream_to_tcp(receive, tcp, down)).map(drop) };
    let result = unless_idle(both, up, down, idle_timeout).await;
    match result {
        Ok(()) => socket::whole(tcp),
        Err(_) => send.send_reset(h2::Reason::CANCEL),
    }
    result
}

/// How far one direction between two sockets has come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Half {
    /// Read and not yet written.
    pub(crate) rest: Bytes,
    /// The end was read and passed on.
    pub(crate) ended: bool,
}

/// Carries bytes between two sockets, which reset unless whole. `up` counts from `a` to `b`. Nothing is lost if this
/// is dropped at any moment: called again, perhaps in another process, it goes on from `halves`, which are `up` and
/// `down`.
pub(crate) async fn tcp_and_tcp(
    a: &TcpStream,
    b: &TcpStream,
    halves: &mut [Half; 2],
    up: &Meter,
    down: &Meter,
    idle_timeout: Duration,
) -> Result<(), Reason> {
    let [to_b, to_a] = halves;
    let both = async { tokio::try_join!(tcp_to_tcp(a, b, to_b, up), tcp_to_tcp(b, a, to_a, down)).map(drop) };
    unless_idle(both, up, down, idle_timeout).await?;
    [a, b].into_iter().for_each(socket::whole);
    Ok(())
}

async fn tcp_to_stream(tcp: &TcpStream, send: &mut SendStream<Bytes>, meter: &Meter) -> Result<(), Reason> {
    match send_from(tcp, send, meter).await {
        Err(Reason::Reset) if wants_no_more(send).await => Ok(()),
        result => result,
    }
}

/// Whether it was reset by a peer that wants no more. Whether that has sent all it had, the other direction tells; if
/// so, nothing of it is discarded (RFC 9113, section 8.1).
async fn wants_no_more(send: &mut SendStream<Bytes>) -> bool {
    poll_fn(|cx| Poll::Ready(matches!(send.poll_reset(cx), Poll::Ready(Ok(h2::Reason::NO_ERROR))))).await
}

async fn send_from(tcp: &TcpStream, send: &mut SendStream<Bytes>, meter: &Meter) -> Result<(), Reason> {
    let mut size = MIN_READ;
    loop {
        let mut buffer = BytesMut::with_capacity(size);
        let read = loop {
            match tcp.try_read_buf(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => break result.map_err(|_| Reason::Reset)?,
            }
            // An empty buffer is not worth its memory while nothing arrives.
            drop(buffer);
            tokio::select! {
                ready = tcp.readable() => ready.map_err(|_| Reason::Reset)?,
                reset = poll_fn(|cx| send.poll_reset(cx)) => return Err(stream_reason(reset.err())),
            }
            buffer = BytesMut::with_capacity(size);
        };
        if read == 0 {
            return send.send_data(Bytes::new(), true).map_err(|error| stream_reason(Some(error)));
        }
        size = next_size(size, read);
        meter.add(read);
        send_all(send, buffer.freeze()).await?;
    }
}

/// Queues `data` as the peer's window allows.
pub(crate) async fn send_all(send: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), Reason> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let mut room = send.capacity();
        if room == 0 {
            room = match poll_fn(|cx| send.poll_capacity(cx)).await {
                Some(Ok(room)) => room,
                Some(Err(error)) => return Err(stream_reason(Some(error))),
                None => return Err(Reason::TunnelClosed),
            };
        }
        let part = data.split_to(room.min(data.len()));
        if !part.is_empty() {
            send.send_data(part, false).map_err(|error| stream_reason(Some(error)))?;
        }
    }
    Ok(())
}

async fn stream_to_tcp(receive: &mut RecvStream, tcp: &TcpStream, meter: &Meter) -> Result<(), Reason> {
    let mut frames = VecDeque::new();
    loop {
        let ended = gather(receive, &mut frames).await?;
        let length: usize = frames.iter().map(Bytes::len).sum();
        while !frames.is_empty() {
            write_some(tcp, &mut frames).await.map_err(|_| Reason::Reset)?;
        }
        meter.add(length);
        // Only what the application's socket has taken makes room for more.
        receive.flow_control().release_capacity(length).map_err(|error| stream_reason(Some(error)))?;
        if ended {
            return socket::finish(tcp).map_err(|_| Reason::Reset);
        }
    }
}

/// Waits for a frame and takes those that are there too. True at the end of the stream.
async fn gather(receive: &mut RecvStream, frames: &mut VecDeque<Bytes>) -> Result<bool, Reason> {
    poll_fn(|cx| {
        loop {
            match receive.poll_data(cx) {
                Poll::Ready(Some(Ok(frame))) if frame.is_empty() => {}
                Poll::Ready(Some(Ok(frame))) => frames.push_back(frame),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(stream_reason(Some(error)))),
                Poll::Ready(None) => return Poll::Ready(Ok(true)),
                Poll::Pending if frames.is_empty() => return Poll::Pending,
                Poll::Pending => return Poll::Ready(Ok(false)),
            }
            if frames.len() >= MAX_FRAMES {
                return Poll::Ready(Ok(false));
            }
        }
    })
    .await
}

async fn write_some(tcp: &TcpStream, frames: &mut VecDeque<Bytes>) -> io::Result<()> {
    let mut written = loop {
        let mut slices = [IoSlice::new(&[]); MAX_FRAMES];
        let mut count = 0;
        for (slice, frame) in slices.iter_mut().zip(frames.iter()) {
            *slice = IoSlice::new(frame);
            count += 1;
        }
        match tcp.try_write_vectored(&slices[..count]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => tcp.writable().await?,
            result => break result?,
        }
    };
    while let Some(frame) = frames.front_mut() {
        if written < frame.len() {
            let _ = frame.split_to(written);
            break;
        }
        written -= frame.len();
        frames.pop_front();
    }
    Ok(())
}

thread_local! {
    /// Where a thread's socket-to-socket copies pass through; never held across an await.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_READ].into_boxed_slice());
}

async fn tcp_to_tcp(from: &TcpStream, to: &TcpStream, half: &mut Half, meter: &Meter) -> Result<(), Reason> {
    while !half.ended {
        write_all(to, &mut half.rest).await.map_err(|_| Reason::Reset)?;
        let step = SCRATCH.with_borrow_mut(|scratch| -> io::Result<Option<usize>> {
            let read = match from.try_read(scratch) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                result => result?,
            };
            let written = match to.try_write(&scratch[..read]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                result => result?,
            };
            if written < read {
                half.rest = Bytes::copy_from_slice(&scratch[written..read]);
            }
            Ok(Some(read))
        });
        match step.map_err(|_| Reason::Reset)? {
            None => from.readable().await.map_err(|_| Reason::Reset)?,
            Some(0) => {
                half.ended = true;
                socket::finish(to).map_err(|_| Reason::Reset)?;
            }
            Some(read) => meter.add(read),
        }
    }
    Ok(())
}

async fn write_all(to: &TcpStream, data: &mut Bytes) -> io::Result<()> {
    while !data.is_empty() {
        match to.try_write(data) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => to.writable().await?,
            result => data.advance(result?),
        }
    }
    Ok(())
}

/// Ends `both` when neither meter has moved for a whole period: one timer a connection, nothing a byte.
pub(crate) async fn unless_idle<E: From<Reason>>(
    both: impl Future<Output = Result<(), E>>,
    up: &Meter,
    down: &Meter,
    period: Duration,
) -> Result<(), E> {
    let idle = async {
        loop {
            let before = (up.total(), down.total());
            sleep(period).await;
            if before == (up.total(), down.total()) {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        result = both => result,
        () = idle => Err(Reason::IdleTimeout.into()),
    }
}

pub(crate) fn stream_reason(error: Option<h2::Error>) -> Reason {
    match error {
        Some(error) if !error.is_reset() => Reason::TunnelClosed,
        _ => Reason::Reset,
    }
}

/// Doubles after a full read, halves after one below a quarter.
fn next_size(size: usize, read: usize) -> usize {
    if read >= size {
        (size * 2).min(MAX_READ)
    } else if read < size / 4 {
        (size / 2).max(MIN_READ)
    } else {
        size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_sizes_follow_what_arrives_within_their_bounds() {
        assert_eq!(next_size(MIN_READ, MIN_READ), 2 * MIN_READ);
        assert_eq!(next_size(MAX_READ, MAX_READ), MAX_READ);
        assert_eq!(next_size(32 << 10, 32 << 10), MAX_READ);
        assert_eq!(next_size(4 * MIN_READ, 100), 2 * MIN_READ);
        assert_eq!(next_size(MIN_READ, 1), MIN_READ);
        assert_eq!(next_size(4 * MIN_READ, 2 * MIN_READ), 4 * MIN_READ);
    }
}
