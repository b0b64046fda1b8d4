//! One record a connection. Dropping it writes the access log line and closes the metrics, so that no
//! way out of a connection can forget to.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use orlop_model::{Identity, Reason, Service, Workload};
use tracing::field::display;

use crate::{
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
    pub(crate) destination: Party,
    pub(crate) service: Option<Arc<Service>>,
    /// The far end of the tunnel, if the connection goes through one.
    pub(crate) tunnel: Option<SocketAddr>,
    /// From the client to the server.
    pub(crate) up: Meter,
    /// From the server to the client.
    pub(crate) down: Meter,
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
            destination: Party::default(),
            service: None,
            tunnel: None,
            up: Meter::default(),
            down: Meter::default(),
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
        let key = SeriesKey {
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
        let result = match (&self.series, &self.outcome) {
            (_, None) => "ok",
            (Some(_), Some(_)) => "cut",
            (None, Some(_)) => "refused",
        };
        if let Some(series) = &self.series {
            series.closed.inc();
        }
        if let Some(refusal) = &self.outcome {
            self.shared.metrics.failed(self.direction, refusal.reason).inc();
        }
        Line {
            direction: self.direction,
            source: &self.source,
            destination: &self.destination,
            service: self.service.as_deref(),
            tunnel: self.tunnel,
            bytes_received: self.up.total(),
            bytes_sent: self.down.total(),
            duration: self.started.elapsed(),
            result,
            reason: self.outcome.as_ref().map(|refusal| refusal.reason.as_str()),
            detail: self.outcome.as_ref().map(|refusal| &*refusal.detail),
        }
        .write();
    }
}

/// A line of the access log.
pub(crate) struct Line<'a> {
    pub(crate) direction: Direction,
    pub(crate) source: &'a Party,
    pub(crate) destination: &'a Party,
    pub(crate) service: Option<&'a Service>,
    pub(crate) tunnel: Option<SocketAddr>,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) duration: Duration,
    pub(crate) result: &'static str,
    pub(crate) reason: Option<&'static str>,
    pub(crate) detail: Option<&'a str>,
}

impl Line<'_> {
    pub(crate) fn write(&self) {
        let identity = |party: &Party| party.identity.clone().map(display);
        let workload = |party: &Party| party.workload.as_ref().map(|workload| display(workload.name.clone()));
        tracing::info!(
            target: "access",
            direction = self.direction.as_str(),
            src = self.source.address.map(display),
            src_workload = workload(self.source),
            src_identity = identity(self.source),
            dst = self.destination.address.map(display),
            dst_workload = workload(self.destination),
            dst_identity = identity(self.destination),
            dst_service = self.service.map(|service| &*service.hostname),
            tunnel = self.tunnel.map(display),
            bytes_received = self.bytes_received,
            bytes_sent = self.bytes_sent,
            duration_us = self.duration.as_micros() as u64,
            result = self.result,
            reason = self.reason,
            detail = self.detail.filter(|detail| !detail.is_empty()),
            "connection"
        );
    }
}
