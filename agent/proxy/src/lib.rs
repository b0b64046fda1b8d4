//! The node proxy: takes the sockets that the kernel side hands over, and carries them to their peers.
//!
//! A connection goes one way: [`accept`] → [`outbound`] or [`inbound`] → the snapshot's answer →
//! [`tunnel`] or a plain dial → [`copy`]. A [`record`] goes with it and writes itself when it ends.
//! Neither Kubernetes nor a BPF map is known here.

#![deny(unsafe_code)]

mod accept;
mod admission;
mod affinity;
pub mod by_kernel;
mod config;
mod copy;
mod handshakes;
mod hbone;
mod inbound;
mod kernel;
mod meter;
mod metrics;
mod outbound;
mod pod;
mod pool;
mod record;
mod refusal;
mod series;
mod shared;
#[allow(unsafe_code)]
mod socket;
mod tunnel;
mod worker;

use std::{io, rc::Rc, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use orlop_identity::Identities;
use orlop_model::{NamespacedName, Snapshot};
use tokio::{sync::watch, task::spawn_local, time::timeout};

use crate::{
    affinity::Affinity,
    shared::{InFlight, Live, Shared},
    worker::Crew,
};
pub use crate::{config::Config, kernel::Kernel, metrics::Metrics, pod::Pod, socket::Netns};

/// The running proxy.
pub struct Proxy {
    shared: Arc<Shared>,
    crew: Crew,
}

impl Proxy {
    /// Starts the workers. What [`Proxy::publish`] puts in force is there to see in `snapshot`.
    pub fn start(
        config: Config,
        snapshot: Arc<ArcSwap<Snapshot>>,
        identities: Identities,
        kernel: impl Kernel,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let workers = config.workers;
        let shared = Arc::new(Shared {
            config,
            snapshot,
            identities,
            kernel: Box::new(kernel),
            metrics,
            in_flight: InFlight::default(),
            affinity: Affinity::default(),
            live: Live::new(),
            generation: watch::Sender::new(0),
            draining: watch::Sender::new(false),
        });
        let crew = Crew::start(workers, &shared)?;
        Ok(Self { shared, crew })
    }

    /// Puts a snapshot in force: for new connections at once, and for open ones by asking again whether they
    /// are still admitted.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        let generation = snapshot.generation();
        self.shared.snapshot.store(snapshot);
        self.shared.generation.send_replace(generation);
    }

    /// Listens in a pod. Nothing arrives before the kernel side leads it to [`Pod::listeners`].
    pub fn add(&self, name: NamespacedName, netns: Netns) -> io::Result<Arc<Pod>> {
        let pod = Arc::new(Pod::open(name, netns)?);
        for (index, (port, listener)) in pod.clone_listeners()?.into_iter().enumerate() {
            let pod = Arc::clone(&pod);
            let worker = (self.crew.idlest() + index) % self.crew.len();
            self.crew.run(worker, move |worker| {
                spawn_local(accept::run(Rc::clone(worker), pod, port, listener));
            });
        }
        Ok(pod)
    }

    /// Stops listening in a pod; its connections go on. What still arrives is refused by the kernel, so
    /// take the pod out there first.
    pub fn remove(&self, pod: &Pod) {
        pod.close();
    }

    /// Connections and streams that are open.
    pub fn connections(&self) -> usize {
        self.shared.live.count()
    }

    /// Takes no more connections, tells the tunnels' peers, and waits until what is open has ended or
    /// `limit` has passed. Returns how many connections were left.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.shared.draining.send_replace(true);
        let _ = timeout(limit, self.shared.live.ended()).await;
        self.connections()
    }
}
