//! One record a connection. Dropping it makes the [`Flow`] of it, which goes to the access log and to those who
//! ask for flows, and closes the metrics, so that no way out of a connection can forget to.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use orlop_model::{
    Identity, Judgement, Reason, Service, Workload,
    http::Told,
    world::{Attribute, Attributes, Metric, Value},
};

use crate::{
    flow::{Flow, FlowResult},
    http::told::tags,
    meter::Meter,
    metrics::{Direction, Series},
    refusal::Refusal,
    series::{Place, SeriesCache, SeriesKey},
    shared::Shared,
};

/// What is known of one end of a connection.
#[derive(Debug, Default)]
pub(crate) struct Party {
    pub(crate) address: Option<SocketAddr>,
    pub(crate) workload: Option<Arc<Workload>>,
    pub(crate) identity: Option<Identity>,
}

/// A connection from its accept to its end.
pub(crate) struct Record {
    shared: Arc<Shared>,
    direction: Direction,
    started: Instant,
    pub(crate) source: Party,
    /// What the client dialled, before a service's address became that of an endpoint.
    pub(crate) dialled: Option<SocketAddr>,
    pub(crate) destination: Party,
    /// Whom the source, a waypoint, speaks for.
    pub(crate) caller: Option<Identity>,
    pub(crate) service: Option<Arc<Service>>,
    /// The far end of the tunnel, if the connection goes through one.
    pub(crate) tunnel: Option<SocketAddr>,
    /// From the client to the server.
    pub(crate) up: Meter,
    /// From the server to the client.
    pub(crate) down: Meter,
    /// What policies said when it was let in.
    pub(crate) judgement: Option<Judgement>,
    /// What Telemetries want told of it otherwise.
    pub(crate) told: Option<Arc<Told>>,
    series: Option<Series>,
    outcome: Option<Refusal>,
    moved: bool,
}

impl Record {
    pub(crate) fn new(shared: &Arc<Shared>, direction: Direction) -> Self {
        shared.metrics.active().inc();
        Self {
            shared: Arc::clone(shared),
            direction,
            started: Instant::now(),
            source: Party::default(),
            dialled: None,
            destination: Party::default(),
            caller: None,
            service: None,
            tunnel: None,
            up: Meter::default(),
            down: Meter::default(),
            judgement: None,
            told: None,
            series: None,
            // Unless somebody says otherwise: a task that is dropped midway has been cut short.
            outcome: Some(Reason::Draining.into()),
            moved: false,
        }
    }

    /// Both ends are connected.
    pub(crate) fn opened(&mut self, cache: &SeriesCache) {
        self.attach(cache).opened.inc();
    }

    /// Another agent has carried the connection for this long, and that many bytes `up` and `down`.
    pub(crate) fn resumed(&mut self, cache: &SeriesCache, age: Duration, [up, down]: [u64; 2]) {
        self.started = self.started.checked_sub(age).unwrap_or(self.started);
        (self.up, self.down) = (Meter::since(up), Meter::since(down));
        self.attach(cache);
    }

    fn attach(&mut self, cache: &SeriesCache) -> &Series {
        let tags = self.told.as_deref().map(|told| tags(told, &METRICS, self));
        let key = SeriesKey {
            told: Place(self.told.clone()),
            tags: tags.unwrap_or_default(),
            direction: self.direction,
            mutual_tls: self.tunnel.is_some(),
            source: Place(self.source.workload.clone()),
            source_identity: self.source.identity.clone(),
            destination: Place(self.destination.workload.clone()),
            destination_identity: self.destination.identity.clone(),
            service: Place(self.service.clone()),
        };
        let series = cache.get(&self.shared.metrics, key);
        self.up.feed(&series.received);
        self.down.feed(&series.sent);
        self.series.insert(series)
    }

    pub(crate) fn direction(&self) -> Direction {
        self.direction
    }

    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// The connection goes on in another agent, whose record tells of its end.
    pub(crate) fn moved(mut self) {
        self.moved = true;
    }

    /// How the connection ended.
    pub(crate) fn finish(mut self, result: Result<(), Refusal>) {
        self.outcome = result.err();
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.shared.metrics.active().dec();
        if self.moved {
            return;
        }
        let outcome = self.outcome.take();
        let result = match (&self.series, &outcome) {
            (_, None) => FlowResult::Ok,
            (Some(_), Some(_)) => FlowResult::Cut,
            (None, Some(_)) => FlowResult::Refused,
        };
        if let Some(series) = &self.series {
            series.closed.inc();
        }
        if let Some(refusal) = &outcome {
            self.shared.metrics.failed(self.direction, refusal.reason).inc();
        }
        let (reason, detail, judgement) = match outcome {
            Some(Refusal { reason, detail, judgement, .. }) => (Some(reason), Some(detail), judgement),
            None => (None, None, None),
        };
        let judgement = judgement.or(self.judgement.take()).unwrap_or_default();
        let is_logged = self.told.as_deref().is_none_or(|told| {
            let filter = told.logging.filter.as_ref();
            !told.logging.disabled && filter.is_none_or(|filter| filter.holds(&*self))
        });
        let flow = Flow {
            time: SystemTime::now(),
            direction: self.direction,
            src: self.source.address,
            src_workload: self.source.workload.take(),
            src_identity: self.source.identity.take(),
            caller_identity: self.caller.take(),
            dialled: self.dialled,
            dst: self.destination.address,
            dst_workload: self.destination.workload.take(),
            dst_identity: self.destination.identity.take(),
            dst_service: self.service.take(),
            tunnel: self.tunnel,
            bytes_received: self.up.total(),
            bytes_sent: self.down.total(),
            duration: self.started.elapsed(),
            result,
            reason: reason.map(Reason::as_str),
            detail: detail.filter(|detail| !detail.is_empty()),
            policy: judgement.policy,
            audit: judgement.audit,
            dry_run: judgement.dry_run,
            figures: None,
        };
        if is_logged {
            flow.log();
        }
        self.shared.flows.keep(flow);
    }
}

/// The metrics of connections, in the order in which their tags are.
const METRICS: [Metric; 4] = [Metric::Opened, Metric::Closed, Metric::Sent, Metric::Received];

/// What is known of it from its beginning on.
impl Attributes for Record {
    fn get(&self, attribute: &Attribute) -> Option<Value<'_>> {
        let text = |text: String| Some(Value::Text(text.into()));
        match attribute {
            Attribute::Source => text(self.source.address?.to_string()),
            Attribute::SourcePort => Some(Value::Number(self.source.address?.port().into())),
            Attribute::Destination => text(self.dialled?.to_string()),
            Attribute::Upstream => text(self.destination.address?.to_string()),
            Attribute::DestinationPort => Some(Value::Number(self.dialled?.port().into())),
            Attribute::Mtls => Some(Value::Flag(self.source.identity.is_some())),
            Attribute::Principal => text(self.source.identity.as_ref()?.to_string()),
            _ => None,
        }
    }
}
