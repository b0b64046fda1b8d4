//! Takes tunnels, and starts a session for each stream in them.

use std::{future::pending, pin::pin, rc::Rc, time::Duration};

use orlop_model::Reason;
use tokio::{net::TcpListener, task::spawn_local, time::sleep};

use super::{Local, session};
use crate::{
    hbone,
    incoming::{self, answer},
    metrics::Direction,
    record::Record,
    refusal::Refusal,
    shared::Phase,
    socket::{self, Accepted},
};

/// How long to leave a listener alone that can't accept, most likely for want of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts tunnels until the waypoint leaves.
pub(super) async fn run(local: Rc<Local>, listener: std::net::TcpListener) {
    accept(&local, listener, pending(), |accepted| {
        spawn_local(serve_tunnel(Rc::clone(&local), accepted));
    })
    .await;
}

/// Accepts until the proxy leaves or the port is `closed`.
pub(super) async fn accept(
    local: &Local,
    listener: std::net::TcpListener,
    closed: impl Future<Output = ()>,
    serve: impl Fn(Accepted),
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot listen"),
    };
    let mut phase = local.worker.shared.phase.subscribe();
    let mut closed = pin!(closed);
    loop {
        let accepted = tokio::select! {
            biased;
            _ = phase.wait_for(Phase::is_leaving) => break,
            () = &mut closed => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => serve(Accepted { tcp, peer: socket::canonical(peer) }),
            Err(error) => {
                tracing::warn!(%error, "cannot accept; trying again");
                sleep(PAUSE).await;
            }
        }
    }
    socket::stop_listening(&listener);
}

async fn serve_tunnel(local: Rc<Local>, accepted: Accepted) {
    let shared = &local.worker.shared;
    let address = accepted.peer;
    let refuse = |refusal: Refusal| {
        let mut record = Record::new(shared, Direction::Waypoint);
        record.source.address = Some(address);
        record.finish(Err(refusal));
    };
    let Some(_live) = shared.live.enter(shared.config.max_connections) else {
        socket::reset(accepted.tcp);
        return refuse(Reason::ConnectionLimit.into());
    };
    let _ = accepted.tcp.set_nodelay(true);
    let twin = socket::twin(&accepted.tcp);
    let shake_hands = incoming::shake_hands(shared, accepted, &local.own.workload.identity);
    let (connection, peer) = match local.worker.handshakes.bounded(shake_hands).await {
        Ok(established) => established,
        Err(refusal) => return refuse(refusal),
    };
    let gauge = shared.metrics.tunnels(Direction::Inbound);
    gauge.inc();
    let peer = Rc::new(peer);
    let start = |request, mut respond| match shared.take_on_any() {
        Ok(live) => {
            let (local, peer) = (Rc::clone(&local), Rc::clone(&peer));
            spawn_local(async move {
                session::serve(local, peer, request, respond).await;
                drop(live);
            });
        }
        Err(reason) => {
            // A reset would have the peer try again in a tunnel of its own.
            answer(&mut respond, hbone::status(reason));
            refuse(reason.into());
        }
    };
    incoming::serve_streams(shared, connection, &peer, start, refuse).await;
    gauge.dec();
    // The process ends as soon as all tunnels have: nobody is to lose an answer by that.
    if shared.phase.borrow().is_leaving() {
        socket::read_out(twin).await;
    }
}
