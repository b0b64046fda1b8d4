//! Connections that are carried from socket to socket, without a tunnel. Nothing of them is in this process
//! but a few bytes on their way, so that another agent can go on with them.

use std::rc::Rc;

use orlop_model::NamespacedName;
use tokio::{
    net::TcpStream,
    sync::mpsc::{UnboundedSender, error::SendError},
    task::spawn_local,
};

use crate::{
    admission::{Arrival, admit, while_admitted},
    copy::{self, Half},
    metrics::Direction,
    passthrough::{Passthrough, PassthroughState},
    record::Record,
    refusal::Refusal,
    shared::{LiveGuard, Shared},
    socket,
    worker::{Crew, Worker},
};

/// A connection that is carried here.
pub(crate) struct Carried {
    /// The pod of this node.
    pub(crate) pod: NamespacedName,
    /// The client's and the server's.
    pub(crate) sockets: [TcpStream; 2],
    /// To the server, and to the client.
    pub(crate) halves: [Half; 2],
    /// What must be admitted for as long as the connection is open; `None` for one that the pod dialled.
    pub(crate) arrival: Option<Arrival>,
    /// Counts it as one that can be moved.
    pub(crate) movable: LiveGuard,
}

impl Carried {
    /// Carries the connection to its end, or until it can be moved to another agent.
    pub(crate) async fn carry(mut self, worker: &Worker, record: Record) {
        let shared = &worker.shared;
        let Self { sockets: [client, server], halves, arrival, .. } = &mut self;
        let (up, down) = (&record.up, &record.down);
        let copy = copy::tcp_and_tcp(client, server, halves, up, down, shared.config.idle_timeout);
        let carry = async {
            match arrival {
                Some(arrival) => while_admitted(worker, arrival, None, copy).await,
                None => copy.await.map_err(Refusal::from),
            }
        };
        let ended = tokio::select! {
            biased;
            way = shared.handing_over() => Err(way),
            result = carry => Ok(result),
        };
        match ended {
            Ok(result) => {
                if result.is_err() {
                    self.sockets.into_iter().for_each(socket::reset);
                }
                record.finish(result);
            }
            Err(way) => self.leave(worker, &way, record),
        }
    }

    fn leave(self, worker: &Worker, way: &UnboundedSender<Passthrough>, record: Record) {
        let (Some(client), Some(server)) = (record.source.address, record.destination.address) else {
            return;
        };
        let state = PassthroughState {
            pod: self.pod.to_string(),
            inbound: record.direction() == Direction::Inbound,
            client,
            server,
            dialled: record.dialled,
            service: record.service.as_ref().map(|service| service.name.to_string()),
            age: record.age(),
            bytes: [record.up.total(), record.down.total()],
            ended: [self.halves[0].ended, self.halves[1].ended],
        };
        let Self { sockets, halves, movable, .. } = self;
        let [client, server] = sockets.map(TcpStream::into_std);
        let (Ok(client), Ok(server)) = (client, server) else { return };
        let sockets = [client.into(), server.into()];
        record.moved();
        let passthrough = Passthrough { state, sockets, rest: halves.map(|half| half.rest) };
        if let Err(SendError(passthrough)) = way.send(passthrough) {
            start(&worker.shared, &worker.crew, passthrough);
        }
        drop(movable);
    }
}

/// Goes on with a connection of another agent.
pub(crate) fn start(shared: &Shared, crew: &Crew, passthrough: Passthrough) {
    // It was counted when it was taken, and is not refused for want of room now.
    let (live, movable) = (shared.live.enter_always(), shared.movable.enter_always());
    crew.run(crew.idlest(), move |worker| {
        let worker = Rc::clone(worker);
        spawn_local(async move {
            resume(&worker, passthrough, movable).await;
            drop(live);
        });
    });
}

async fn resume(worker: &Rc<Worker>, passthrough: Passthrough, movable: LiveGuard) {
    let Passthrough { state, sockets, rest } = passthrough;
    let shared = &worker.shared;
    let load = worker.load();
    let Ok(pod) = state.pod.parse() else { return };
    let [Ok(client), Ok(server)] = sockets.map(|socket| TcpStream::from_std(socket.into())) else { return };

    let mut record = record(worker, &pod, &state);
    let _in_flight = (!state.inbound).then(|| shared.in_flight.enter(state.server));
    let arrival = state.inbound.then_some(Arrival {
        identity: None,
        client: state.client.ip(),
        pod: pod.clone(),
        address: state.server,
        caller: None,
    });
    record.judgement = arrival.as_ref().and_then(|arrival| admit(&shared.snapshot.load(), arrival).ok());
    let [up, down] = rest;
    let halves = [Half { rest: up, ended: state.ended[0] }, Half { rest: down, ended: state.ended[1] }];
    Carried { pod, sockets: [client, server], halves, arrival, movable }.carry(worker, record).await;
    drop(load);
}

fn record(worker: &Worker, pod: &NamespacedName, state: &PassthroughState) -> Record {
    let shared = &worker.shared;
    let snapshot = shared.snapshot.load();
    let own = snapshot.workload(pod).cloned();
    let identity = own.as_ref().map(|workload| workload.identity.clone());
    let direction = if state.inbound { Direction::Inbound } else { Direction::Outbound };
    let mut record = Record::new(shared, direction);
    record.source.address = Some(state.client);
    record.dialled = state.dialled;
    record.destination.address = Some(state.server);
    record.service = state.service.as_ref().and_then(|name| snapshot.service(&name.parse().ok()?)).cloned();
    if state.inbound {
        record.source.workload = snapshot.workload_at(state.client.ip()).cloned();
        (record.destination.workload, record.destination.identity) = (own, identity);
    } else {
        record.destination.workload = snapshot.workload_at(state.server.ip()).cloned();
        (record.source.workload, record.source.identity) = (own, identity);
    }
    record.resumed(&worker.series, state.age, state.bytes);
    record
}
