//! One record a connection. Dropping it writes the access log line and closes the metrics, so that no
//! way out of a connection can forget to.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use orlop_model::{Identity, Reason, Service, Workload};

use crate::{
    meter::Meter,
    metrics::{Direction, End, Series},
    refusal::Refusal,
    shared::Shared,
};

/// What is known of one end of a connection.
#[derive(Debug, Default)]
pub(crate) struct Party {
    pub(crate) address: Option<SocketAddr>,
    pub(crate) workload: Option<Arc<Workload>>,
    pub(crate) identity: Option<Identity>,
}

impl Party {
    fn end(&self) -> End<'_> {
        End { workload: self.workload.as_deref(), identity: self.identity.as_ref() }
    }

    fn name(&self) -> Option<String> {
        self.workload.as_ref().map(|workload| workload.name.to_string())
    }
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
        }
    }

    /// Both ends are connected.
    pub(crate) fn opened(&mut self) {
        let series = self.shared.metrics.series(
            self.direction,
            self.tunnel.is_some(),
            self.source.end(),
            self.destination.end(),
            self.service.as_deref(),
        );
        series.opened.inc();
        self.up.feed(&series.received);
        self.down.feed(&series.sent);
        self.series = Some(series);
    }

    /// How the connection ended.
    pub(crate) fn finish(mut self, result: Result<(), Refusal>) {
        self.outcome = result.err();
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.shared.metrics.active().dec();
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
        let text = |value: Option<String>| value.unwrap_or_default();
        let address = |address: Option<SocketAddr>| address.map(|address| address.to_string());
        let identity = |party: &Party| party.identity.as_ref().map(Identity::to_string);
        tracing::info!(
            target: "access",
            direction = self.direction.as_str(),
            src = text(address(self.source.address)),
            src_workload = text(self.source.name()),
            src_identity = text(identity(&self.source)),
            dst = text(address(self.destination.address)),
            dst_workload = text(self.destination.name()),
            dst_identity = text(identity(&self.destination)),
            dst_service = self.service.as_ref().map_or("", |service| &service.hostname),
            tunnel = text(address(self.tunnel)),
            bytes_received = self.up.total(),
            bytes_sent = self.down.total(),
            duration_ms = self.started.elapsed().as_secs_f64() * 1e3,
            result,
            reason = self.outcome.as_ref().map_or("", |refusal| refusal.reason.as_str()),
            detail = self.outcome.as_ref().map_or("", |refusal| &refusal.detail),
            "connection"
        );
    }
}
