//! Counts requests by the RateLimits, once policies have let them in and before anything is done about them.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, header::RETRY_AFTER, request};
use orlop_model::{
    Behind, Reason, Snapshot,
    http::{Counted, NoTokens, Request, Tokens},
};

use super::{
    authenticate::Credentials,
    authorize::{Seen, asked},
    failure::Extra,
    record::RequestRecord,
    rewrite::Destined,
    session::Session,
};
use crate::refusal::Refusal;

/// As the latest draft has them (draft-ietf-httpapi-ratelimit-headers-10).
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Whether there may be one more such request of `target`: of what the client dialled, or of what a rule leads to. For a
/// limit that it was counted for before it is not counted again.
pub(super) fn take(
    session: &Session,
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
    let (identity, client) = (&session.peer.identity, session.client.ip());
    let mut counted = snapshot.routes().limits(target, identity, client, &asked, tokens)?;
    counted.retain(|new| !record.counted.iter().any(|known| Arc::ptr_eq(known, &new.limit)));
    let own = &session.local.own;
    let folded = || {
        own.metrics.keys_folded.inc();
    };
    if let Err((of, wait)) = own.buckets.take(&counted, folded) {
        record.extra = Some(Box::new(Extra { headers: headers_of(of, wait), ..Extra::default() }));
        let limit = &of.limit;
        let (name, rate) = (&limit.of.name, limit.of.rate);
        let detail = format!("RateLimit {}, limit {name}: {rate}", limit.resource);
        return Err(Refusal::new(Reason::RateLimited, detail));
    }
    record.counted.extend(counted.into_iter().map(|of| of.limit));
    Ok(())
}

/// What the client is told of the limit that it has come to.
fn headers_of(of: &Counted, wait: Duration) -> Vec<(HeaderName, HeaderValue)> {
    let (name, rate) = (&of.limit.of.name, of.limit.of.rate);
    // Whoever comes then comes not too early.
    let wait = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let policy = format!("\"{name}\";q={};w={}", rate.requests(), rate.unit().duration().as_secs());
    let limit = format!("\"{name}\";r=0;t={wait}");
    let texts = [(RETRY_AFTER, wait.to_string()), (POLICY, policy), (LIMIT, limit)];
    texts.into_iter().filter_map(|(name, text)| Some((name, HeaderValue::try_from(text).ok()?))).collect()
}
