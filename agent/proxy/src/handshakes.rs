use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
};

use orlop_model::Reason;
use tokio::sync::oneshot;

use crate::refusal::Refusal;

/// Bounds the handshakes under way on one worker. When there are too many, the oldest gives way: an
/// honest peer is done in milliseconds, and what lingers is most likely an attack.
#[derive(Debug)]
pub(crate) struct Handshakes {
    limit: usize,
    next: Cell<u64>,
    pending: RefCell<VecDeque<(u64, oneshot::Sender<()>)>>,
}

impl Handshakes {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, next: Cell::new(0), pending: RefCell::default() }
    }

    /// Runs `handshake` unless it has to give way.
    pub(crate) async fn bounded<T>(
        &self,
        handshake: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let (sender, evicted) = oneshot::channel();
        let id = self.next.replace(self.next.get() + 1);
        {
            let mut pending = self.pending.borrow_mut();
            if pending.len() >= self.limit {
                pending.pop_front();
            }
            pending.push_back((id, sender));
        }
        let result = tokio::select! {
            result = handshake => result,
            _ = evicted => return Err(Reason::HandshakeLimit.into()),
        };
        let mut pending = self.pending.borrow_mut();
        if let Ok(index) = pending.binary_search_by_key(&id, |(id, _)| *id) {
            pending.remove(index);
        }
        result
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
    async fn one_that_is_done_makes_room() {
        let handshakes = Handshakes::new(1);
        for _ in 0..3 {
            assert!(handshakes.bounded(ready(Ok(()))).await.is_ok());
        }
        assert!(handshakes.pending.borrow().is_empty());
    }
}
