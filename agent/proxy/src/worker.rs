//! Threads that carry connections. Each has its own runtime, reactor and tunnels: a connection is
//! placed once and then wakes nobody on another core.

use std::{
    io,
    num::NonZeroUsize,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::{LocalSet, spawn_local},
    time::sleep,
};

use crate::{
    admission::Docket, away::Away, handshakes::Handshakes, pace::Waiting, pool::Pool, series::SeriesCache,
    shared::Shared,
};

/// Something to do on a worker, in its runtime.
pub(crate) type Job = Box<dyn FnOnce(&Rc<Worker>) + Send>;

/// How much longer than the shortest a worker's queue may be before it gives connections away. Staying
/// where one was accepted is worth a little imbalance.
const SLACK: usize = 2;
/// However short the tunnels' idle timeout is.
const SHORTEST_SWEEP: Duration = Duration::from_millis(10);
/// Once another root signs, every agent has its certificates renewed by then.
const RENEWAL: Duration = Duration::from_secs(5);

/// One thread's own state.
pub(crate) struct Worker {
    index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) crew: Crew,
    pub(crate) pool: Pool,
    pub(crate) docket: Docket,
    pub(crate) handshakes: Handshakes,
    pub(crate) series: SeriesCache,
    pub(crate) waiting: Waiting,
    pub(crate) away: Away,
}

impl Worker {
    /// Where a connection accepted here should be carried: `None` for here.
    pub(crate) fn place(&self) -> Option<usize> {
        let loads = self.crew.0.iter().map(|member| member.load.load(Ordering::Relaxed));
        let (index, least) = loads.enumerate().min_by_key(|(_, load)| *load)?;
        let own = self.crew.0[self.index].load.load(Ordering::Relaxed);
        (own > least + SLACK).then_some(index)
    }

    /// Counts a connection as this worker's until the guard is dropped.
    pub(crate) fn load(&self) -> LoadGuard {
        let load = Arc::clone(&self.crew.0[self.index].load);
        load.fetch_add(1, Ordering::Relaxed);
        LoadGuard(load)
    }
}

/// Counts a connection as a worker's.
pub(crate) struct LoadGuard(Arc<AtomicUsize>);

impl Drop for LoadGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Every worker, as seen from anywhere.
#[derive(Clone)]
pub(crate) struct Crew(Arc<[Member]>);

struct Member {
    jobs: UnboundedSender<Job>,
    load: Arc<AtomicUsize>,
}

impl Crew {
    /// Starts the threads. They end when `shared` and every sender are gone, or with the process.
    pub(crate) fn start(count: NonZeroUsize, shared: &Arc<Shared>) -> io::Result<Self> {
        let (members, queues): (Vec<_>, Vec<_>) = (0..count.get())
            .map(|_| {
                let (jobs, queue) = unbounded_channel();
                (Member { jobs, load: Arc::default() }, queue)
            })
            .unzip();
        let crew = Self(members.into());
        for (index, queue) in queues.into_iter().enumerate() {
            spawn(index, queue, Arc::clone(shared), crew.clone())?;
        }
        Ok(crew)
    }

    /// Runs `job` on a worker.
    pub(crate) fn run(&self, index: usize, job: impl FnOnce(&Rc<Worker>) + Send + 'static) {
        if self.0[index].jobs.send(Box::new(job)).is_err() {
            tracing::error!(worker = index, "a worker thread has ended; its connections are lost");
        }
    }

    /// The worker with the least to do.
    pub(crate) fn idlest(&self) -> usize {
        let loads = self.0.iter().map(|member| member.load.load(Ordering::Relaxed));
        loads.enumerate().min_by_key(|(_, load)| *load).map_or(0, |(index, _)| index)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

fn spawn(
    index: usize,
    mut queue: UnboundedReceiver<Job>,
    shared: Arc<Shared>,
    crew: Crew,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        let worker = Rc::new(Worker {
            index,
            pool: Pool::default(),
            docket: Docket::default(),
            handshakes: Handshakes::new(shared.config.max_handshakes),
            series: SeriesCache::default(),
            waiting: Waiting::of_this_thread(),
            away: Away::default(),
            shared,
            crew,
        });
        LocalSet::new().block_on(&runtime, async {
            spawn_local(sweep(Rc::clone(&worker)));
            spawn_local(judge(Rc::clone(&worker)));
            spawn_local(leave_tunnels(Rc::clone(&worker)));
            while let Some(job) = queue.recv().await {
                job(&worker);
            }
        });
    })
}

/// Judges connections again whenever the world changes.
async fn judge(worker: Rc<Worker>) {
    let mut changes = worker.shared.generation.subscribe();
    while changes.changed().await.is_ok() {
        worker.docket.judge(&worker.shared);
    }
}

/// Once another root signs, new connections leave the tunnels that were opened before, so that few of them depend on the
/// old one when it goes.
async fn leave_tunnels(worker: Rc<Worker>) {
    let mut changes = worker.shared.identities.trust();
    let mut before = Arc::clone(&changes.borrow_and_update());
    while changes.changed().await.is_ok() {
        let trust = Arc::clone(&changes.borrow_and_update());
        if !trust.signs_as(&before) {
            let worker = Rc::clone(&worker);
            spawn_local(async move {
                sleep(RENEWAL).await;
                if worker.pool.retire(|_| true) > 0 {
                    tracing::info!(
                        "another root signs: the tunnels that were opened before open no more streams"
                    );
                }
            });
        }
        before = trust;
    }
}

/// Closes tunnels that nobody has used for long.
async fn sweep(worker: Rc<Worker>) {
    let idle = worker.shared.config.tunnel_idle_timeout;
    loop {
        sleep((idle / 4).max(SHORTEST_SWEEP)).await;
        worker.pool.forget_idle(idle);
    }
}
