//! A pod's own connections: whom it dialled, where that is, and the way there.

use std::{
    net::SocketAddr,
    os::fd::AsFd as _,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use orlop_model::{Choice, Reason, Workload};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    admission::while_trusted,
    affinity::{Dialled, Moment},
    carried::Carried,
    copy, hbone,
    metrics::Direction,
    pod::Pod,
    pool::{Key, Slot},
    record::Record,
    refusal::Refusal,
    shared::{InFlightGuard, LiveGuard},
    socket::{self, Accepted},
    tunnel,
    worker::Worker,
};

/// Serves one connection that a hook sent to the proxy, to `destination`, if somebody knows that already.
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    pod: &Pod,
    client: Accepted,
    movable: LiveGuard,
    destination: Option<SocketAddr>,
) {
    let mut record = Record::new(&worker.shared, Direction::Outbound);
    record.source.address = Some(client.peer);
    match connect(worker, pod, &client, movable, destination, &mut record).await {
        Ok((Way::Plain(server, movable), _in_flight)) => {
            record.opened(&worker.series);
            Carried {
                pod: pod.name().clone(),
                sockets: [client.tcp, server],
                halves: Default::default(),
                arrival: None,
                movable,
            }
            .carry(worker, record)
            .await;
        }
        Ok((Way::Tunnel(mut stream), _in_flight)) => {
            record.opened(&worker.series);
            if let Some(server) = record.destination.address {
                spare_next(worker, pod, server);
            }
            let Stream { send, receive, slot } = &mut stream;
            let (up, down, idle_timeout) = (&record.up, &record.down, worker.shared.config.idle_timeout);
            let carry = copy::tcp_and_stream(&client.tcp, send, receive, up, down, idle_timeout);
            let result = while_trusted(slot.shown(), carry).await;
            if result.is_err() {
                socket::reset(client.tcp);
            }
            record.finish(result);
        }
        Err(refusal) => {
            socket::reset(client.tcp);
            record.finish(Err(refusal));
        }
    }
}

/// What the connection was for before a hook sent it to the proxy, and what the kernel has chosen of it.
pub(crate) fn original_destination(
    worker: &Worker,
    client: &Accepted,
) -> Result<(SocketAddr, Choice), Refusal> {
    let found = worker.shared.kernel.original_destination(client.tcp.as_fd());
    found.map_err(Refusal::internal)?.ok_or(Reason::NoOriginalDestination.into())
}

/// Resets a connection of a pod's own, and records why.
pub(crate) fn refuse(worker: &Worker, client: Accepted, refusal: Refusal) {
    let mut record = Record::new(&worker.shared, Direction::Outbound);
    record.source.address = Some(client.peer);
    socket::reset(client.tcp);
    record.finish(Err(refusal));
}

/// The way to the server, which is connected.
enum Way {
    Plain(TcpStream, LiveGuard),
    Tunnel(Stream),
}

async fn connect(
    worker: &Rc<Worker>,
    pod: &Pod,
    client: &Accepted,
    movable: LiveGuard,
    destination: Option<SocketAddr>,
    record: &mut Record,
) -> Result<(Way, InFlightGuard), Refusal> {
    let destination = match destination {
        Some(destination) => (destination, Choice::Open),
        None => original_destination(worker, client)?,
    };
    let upstream = resolve_reachable(worker, pod, client, destination, record)?;
    if upstream.tunnel.is_none() {
        let server = tunnel::dial_end(&worker.shared, pod, upstream.address, None).await?;
        return Ok((Way::Plain(server, movable), upstream.in_flight));
    }
    drop(movable);
    let (stream, in_flight) = tunnelled(worker, pod, client, destination, upstream, record).await?;
    Ok((Way::Tunnel(stream), in_flight))
}

/// For so long a waypoint that can't be reached may be another's to stand in for, or come back: as when it is started anew.
/// Nothing of the client's has been sent.
const PATIENCE: Duration = Duration::from_secs(5);
/// A tunnel to a waypoint that is not open by then is tried elsewhere: two attempts of TCP.
const OPENING: Duration = Duration::from_secs(3);
/// Between two attempts at one that was tried already, and then twice as long each time.
const PAUSE: Duration = Duration::from_millis(20);
/// At most so many attempts are made.
const ATTEMPTS: usize = 12;
/// So often another waypoint is drawn than those that could not be reached.
const DRAWS: usize = 8;

/// A stream through the tunnel that the way leads through.
async fn tunnelled(
    worker: &Rc<Worker>,
    pod: &Pod,
    client: &Accepted,
    destination: (SocketAddr, Choice),
    mut upstream: Upstream,
    record: &mut Record,
) -> Result<(Stream, InFlightGuard), Refusal> {
    let start = Instant::now();
    let (mut attempts, mut pause) = (0, PAUSE);
    loop {
        let Some(key) = &upstream.tunnel else { return Err(Reason::NoHealthyEndpoint.into()) };
        let refusal = match open_stream(worker, pod, client.peer, &upstream, key, record).await {
            Ok(stream) => {
                worker.away.remove(key.address);
                return Ok((stream, upstream.in_flight));
            }
            Err(refusal) => refusal,
        };
        attempts += 1;
        let is_away =
            matches!(refusal.reason, Reason::ConnectFailed | Reason::ConnectTimeout | Reason::TunnelClosed);
        if !upstream.by_waypoint || !is_away || attempts >= ATTEMPTS {
            return Err(refusal);
        }
        worker.away.add(key.address);
        let next = resolve_reachable(worker, pod, client, destination, record).ok();
        let Some(next) = next.filter(|next| next.by_waypoint) else { return Err(refusal) };
        // One that was not tried yet is tried, however long another one took.
        if next.is_away(worker) {
            if start.elapsed() > PATIENCE {
                return Err(refusal);
            }
            sleep(pause).await;
            pause *= 2;
        }
        upstream = next;
    }
}

/// The proxies at both ends have let a connection through. If both are this one, the next needs neither.
fn spare_next(worker: &Worker, pod: &Pod, destination: SocketAddr) {
    let snapshot = worker.shared.snapshot.load();
    let Some(source) = snapshot.workload(pod.name()) else { return };
    if let Some(pair) = snapshot.same_node(source, destination) {
        worker.shared.kernel.allow(snapshot.generation(), pod.netns().cookie(), pair.source, destination);
    }
}

/// What one connection's way is, at the snapshot of its beginning.
struct Upstream {
    source: Arc<Workload>,
    address: SocketAddr,
    /// The tunnel to take, `None` for a plain connection.
    tunnel: Option<Key>,
    /// Whether that is to a waypoint.
    by_waypoint: bool,
    in_flight: InFlightGuard,
}

impl Upstream {
    /// Whether it leads through a waypoint that could not be reached a moment ago.
    fn is_away(&self, worker: &Worker) -> bool {
        self.by_waypoint && self.tunnel.as_ref().is_some_and(|key| worker.away.contains(key.address))
    }
}

/// The way, and where it leads through a waypoint, through one that can be reached as far as anybody knows, if there is any.
fn resolve_reachable(
    worker: &Worker,
    pod: &Pod,
    client: &Accepted,
    destination: (SocketAddr, Choice),
    record: &mut Record,
) -> Result<Upstream, Refusal> {
    let mut found = resolve(worker, pod, client, destination, record)?;
    for _ in 0..DRAWS {
        if !found.is_away(worker) {
            break;
        }
        found = resolve(worker, pod, client, destination, record)?;
    }
    Ok(found)
}

fn resolve(
    worker: &Worker,
    pod: &Pod,
    client: &Accepted,
    (destination, choice): (SocketAddr, Choice),
    record: &mut Record,
) -> Result<Upstream, Refusal> {
    let shared = &worker.shared;
    let netns = pod.netns().cookie();
    record.destination.address = Some(destination);
    record.dialled = Some(destination);

    let snapshot = shared.snapshot.load();
    let source = snapshot.workload(pod.name()).ok_or(Reason::NotEnrolled)?;
    record.source.identity = Some(source.identity.clone());
    record.source.workload = Some(Arc::clone(source));

    // The service is in the record also when none of its endpoints is.
    record.service = snapshot.service_to(&source.name.namespace, destination.ip()).cloned();
    let mut moment =
        Moment::new(shared, &worker.away, Dialled { client: client.peer.ip(), netns, destination, choice });
    let route = snapshot.route(source, destination, &mut moment)?;
    moment.chosen(route.endpoint());
    record.destination.address = Some(route.upstream);
    let tunnel = route.tunnel().map(|(identity, address)| Key {
        source: source.identity.clone(),
        destination: identity.clone(),
        netns,
        address,
    });
    let in_flight = shared.in_flight.enter(route.endpoint());
    let by_waypoint = route.waypoint.is_some();
    // Of a waypoint's other side nothing is known here.
    record.destination.workload = route.waypoint.map(|hop| hop.workload).or(route.workload);
    Ok(Upstream { source: Arc::clone(source), address: route.upstream, tunnel, by_waypoint, in_flight })
}

/// A stream whose other end is connected to the server.
struct Stream {
    send: SendStream<Bytes>,
    receive: RecvStream,
    slot: Slot,
}

async fn open_stream(
    worker: &Rc<Worker>,
    pod: &Pod,
    client: SocketAddr,
    upstream: &Upstream,
    key: &Key,
    record: &mut Record,
) -> Result<Stream, Refusal> {
    record.tunnel = Some(key.address);
    loop {
        // Where there is no other it has all its time.
        let limit = if upstream.by_waypoint && !upstream.is_away(worker) { OPENING } else { Duration::MAX };
        let open = async || {
            timeout(limit, tunnel::open(worker, pod, key)).await.unwrap_or_else(|_| {
                let text = format!("no tunnel to the waypoint {} in time", key.address);
                Err(Refusal::new(Reason::ConnectTimeout, text))
            })
        };
        let mut slot = worker.pool.slot(key, open).await?;
        // The tunnel's handshake has shown it.
        record.destination.identity = Some(key.destination.clone());
        match request(worker, client, upstream, &mut slot).await {
            Ok((send, receive)) => return Ok(Stream { send, receive, slot }),
            // Another one may answer.
            Err(refusal) if upstream.by_waypoint && slot.is_silent() => return Err(refusal),
            // Nothing of the client's has been sent: a tunnel that died unnoticed costs no connection.
            Err(refusal) if refusal.reason == Reason::TunnelClosed && slot.reused => slot.retire(),
            Err(refusal) => return Err(refusal),
        }
    }
}

/// Asks through a tunnel for the server.
async fn request(
    worker: &Worker,
    client: SocketAddr,
    upstream: &Upstream,
    slot: &mut Slot,
) -> Result<(SendStream<Bytes>, RecvStream), Refusal> {
    let request = hbone::connect_request(&upstream.address.to_string(), &upstream.source, client)
        .ok_or_else(|| Refusal::internal("a name of the pod does not fit a header"))?;
    tunnel::ask(&worker.shared, slot, request).await
}
