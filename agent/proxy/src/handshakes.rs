use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    net::IpAddr,
};

use orlop_model::Reason;
use tokio::sync::oneshot;

use crate::refusal::Refusal;

/// Bounds the handshakes under way on one worker. When there are too many, the oldest gives way: an
/// honest peer is done in milliseconds, and what lingers is most likely an attack. A client from outside the mesh, who may
/// be far away, has at most half of them: beyond that it is its own oldest that gives way.
#[derive(Debug)]
pub(crate) struct Handshakes {
    limit: usize,
    next: Cell<u64>,
    pending: RefCell<VecDeque<Pending>>,
}

#[derive(Debug)]
struct Pending {
    id: u64,
    client: Option<IpAddr>,
    /// Dropped, it ends the handshake.
    _evict: oneshot::Sender<()>,
}

impl Handshakes {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, next: Cell::new(0), pending: RefCell::default() }
    }

    /// Runs `handshake`, which is a peer's, unless it has to give way.
    pub(crate) async fn bounded<T>(
        &self,
        handshake: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        self.bounded_of(None, handshake).await
    }

    /// The same for that of a client from outside the mesh.
    pub(crate) async fn bounded_of<T>(
        &self,
        client: Option<IpAddr>,
        handshake: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let (evict, evicted) = oneshot::channel();
        let id = self.next.replace(self.next.get() + 1);
        {
            let mut pending = self.pending.borrow_mut();
            self.make_room(&mut pending, client);
            pending.push_back(Pending { id, client, _evict: evict });
        }
        let result = tokio::select! {
            result = handshake => result,
            _ = evicted => return Err(Reason::HandshakeLimit.into()),
        };
        let mut pending = self.pending.borrow_mut();
        if let Ok(index) = pending.binary_search_by_key(&id, |of| of.id) {
            pending.remove(index);
        }
        result
    }

    fn make_room(&self, pending: &mut VecDeque<Pending>, client: Option<IpAddr>) {
        let is_its = |of: &Pending| client.is_some() && of.client == client;
        let has_half = pending.iter().filter(|of| is_its(of)).count() >= self.limit.div_ceil(2);
        if let Some(oldest) = pending.iter().position(is_its).filter(|_| has_half) {
            pending.remove(oldest);
        } else if pending.len() >= self.limit {
            pending.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn the_oldest_gives_way() {
        let handshakes = Handshakes::new(2);
        let oldest = handshakes.bounded(pending::<Result<(), Refusal>>());
        let second = handshakes.bounded(pending::<Result<(), Refusal>>());
        let third = async {
            tokio::task::yield_now().await;
            handshakes.bounded(ready(Ok(()))).await
        };
        let result = tokio::select! {
            biased;
            result = async { tokio::join!(oldest, third) } => result,
            _ = second => unreachable!("nobody ends it"),
        };
        assert_eq!(result.0.map_err(|refusal| refusal.reason), Err(Reason::HandshakeLimit));
        assert!(result.1.is_ok());
    }

    #[tokio::test]
    async fn a_client_that_has_half_gives_way_to_itself() {
        let handshakes = Handshakes::new(4);
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().ok());
        let lasts = |client| handshakes.bounded_of(client, pending::<Result<(), Refusal>>());
        let (far, first, second, third) = (lasts(other), lasts(one), lasts(one), lasts(one));
        tokio::select! {
            biased;
            _ = far => unreachable!("another's gives way"),
            result = first => assert_eq!(result.unwrap_err().reason, Reason::HandshakeLimit),
            _ = second => unreachable!("it is not the oldest"),
            _ = third => unreachable!("nobody ends it"),
        }
        assert_eq!(handshakes.pending.borrow().len(), 3);
    }

    #[tokio::test]
    async fn one_that_is_done_makes_room() {
        let handshakes = Handshakes::new(1);
        for _ in 0..3 {
            assert!(handshakes.bounded(ready(Ok(()))).await.is_ok());
        }
        assert!(handshakes.pending.borrow().is_empty());
    }
}
