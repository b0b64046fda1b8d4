//! Takes connections from a pod's listening sockets and places them on workers.

use std::{future::ready, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use orlop_model::ports::{DNS_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{spawn_local, yield_now},
    time::sleep,
};

use crate::{
    dns, inbound,
    metrics::Direction,
    outbound,
    pace::Pace,
    pod::Pod,
    record::Record,
    shared::{LiveGuard, Phase},
    socket::{self, Accepted},
    worker::Worker,
};

/// How long to leave a listener alone that can't accept, most likely for want of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts from the moment that the proxy serves until the pod is closed or the proxy leaves.
pub(crate) async fn run(worker: Rc<Worker>, pod: Arc<Pod>, port: u16, listener: std::net::TcpListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(pod = %pod.name(), port, %error, "cannot listen"),
    };
    let mut phase = worker.shared.phase.subscribe();
    // One that leaves before it has served may have the sockets of an agent that serves on.
    let Ok(Phase::Serving) = phase.wait_for(|phase| !matches!(phase, Phase::Waiting)).await.as_deref() else {
        return;
    };
    // The phase is looked at again before anything is accepted.
    let source = worker.shared.sources.enter_always();
    let mut pace = Pace::default();
    let held = loop {
        let accepted = tokio::select! {
            biased;
            () = pod.closed() => {
                take_waiting(&worker, &pod, port, &listener).await;
                break false;
            }
            left = phase.wait_for(Phase::is_leaving) => match left.as_deref() {
                // Another agent has the same socket.
                Ok(Phase::HandingOver(_)) => return,
                Ok(Phase::Draining { held: true }) => break true,
                _ => break false,
            },
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                place(&worker, &pod, port, tcp, socket::canonical(peer));
                if matches!(port, OUTBOUND_PORT | DNS_PORT) {
                    pace.next(&worker, &pod).await;
                } else {
                    // Whatever else is ready has its turn.
                    yield_now().await;
                }
            }
            Err(error) => {
                tracing::warn!(pod = %pod.name(), port, %error, "cannot accept; trying again");
                sleep(PAUSE).await;
            }
        }
    };
    drop(source);
    // In vain, unless the other process goes.
    if held && phase.wait_for(|phase| matches!(phase, Phase::Draining { held: false })).await.is_err() {
        return;
    }
    socket::stop_listening(&listener);
}

/// Those that the kernel led here before the pod was taken out.
async fn take_waiting(worker: &Rc<Worker>, pod: &Arc<Pod>, port: u16, listener: &TcpListener) {
    loop {
        tokio::select! {
            biased;
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => place(worker, pod, port, tcp, socket::canonical(peer)),
                Err(_) => return,
            },
            () = ready(()) => return,
        }
    }
}

/// What is accepted counts from here on, so that an agent that leaves does not end before it.
fn place(worker: &Rc<Worker>, pod: &Arc<Pod>, port: u16, tcp: TcpStream, peer: SocketAddr) {
    let shared = &worker.shared;
    let live = match shared.take_on(pod, &tcp) {
        Ok(live) => live,
        Err(reason) => {
            let outbound = matches!(port, OUTBOUND_PORT | DNS_PORT);
            let direction = if outbound { Direction::Outbound } else { Direction::Inbound };
            let mut record = Record::new(shared, direction);
            record.source.address = Some(peer);
            socket::reset(tcp);
            return record.finish(Err(reason.into()));
        }
    };
    let guards = Guards { live, movable: shared.movable.enter_always() };
    let Some(other) = worker.place() else {
        return start(worker, pod, port, Accepted { tcp, peer }, guards);
    };
    let Ok(tcp) = tcp.into_std() else { return };
    let pod = Arc::clone(pod);
    worker.crew.run(other, move |worker| {
        // Fails only for want of memory in the kernel.
        if let Ok(tcp) = TcpStream::from_std(tcp) {
            start(worker, &pod, port, Accepted { tcp, peer }, guards);
        }
    });
}

/// Of a connection that was accepted.
struct Guards {
    live: [LiveGuard; 2],
    /// Until it is known how it goes on.
    movable: LiveGuard,
}

fn start(worker: &Rc<Worker>, pod: &Arc<Pod>, port: u16, accepted: Accepted, guards: Guards) {
    let load = worker.load();
    let (worker, pod) = (Rc::clone(worker), Arc::clone(pod));
    spawn_local(async move {
        let Guards { live, movable } = guards;
        match port {
            OUTBOUND_PORT => outbound::serve(&worker, &pod, accepted, movable, None).await,
            INBOUND_PLAINTEXT_PORT => inbound::serve_plaintext(&worker, &pod, accepted, movable).await,
            DNS_PORT => {
                drop(movable);
                dns::serve_tcp(&worker, &pod, accepted).await;
            }
            _ => {
                drop(movable);
                inbound::serve_tunnel(&worker, &pod, accepted).await;
            }
        }
        drop((live, load));
    });
}
