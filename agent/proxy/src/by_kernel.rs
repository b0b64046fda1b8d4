//! Records of what the kernel did by itself, without the proxy.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use orlop_model::{Connection, Identity, Judgement, Reason, Service, Snapshot, Workload};

pub use crate::flow::Figures;
use crate::{
    flow::{Direction, Flow, FlowResult},
    metrics::Series,
    refusal::Refusal,
    series::{Place, SeriesCache, SeriesKey},
    shared::Shared,
};

/// A connection that a hook refused by itself. The kernel side counts those.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Whether it was to a pod of this node, and not from one.
    pub inbound: bool,
    /// Of the hooks' own list, which shares names with [`Reason`] where both can refuse for the same.
    pub reason: &'static str,
    /// Who dialled; port 0 where none was chosen yet.
    pub source: SocketAddr,
    /// What was dialled.
    pub destination: SocketAddr,
}

impl Refused {
    /// The flow of it. Who dialled is known by the packet's address alone.
    pub(crate) fn flow(&self, snapshot: &Snapshot) -> Flow {
        let workload = |address: SocketAddr| snapshot.workload_at(address.ip()).cloned();
        let (source, destination) = (workload(self.source), workload(self.destination));
        let own = |workload: &Option<Arc<Workload>>, is_own: bool| {
            workload.as_ref().filter(|_| is_own).map(|workload| workload.identity.clone())
        };
        let mut detail = "in the kernel".to_owned();
        let mut policy = None;
        if self.reason == Reason::PlaintextRefused.as_str()
            && let Some(workload) = &destination
        {
            let port = self.destination.port();
            detail += &format!(": {}", snapshot.explain_strict(workload, port));
            policy = snapshot.peer_authentication(workload, port);
        }
        Flow {
            time: SystemTime::now(),
            direction: if self.inbound { Direction::Inbound } else { Direction::Outbound },
            src: Some(self.source),
            src_identity: own(&source, !self.inbound),
            src_workload: source,
            caller_identity: None,
            dialled: (!self.inbound).then_some(self.destination),
            dst: Some(self.destination),
            dst_identity: own(&destination, self.inbound),
            dst_workload: destination,
            dst_service: None,
            tunnel: None,
            bytes_received: 0,
            bytes_sent: 0,
            duration: Duration::ZERO,
            result: FlowResult::Refused,
            reason: Some(self.reason),
            detail: Some(detail),
            policy,
            audit: false,
            dry_run: Vec::new(),
            figures: None,
        }
    }
}

/// Records connections between two pods of this node that did without the proxy: the metrics of both ends, and
/// one flow.
pub struct Recorder {
    shared: Arc<Shared>,
    series: SeriesCache,
}

/// A connection between two pods of this node that does without the proxy.
#[derive(Clone, Copy, Debug)]
pub struct Vouched {
    /// Who dialled: the dialling pod's own address, as the kernel has seen to.
    pub source: SocketAddr,
    /// What was dialled; of a service, the endpoint that was chosen.
    pub destination: SocketAddr,
    /// The service that was dialled, if it was one.
    pub service: Option<SocketAddr>,
}

/// How it ended.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// From the client to the server.
    pub received: u64,
    /// From the server to the client.
    pub sent: u64,
    /// Once established.
    pub lasting: Duration,
    /// What else is known.
    pub figures: Figures,
}

impl Recorder {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, series: SeriesCache::default() }
    }

    /// It is established.
    pub fn opened(&self, connection: &Vouched) {
        let ends = self.ends(connection);
        self.both(&ends, |series| {
            series.opened.inc();
        });
    }

    /// It is over. If it would not be let in now, that is why.
    pub fn closed(&self, connection: &Vouched, ending: &Ending) {
        let ends = self.ends(connection);
        self.both(&ends, |series| {
            series.closed.inc();
            series.received.inc_by(ending.received);
            series.sent.inc_by(ending.sent);
        });
        self.shared.metrics.same_node(&ending.figures);
        let flow = flow(connection, &ends);
        let flow = match self.admit(connection, &ends) {
            Ok(judgement) => Flow { result: FlowResult::Ok, ..judged(flow, Some(judgement)) },
            Err(refusal) => Flow {
                result: FlowResult::Cut,
                reason: Some(refusal.reason.as_str()),
                detail: Some(refusal.detail).filter(|detail| !detail.is_empty()),
                ..judged(flow, refusal.judgement)
            },
        };
        self.shared.flows.tell(Flow {
            bytes_received: ending.received,
            bytes_sent: ending.sent,
            duration: ending.lasting,
            figures: Some(ending.figures),
            ..flow
        });
    }

    /// It never came to be.
    pub fn failed(&self, connection: &Vouched) {
        let reason = Reason::ConnectFailed;
        self.shared.metrics.failed(Direction::Outbound, reason).inc();
        let flow = flow(connection, &self.ends(connection));
        self.shared.flows.tell(Flow { reason: Some(reason.as_str()), ..flow });
    }

    fn admit(
        &self,
        connection: &Vouched,
        Ends { source, destination, .. }: &Ends,
    ) -> Result<Judgement, Refusal> {
        let enrolled = |of: &Option<Arc<Workload>>| of.clone().filter(|workload| workload.enrolled);
        let (Some(source), Some(destination)) = (enrolled(source), enrolled(destination)) else {
            return Err(Reason::NotEnrolled.into());
        };
        let asked = Connection {
            source_identity: Some(&source.identity),
            source: connection.source.ip(),
            destination: &destination,
            address: connection.destination,
        };
        self.shared.snapshot.load().admit(&asked).map_err(Refusal::from)
    }

    fn ends(&self, connection: &Vouched) -> Ends {
        let snapshot = self.shared.snapshot.load();
        let workload = |address: SocketAddr| snapshot.workload_at(address.ip()).cloned();
        // Of a cluster IP alone does the kernel choose the endpoint.
        let service = connection.service.and_then(|service| snapshot.service_at(service.ip())).cloned();
        Ends { source: workload(connection.source), destination: workload(connection.destination), service }
    }

    fn both(&self, Ends { source, destination, service }: &Ends, count: impl Fn(&Series)) {
        for direction in [Direction::Outbound, Direction::Inbound] {
            // As where the proxy is in the way, only the client's side knows the service.
            let service = service.clone().filter(|_| direction == Direction::Outbound);
            let key = SeriesKey {
                told: Place(None),
                tags: Vec::new(),
                direction,
                mutual_tls: false,
                source: Place(source.clone()),
                source_identity: identity(source),
                destination: Place(destination.clone()),
                destination_identity: identity(destination),
                service: Place(service),
            };
            count(&self.series.get(&self.shared.metrics, key));
        }
    }
}

/// Who dialled, who was dialled, and through which service.
struct Ends {
    source: Option<Arc<Workload>>,
    destination: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
}

fn identity(workload: &Option<Arc<Workload>>) -> Option<Identity> {
    workload.as_ref().map(|workload| workload.identity.clone())
}

fn judged(flow: Flow, judgement: Option<Judgement>) -> Flow {
    let Judgement { policy, audit, dry_run } = judgement.unwrap_or_default();
    Flow { policy, audit, dry_run, ..flow }
}

fn flow(connection: &Vouched, ends: &Ends) -> Flow {
    let Ends { source, destination, service } = ends;
    Flow {
        time: SystemTime::now(),
        direction: Direction::Outbound,
        src: Some(connection.source),
        src_identity: identity(source),
        src_workload: source.clone(),
        caller_identity: None,
        dialled: Some(connection.service.unwrap_or(connection.destination)),
        dst: Some(connection.destination),
        dst_identity: identity(destination),
        dst_workload: destination.clone(),
        dst_service: service.clone(),
        tunnel: None,
        bytes_received: 0,
        bytes_sent: 0,
        duration: Duration::ZERO,
        result: FlowResult::Refused,
        reason: None,
        detail: None,
        policy: None,
        audit: false,
        dry_run: Vec::new(),
        figures: None,
    }
}
