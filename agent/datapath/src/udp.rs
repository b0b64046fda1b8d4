use std::{collections::HashSet, io, net::IpAddr, os::fd::OwnedFd};

use orlop_common::{Traffic, UdpPeer};

use crate::{NetnsCookie, maps::Map, sockets};

/// What an enrolled pod exchanged with one peer over UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpExchange {
    /// The pod's netns.
    pub pod: NetnsCookie,
    /// Who is at the other end.
    pub peer: IpAddr,
    /// The lower port of the two: by custom, that of who serves.
    pub port: u16,
    /// Whether `port` is the pod's.
    pub serves: bool,
    /// Each way.
    pub traffic: UdpTraffic,
}

/// Datagrams and bytes of payload each way, as the pod sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpTraffic {
    /// Datagrams that the pod sent.
    pub sent_packets: u64,
    /// Bytes that the pod sent.
    pub sent_bytes: u64,
    /// Datagrams that the pod was sent.
    pub received_packets: u64,
    /// Bytes that the pod was sent.
    pub received_bytes: u64,
}

/// What the hooks count of UDP.
#[derive(Debug)]
pub(crate) struct Udp {
    pods: Map<NetnsCookie, Traffic>,
    peers: Map<UdpPeer, Traffic>,
}

impl Udp {
    pub fn new(pods: OwnedFd, peers: OwnedFd) -> Self {
        Self { pods: Map::new(pods), peers: Map::new(peers) }
    }

    /// From now on the pod is counted, or still is.
    pub fn count(&self, pod: NetnsCookie) -> io::Result<()> {
        match self.pods.get(pod)? {
            Some(_) => Ok(()),
            None => self.pods.insert(pod, Traffic::NONE),
        }
    }

    /// Forgets the pod. Its peers are left to age: looking for them would take as long as the pods of this node
    /// keep making new ones.
    pub fn forget(&self, pod: NetnsCookie) -> io::Result<()> {
        self.pods.remove(pod)
    }

    /// Each pod's, since it was enrolled.
    pub fn of_pods(&self) -> io::Result<Vec<(NetnsCookie, UdpTraffic)>> {
        let entries = self.pods.entries()?;
        Ok(entries.into_iter().map(|(pod, traffic)| (pod, of(traffic))).collect())
    }

    /// By peer, of those that were heard of last.
    pub fn exchanges(&self) -> io::Result<Vec<UdpExchange>> {
        let counted: HashSet<_> = self.pods.keys()?.into_iter().collect();
        let exchange = |(key, traffic): (UdpPeer, Traffic)| UdpExchange {
            pod: key.netns,
            peer: sockets::ip(key.peer),
            port: key.port,
            serves: key.serves != 0,
            traffic: of(traffic),
        };
        let peers = self.peers.entries()?.into_iter().map(exchange);
        // A walk of a map that changes may meet an entry twice.
        let mut met = HashSet::new();
        let once = |found: &UdpExchange| met.insert((found.pod, found.peer, found.port, found.serves));
        Ok(peers.filter(|found| counted.contains(&found.pod)).filter(once).collect())
    }
}

fn of(traffic: Traffic) -> UdpTraffic {
    let Traffic { sent_packets, sent_bytes, received_packets, received_bytes } = traffic;
    UdpTraffic { sent_packets, sent_bytes, received_packets, received_bytes }
}
