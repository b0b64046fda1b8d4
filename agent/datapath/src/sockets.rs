use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use orlop_common::{Address, Choice, DNS_PORT, Dialled, Endpoint, Flow, NO_ENDPOINT};

use crate::{NetnsCookie, maps::Map};

/// The kernel's knowledge of single sockets. Cheap to clone; used from every thread at once.
#[derive(Clone, Debug)]
pub struct Sockets(Arc<Maps>);

#[derive(Debug)]
struct Maps {
    redirected: Map<i32, Dialled>,
    resolvers: Map<Flow, Endpoint>,
    agent: Map<i32, Endpoint>,
}

impl Sockets {
    pub(crate) fn new(redirected: OwnedFd, resolvers: OwnedFd, agent: OwnedFd) -> Self {
        Self(Arc::new(Maps {
            redirected: Map::new(redirected),
            resolvers: Map::new(resolvers),
            agent: Map::new(agent),
        }))
    }

    /// Whom the client of `accepted` dialled before it was redirected to that, and what a hook has chosen of the
    /// endpoints of that.
    pub fn original_destination(
        &self,
        accepted: BorrowedFd<'_>,
    ) -> io::Result<Option<(SocketAddr, orlop_model::Choice)>> {
        let dialled = self.0.redirected.get(accepted.as_raw_fd())?;
        Ok(dialled.map(|dialled| (socket_address(dialled.destination), choice(&dialled))))
    }

    /// The resolver that the UDP socket at `source`, in the pod with this netns cookie, asked last.
    pub fn resolver(&self, netns: NetnsCookie, source: SocketAddr) -> io::Result<Option<SocketAddr>> {
        let source = Flow {
            netns,
            source: address(source.ip()),
            source_port: source.port(),
            destination_port: DNS_PORT,
            reserved: 0,
        };
        Ok(self.0.resolvers.get(source)?.map(socket_address))
    }

    /// Claims `socket`, which must not have dialled yet, as the agent's own: the hooks leave it alone.
    /// If it is to dial a server, `client` is whom that server will see.
    pub fn claim(&self, socket: BorrowedFd<'_>, client: Option<SocketAddr>) -> io::Result<()> {
        self.0.agent.insert(socket.as_raw_fd(), client.map_or(NO_ENDPOINT, endpoint))
    }
}

fn choice(dialled: &Dialled) -> orlop_model::Choice {
    match dialled.choice {
        choice if choice == Choice::Endpoint as u32 => {
            orlop_model::Choice::Endpoint(socket_address(dialled.endpoint))
        }
        choice if choice == Choice::Elsewhere as u32 => orlop_model::Choice::Elsewhere,
        _ => orlop_model::Choice::Open,
    }
}

pub(crate) fn socket_address(endpoint: Endpoint) -> SocketAddr {
    SocketAddr::new(ip(endpoint.address), endpoint.port)
}

pub(crate) fn endpoint(of: SocketAddr) -> Endpoint {
    Endpoint { address: address(of.ip()), port: of.port(), reserved: 0 }
}

/// An address as the ABI has it.
pub(crate) fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// The address that the ABI has.
pub(crate) fn ip(address: Address) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_abi() {
        for text in ["10.1.2.3", "fd00::1", "::1"] {
            let parsed: IpAddr = text.parse().unwrap();
            assert_eq!(ip(address(parsed)), parsed);
        }
        assert_eq!(address("10.1.2.3".parse().unwrap())[12..], [10, 1, 2, 3]);
    }
}
