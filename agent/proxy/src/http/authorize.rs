//! Asks the policies: about each request, and about what goes on once it has been let in.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue, request};
use orlop_model::{
    Behind, Endpoint, Identity, Judgement, Reason, Service, Snapshot,
    http::{Headers, NoTokens, Request, Tokens, is_alike},
    world::ExtensionProvider,
};

use super::{
    authenticate::Credentials,
    exchange::{Elsewhere, GoesOn, Template},
    rewrite::Destined,
    session::Session,
};
use crate::refusal::Refusal;

/// Whether the client may make this request of what it dialled.
pub(super) fn request(
    session: &Session,
    snapshot: &Snapshot,
    parts: &request::Parts,
    destined: &Destined,
    credentials: Option<&Credentials>,
    passed: &[Arc<ExtensionProvider>],
) -> Result<Judgement, Refusal> {
    let headers = Seen(&parts.headers);
    let asked = asked(session, parts, destined, &headers);
    judge(session, snapshot, &session.target, (&asked, credentials), passed)
}

/// Whether it may have a connection in which no HTTP is seen; of where a rule leads, `elsewhere` says.
pub(super) fn connection(
    session: &Session,
    snapshot: &Snapshot,
    elsewhere: Option<&(Arc<Service>, u16)>,
) -> Result<Judgement, Refusal> {
    let (identity, client) = (session.identity(), session.client.ip());
    let (routes, sni) = (snapshot.routes(), session.seen.sni());
    let mut judgement = routes.authorize_stream(&session.target, identity, client, sni)?;
    if let Some((service, port)) = elsewhere {
        if routes.reads_requests(service, *port) {
            let detail = format!(
                "{} wants requests to port {port} read, for its tokens or limits, and in this connection none are",
                service.hostname
            );
            return Err(Refusal::new(Reason::PolicyDenied, detail));
        }
        let target = Behind::Service { service: service.clone(), port: *port, dialled: None };
        judgement.add(routes.authorize_stream(&target, identity, client, sni)?);
    }
    Ok(judgement)
}

/// Until the policies no longer allow a connection in which no HTTP is seen.
pub(super) async fn connection_withdrawn(
    session: &Session,
    elsewhere: Option<&(Arc<Service>, u16)>,
    at: &Endpoint,
) -> Refusal {
    let still = |snapshot: &Snapshot| {
        connection(session, snapshot, elsewhere)?;
        endpoint(session, snapshot, at)
    };
    withdrawn_if(session, still).await
}

/// Whether it may have that to this endpoint, of whose node nobody can be sure that it judges by the client.
pub(super) fn endpoint(session: &Session, snapshot: &Snapshot, endpoint: &Endpoint) -> Result<(), Refusal> {
    // A gateway is itself the client, whom the endpoint's node knows.
    let Some(identity) = session.identity() else { return Ok(()) };
    let client = session.client.ip();
    snapshot.admit_led(&session.local.own.name, identity, client, endpoint).map_err(Refusal::from)
}

/// What a rule leads to, if that is to be asked too: if it is another than was dialled, or if the rule is not of the
/// service's namespace, and may have made something else of the request.
pub(super) fn further(
    session: &Session,
    service: &Arc<Service>,
    port: u16,
    template: &Template,
) -> Option<Behind> {
    // Of what a gateway asks, the service's own proxies judge.
    if session.is_from_outside() {
        return None;
    }
    let is_dialled = |(dialled, its_port): (&Arc<Service>, u16)| {
        dialled.name == service.name && dialled.kind == service.kind && its_port == port
    };
    if template.is_own(&service.name.namespace) && session.service_port().is_some_and(is_dialled) {
        return None;
    }
    Some(Behind::Service { service: service.clone(), port, dialled: None })
}

/// Whether it may reach the port of a service that a rule leads to, by what that is asked.
pub(super) fn elsewhere(
    session: &Session,
    snapshot: &Snapshot,
    (target, port): (&Behind, u16),
    template: &Template,
    passed: &[Arc<ExtensionProvider>],
) -> Result<Judgement, Refusal> {
    let headers = Seen(template.headers());
    let asked = Request { port, ..asked(session, template.parts(), template.destined(), &headers) };
    judge(session, snapshot, target, (&asked, template.credentials()), passed)
}

/// Until the policies no longer allow what they have allowed: this, or a connection in which no HTTP is seen.
pub(super) async fn withdrawn(session: &Session, of: Option<&GoesOn>) -> Refusal {
    withdrawn_if(session, |snapshot| still(session, snapshot, of)).await
}

async fn withdrawn_if(session: &Session, still: impl Fn(&Snapshot) -> Result<(), Refusal>) -> Refusal {
    let shared = &session.local.worker.shared;
    let mut changes = shared.generation.subscribe();
    loop {
        let snapshot = shared.snapshot.load_full();
        if let Err(refusal) = still(&snapshot) {
            return refusal;
        }
        if changes.changed().await.is_err() {
            return Reason::Draining.into();
        }
    }
}

fn still(session: &Session, snapshot: &Snapshot, of: Option<&GoesOn>) -> Result<(), Refusal> {
    let Some(GoesOn { asked, passed, elsewhere: further, at }) = of else {
        return connection(session, snapshot, None).map(drop);
    };
    request(session, snapshot, asked.parts(), asked.destined(), asked.credentials(), passed)?;
    if let Some(at) = at {
        endpoint(session, snapshot, at)?;
    }
    match further {
        Some(Elsewhere { target, port, asked, passed }) => {
            let mut asked = asked.clone();
            asked.authenticate(snapshot, target)?;
            elsewhere(session, snapshot, (target, *port), &asked, passed).map(drop)
        }
        None => Ok(()),
    }
}

fn judge(
    session: &Session,
    snapshot: &Snapshot,
    target: &Behind,
    (request, credentials): (&Request<'_>, Option<&Credentials>),
    passed: &[Arc<ExtensionProvider>],
) -> Result<Judgement, Refusal> {
    let (identity, client) = (session.identity(), session.client.ip());
    let tokens: &dyn Tokens = credentials.map_or(&NoTokens, |credentials| credentials);
    let routes = snapshot.routes();
    routes.authorize(target, identity, client, Some(request), tokens, passed).map_err(Refusal::from)
}

/// The request as rules and policies see it.
pub(super) fn asked<'a>(
    session: &'a Session,
    parts: &'a request::Parts,
    destined: &'a Destined,
    headers: &'a Seen<'a>,
) -> Request<'a> {
    Request {
        method: parts.method.as_str(),
        scheme: session.scheme,
        authority: destined.authority.as_str(),
        path: destined.path.path(),
        query: destined.path.query(),
        headers,
        port: session.port(),
        source: session.source.as_ref().map(|source| &source.name),
        source_namespace: session.identity().map_or("", Identity::namespace),
        claims: &[],
    }
}

/// The headers as rules and policies ask about them.
pub(super) struct Seen<'a>(pub(super) &'a HeaderMap);

impl Headers for Seen<'_> {
    fn values(&self, name: &str) -> Vec<Cow<'_, str>> {
        let values = self.0.get_all(name).iter();
        values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect()
    }

    fn value(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut values = self.0.get_all(name).iter();
        match (values.next()?, values.next()) {
            (value, None) => Some(String::from_utf8_lossy(value.as_bytes())),
            _ => Some(self.values(name).join(",").into()),
        }
    }

    /// As ISO-8859-1, by which some servers still go (RFC 9110, section 5.5).
    fn otherwise(&self, name: &str) -> Vec<Cow<'_, str>> {
        let values = || self.0.get_all(name).iter().map(HeaderValue::as_bytes);
        if values().all(|value| std::str::from_utf8(value).is_ok()) {
            return Vec::new();
        }
        values().map(|value| value.iter().map(|&byte| char::from(byte)).collect()).collect()
    }

    fn alike(&self, name: &str) -> Vec<Cow<'_, str>> {
        let names = self.0.keys().map(HeaderName::as_str);
        let others = names.filter(|other| *other != name && is_alike(other, name));
        others.flat_map(|other| self.values(other).into_iter().chain(self.otherwise(other))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_utf8_has_two_readings() {
        let mut headers = HeaderMap::new();
        let mut with = |value: &'static [u8]| {
            headers.append("x", HeaderValue::from_bytes(value).unwrap());
            (Seen(&headers).values("x").join("|"), Seen(&headers).otherwise("x").join("|"))
        };
        assert_eq!(with("caf\u{e9}".as_bytes()), ("caf\u{e9}".to_owned(), String::new()));
        let read = ("caf\u{e9}|caf\u{fffd}".to_owned(), "caf\u{c3}\u{a9}|caf\u{e9}".to_owned());
        assert_eq!(with(b"caf\xe9"), read);
    }

    #[test]
    fn other_spellings_are_seen_of_which_servers_make_the_same() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-role", "a"), ("x_role", "b"), ("x.role", "c"), ("x-roles", "d")] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let seen = Seen(&headers);
        let mut alike = seen.alike("x-role");
        alike.sort();
        assert_eq!(alike, ["b", "c"]);
    }
}
