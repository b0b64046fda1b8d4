use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::netns::Netns;

/// More than this in one capture is a test's mistake.
const MAX_BYTES: usize = 512 << 20;
/// Large enough for frames that segmentation offload has not cut yet.
const MAX_FRAME: usize = 256 << 10;

/// A running capture of all frames that enter a namespace's interfaces, whole, in memory.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<Vec<u8>>>>>,
}

impl Capture {
    pub(crate) fn start(netns: &Netns) -> Result<Self> {
        let socket = netns.enter(open)?.context("opening a packet socket")?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = thread::spawn(move || record(&socket, &flag));
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends the capture. An error if the kernel had to drop frames: then nothing can be said.
    pub fn stop(mut self) -> Result<Frames> {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().context("the capture has ended")?;
        let frames = thread.join().map_err(|_| anyhow!("the capture panicked"))??;
        Ok(Frames::new(frames))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// What a capture saw.
#[derive(Debug)]
pub struct Frames {
    frames: Vec<Vec<u8>>,
    streams: BTreeMap<(SocketAddr, SocketAddr), Vec<u8>>,
}

impl Frames {
    fn new(frames: Vec<Vec<u8>>) -> Self {
        let mut flows: BTreeMap<_, Flow> = BTreeMap::new();
        for segment in frames.iter().filter_map(|frame| Segment::parse(frame)) {
            flows.entry((segment.from, segment.to)).or_default().add(&segment);
        }
        let streams = flows.into_iter().map(|(key, flow)| (key, flow.bytes())).collect();
        Self { frames, streams }
    }

    /// Number of frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether any frame, or any TCP stream put together from its segments, holds these bytes.
    pub fn contains(&self, bytes: &[u8]) -> bool {
        self.frames.iter().chain(self.streams.values()).any(|hay| find(hay, bytes))
    }

    /// The TCP streams seen, each direction apart: from, to, and what was sent.
    pub fn tcp_streams(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr, &[u8])> {
        self.streams.iter().map(|((from, to), bytes)| (*from, *to, bytes.as_slice()))
    }

    /// The ports of TCP streams seen that carried data, the lower of each pair: in tests the server's.
    pub fn tcp_ports(&self) -> BTreeSet<u16> {
        let with_data = self.tcp_streams().filter(|(_, _, bytes)| !bytes.is_empty());
        with_data.map(|(from, to, _)| from.port().min(to.port())).collect()
    }

    /// TLS application-data records sent to or from `port`.
    pub fn tls_application_records(&self, port: u16) -> usize {
        let streams = self.tcp_streams().filter(|(from, to, _)| from.port() == port || to.port() == port);
        streams.map(|(_, _, bytes)| tls_records(bytes).filter(|kind| *kind == APPLICATION_DATA).count()).sum()
    }

    /// Whether everything sent to and from `port` is TLS records from the first byte on.
    pub fn is_all_tls(&self, port: u16) -> bool {
        let mut streams = self.tcp_streams().filter(|(from, to, _)| from.port() == port || to.port() == port);
        // ChangeCipherSpec, alert, handshake, application data: RFC 8446, 5.1.
        streams.all(|(_, _, bytes)| tls_records(bytes).all(|kind| (20..=23).contains(&kind)))
    }
}

const APPLICATION_DATA: u8 = 23;

/// The content types of the records in a stream; ends early, with 0, at what is no TLS record.
fn tls_records(mut bytes: &[u8]) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let header = bytes.get(..5)?;
        let (kind, major, length) = (header[0], header[1], u16::from_be_bytes([header[3], header[4]]));
        if major != 3 {
            bytes = &[];
            return Some(0);
        }
        bytes = bytes.get(5 + usize::from(length)..).unwrap_or_default();
        Some(kind)
    })
}

fn find(hay: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return true };
    let mut rest = hay;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        rest = &rest[at..];
        if rest.starts_with(needle) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

/// The payload of one direction of a connection, in order of sequence numbers.
#[derive(Default)]
struct Flow {
    start: Option<u32>,
    segments: BTreeMap<u32, Vec<u8>>,
}

impl Flow {
    fn add(&mut self, segment: &Segment<'_>) {
        if segment.syn {
            // A port pair used again: keep what the earlier connection sent, before the new one.
            let earlier = std::mem::take(self).bytes();
            let first = segment.sequence.wrapping_add(1);
            let length = u32::try_from(earlier.len()).unwrap_or(0);
            self.start = Some(first.wrapping_sub(length));
            if length > 0 {
                self.segments.insert(0, earlier);
            }
            return;
        }
        let start = *self.start.get_or_insert(segment.sequence);
        let offset = segment.sequence.wrapping_sub(start);
        // Half the space lies before the start: keep-alives, and what came before the capture did.
        if !segment.payload.is_empty() && offset < 1 << 31 {
            let known = self.segments.entry(offset).or_default();
            if known.len() < segment.payload.len() {
                *known = segment.payload.to_vec();
            }
        }
    }

    fn bytes(self) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::new();
        for (offset, payload) in self.segments {
            // Retransmissions overlap.
            let overlap = bytes.len().saturating_sub(offset as usize);
            bytes.extend(payload.get(overlap..).unwrap_or_default());
        }
        bytes
    }
}

/// A TCP segment in an Ethernet frame.
struct Segment<'a> {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    syn: bool,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    fn parse(frame: &'a [u8]) -> Option<Self> {
        let packet = frame.get(14..)?;
        let (from, to, tcp) = match frame.get(12..14)? {
            [0x08, 0x00] => ipv4_tcp(packet)?,
            [0x86, 0xdd] => ipv6_tcp(packet)?,
            _ => return None,
        };
        let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
        let header = usize::from(tcp.get(12)? >> 4) * 4;
        Some(Self {
            from: SocketAddr::new(from, port(0)?),
            to: SocketAddr::new(to, port(2)?),
            sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
            syn: tcp.get(13)? & 2 != 0,
            payload: tcp.get(header..)?,
        })
    }
}

const TCP: u8 = 6;

fn ipv4_tcp(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let header = usize::from(packet.first()? & 15) * 4;
    let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
    let ip = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    (*packet.get(9)? == TCP).then_some(())?;
    Some((ip(12)?, ip(16)?, packet.get(header..total.min(packet.len()))?))
}

fn ipv6_tcp(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let total = 40 + usize::from(u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?));
    let ip = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
    (*packet.get(6)? == TCP).then_some(())?;
    Some((ip(8)?, ip(24)?, packet.get(40..total.min(packet.len()))?))
}

fn open() -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 5_000))?;
    Ok(socket)
}

fn record(socket: &OwnedFd, stop: &AtomicBool) -> Result<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    let mut buffer = vec![0; MAX_FRAME];
    let mut total = 0;
    loop {
        // Read before the wait: what was sent before the stop is in the socket's buffer by then.
        let stopping = stop.load(Ordering::SeqCst);
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            // A bridged frame comes in by one port and leaves by another: count it once.
            Ok((_, Some(from))) if from.pkttype() == libc::PACKET_OUTGOING => {}
            Ok((length, _)) => {
                total += length;
                if total > MAX_BYTES {
                    bail!("the capture holds {} MiB: send less while it runs", MAX_BYTES >> 20);
                }
                frames.push(buffer[..length].to_vec());
            }
            Err(Errno::EAGAIN) if stopping => break,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error).context("reading the packet socket"),
        }
    }
    match dropped(socket)? {
        0 => Ok(frames),
        dropped => bail!("the kernel dropped {dropped} frames of the capture: send less while it runs"),
    }
}

fn dropped(socket: &OwnedFd) -> io::Result<u32> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: `stats` and `length` outlive the call, and `length` is the size of `stats`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(stats.tp_drops) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(sequence: u32, syn: bool, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend(u16::try_from(40 + payload.len()).unwrap().to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, TCP, 0, 0, 10, 1, 0, 2, 10, 2, 0, 2, 0xc0, 0, 0x3a, 0xa0]);
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, if syn { 2 } else { 16 }, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn text_is_found_across_segments_in_any_order() {
        let frames = Frames::new(vec![
            frame(u32::MAX, true, b""),
            frame(4, false, b"et te"),
            frame(0, false, b"secr"),
            frame(2, false, b"cret "),
            frame(9, false, b"xt"),
        ]);
        assert!(frames.contains(b"secret text"));
        assert!(!frames.contains(b"secret  text"));
        assert_eq!(frames.tcp_ports(), BTreeSet::from([15008]));
    }

    #[test]
    fn a_second_connection_on_the_same_ports_keeps_the_first() {
        let frames = Frames::new(vec![
            frame(100, true, b""),
            frame(101, false, b"first"),
            frame(7000, true, b""),
            frame(7001, false, b"second"),
        ]);
        assert!(frames.contains(b"first") && frames.contains(b"second"));
    }

    #[test]
    fn records_are_told_from_clear_text() {
        let tls = Frames::new(vec![frame(1, false, b"\x16\x03\x01\x00\x01a\x17\x03\x03\x00\x02bc")]);
        assert_eq!(tls.tls_application_records(15008), 1);
        assert!(tls.is_all_tls(15008));
        let clear = Frames::new(vec![frame(1, false, b"GET / HTTP/1.1\r\n\r\n")]);
        assert_eq!(clear.tls_application_records(15008), 0);
        assert!(!clear.is_all_tls(15008));
    }

    #[test]
    fn padding_of_short_frames_is_no_payload() {
        let mut padded = frame(1, false, b"");
        padded.extend(*b"pad");
        assert!(Frames::new(vec![padded]).tcp_ports().is_empty());
    }
}
