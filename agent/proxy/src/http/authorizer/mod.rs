//! Asks providers about requests, as AuthorizationPolicies with action CUSTOM want it: Envoy's external authorization.
//!
//! Whatever goes wrong, the request is refused. What is to fail open lets pass while the provider is away, and for nothing
//! else: not one that must not be asked, and not an answer that can't be understood.

mod answer;
mod grpc;
mod http;
mod messages;

use std::{rc::Rc, sync::Arc};

use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, request, uri::Authority};
use bytes::Bytes;
use orlop_model::{
    Behind, Judgement, Reason, Snapshot,
    http::{Asker, NoTokens, Request, ToAsk, Tokens},
    world::{ExtensionProvider, Speaks},
};
use tokio::time::{Instant, timeout, timeout_at};

use self::answer::{Answer, Changes};
use super::{
    authenticate::Credentials,
    authorize::{Seen, asked},
    call::{Callee, Failed, call},
    failure::Extra,
    headers::remove,
    replay::Replay,
    rewrite::Destined,
    session::Session,
};
use crate::{hbone, refusal::Refusal};

/// So much of an answer is read.
const MAX_ANSWER: usize = 64 << 10;

/// What providers have said of a request.
#[derive(Clone, Default)]
pub(super) struct Checked {
    /// Those that let it pass.
    pub(super) providers: Vec<Arc<ExtensionProvider>>,
    /// What they want the client to get with the answer.
    to_client: Vec<Changes>,
}

impl Checked {
    /// Makes of an answer what the client gets.
    pub(super) fn answer(&self, headers: &mut HeaderMap) {
        self.to_client.iter().for_each(|changes| changes.apply(headers));
    }
}

/// Why a request is refused, and what else is in the answer.
pub(super) type NotPassed = (Refusal, Option<Box<Extra>>);

/// A request on its way, which a provider may change.
pub(super) struct Asking<'a> {
    pub(super) target: &'a Behind,
    /// Of `target`.
    pub(super) port: u16,
    pub(super) parts: &'a mut request::Parts,
    pub(super) destined: &'a Destined,
    pub(super) credentials: Option<&'a Credentials>,
    /// `None` where it can't be held, as that of a copy.
    pub(super) body: Option<&'a Replay>,
}

impl Asking<'_> {
    /// Of the body, in bytes; -1 where nobody knows.
    fn size(&self) -> i64 {
        let size = self.body.and_then(Replay::size);
        size.and_then(|size| i64::try_from(size).ok()).unwrap_or(-1)
    }
}

/// Asks those who are to be asked about this request and were not yet, one after the other; what one changes, the next
/// one sees.
pub(super) async fn ask(
    session: &Rc<Session>,
    snapshot: &Snapshot,
    asking: &mut Asking<'_>,
    checked: &mut Checked,
) -> Result<(), NotPassed> {
    if !snapshot.routes().has_providers() {
        return Ok(());
    }
    let all = to_ask(session, snapshot, asking).map_err(|refusal| (refusal, None))?;
    for ToAsk { provider, policy } in all {
        if checked.providers.contains(&provider) {
            continue;
        }
        match one(session, snapshot, asking, &provider).await {
            Ok((to_server, to_client)) => {
                to_server.apply(&mut asking.parts.headers);
                checked.to_client.push(to_client);
                checked.providers.push(provider);
            }
            Err((mut refusal, extra)) => {
                let name = &provider.name;
                refusal.detail =
                    format!("ExtensionProvider {name}, asked as {policy} wants: {}", refusal.detail);
                refusal.judgement = Some(Judgement { policy: Some(policy), ..Judgement::default() });
                return Err((refusal, extra));
            }
        }
    }
    Ok(())
}

/// Asks one. What becomes of the headers for the server, and of those for the client, where it lets the request pass.
async fn one(
    session: &Rc<Session>,
    snapshot: &Snapshot,
    of: &Asking<'_>,
    provider: &ExtensionProvider,
) -> Result<(Changes, Changes), NotPassed> {
    // A client that takes its time, or that nobody can be asked about, must not be let pass for that.
    let body = held(session, of, provider).await?;
    let own = &session.local.own;
    let (problem, away) = match check(session, snapshot, of, provider, &body).await {
        // Nor one whose own headers leave no room for more.
        Ok(Answer::Allowed { to_server, .. }) if !to_server.fits(&of.parts.headers, &own.limits) => {
            ("it sets more headers than there is room for".to_owned(), false)
        }
        Ok(Answer::Allowed { to_client, .. }) if !to_client.fits(&HeaderMap::new(), &own.limits) => {
            ("it sets more headers for the client than there is room for".to_owned(), false)
        }
        Ok(Answer::Allowed { to_server, to_client }) => {
            own.metrics.asked("allowed");
            return Ok((to_server, to_client));
        }
        Ok(Answer::Denied { mut extra, why }) => {
            own.metrics.asked("denied");
            extra.headers.truncate(own.limits.max_headers);
            let why = if why.is_empty() { "it refuses".to_owned() } else { format!("it refuses: {why}") };
            return Err((Refusal::new(Reason::PolicyDenied, why), Some(Box::new(extra))));
        }
        Ok(Answer::Unfit(problem)) => (problem, false),
        Err(failed) => failed.into_problem(),
    };
    if away && provider.fail_open {
        own.metrics.asked("failed_open");
        tracing::debug!(provider = %provider.name, problem, "let pass, as it fails open");
        let to_server = match &provider.speaks {
            Speaks::Http(how) => http::unforged(how, &of.parts.headers),
            Speaks::Grpc => Changes::default(),
        };
        return Ok((to_server, Changes::default()));
    }
    own.metrics.asked("failed");
    let extra = Extra { status: StatusCode::from_u16(provider.status_on_error).ok(), ..Extra::default() };
    Err((Refusal::new(Reason::AuthorizerUnavailable, problem), Some(Box::new(extra))))
}

fn to_ask(session: &Session, snapshot: &Snapshot, of: &Asking<'_>) -> Result<Vec<ToAsk>, Refusal> {
    let headers = Seen(&of.parts.headers);
    let asked = Request { port: of.port, ..asked(session, of.parts, of.destined, &headers) };
    let tokens: &dyn Tokens = of.credentials.map_or(&NoTokens, |credentials| credentials);
    let (identity, client) = (session.identity(), session.client.ip());
    Ok(snapshot.routes().to_ask(of.target, identity, client, &asked, tokens)?)
}

/// As much of the body as the provider is to see, of a request that it can be asked about.
async fn held(session: &Session, of: &Asking<'_>, provider: &ExtensionProvider) -> Result<Body, NotPassed> {
    let bad = |detail: &str| (Refusal::new(Reason::BadRequest, detail), None);
    if let Speaks::Http(how) = &provider.speaks {
        let fits = http::question(session, of, how, &Body::default());
        fits.map_err(|problem| bad(&format!("nobody can be asked about it: {problem}")))?;
    }
    let Some(wanted) = provider.body else { return Ok(Body::default()) };
    let replay = of.body.ok_or_else(|| bad("a copy has no body that could be shown"))?;
    let limit = session.local.own.limits.header_timeout;
    let beginning = timeout(limit, replay.beginning(wanted.max)).await;
    let beginning = beginning.map_err(|_| bad("the body that is to be shown did not come in time"))?;
    let (bytes, whole) = beginning.map_err(|_| bad("the client broke off"))?;
    if whole || wanted.partial {
        return Ok(Body { bytes, whole, packed: wanted.bytes });
    }
    let detail = format!("the body is longer than the {} bytes that it sees", wanted.max);
    let extra = Extra { status: Some(StatusCode::PAYLOAD_TOO_LARGE), ..Extra::default() };
    Err((Refusal::new(Reason::PolicyDenied, detail), Some(Box::new(extra))))
}

/// Asks one, and waits for its answer for as long as that may take.
async fn check(
    session: &Rc<Session>,
    snapshot: &Snapshot,
    of: &Asking<'_>,
    provider: &ExtensionProvider,
    body: &Body,
) -> Result<Answer, Failed> {
    let (limit, asked) = (provider.timeout, callee(provider));
    let deadline = Instant::now() + limit;
    let late = |_| Failed::Away(format!("no answer within {}", humantime::format_duration(limit)));
    match &provider.speaks {
        Speaks::Grpc => {
            let message = grpc::question(session, of, body);
            let authority = authority(provider).map_err(Failed::Wrong)?;
            let request = || super::grpc::request(authority.clone(), messages::CHECK, &message);
            let answered = async {
                let (response, mut lease) = call(session, snapshot, &asked, true, request).await?;
                let answer = super::grpc::answer(response, MAX_ANSWER).await?;
                lease.finish();
                Ok::<_, Failed>(answer)
            };
            grpc::read(timeout_at(deadline, answered).await.map_err(late)??)
        }
        Speaks::Http(how) => {
            let request = || http::question(session, of, how, body).map_err(Failed::Wrong);
            let called = call(session, snapshot, &asked, false, request);
            let (response, mut lease) = timeout_at(deadline, called).await.map_err(late)??;
            let (head, answer) = response.into_parts();
            let answer = timeout_at(deadline, super::body::read(answer, false, MAX_ANSWER)).await;
            let bytes = match answer.map_err(late).flatten() {
                Ok((bytes, _)) => {
                    lease.finish();
                    bytes
                }
                // It has said no already, whatever is wrong with what follows, or late.
                Err(_) if http::refuses(head.status) => Bytes::new(),
                Err(failed) => return Err(failed),
            };
            http::read(head, bytes, how, &of.parts.headers)
        }
    }
}

/// What a provider sees of a request's body.
#[derive(Default)]
struct Body {
    bytes: Bytes,
    whole: bool,
    packed: bool,
}

fn callee(provider: &ExtensionProvider) -> Callee<'_> {
    let asker = Asker { kind: "ExtensionProvider", namespace: &provider.name.namespace };
    Callee { asker: Some(asker), host: &provider.host, port: provider.port, namespace: provider.namespace() }
}

fn authority(provider: &ExtensionProvider) -> Result<Authority, String> {
    Authority::try_from(format!("{}:{}", provider.host, provider.port)).map_err(|error| error.to_string())
}

/// Of a body that is shown in part, as Envoy has it.
const PARTIAL: &str = "x-envoy-auth-partial-body";

/// The request's headers, with what we know ourselves in place of what a client says of that.
fn shown_headers(session: &Session, of: &Asking<'_>, body: &Body) -> HeaderMap {
    let mut headers = of.parts.headers.clone();
    remove(&mut headers, hbone::CLIENT_CERT);
    let own = &session.local.own.workload.identity;
    let caller = session.identity().map(|caller| HeaderValue::try_from(format!("By={own};URI={caller}")));
    headers.extend(
        caller.and_then(Result::ok).map(|caller| (HeaderName::from_static(hbone::CLIENT_CERT), caller)),
    );
    remove(&mut headers, PARTIAL);
    if !body.bytes.is_empty() {
        let partial = HeaderValue::from_static(if body.whole { "false" } else { "true" });
        headers.insert(HeaderName::from_static(PARTIAL), partial);
    }
    headers
}
