//! Finding and closing TCP connections of a netns, by sock_diag(7). That needs CONFIG_INET_TCP_DIAG, which may be the module
//! `tcp_diag`, and closing CONFIG_INET_DIAG_DESTROY (4.9).

use std::{
    io,
    mem::{size_of, zeroed},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr, slice, thread,
};

use nix::{
    libc,
    sched::{CloneFlags, setns},
};
use orlop_common::Address;

use crate::sockets;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Every state but LISTEN, TIME_WAIT and CLOSE: `1 << TCP_ESTABLISHED` and so on, of tcp_states.h.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12;
const FAMILIES: [u8; 2] = [libc::AF_INET as u8, libc::AF_INET6 as u8];
const BUFFER: usize = 64 * 1024;
/// A connection that was just being made may be found at the second look only.
const LOOKS: usize = 5;

/// A connection to look for, from one end's point of view.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// Dialled here, to this address.
    To(SocketAddr),
    /// Accepted here at this address, dialled from that one.
    At(SocketAddr, IpAddr),
}

/// `struct inet_diag_sockid`: addresses in network order, an IPv4 one in the first word.
#[repr(C)]
#[derive(Clone, Copy)]
struct SocketId {
    source_port: u16,
    destination_port: u16,
    source: [u8; 16],
    destination: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`
#[repr(C)]
struct Request {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    family: u8,
    protocol: u8,
    extensions: u8,
    padding: u8,
    states: u32,
    id: SocketId,
}

/// `struct nlmsghdr`
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// The beginning of `struct inet_diag_msg`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Found {
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: SocketId,
}

/// Closes, with a reset, every connection of `netns` that is wanted. Returns how many.
pub fn close(netns: BorrowedFd<'_>, wanted: &[Wanted]) -> io::Result<usize> {
    // A thread of its own, since it ends in that netns.
    let close = || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        let mut closed = 0;
        for _ in 0..LOOKS {
            match close_here(wanted)? {
                0 => break,
                more => closed += more,
            }
        }
        Ok(closed)
    };
    thread::scope(|scope| scope.spawn(close).join().map_err(|_| io::Error::other("the thread panicked"))?)
}

/// Whether this kernel finds and closes connections when told to.
pub fn can_close() -> io::Result<()> {
    let socket = netlink()?;
    for family in FAMILIES {
        // Of no state, so that none is listed. The kernel loads its module for this, if it has one.
        list(&socket, family, 0)?;
        // SAFETY: numbers alone.
        let nobodys = unsafe { zeroed::<SocketId>() };
        destroy(&socket, &Found { family, state: 1, timer: 0, retransmits: 0, id: nobodys })?;
    }
    Ok(())
}

fn close_here(wanted: &[Wanted]) -> io::Result<usize> {
    let socket = netlink()?;
    let mut closed = 0;
    // A dual-stack socket's IPv4 connections are listed with IPv6's.
    for family in FAMILIES {
        for found in list(&socket, family, STATES)? {
            if wanted.iter().any(|wanted| wanted.is(&found)) {
                closed += usize::from(destroy(&socket, &found)?);
            }
        }
    }
    Ok(closed)
}

impl Wanted {
    fn is(&self, found: &Found) -> bool {
        let (local, remote) = (found.local(), found.remote());
        match self {
            Self::To(destination) => remote == *destination,
            Self::At(address, from) => local == *address && remote.ip() == *from,
        }
    }
}

impl Found {
    fn local(&self) -> SocketAddr {
        SocketAddr::new(self.ip(self.id.source), u16::from_be(self.id.source_port))
    }

    fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.ip(self.id.destination), u16::from_be(self.id.destination_port))
    }

    fn ip(&self, address: Address) -> IpAddr {
        match (i32::from(self.family), address) {
            (libc::AF_INET, [a, b, c, d, ..]) => IpAddr::from([a, b, c, d]),
            _ => sockets::ip(address),
        }
    }
}

fn netlink() -> io::Result<OwnedFd> {
    // SAFETY: takes numbers; a success is a new descriptor.
    unsafe {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        match libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

fn list(socket: &OwnedFd, family: u8, states: u32) -> io::Result<Vec<Found>> {
    // SAFETY: numbers alone, for which zero is "any".
    let id = unsafe { zeroed() };
    send(socket, SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP as u16, family, states, id)?;
    let mut found = Vec::new();
    loop {
        let mut done = false;
        receive(socket, |header, payload| match i32::from(header.kind) {
            libc::NLMSG_DONE => {
                done = true;
                // Of a kernel that lists other protocols alone, this is all it says.
                match read::<i32>(payload) {
                    Some(..0) => Err(error(payload)),
                    _ => Ok(()),
                }
            }
            libc::NLMSG_ERROR => Err(error(payload)),
            _ => {
                found.extend(read::<Found>(payload));
                Ok(())
            }
        })?;
        if done {
            return Ok(found);
        }
    }
}

/// False if it was gone already.
fn destroy(socket: &OwnedFd, found: &Found) -> io::Result<bool> {
    send(socket, SOCK_DESTROY, libc::NLM_F_ACK as u16, found.family, 1 << found.state, found.id)?;
    let mut result = Ok(true);
    receive(socket, |_, payload| {
        result = match error(payload) {
            error if error.raw_os_error() == Some(0) => Ok(true),
            error if error.kind() == io::ErrorKind::NotFound => Ok(false),
            error => Err(error),
        };
        Ok(())
    })?;
    result
}

fn send(socket: &OwnedFd, kind: u16, flags: u16, family: u8, states: u32, id: SocketId) -> io::Result<()> {
    let request = Request {
        length: size_of::<Request>() as u32,
        kind,
        flags: flags | libc::NLM_F_REQUEST as u16,
        sequence: 0,
        port: 0,
        family,
        protocol: libc::IPPROTO_TCP as u8,
        extensions: 0,
        padding: 0,
        states,
        id,
    };
    // SAFETY: the kernel reads one request, which has no padding.
    let sent =
        unsafe { libc::send(socket.as_raw_fd(), ptr::from_ref(&request).cast(), size_of::<Request>(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes one packet, and hands on each message in it.
fn receive(socket: &OwnedFd, mut handle: impl FnMut(Header, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0u64; BUFFER / size_of::<u64>()];
    // SAFETY: the kernel writes at most as much as the buffer holds.
    let length = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), BUFFER, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: bytes of the buffer, any of which are a value.
    let mut rest = unsafe { slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
    while let Some(header) = read::<Header>(rest) {
        let Some(message) = rest.get(..header.length as usize) else { break };
        let Some(payload) = message.get(size_of::<Header>()..) else { break };
        handle(header, payload)?;
        rest = rest.get(message.len().next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

/// What `struct nlmsgerr` begins with.
fn error(payload: &[u8]) -> io::Error {
    match read::<i32>(payload) {
        Some(errno) => io::Error::from_raw_os_error(-errno),
        None => io::ErrorKind::InvalidData.into(),
    }
}

/// The `T` that the bytes begin with: one of this module's, for which any bits will do.
fn read<T: Copy>(bytes: &[u8]) -> Option<T> {
    // SAFETY: there are enough bytes; the alignment doesn't matter.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// What is listed where the kernel answers with one message of this kind and number.
    fn listed(kind: i32, number: i32) -> io::Result<usize> {
        let (kernel, socket) = UnixDatagram::pair().unwrap();
        let header = Header { length: 20, kind: kind as u16, flags: 0, sequence: 0, port: 0 };
        // SAFETY: it has no padding.
        let header = unsafe { slice::from_raw_parts(ptr::from_ref(&header).cast(), size_of::<Header>()) };
        kernel.send(&[header, &number.to_ne_bytes()].concat()).unwrap();
        list(&socket.into(), libc::AF_INET as u8, 0).map(|found| found.len())
    }

    #[test]
    fn a_kernel_that_cannot_list_tcp_is_not_taken_for_one_without_connections() {
        assert_eq!(listed(libc::NLMSG_DONE, 0).unwrap(), 0);
        for kind in [libc::NLMSG_DONE, libc::NLMSG_ERROR] {
            assert_eq!(listed(kind, -libc::ENOENT).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        }
    }

    #[test]
    fn messages_are_laid_out_as_the_kernels() {
        assert_eq!(size_of::<SocketId>(), 48);
        assert_eq!(size_of::<Request>(), 16 + 56);
        assert_eq!(size_of::<Found>(), 4 + 48);
    }
}
