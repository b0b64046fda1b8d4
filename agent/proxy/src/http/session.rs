//! One client's connection inside a tunnel: what it is for, and what it speaks.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Request, Response};
use orlop_model::{
    Balance, Behind, Declared, Endpoint, Entrance, Identity, Reason, Service, ServicePort, Snapshot,
    Transport, Workload, WorkloadKind,
    http::{Client, Stream, Target},
    world::routing::{Credential, ServerTls},
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{
    Local, authorize, edge,
    hello::{self, Seen},
    io::Io,
    key::{Key, Preface, Tls},
    opaque,
    pace::Pace,
    serve,
    sniff::{self, Protocol},
};
use crate::{
    hbone,
    incoming::{Peer, answer},
    metrics::Direction,
    record::Record,
    refusal::Refusal,
    shared::InFlight,
};

/// The address of nobody in particular.
const ANYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// A client's connection.
pub(crate) struct Session {
    pub(super) local: Rc<Local>,
    /// The other end of the tunnel, whose identity is the client's; `None` of a client from outside the mesh.
    peer: Option<Rc<Peer>>,
    /// The client's socket, as its node says.
    pub(super) client: SocketAddr,
    /// The client, where its address and its identity are those of one workload.
    pub(super) source: Option<Arc<Workload>>,
    /// What it asked for.
    pub(super) target: Behind,
    /// What URIs of what it asks begin with.
    pub(super) scheme: &'static str,
    pub(super) protocol: Protocol,
    /// What the service's port says that it speaks.
    pub(super) declared: Declared,
    /// Whom the client's TLS names, where something depends on it.
    pub(super) seen: Seen,
    /// How long the hello is that says so.
    pub(super) hello: usize,
    /// Requests under way.
    pub(super) active: Cell<usize>,
    /// All that there were.
    pub(super) requests: Cell<u64>,
    /// Of HTTP/1.
    pub(super) pace: Arc<Pace>,
    /// That it must end at once.
    pub(super) broken: Rc<Notify>,
    /// Connections to servers that nobody else may share: they end with this one.
    pub(super) only_its: RefCell<HashSet<Key>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.local.upstreams.forget(&self.only_its.borrow());
    }
}

/// Serves one stream of a tunnel: gather, respond, and go on as what it speaks wants.
pub(super) async fn serve(
    local: Rc<Local>,
    peer: Rc<Peer>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (request, receive) = request.into_parts();
    let mut session = match gather(&local, &peer, &request) {
        Ok(session) => session,
        Err(refused) => {
            let (refusal, record) = *refused;
            answer(&mut respond, hbone::status(refusal.reason));
            return record.finish(Err(refusal));
        }
    };
    let Ok(send) = respond.send_response(Response::new(()), false) else { return };
    let mut io = Io::stream(send, receive);
    let deadline = Instant::now() + local.own.limits.detection_timeout;
    match session.speaks(&mut io, deadline).await {
        Ok(protocol) => session.protocol = protocol,
        // It has said nothing: there is nobody to connect.
        Err(refusal) => return session.record().finish(Err(refusal)),
    }
    if session.protocol == Protocol::Opaque {
        session.look_for_name(&mut io, deadline).await;
    }
    tokio::select! {
        () = carry(session, io) => {}
        _ = peer.shown.fallen() => {}
    }
}

/// Serves a connection of a client's from outside the mesh, which may have agreed on a protocol.
pub(super) async fn serve_outsider(
    local: &Rc<Local>,
    (mut io, agreed): (Io, Option<Protocol>),
    client: SocketAddr,
    dialled: SocketAddr,
    entrance: Entrance,
) {
    let mut session = Session::without_tunnel(local, client, dialled, entrance);
    session.pace = Arc::new(Pace::of_http1(Some(edge::budget(local, client.ip()))));
    let deadline = Instant::now() + local.own.limits.detection_timeout;
    let speaks = match agreed {
        Some(protocol) => Ok(protocol),
        None => session.speaks(&mut io, deadline).await,
    };
    match speaks {
        Ok(protocol) => session.protocol = protocol,
        Err(refusal) => return session.record().finish(Err(refusal)),
    }
    carry(session, io).await;
}

async fn carry(session: Session, io: Io) {
    let session = Rc::new(session);
    match session.protocol {
        Protocol::Http1 => serve::http1(&session, io).await,
        Protocol::Http2 => serve::http2(&session, io).await,
        Protocol::Opaque => opaque::serve(&session, io).await,
    }
}

fn gather(
    local: &Rc<Local>,
    peer: &Rc<Peer>,
    request: &http::request::Parts,
) -> Result<Session, Box<(Refusal, Record)>> {
    let shared = &local.worker.shared;
    let snapshot = shared.snapshot.load();
    let client = hbone::client_address(peer.address, hbone::forwarded(&request.headers));
    let source = snapshot.workload_at(client.ip()).filter(|workload| workload.identity == peer.identity);
    let asked = hbone::parse_authority(request);
    let target = asked.and_then(|asked| snapshot.behind(&local.own.name, peer.identity.namespace(), asked));
    let target = target.map_err(|reason| {
        let mut record = Record::new(shared, Direction::Waypoint);
        record.tunnel = Some(peer.local);
        record.source.address = Some(client);
        record.source.identity = Some(peer.identity.clone());
        record.source.workload = source.cloned();
        record.dialled = asked.ok().and_then(|asked| asked.parse().ok());
        let detail = format!("asked for {}", asked.unwrap_or("no authority"));
        Box::new((Refusal::new(reason, detail), record))
    })?;
    let declared = match &target {
        Behind::Service { service, port, .. } => {
            service.port(*port).map_or(Declared::Unknown, ServicePort::declared)
        }
        Behind::Workload { workload, address } => declared_by_services(&snapshot, workload, *address),
        Behind::Gateway { .. } => Declared::Http,
    };
    Ok(Session {
        source: source.cloned(),
        client,
        target,
        declared,
        // Between a pod and its waypoint the request is in a tunnel, and in clear within.
        scheme: "http",
        seen: Seen::default(),
        hello: 0,
        protocol: Protocol::Opaque,
        local: Rc::clone(local),
        peer: Some(Rc::clone(peer)),
        active: Cell::new(0),
        requests: Cell::new(0),
        pace: Arc::new(Pace::of_http1(None)),
        only_its: RefCell::default(),
        broken: Rc::default(),
    })
}

/// What a workload's port speaks is known from the services that lead there.
fn declared_by_services(snapshot: &Snapshot, workload: &Workload, address: SocketAddr) -> Declared {
    let of_namespace =
        snapshot.services().filter(|service| service.name.namespace == workload.name.namespace);
    let mut ports = of_namespace.flat_map(|service| &service.ports);
    let port = ports.find(|port| port.endpoints.iter().any(|endpoint| endpoint.address == address));
    port.map_or(Declared::Unknown, ServicePort::declared)
}

impl Session {
    /// For what the proxy asks on nobody's behalf.
    pub(super) fn own(local: &Rc<Local>) -> Self {
        let nowhere = SocketAddr::new(ANYWHERE, 0);
        Self::without_tunnel(local, nowhere, nowhere, Entrance::Plain)
    }

    fn without_tunnel(
        local: &Rc<Local>,
        client: SocketAddr,
        dialled: SocketAddr,
        entrance: Entrance,
    ) -> Self {
        Self {
            local: Rc::clone(local),
            peer: None,
            client,
            source: None,
            scheme: if entrance == Entrance::Plain { "http" } else { "https" },
            target: Behind::Gateway { gateway: local.own.name.clone(), address: dialled, entrance },
            protocol: Protocol::Http1,
            declared: Declared::Http,
            seen: Seen::default(),
            hello: 0,
            active: Cell::new(0),
            requests: Cell::new(0),
            pace: Arc::new(Pace::of_http1(None)),
            only_its: RefCell::default(),
            broken: Rc::default(),
        }
    }

    /// Tells what the connection speaks, by its port or by its first bytes.
    async fn speaks(&self, io: &mut Io, deadline: Instant) -> Result<Protocol, Refusal> {
        if self.declared.is_opaque() || self.is_opaque() {
            return Ok(Protocol::Opaque);
        }
        let sniffed = timeout_at(deadline, async {
            loop {
                if let Some(protocol) = sniff::sniff(io.source.ahead()) {
                    return Ok(protocol);
                }
                match io.source.read_ahead().await {
                    Ok(true) => {}
                    // Whatever it is, that was all of it.
                    Ok(false) => return Ok(Protocol::Opaque),
                    Err(error) => return Err(Refusal::new(Reason::Reset, error)),
                }
            }
        });
        let declared = self.declared.is_http();
        match sniffed.await {
            Ok(Ok(Protocol::Opaque)) | Err(_) if declared => Ok(Protocol::Http1),
            Ok(protocol) => protocol,
            // Perhaps it waits for its server to speak first.
            Err(_) => Ok(Protocol::Opaque),
        }
    }

    /// Whether the service wants nothing of it read.
    fn is_opaque(&self) -> bool {
        let snapshot = self.local.worker.shared.snapshot.load();
        self.service_port()
            .is_some_and(|(service, port)| snapshot.routes().is_opaque(service, port, self.namespace()))
    }

    /// Reads whom the client's TLS names, if a rule for this very connection depends on it: else the server may be the one
    /// that speaks first. What does not come in time is not known.
    async fn look_for_name(&mut self, io: &mut Io, deadline: Instant) {
        let snapshot = self.local.worker.shared.snapshot.load_full();
        let (identity, address) = (self.identity(), self.client.ip());
        if !snapshot.routes().wants_sni(&self.target, identity, address, &self.stream()) {
            return;
        }
        let reading = async {
            loop {
                if let Some(seen) = hello::read(io.source.ahead()) {
                    return Some(seen);
                }
                match io.source.read_ahead().await {
                    Ok(true) => {}
                    Ok(false) | Err(_) => return None,
                }
            }
        };
        if let Ok(Some((seen, hello))) = timeout_at(deadline, reading).await {
            (self.seen, self.hello) = (seen, hello);
        }
    }

    /// The connection as routing asks about it.
    pub(super) fn stream(&self) -> Stream<'_> {
        Stream {
            port: self.port(),
            destination: self.dialled().map(|dialled| dialled.ip()),
            sni: self.seen.sni(),
            source: self.source.as_ref().map(|source| &source.name),
            source_namespace: self.namespace(),
        }
    }

    /// The client as destinations' policies tell it apart: for those from outside the mesh the gateway asks.
    pub(super) fn client(&self) -> Client<'_> {
        let pod = match &self.peer {
            Some(_) => self.source.as_ref().filter(|source| source.kind == WorkloadKind::Pod),
            None => Some(&self.local.own.workload),
        };
        Client { namespace: self.namespace(), pod: pod.map(|pod| &pod.name) }
    }

    /// Who the client is, as its certificate says; nobody, where it comes from outside the mesh.
    pub(super) fn identity(&self) -> Option<&Identity> {
        self.peer.as_ref().map(|peer| &peer.identity)
    }

    /// The namespace whose client it is: for those from outside the mesh the gateway asks.
    pub(super) fn namespace(&self) -> &str {
        self.identity().map_or(&*self.local.own.name.namespace, Identity::namespace)
    }

    pub(super) fn is_from_outside(&self) -> bool {
        self.peer.is_none()
    }

    /// Who tells of it.
    pub(super) fn direction(&self) -> Direction {
        if self.is_from_outside() { Direction::Gateway } else { Direction::Waypoint }
    }

    /// What is known of the connection, for its record.
    pub(super) fn describe(&self, record: &mut Record) {
        record.tunnel = self.peer.as_ref().map(|peer| peer.local);
        record.source.address = Some(self.client);
        record.source.identity = self.identity().cloned();
        record.source.workload = self.source.clone();
        record.service = self.service().cloned();
        let snapshot = self.local.worker.shared.snapshot.load();
        record.told = snapshot.routes().told(&self.target).cloned();
        record.dialled = self.dialled();
    }

    /// The address that was dialled, if it was one.
    pub(super) fn dialled(&self) -> Option<SocketAddr> {
        match &self.target {
            Behind::Service { dialled, .. } => *dialled,
            Behind::Workload { address, .. } | Behind::Gateway { address, .. } => Some(*address),
        }
    }

    /// The service that was asked for, and its port.
    pub(super) fn service_port(&self) -> Option<(&Arc<Service>, u16)> {
        match &self.target {
            Behind::Service { service, port, .. } => Some((service, *port)),
            Behind::Workload { .. } | Behind::Gateway { .. } => None,
        }
    }

    /// Whether this is the service that was asked for.
    pub(super) fn has_dialled(&self, service: &Service) -> bool {
        self.service().is_some_and(|dialled| {
            dialled.name == service.name
                && dialled.kind == service.kind
                && dialled.hostname == service.hostname
        })
    }

    /// The port that was asked for.
    pub(super) fn port(&self) -> u16 {
        match &self.target {
            Behind::Service { port, .. } => *port,
            Behind::Workload { address, .. } | Behind::Gateway { address, .. } => address.port(),
        }
    }

    pub(super) fn service(&self) -> Option<&Arc<Service>> {
        match &self.target {
            Behind::Service { service, .. } => Some(service),
            Behind::Workload { .. } | Behind::Gateway { .. } => None,
        }
    }

    /// Chooses where the connection goes now.
    pub(super) fn endpoint(&self, snapshot: &Snapshot) -> Result<Endpoint, Reason> {
        let mut moment = Moment { in_flight: &self.local.worker.shared.in_flight, tried: &[] };
        match &self.target {
            Behind::Workload { workload, address } => {
                // Another may have the address by now.
                let workload = snapshot.workload_at(address.ip()).filter(|now| now.name == workload.name);
                let workload = workload.cloned().ok_or(Reason::NoHealthyEndpoint)?;
                Ok(Endpoint::at(*address, Some(workload)))
            }
            Behind::Service { service, port, dialled } => {
                snapshot.endpoint_of(service, *port, *dialled, &mut moment)
            }
            // Only a rule leads anywhere.
            Behind::Gateway { .. } => Err(Reason::NoRoute),
        }
    }

    /// The connections to an endpoint that this client's requests may share.
    /// `target` is the destination that the endpoint is of, where it is not that which was asked for, and `authority` the
    /// host that is asked there.
    pub(super) fn key(
        &self,
        endpoint: &Endpoint,
        target: Option<&Target<'_>>,
        authority: Option<&str>,
    ) -> Result<Key, Refusal> {
        let enrolled = endpoint.workload.as_ref().filter(|workload| workload.enrolled);
        let declared = target.map_or(self.declared, |target| target.port.declared());
        let policy = target.and_then(|target| target.policy);
        let pool = policy.and_then(|policy| policy.pool.as_ref());
        let spoken = self.protocol == Protocol::Http2;
        // What strangers speak says nothing of what servers do.
        let known = spoken && !self.is_from_outside();
        let http2 = match pool {
            Some(pool) if pool.client_protocol => spoken,
            Some(pool) if pool.to_http2 => true,
            _ => known || declared == Declared::Http2,
        };
        let preface = policy.and_then(|policy| policy.proxy_protocol).map(|version| {
            let dialled = self.dialled().unwrap_or(endpoint.address);
            Rc::new(Preface { version, client: self.client, dialled })
        });
        Ok(Key {
            address: endpoint.address,
            destination: enrolled.map(|workload| workload.identity.clone()),
            through: None,
            caller: self.identity().cloned(),
            client: if self.is_from_outside() { ANYWHERE } else { self.client.ip() },
            http2,
            preface,
            tls: self.tls(endpoint, target, authority)?,
        })
    }
}

/// This moment, as load balancing sees it.
pub(super) struct Moment<'a> {
    pub(super) in_flight: &'a InFlight,
    /// Those that the request went to before: any other is better.
    pub(super) tried: &'a [SocketAddr],
}

impl Balance for Moment<'_> {
    fn random(&mut self, bound: usize) -> usize {
        fastrand::usize(..bound)
    }

    fn in_flight(&self, endpoint: SocketAddr) -> usize {
        if self.tried.contains(&endpoint) { usize::MAX } else { self.in_flight.count(endpoint) }
    }

    fn last(&mut self, _: &Arc<Service>, _: u16, _: Duration) -> Option<SocketAddr> {
        None
    }
}

impl Session {
    /// How the endpoint is spoken to; one that must not be, or not by this client, is refused.
    pub(super) fn check(&self, snapshot: &Snapshot, endpoint: &Endpoint) -> Result<Transport, Refusal> {
        let transport = snapshot.transport_through(&self.local.own.name, endpoint)?;
        authorize::endpoint(self, snapshot, endpoint)?;
        Ok(transport)
    }

    /// By what a connection to an endpoint is secured beyond its tunnel, as the destination's policies say. What can't be
    /// had is refused: nothing goes there less secure than it is to.
    pub(super) fn tls(
        &self,
        endpoint: &Endpoint,
        target: Option<&Target<'_>>,
        authority: Option<&str>,
    ) -> Result<Option<Rc<Tls>>, Refusal> {
        let unavailable = |detail: &str| Err(Refusal::new(Reason::TlsUnavailable, detail));
        let Some((target, tls)) = target.and_then(|target| Some((target, target.tls?))) else {
            return Ok(None);
        };
        let check = match tls {
            ServerTls::Disable => return Ok(None),
            ServerTls::Mesh if endpoint.workload.as_ref().is_some_and(|of| of.enrolled) => return Ok(None),
            ServerTls::Mesh => return unavailable("ISTIO_MUTUAL: the endpoint is not in the mesh"),
            ServerTls::Unavailable(why) => return unavailable(why),
            ServerTls::Simple(check) => check,
        };
        let is_own = |of: &Credential| of.secret.namespace == self.local.own.name.namespace;
        if !check.credential.as_ref().is_none_or(is_own) {
            return unavailable("credentialName: the Secret is of another namespace");
        }
        // Of a wildcard's hosts each has its own name. Whatever else a client says is nobody's name there.
        let host = &target.service.hostname;
        let own = if host.starts_with('*') {
            let authority = authority.map(str::to_ascii_lowercase);
            authority.filter(|authority| target.service.bears(authority))
        } else {
            Some(host.clone())
        };
        let Some(name) = check.sni.clone().or(own) else {
            return unavailable("SIMPLE: nothing says the server's name");
        };
        let check = Arc::clone(check);
        // Where there is none, whoever connects says so.
        let secret = check.credential.as_ref().map(|of| &of.secret);
        let credential = secret.and_then(|secret| self.local.own.credentials.get(secret));
        Ok(Some(Rc::new(Tls { check, name, credential, http: self.protocol != Protocol::Opaque })))
    }
}
