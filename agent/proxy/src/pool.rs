//! Tunnels that are open, and new streams in them.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use h2::client::SendRequest;
use orlop_model::Identity;
use tokio::{sync::Mutex, time::Instant};

use crate::{pulse::Pulse, refusal::Refusal, shown::Shown, tunnel::Opened};

/// Streams in one tunnel; for more, another tunnel is opened. Peers allow 100 by default.
const MAX_STREAMS: usize = 100;

/// What tunnels are shared by: nothing that differs in one of these may share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// On whose behalf.
    pub(crate) source: Identity,
    /// Who must answer.
    pub(crate) destination: Identity,
    /// From which pod: the netns cookie, which also gives the source address.
    pub(crate) netns: u64,
    /// To which pod's proxy.
    pub(crate) address: SocketAddr,
}

/// One worker's tunnels.
#[derive(Default)]
pub(crate) struct Pool(RefCell<HashMap<Key, Rc<Lane>>>);

/// The tunnels of one key. The lock is held while one is opened, so that a burst opens one and not many.
#[derive(Default)]
struct Lane {
    opening: Mutex<Attempts>,
    tunnels: RefCell<Vec<Tunnel>>,
    /// Attempts to open one that have begun.
    begun: Cell<u64>,
}

/// How the last attempt to open a tunnel ended.
#[derive(Default)]
struct Attempts {
    number: u64,
    failure: Option<Refusal>,
}

struct Tunnel {
    send: SendRequest<Bytes>,
    usage: Rc<Usage>,
}

struct Usage {
    shown: Rc<Shown>,
    streams: Cell<usize>,
    pulse: Rc<Pulse>,
    /// No more streams for it.
    retired: Cell<bool>,
    last: Cell<Instant>,
}

/// A place for one stream in a tunnel.
pub(crate) struct Slot {
    pub(crate) send: SendRequest<Bytes>,
    /// Whether the tunnel was open before: it may have died unnoticed.
    pub(crate) reused: bool,
    usage: Rc<Usage>,
}

impl Slot {
    /// What the tunnel's other end has shown.
    pub(crate) fn shown(&self) -> &Shown {
        &self.usage.shown
    }

    /// Once nobody answers at the tunnel's other end.
    pub(crate) async fn silence(&self) {
        self.usage.pulse.silence().await;
    }

    /// Whether nobody does.
    pub(crate) fn is_silent(&self) -> bool {
        self.usage.pulse.is_silent()
    }

    /// The tunnel is of no use for new streams; those that it has may go on.
    pub(crate) fn retire(&self) {
        self.usage.retired.set(true);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.usage.streams.set(self.usage.streams.get() - 1);
        self.usage.last.set(Instant::now());
    }
}

impl Pool {
    /// A place in a tunnel for `key`, which `open` opens if there is none.
    pub(crate) async fn slot(
        &self,
        key: &Key,
        open: impl AsyncFnOnce() -> Result<Opened, Refusal>,
    ) -> Result<Slot, Refusal> {
        let lane = Rc::clone(self.0.borrow_mut().entry(key.clone()).or_default());
        if let Some(slot) = lane.free().await {
            return Ok(slot);
        }
        let next = lane.begun.get() + 1;
        let mut attempts = lane.opening.lock().await;
        // Somebody else may have tried while we waited: their tunnel will do, and so will their failure.
        if let Some(slot) = lane.free().await {
            return Ok(slot);
        }
        if attempts.number >= next
            && let Some(failure) = &attempts.failure
        {
            return Err(failure.clone());
        }
        attempts.number = lane.begun.get() + 1;
        lane.begun.set(attempts.number);
        // Nobody is to take another attempt's for that of one which was given up.
        attempts.failure = None;
        let opened = open().await;
        attempts.failure = opened.as_ref().err().cloned();
        let Opened { send, shown, pulse } = opened?;
        let usage = Rc::new(Usage {
            shown,
            pulse,
            streams: Cell::new(0),
            retired: Cell::new(false),
            last: Cell::new(Instant::now()),
        });
        lane.tunnels.borrow_mut().push(Tunnel { send: send.clone(), usage: Rc::clone(&usage) });
        Ok(take(send, usage, false))
    }

    /// Has new streams of those keys go to tunnels that are opened from now on. Returns how many are open.
    pub(crate) fn retire(&self, which: impl Fn(&Key) -> bool) -> usize {
        let retire = |(_, lane): (&Key, &Rc<Lane>)| {
            let tunnels = lane.tunnels.borrow();
            tunnels.iter().for_each(|tunnel| tunnel.usage.retired.set(true));
            tunnels.len()
        };
        self.0.borrow().iter().filter(|(key, _)| which(key)).map(retire).sum()
    }

    /// Forgets tunnels that have been idle for this long; without a handle they end in good order.
    pub(crate) fn forget_idle(&self, idle: Duration) {
        let now = Instant::now();
        self.0.borrow_mut().retain(|_, lane| {
            lane.tunnels.borrow_mut().retain(|tunnel| {
                tunnel.usage.streams.get() > 0
                    || (!tunnel.usage.retired.get() && now - tunnel.usage.last.get() < idle)
            });
            !lane.tunnels.borrow().is_empty() || Rc::strong_count(lane) > 1
        });
    }
}

impl Lane {
    /// A place in an open tunnel. Tunnels that have ended on the way are forgotten.
    async fn free(&self) -> Option<Slot> {
        loop {
            let (send, usage) = {
                let tunnels = self.tunnels.borrow();
                let tunnel = tunnels.iter().find(|tunnel| tunnel.has_room())?;
                (tunnel.send.clone(), Rc::clone(&tunnel.usage))
            };
            let slot = take(send, usage, true);
            let Slot { send, usage, .. } = &slot;
            match send.clone().ready().await {
                Ok(_) => return Some(slot),
                Err(_) => self.tunnels.borrow_mut().retain(|tunnel| !Rc::ptr_eq(&tunnel.usage, usage)),
            }
        }
    }
}

impl Tunnel {
    /// A stream beyond what the peer allows would wait until another ends.
    fn has_room(&self) -> bool {
        !self.usage.retired.get()
            && self.usage.streams.get() < MAX_STREAMS.min(self.send.current_max_send_streams())
    }
}

fn take(send: SendRequest<Bytes>, usage: Rc<Usage>, reused: bool) -> Slot {
    usage.streams.set(usage.streams.get() + 1);
    Slot { send, reused, usage }
}
