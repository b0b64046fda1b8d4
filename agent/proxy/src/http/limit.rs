//! Counts requests by the RateLimits, once policies have let them in and before anything is done about them.

use std::{rc::Rc, sync::Arc};

use http::{HeaderName, HeaderValue, header::RETRY_AFTER, request};
use orlop_model::{
    Behind, Reason, Snapshot,
    http::{Counted, NoTokens, Request, Tokens},
    world::{Counting, Shared},
};

use super::{
    authenticate::Credentials,
    authorize::{Seen, asked},
    failure::Extra,
    forward::ENVOY_RATELIMITED,
    record::RequestRecord,
    rewrite::Destined,
    session::Session,
    shared_limit::{self, Over, Said, Verdict},
};
use crate::refusal::Refusal;

/// As the latest draft has them (draft-ietf-httpapi-ratelimit-headers-10).
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Whether there may be one more such request of `target`: of what the client dialled, or of what a rule leads to. For a
/// limit that it was counted for before it is not counted again.
pub(super) async fn take(
    session: &Rc<Session>,
    snapshot: &Snapshot,
    (target, port): (&Behind, u16),
    (parts, destined): (&request::Parts, &Destined),
    credentials: Option<&Credentials>,
    record: &mut RequestRecord,
) -> Result<(), Refusal> {
    if !snapshot.routes().has_limits() {
        return Ok(());
    }
    let headers = Seen(&parts.headers);
    let asked = Request { port, ..asked(session, parts, destined, &headers) };
    let tokens: &dyn Tokens = credentials.map_or(&NoTokens, |credentials| credentials);
    let (identity, client) = (session.identity(), session.client.ip());
    let mut counted = snapshot.routes().limits(target, identity, client, &asked, tokens)?;
    counted.retain(|new| !record.counted.iter().any(|known| Arc::ptr_eq(known, &new.limit)));
    let own = &session.local.own;
    let folded = || {
        own.metrics.keys_folded.inc();
    };
    let taken = match own.buckets.take(&counted, folded) {
        Ok(taken) => taken,
        Err((of, wait)) => {
            let rate = of.limit.of.rate().map(|rate| (rate.requests(), rate.unit().duration()));
            return Err(limited(Over { of, wait, rate, said: Said::default() }, record));
        }
    };
    if let Err(refusal) = shared(session, snapshot, &counted, record).await {
        taken.give_back();
        return Err(refusal);
    }
    record.counted.extend(counted.into_iter().map(|of| of.limit));
    Ok(())
}

/// Asks those who count for all.
async fn shared(
    session: &Rc<Session>,
    snapshot: &Snapshot,
    counted: &[Counted],
    record: &mut RequestRecord,
) -> Result<(), Refusal> {
    let shared = counted.iter().filter_map(|of| match &of.limit.of.counting {
        Counting::Shared(shared) => Some((shared, of)),
        Counting::Local(_) => None,
    });
    let mut left: Vec<_> = shared.collect();
    while let Some((first, one)) = left.first().copied() {
        // Of one service and domain, and of one namespace's, all at once.
        let by = |of: &Counted| of.limit.resource.namespace.clone();
        let together = |(of, counted): &(&Shared, &Counted)| {
            (&of.host, &of.namespace, of.port, &of.domain, of.fail_open, by(counted))
                == (&first.host, &first.namespace, first.port, &first.domain, first.fail_open, by(one))
        };
        let (asked, others): (Vec<_>, Vec<_>) = left.into_iter().partition(together);
        left = others;
        let asked: Vec<_> = asked.into_iter().map(|(_, of)| of).collect();
        let failed = match shared_limit::count(session, snapshot, first, &asked).await {
            Ok(Verdict::Passes(said)) => {
                record.to_client.extend(said.headers);
                continue;
            }
            Ok(Verdict::Over(over)) => return Err(limited(over, record)),
            Err(failed) => failed.into_problem(),
        };
        match failed {
            (problem, true) if first.fail_open => {
                session.local.own.metrics.limits_open.inc();
                tracing::debug!(host = first.host, problem, "let pass, as the limit fails open");
            }
            (problem, _) => {
                let resource = asked.first().map(|of| of.limit.resource.to_string()).unwrap_or_default();
                let detail = format!("RateLimit {resource}: {} can't be asked: {problem}", first.host);
                return Err(Refusal::new(Reason::RateLimitUnavailable, detail));
            }
        }
    }
    Ok(())
}

fn limited(over: Over<'_>, record: &mut RequestRecord) -> Refusal {
    let mut headers = headers_of(&over);
    let Over { of, said, .. } = over;
    // Where the service says it itself, that counts.
    headers.retain(|(name, _)| said.headers.iter().all(|(other, _)| other != name));
    headers.extend(said.headers);
    record.extra = Some(Box::new(Extra { headers, body: said.body, ..Extra::default() }));
    let limit = &of.limit;
    let detail = format!("RateLimit {}, limit {}: {}", limit.resource, limit.of.name, limit.of.shown());
    Refusal::new(Reason::RateLimited, detail)
}

/// What the client is told of the limit that it has come to.
fn headers_of(over: &Over<'_>) -> Vec<(HeaderName, HeaderValue)> {
    let Over { of, wait, rate, .. } = over;
    let name = &of.limit.of.name;
    // Whoever comes then comes not too early.
    let wait = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let policy = rate.map(|(requests, window)| format!("\"{name}\";q={requests};w={}", window.as_secs()));
    let limit = format!("\"{name}\";r=0;t={wait}");
    let texts = [(RETRY_AFTER, wait.to_string()), (LIMIT, limit)].into_iter();
    texts
        .chain(policy.map(|policy| (POLICY, policy)))
        // Whoever is before this proxy does not ask again for what is limited.
        .chain([(ENVOY_RATELIMITED, "true".to_owned())])
        .filter_map(|(name, text)| Some((name, HeaderValue::try_from(text).ok()?)))
        .collect()
}
