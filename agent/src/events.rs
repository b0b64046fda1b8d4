//! What the hooks tell, into the access log.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use orlop_datapath::{Datapath, Event, VouchedConnection};
use orlop_model::Snapshot;
use orlop_proxy::{
    Proxy,
    by_kernel::{Ending, Figures, Recorder, Refused, Vouched},
};

/// Between two looks for the first state of the world.
const MOMENT: Duration = Duration::from_millis(20);

/// The thread that reads the hooks' events.
pub struct Reader {
    stop: Arc<AtomicBool>,
}

impl Reader {
    pub fn start(
        datapath: &Datapath,
        snapshot: Arc<ArcSwap<Snapshot>>,
        proxy: Arc<Proxy>,
    ) -> anyhow::Result<Self> {
        let events = datapath.events()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let recorder = proxy.recorder();
        let read = move || {
            // What an earlier agent left should be told with names.
            while snapshot.load().generation() == 0 && !stopped.load(Ordering::Relaxed) {
                thread::sleep(MOMENT);
            }
            if let Err(error) = events.read(&stopped, |event| record(event, &proxy, &recorder)) {
                tracing::error!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "no more events of hooks"
                );
            }
        };
        thread::Builder::new().name("events".into()).spawn(read).context("cannot start a thread")?;
        Ok(Self { stop })
    }

    /// Leaves what comes from now on to the next agent.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn record(event: Event, proxy: &Proxy, recorder: &Recorder) {
    match event {
        Event::Refused(refused) => proxy.record(&Refused {
            inbound: refused.inbound,
            reason: refused.reason,
            source: refused.source,
            destination: refused.destination,
        }),
        Event::Opened(connection) => recorder.opened(&vouched(connection)),
        Event::Failed(connection) => recorder.failed(&vouched(connection)),
        Event::Closed(connection, ending) => recorder.closed(
            &vouched(connection),
            &Ending {
                received: ending.sent,
                sent: ending.received,
                lasting: ending.lasting,
                figures: Figures {
                    connecting: ending.connecting,
                    srtt: ending.srtt,
                    retransmits: ending.retransmits,
                },
            },
        ),
        other => tracing::debug!(?other, "an event that nobody records"),
    }
}

fn vouched(connection: VouchedConnection) -> Vouched {
    let VouchedConnection { source, destination, service, .. } = connection;
    Vouched { source, destination, service }
}
