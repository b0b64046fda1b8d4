//! The node proxy: takes the sockets that the kernel side hands over, and carries them to their peers.
//!
//! A connection goes one way: [`accept`] → [`outbound`], [`inbound`] or [`dns`] → the snapshot's answer →
//! [`tunnel`] or a plain dial → [`copy`]. A [`record`] goes with it and writes itself when it ends.
//! Neither Kubernetes nor a BPF map is known here.

#![deny(unsafe_code)]

mod accept;
mod admission;
mod affinity;
mod away;
pub mod by_kernel;
mod carried;
mod config;
mod copy;
mod dns;
mod flow;
mod handshakes;
mod hbone;
mod http;
mod inbound;
mod incoming;
mod inherited;
mod kernel;
mod limits;
mod log_format;
mod meter;
mod metrics;
mod outbound;
mod pace;
mod passthrough;
mod pod;
mod pool;
mod pulse;
mod record;
mod refusal;
mod retold;
mod series;
mod shared;
mod shown;
#[allow(unsafe_code)]
mod socket;
mod tls;
mod tunnel;
mod worker;

use std::{io, rc::Rc, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use orlop_identity::Identities;
use orlop_model::{NamespacedName, Snapshot};
use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, unbounded_channel},
        watch,
    },
    task::spawn_local,
    time::timeout,
};

use crate::{
    affinity::Affinity,
    flow::Flows,
    limits::Limits,
    shared::{InFlight, Live, LiveGuard, Phase, Shared},
    worker::Crew,
};
pub use crate::{
    config::Config,
    dns::DnsConfig,
    flow::{Direction, Flow, FlowResult},
    http::{
        AccessLog, Answered, HttpLimits, HttpProxy, HttpProxyConfig, NotSent, OpenPort, Outgoing, Outlet,
        RequestMetrics, Share, outlet,
    },
    inherited::{Inherited, Protocol, SocketName},
    kernel::Kernel,
    log_format::{LogFormat, LogFormatError},
    metrics::Metrics,
    passthrough::{Passthrough, PassthroughState},
    pod::Pod,
    socket::Netns,
};

/// The running proxy.
pub struct Proxy {
    shared: Arc<Shared>,
    crew: Crew,
}

/// That another agent may move connections here.
pub struct Expected {
    _source: LiveGuard,
}

impl Proxy {
    /// Starts the workers, which take connections from [`Proxy::serve`] on. What [`Proxy::publish`] puts in
    /// force is there to see in `snapshot`.
    pub fn start(
        config: Config,
        snapshot: Arc<ArcSwap<Snapshot>>,
        identities: Identities,
        kernel: impl Kernel,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let workers = config.workers;
        let shared = Arc::new(Shared {
            flows: Flows::new(config.flow_buffer, None),
            limits: Limits::new(&config),
            diallers: Default::default(),
            config,
            snapshot,
            identities,
            kernel: Box::new(kernel),
            metrics,
            in_flight: InFlight::default(),
            affinity: Affinity::default(),
            live: Live::new(),
            movable: Live::new(),
            sources: Live::new(),
            questions: Live::new(),
            generation: watch::Sender::new(0),
            phase: watch::Sender::new(Phase::Waiting),
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

    /// Takes connections from now on.
    pub fn serve(&self) {
        self.shared.phase.send_replace(Phase::Serving);
    }

    /// Listens in a pod, with its sockets of `inherited` if they are there. Nothing arrives before the kernel
    /// side leads it to [`Pod::listeners`].
    pub fn add(&self, name: NamespacedName, netns: Netns, inherited: &mut Inherited) -> io::Result<Arc<Pod>> {
        let pod = Arc::new(Pod::open(name, netns, inherited, self.shared.config.dns.enabled)?);
        for (index, (port, listener)) in pod.clone_listeners()?.into_iter().enumerate() {
            let pod = Arc::clone(&pod);
            let worker = (self.crew.idlest() + index) % self.crew.len();
            self.crew.run(worker, move |worker| {
                spawn_local(accept::run(Rc::clone(worker), pod, port, listener));
            });
        }
        self.serve_dns(&pod)?;
        Ok(pod)
    }

    /// Whether a pod's DNS is left alone although it should not be, since somebody has its port.
    pub fn lacks_dns(&self, pod: &Pod) -> bool {
        self.shared.config.dns.enabled && pod.dns().is_none()
    }

    /// Answers the DNS of a pod that lacks it, if the port is free by now. The kernel side must be told.
    pub fn open_dns(&self, pod: &Arc<Pod>) -> io::Result<bool> {
        if !pod.open_dns()? {
            return Ok(false);
        }
        self.serve_dns(pod)?;
        Ok(true)
    }

    fn serve_dns(&self, pod: &Arc<Pod>) -> io::Result<()> {
        let Some(socket) = pod.clone_dns()? else { return Ok(()) };
        let pod = Arc::clone(pod);
        self.crew.run(self.crew.idlest(), move |worker| {
            spawn_local(dns::serve_udp(Rc::clone(worker), pod, socket));
        });
        Ok(())
    }

    /// A pod has other addresses than before: its new connections leave the tunnels that it has open, which may be from
    /// one that is gone.
    pub fn readdressed(&self, pod: &Pod) {
        let netns = pod.netns().cookie();
        for worker in 0..self.crew.len() {
            self.crew.run(worker, move |worker| {
                worker.pool.retire(|key| key.netns == netns);
            });
        }
    }

    /// Stops listening in a pod; its connections go on. What still arrives is refused by the kernel, so
    /// take the pod out there first.
    pub fn remove(&self, pod: &Pod) {
        pod.close();
    }

    /// Whether new connections are refused, since there is hardly any memory left.
    pub fn set_short_of_memory(&self, short: bool) {
        self.shared.limits.set_short_of_memory(short);
    }

    /// Records what the kernel did without the proxy.
    pub fn recorder(&self) -> by_kernel::Recorder {
        by_kernel::Recorder::new(Arc::clone(&self.shared))
    }

    /// Connections and streams that are open.
    pub fn connections(&self) -> usize {
        self.shared.live.count()
    }

    /// Leaves new connections to another agent that has the same sockets, tells the tunnels' peers, and gives
    /// the connections that the other agent can go on with. Those that it does not take any more, once the
    /// receiver is gone, stay here.
    pub fn hand_over(&self) -> UnboundedReceiver<Passthrough> {
        let (way, leaving) = unbounded_channel();
        self.shared.phase.send_replace(Phase::HandingOver(way));
        leaving
    }

    /// From now until it is dropped, another agent may move connections here: [`Self::drain`] waits for them.
    pub fn expect(&self) -> Expected {
        Expected { _source: self.shared.sources.enter_always() }
    }

    /// Goes on with a connection that another agent has begun.
    pub fn resume(&self, passthrough: Passthrough) {
        carried::start(&self.shared, &self.crew, passthrough);
    }

    /// Tells of a connection that the kernel side refused by itself, which it counts.
    pub fn record(&self, refused: &by_kernel::Refused) {
        self.shared.flows.tell(refused.flow(&self.shared.snapshot.load()));
    }

    /// The last connections that ended, the oldest first.
    pub fn flows(&self) -> Vec<Arc<Flow>> {
        self.shared.flows.recent()
    }

    /// Takes no more connections, tells the tunnels' peers, and waits until what is open has ended or
    /// `limit` has passed. What can be moved to another agent is moved, however long it takes: what waits to be
    /// connected, and what is [expected](Self::expect), too. Returns how many connections were left.
    ///
    /// What it listened on is closed, and whoever waits there refused, unless it is `held` elsewhere.
    pub async fn drain(&self, limit: Duration, held: bool) -> usize {
        let mut way = None;
        self.shared.phase.send_if_modified(|phase| match phase {
            Phase::HandingOver(other) => {
                way = Some(other.clone());
                false
            }
            _ => {
                *phase = Phase::Draining { held };
                true
            }
        });
        let Shared { sources, live, questions, movable, .. } = &*self.shared;
        let ended = async {
            sources.ended().await;
            live.ended().await;
            questions.ended().await;
        };
        let _ = timeout(limit, ended).await;
        if let Some(way) = way {
            let all = async {
                sources.ended().await;
                movable.ended().await;
            };
            tokio::select! {
                () = all => {}
                () = way.closed() => {}
            }
        }
        self.connections()
    }
}

/// What fuzz targets reach.
#[cfg(fuzzing)]
pub mod fuzzing {
    use std::net::SocketAddr;

    use orlop_model::Reason;

    use crate::hbone;

    pub use crate::{
        dns::exercise as dns, http::hello::exercise as hello, http::rewrite::exercise as rewrite,
    };

    /// Reads a CONNECT from a peer at `peer`: what it asks for, and the client that the server would see.
    pub fn connect(
        request: &http::request::Parts,
        peer: SocketAddr,
    ) -> Result<(SocketAddr, SocketAddr), Reason> {
        let connect = hbone::parse_connect(request)?;
        Ok((connect.authority, hbone::client_address(peer, connect.forwarded)))
    }
}
