//! Connections whose bytes are nobody's but their ends'.

use std::{rc::Rc, time::Duration};

use orlop_model::Reason;

use super::{
    authorize,
    io::{Io, Sink, Source},
    session::Session,
    upstream,
};
use crate::{copy::unless_idle, meter::Meter, metrics::Direction, record::Record, refusal::Refusal};

/// Carries a connection that is no HTTP to an endpoint.
pub(super) async fn serve(session: &Rc<Session>, client: Io) {
    let mut record = session.record();
    let shared = &session.local.worker.shared;
    let (server, _slot, _in_flight) = match connect(session, &mut record).await {
        Ok(connected) => connected,
        Err(refusal) => {
            client.sink.reset();
            return record.finish(Err(refusal));
        }
    };
    record.opened(&session.local.worker.series);
    let withdrawn = authorize::withdrawn(session, None);
    let result = copy(client, server, &record.up, &record.down, shared.config.idle_timeout, withdrawn).await;
    record.finish(result);
}

async fn connect(
    session: &Rc<Session>,
    record: &mut Record,
) -> Result<(Io, Option<crate::pool::Slot>, crate::shared::InFlightGuard), Refusal> {
    let shared = &session.local.worker.shared;
    let snapshot = shared.snapshot.load_full();
    record.judgement = Some(authorize::connection(session, &snapshot)?);
    let endpoint = session.endpoint(&snapshot)?;
    record.destination.address = Some(endpoint.address);
    record.destination.workload = endpoint.workload.clone();
    let key = session.key(&endpoint, None);
    record.destination.identity = key.destination.clone();
    record.tunnel = key.tunnel();
    let in_flight = shared.in_flight.enter(endpoint.address);
    let (io, slot) = upstream::connect(session, &key).await?;
    Ok((io, slot, in_flight))
}

/// Carries bytes both ways until both sides have ended, or it is no longer allowed.
pub(super) async fn copy(
    client: Io,
    server: Io,
    up: &Meter,
    down: &Meter,
    idle_timeout: Duration,
    withdrawn: impl Future<Output = Refusal>,
) -> Result<(), Refusal> {
    let Io { source: mut from_client, sink: mut to_client, .. } = client;
    let Io { source: mut from_server, sink: mut to_server, .. } = server;
    let both = async {
        tokio::try_join!(
            one_way(&mut from_client, &mut to_server, up),
            one_way(&mut from_server, &mut to_client, down)
        )
        .map(drop)
    };
    let result = tokio::select! {
        biased;
        refusal = withdrawn => Err(refusal),
        result = unless_idle(both, up, down, idle_timeout) => result.map_err(Refusal::from),
    };
    if result.is_err() {
        to_client.reset();
        to_server.reset();
    }
    result
}

async fn one_way(from: &mut Source, to: &mut Sink, meter: &Meter) -> Result<(), Reason> {
    loop {
        let next = tokio::select! {
            next = from.next() => next.map_err(|_| Reason::Reset)?,
            reset = to.reset_by_peer() => return reset,
        };
        let Some(bytes) = next else { return to.finish().await };
        let length = bytes.len();
        meter.add(length);
        to.write(bytes).await?;
        // Only what the other side has room for makes room for more.
        from.release(length);
    }
}

impl Session {
    /// The record of the connection as a whole.
    pub(super) fn record(&self) -> Record {
        let mut record = Record::new(&self.local.worker.shared, Direction::Waypoint);
        self.describe(&mut record);
        record
    }
}
