//! Connections whose bytes are nobody's but their ends'.

use std::{future::pending, rc::Rc};

use orlop_model::Reason;
use tokio::time::sleep;

use super::{
    authorize,
    hello::Watch,
    io::{Io, Sink, Source},
    session::Session,
    stream::{self, Bounds, Connected},
};
use crate::{copy::unless_idle, meter::Meter, record::Record, refusal::Refusal};

/// Carries a connection that is no HTTP to an endpoint.
pub(super) async fn serve(session: &Rc<Session>, client: Io) {
    let mut record = session.record();
    let connected = match stream::connect(session, &mut record).await {
        Ok(connected) => connected,
        Err(refusal) => {
            client.sink.reset();
            return record.finish(Err(refusal));
        }
    };
    record.opened(&session.local.worker.series);
    let Connected { io: server, slot: _slot, in_flight: _in_flight, place: _place, elsewhere, .. } =
        connected;
    let (endpoint, bounds) = (connected.endpoint, connected.bounds);
    let withdrawn = authorize::connection_withdrawn(session, elsewhere.as_ref(), &endpoint);
    let (of_client, of_server) = Watch::both(&session.seen, session.hello);
    let (client, server) = ((client, of_client), (server, of_server));
    let meters = (&record.up, &record.down);
    let result = copy(client, server, meters, bounds, withdrawn).await;
    record.finish(result);
}

/// Carries bytes both ways until both sides have ended, or it is no longer allowed.
pub(super) async fn copy(
    (client, mut of_client): (Io, Watch),
    (server, mut of_server): (Io, Watch),
    (up, down): (&Meter, &Meter),
    bounds: Bounds,
    withdrawn: impl Future<Output = Refusal>,
) -> Result<(), Refusal> {
    let Io { source: mut from_client, sink: mut to_client, .. } = client;
    let Io { source: mut from_server, sink: mut to_server, .. } = server;
    let both = async {
        tokio::try_join!(
            one_way(&mut from_client, &mut to_server, up, &mut of_client),
            one_way(&mut from_server, &mut to_client, down, &mut of_server)
        )
        .map(drop)
    };
    let over = async {
        match bounds.whole {
            Some(whole) => sleep(whole).await,
            None => pending().await,
        }
    };
    let result = tokio::select! {
        biased;
        refusal = withdrawn => Err(refusal),
        result = unless_idle(both, up, down, bounds.idle) => result,
        () = over => Err(Refusal::new(Reason::MaxDuration, "the destination's policy lets none be open for longer")),
    };
    if result.is_err() {
        to_client.reset();
        to_server.reset();
    }
    result
}

async fn one_way(from: &mut Source, to: &mut Sink, meter: &Meter, watch: &mut Watch) -> Result<(), Refusal> {
    loop {
        let next = tokio::select! {
            next = from.next() => next.map_err(|_| Reason::Reset)?,
            reset = to.reset_by_peer() => return reset.map_err(Refusal::from),
        };
        // What is held back then was the beginning of something that counts for nothing.
        let Some(mut rest) = next else {
            *watch = Watch::Nothing;
            return to.finish().await.map_err(Refusal::from);
        };
        let length = rest.len();
        meter.add(length);
        while !rest.is_empty() {
            let bytes = watch.pass(&mut rest).await?;
            if !bytes.is_empty() {
                to.write(bytes).await?;
            }
        }
        // Only what the other side has room for makes room for more.
        from.release(length);
    }
}

impl Session {
    /// The record of the connection as a whole.
    pub(super) fn record(&self) -> Record {
        let mut record = Record::new(&self.local.worker.shared, self.direction());
        self.describe(&mut record);
        record
    }
}
