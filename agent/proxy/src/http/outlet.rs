//! What the proxy sends to a service of the mesh for nobody's request: as itself, like what it [asks](call).

use std::{rc::Rc, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri, Version};
use orlop_model::{Service, ServiceKind, Snapshot};
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_local,
};

use super::{
    Local,
    body::read,
    call::{Callee, Failed, call},
    replay::RequestBody,
    session::Session,
};

/// So much of an answer is read.
const MAX_ANSWER: usize = 64 << 10;

/// Where what is to be sent is handed in; [`outlet`] makes one before there is a proxy.
#[derive(Clone, Debug)]
pub struct Outlet(mpsc::Sender<Sending>);

/// What is handed in, for the proxy.
#[derive(Debug)]
pub struct Outgoing(mpsc::Receiver<Sending>);

#[derive(Debug)]
struct Sending {
    request: Request<Bytes>,
    answer: oneshot::Sender<Result<Answered, NotSent>>,
}

/// An answer, without its body.
#[derive(Debug)]
pub struct Answered {
    /// Of its head.
    pub status: StatusCode,
    /// Those of its head, and then its trailers.
    pub headers: HeaderMap,
}

/// Why there is none.
#[derive(Debug)]
pub enum NotSent {
    /// The mesh knows no such service.
    NoService,
    /// It could not be asked, or says nothing that can be read.
    Failed(String),
}

/// Both ends.
pub fn outlet() -> (Outlet, Outgoing) {
    let (sender, receiver) = mpsc::channel(1);
    (Outlet(sender), Outgoing(receiver))
}

impl Outlet {
    /// Sends a request to the service that the authority of its URI names, as DNS has it in the proxy's namespace, by the
    /// version of HTTP that it has.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Answered, NotSent> {
        let (answer, answered) = oneshot::channel();
        let gone = || NotSent::Failed("the proxy has ended".to_owned());
        self.0.send(Sending { request, answer }).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

impl Outgoing {
    /// Sends until nobody hands in anything more.
    pub(super) async fn run(mut self, local: Rc<Local>) {
        while let Some(Sending { request, answer }) = self.0.recv().await {
            let session = Rc::new(Session::own(&local));
            spawn_local(async move {
                // Whoever does not wait any longer has lost it.
                let _ = answer.send(send(&session, request).await);
            });
        }
    }
}

async fn send(session: &Rc<Session>, request: Request<Bytes>) -> Result<Answered, NotSent> {
    let snapshot = session.local.worker.shared.snapshot.load_full();
    let (parts, body) = request.into_parts();
    let authority = parts.uri.authority().ok_or(NotSent::NoService)?;
    let own = &session.local.own.name.namespace;
    let service = service(&snapshot, own, authority.host()).ok_or(NotSent::NoService)?;
    let callee = Callee {
        asker: None,
        host: &service.hostname,
        port: authority.port_u16().unwrap_or(80),
        namespace: own,
    };
    let http2 = parts.version == Version::HTTP_2;
    let path = || parts.uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
    // Of HTTP/1 as servers are asked, rather than proxies.
    let uri = if http2 { parts.uri.clone() } else { path() };
    let whole = || {
        let mut request = Request::new(RequestBody::whole(body.clone()));
        *request.version_mut() = parts.version;
        request.method_mut().clone_from(&parts.method);
        request.uri_mut().clone_from(&uri);
        request.headers_mut().clone_from(&parts.headers);
        Ok(request)
    };
    let answered = async {
        let (response, mut lease) = call(session, &snapshot, &callee, http2, whole).await?;
        let (mut head, body) = response.into_parts();
        let (_, trailers) = read(body, http2, MAX_ANSWER).await?;
        lease.finish();
        head.headers.extend(trailers.unwrap_or_default());
        Ok(Answered { status: head.status, headers: head.headers })
    };
    answered.await.map_err(|failed: Failed| NotSent::Failed(failed.into_problem().0))
}

/// By the name itself, or by what a pod's search list makes of it. Whoever writes ServiceEntries elsewhere does not get
/// what is for this host.
fn service<'s>(snapshot: &'s Snapshot, namespace: &str, host: &str) -> Option<&'s Arc<Service>> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let domain = snapshot.cluster_domain();
    let names = [format!("{host}.{namespace}.svc.{domain}"), format!("{host}.svc.{domain}"), host];
    let is_trusted = |service: &&Arc<Service>| {
        service.kind == ServiceKind::Service || service.name.namespace == *namespace
    };
    names.iter().find_map(|name| snapshot.service_named(namespace, name).filter(is_trusted))
}
