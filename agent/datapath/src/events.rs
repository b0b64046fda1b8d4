use std::{
    fs::File,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use orlop_common::{EVENTS_BYTES, Endpoint, EventKind, Refusal};

use crate::{DatapathError, NetnsCookie, file, map_error, ring::Ring, sockets};

/// How soon a reader notices that it is to stop, or that another has stopped.
const TURN: Duration = Duration::from_millis(200);

/// Events are gathered for so long: the kernel wakes the reader only after it has read all that came before, and a
/// wake-up costs more than an event.
const GATHER: Duration = Duration::from_millis(5);

/// Something that a hook tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A hook refused a connection by itself.
    Refused(RefusedConnection),
    /// A connection between two pods that does without the proxy is established.
    Opened(VouchedConnection),
    /// It is over.
    Closed(VouchedConnection, Ending),
    /// It never came to be: the other side refused, or did not answer.
    Failed(VouchedConnection),
}

/// A connection between two pods of this node that does without the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VouchedConnection {
    /// The netns that it was dialled in.
    pub netns: NetnsCookie,
    /// From where.
    pub source: SocketAddr,
    /// What was dialled; of a service, the endpoint that was chosen.
    pub destination: SocketAddr,
    /// The service that was dialled, if it was one.
    pub service: Option<SocketAddr>,
}

/// What is known of a connection that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Bytes that the dialling side sent and the other has acknowledged. As TCP counts, a FIN is one.
    pub sent: u64,
    /// Bytes that the dialling side has received, counted likewise.
    pub received: u64,
    /// From the SYN to its answer.
    pub connecting: Duration,
    /// From the answer to the end.
    pub lasting: Duration,
    /// Smoothed round-trip time.
    pub srtt: Duration,
    /// Segments that were sent again.
    pub retransmits: u32,
}

/// A connection that a hook refused by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedConnection {
    /// Whether it was to the pod, and not from it.
    pub inbound: bool,
    /// From the list that metrics and logs have.
    pub reason: &'static str,
    /// Who dialled, as the packet says; port 0 where none was chosen yet.
    pub source: SocketAddr,
    /// What was dialled.
    pub destination: SocketAddr,
}

/// The hooks' events, in a ring buffer that outlives the agent.
#[derive(Debug)]
pub struct Events {
    ring: Ring,
    /// Locked by the one agent that reads, while two of them run.
    directory: PathBuf,
}

impl Events {
    pub(crate) fn open(fd: OwnedFd, directory: &Path) -> Result<Self, DatapathError> {
        let ring = Ring::open(fd, EVENTS_BYTES).map_err(map_error("map", "EVENTS"))?;
        Ok(Self { ring, directory: directory.to_owned() })
    }

    /// Hands every event to `handle` until `stop` is set, beginning with those that an earlier agent left.
    /// Blocks. While another agent reads, it waits.
    pub fn read(mut self, stop: &AtomicBool, mut handle: impl FnMut(Event)) -> Result<(), DatapathError> {
        let Some(_reading) = self.lock(stop)? else { return Ok(()) };
        while !stop.load(Ordering::Relaxed) {
            if self.ring.wait(TURN).map_err(map_error("read", "EVENTS"))? {
                thread::sleep(GATHER);
            }
            while let Some(record) =
                self.ring.next::<orlop_common::Event>().map_err(map_error("read", "EVENTS"))?
            {
                record.as_ref().and_then(event).into_iter().for_each(&mut handle);
            }
        }
        Ok(())
    }

    fn lock(&self, stop: &AtomicBool) -> Result<Option<Flock<File>>, DatapathError> {
        while !stop.load(Ordering::Relaxed) {
            let directory = File::open(&self.directory).map_err(file("open", &self.directory))?;
            match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Some(lock)),
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => thread::sleep(TURN),
                Err((_, errno)) => return Err(file("lock", &self.directory)(errno.into())),
            }
        }
        Ok(None)
    }
}

/// What the kernel's record says, if this version knows its kind.
pub(crate) fn event(record: &orlop_common::Event) -> Option<Event> {
    const KINDS: [EventKind; 5] = [
        EventKind::InboundRefused,
        EventKind::OutboundRefused,
        EventKind::Opened,
        EventKind::Closed,
        EventKind::Failed,
    ];
    let kind = KINDS.into_iter().find(|kind| *kind as u32 == record.kind)?;
    let (source, destination) = (endpoint(&record.source), endpoint(&record.destination));
    let service = Some(endpoint(&record.service)).filter(|service| service.port() != 0);
    let vouched = VouchedConnection { netns: record.netns, source, destination, service };
    Some(match kind {
        EventKind::InboundRefused | EventKind::OutboundRefused => Event::Refused(RefusedConnection {
            inbound: kind == EventKind::InboundRefused,
            reason: Refusal::ALL.get(record.refusal as usize)?.as_str(),
            source,
            destination,
        }),
        EventKind::Opened => Event::Opened(vouched),
        EventKind::Failed => Event::Failed(vouched),
        EventKind::Closed => Event::Closed(
            vouched,
            Ending {
                sent: record.sent,
                received: record.received,
                connecting: Duration::from_nanos(record.connecting),
                lasting: Duration::from_nanos(record.lasting),
                srtt: Duration::from_micros(record.srtt.into()),
                retransmits: record.retransmits,
            },
        ),
    })
}

fn endpoint(endpoint: &Endpoint) -> SocketAddr {
    sockets::socket_address(*endpoint)
}

#[cfg(test)]
mod tests {
    use orlop_common::NO_ENDPOINT;

    use super::*;

    const RECORD: orlop_common::Event = orlop_common::Event {
        kind: EventKind::InboundRefused as u32,
        refusal: Refusal::Plaintext as u32,
        netns: 7,
        source: Endpoint { address: [0xfd; 16], port: 4321, reserved: 0 },
        destination: Endpoint {
            address: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 0, 2],
            port: 80,
            reserved: 0,
        },
        service: NO_ENDPOINT,
        reserved: 0,
        sent: 1,
        received: 2,
        connecting: 3,
        lasting: 4,
        srtt: 5,
        retransmits: 6,
    };

    #[test]
    fn a_refusal_is_decoded() {
        let Some(Event::Refused(refused)) = event(&RECORD) else { panic!("it is one") };
        assert_eq!((refused.inbound, refused.reason), (true, "plaintext_refused"));
        assert_eq!(refused.destination, "10.1.0.2:80".parse().unwrap());
        assert_eq!(refused.source.port(), 4321);
    }

    #[test]
    fn a_connection_that_is_over_is_decoded() {
        let closed = orlop_common::Event { kind: EventKind::Closed as u32, ..RECORD };
        let Some(Event::Closed(connection, ending)) = event(&closed) else { panic!("it is one") };
        assert_eq!((connection.netns, connection.destination.port(), connection.service), (7, 80, None));
        assert_eq!((ending.sent, ending.received, ending.retransmits), (1, 2, 6));
        assert_eq!((ending.lasting, ending.srtt), (Duration::from_nanos(4), Duration::from_micros(5)));
    }

    #[test]
    fn the_service_of_a_connection_is_decoded() {
        let opened = orlop_common::Event {
            kind: EventKind::Opened as u32,
            service: Endpoint { port: 443, ..RECORD.destination },
            ..RECORD
        };
        let Some(Event::Opened(connection)) = event(&opened) else { panic!("it is one") };
        assert_eq!(connection.service, Some("10.1.0.2:443".parse().unwrap()));
    }

    #[test]
    fn what_another_version_wrote_is_left_out() {
        assert_eq!(event(&orlop_common::Event { kind: 4711, ..RECORD }), None);
        assert_eq!(event(&orlop_common::Event { refusal: 4711, ..RECORD }), None);
    }
}
