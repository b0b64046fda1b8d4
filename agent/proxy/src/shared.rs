use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use orlop_identity::Identities;
use orlop_model::Snapshot;
use tokio::sync::{mpsc::UnboundedSender, watch};

use crate::{
    Config, Kernel, Metrics, Passthrough, affinity::Affinity, flow::Flows, limits::Limits, pace::Diallers,
};

/// What every worker shares.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(crate) identities: Identities,
    pub(crate) kernel: Box<dyn Kernel>,
    pub(crate) metrics: Metrics,
    pub(crate) flows: Flows,
    pub(crate) in_flight: InFlight,
    pub(crate) affinity: Affinity,
    pub(crate) limits: Limits,
    pub(crate) diallers: Diallers,
    /// Connections and streams.
    pub(crate) live: Live,
    /// Those of them that can go on in another agent, or perhaps can once they are connected.
    pub(crate) movable: Live,
    /// What may still bring connections: listening sockets, and another agent that moves its own here.
    pub(crate) sources: Live,
    /// Questions of DNS that a resolver is asked.
    pub(crate) questions: Live,
    /// Of the snapshot in force.
    pub(crate) generation: watch::Sender<u64>,
    pub(crate) phase: watch::Sender<Phase>,
}

/// What the proxy does with connections.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// It takes none yet.
    Waiting,
    Serving,
    /// Another agent takes the new ones, and whatever can be moved goes there.
    HandingOver(UnboundedSender<Passthrough>),
    /// It takes no more.
    Draining {
        /// Another process has the sockets, where whoever dials waits for the next agent.
        held: bool,
    },
}

impl Phase {
    /// Whether new connections are no longer taken.
    pub(crate) fn is_leaving(&self) -> bool {
        matches!(self, Self::HandingOver(_) | Self::Draining { .. })
    }
}

impl Shared {
    /// Waits until connections can be moved to another agent, and gives the way there.
    pub(crate) async fn handing_over(&self) -> UnboundedSender<Passthrough> {
        let mut phase = self.phase.subscribe();
        loop {
            match &*phase.borrow_and_update() {
                // Closed: the other agent is gone.
                Phase::HandingOver(way) if !way.is_closed() => return way.clone(),
                _ => {}
            }
            if phase.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Counts what is open, to bound it and to await its end.
#[derive(Clone, Debug)]
pub(crate) struct Live(Arc<watch::Sender<usize>>);

impl Live {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    /// One more, unless there are `limit` already.
    pub(crate) fn enter(&self, limit: usize) -> Option<LiveGuard> {
        let mut entered = false;
        self.0.send_if_modified(|live| {
            entered = *live < limit;
            *live += usize::from(entered);
            // Nobody waits for it to grow.
            false
        });
        entered.then(|| LiveGuard(Arc::clone(&self.0)))
    }

    /// One more, however many there are.
    pub(crate) fn enter_always(&self) -> LiveGuard {
        self.0.send_if_modified(|live| {
            *live += 1;
            false
        });
        LiveGuard(Arc::clone(&self.0))
    }

    pub(crate) async fn ended(&self) {
        // The sender is ours, so that waiting can't fail.
        let _ = self.0.subscribe().wait_for(|live| *live == 0).await;
    }

    pub(crate) fn count(&self) -> usize {
        *self.0.borrow()
    }
}

/// Counts a connection as open until it is dropped.
pub(crate) struct LiveGuard(Arc<watch::Sender<usize>>);

impl Drop for LiveGuard {
    fn drop(&mut self) {
        self.0.send_if_modified(|live| {
            *live -= 1;
            *live == 0
        });
    }
}

/// Connections open to each endpoint, for load balancing.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    of: HashMap<SocketAddr, Arc<AtomicUsize>>,
    /// With so many, those are forgotten to which none is open: endpoints come and go for as long as the agent runs.
    many: usize,
}

/// Fewer endpoints are not worth looking through.
const FEW: usize = 1024;

impl InFlight {
    pub(crate) fn enter(&self, endpoint: SocketAddr) -> InFlightGuard {
        let Counts { of, many } = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if of.len() >= (*many).max(FEW) && !of.contains_key(&endpoint) {
            of.retain(|_, count| count.load(Ordering::Relaxed) > 0);
            // Of many that are in use, not every further one has to look through all.
            *many = of.len() * 2;
        }
        let count = Arc::clone(of.entry(endpoint).or_default());
        count.fetch_add(1, Ordering::Relaxed);
        InFlightGuard(count)
    }

    pub(crate) fn count(&self, endpoint: SocketAddr) -> usize {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.of.get(&endpoint).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

/// Counts a connection to an endpoint until it is dropped.
pub(crate) struct InFlightGuard(Arc<AtomicUsize>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
