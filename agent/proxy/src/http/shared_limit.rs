//! Limits that are counted by somebody else, for all that ask it: Envoy's rate limit service,
//! `envoy.service.ratelimit.v3`. Field numbers are Envoy's (api/envoy/service/ratelimit/v3 and
//! api/envoy/extensions/common/ratelimit/v3).

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, uri::Authority};
use orlop_model::{
    Snapshot,
    http::{Asker, Counted},
    world::{Counting, KeyPart, Rate, Shared, Unit},
};
use prost::Message;
use tokio::time::timeout;

use super::{
    HttpLimits,
    call::{Callee, Failed, call},
    grpc::{self, Header},
    headers::is_unfit,
    session::Session,
};

const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// So much of an answer is read.
const MAX_ANSWER: usize = 64 << 10;
/// Of an answer, and of each of its parts.
const OK: i32 = 1;
const OVER_LIMIT: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(message, repeated, tag = "2")]
    descriptors: Vec<Descriptor>,
}

#[derive(Clone, PartialEq, Message)]
struct Descriptor {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<Entry>,
    /// In place of the limit that the service has for it.
    #[prost(message, optional, tag = "2")]
    limit: Option<Limit>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// The beginning of what requests and answers have in common.
#[derive(Clone, PartialEq, Message)]
struct Limit {
    #[prost(uint32, tag = "1")]
    requests_per_unit: u32,
    /// 1 is a second, 2 a minute, 3 an hour, 4 a day, 5 a month, 6 a year, and in answers 7 a week.
    #[prost(int32, tag = "2")]
    unit: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(int32, tag = "1")]
    overall_code: i32,
    /// One for each descriptor, in the same order.
    #[prost(message, repeated, tag = "2")]
    statuses: Vec<Status>,
    /// For the client.
    #[prost(message, repeated, tag = "3")]
    headers: Vec<Header>,
    /// For the client, where the request is over a limit.
    #[prost(bytes = "vec", tag = "5")]
    body: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(message, optional, tag = "2")]
    current_limit: Option<Limit>,
    #[prost(message, optional, tag = "4")]
    until_reset: Option<Seconds>,
}

/// `google.protobuf.Duration`
#[derive(Clone, PartialEq, Message)]
struct Seconds {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// What a service says of a request.
pub(super) enum Verdict<'c> {
    Passes(Said),
    Over(Over<'c>),
}

/// What it has the client told.
#[derive(Default)]
pub(super) struct Said {
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Option<Bytes>,
}

/// A limit that lets nothing more pass.
pub(super) struct Over<'c> {
    pub(super) of: &'c Counted,
    /// Until when.
    pub(super) wait: Duration,
    /// What it lets pass, and in which time, where that is known.
    pub(super) rate: Option<(u32, Duration)>,
    pub(super) said: Said,
}

/// Counts a request for limits of one service and domain.
pub(super) async fn count<'c>(
    session: &Rc<Session>,
    snapshot: &Snapshot,
    shared: &Shared,
    counted: &[&'c Counted],
) -> Result<Verdict<'c>, Failed> {
    let first = counted.first().ok_or_else(|| Failed::wrong("there is nothing to count"))?;
    let asker = Asker { kind: "RateLimit", namespace: &first.limit.resource.namespace };
    let descriptors = counted.iter().map(|of| descriptor(of)).collect();
    let message = Request { domain: shared.domain.clone(), descriptors };
    let asked = timeout(shared.timeout, ask(session, snapshot, asker, shared, &message));
    let response = asked.await.map_err(|_| Failed::away("it has not answered in time"))??;
    let said = said(&response, &session.local.own.limits);
    match response.overall_code {
        OK => Ok(Verdict::Passes(said)),
        OVER_LIMIT => over(counted, &response.statuses, said).map(Verdict::Over).map_err(Failed::Wrong),
        other => Err(Failed::Wrong(format!("it answers with code {other}"))),
    }
}

/// As far as there is room for it, and nothing that says what a message is.
fn said(response: &Response, limits: &HttpLimits) -> Said {
    let headers = response.headers.iter().filter_map(|header| header.pair().ok().flatten());
    let mut headers: Vec<_> = headers.filter(|(name, _)| !is_unfit(name)).collect();
    headers.truncate(limits.max_headers / 2);
    let body = (!response.body.is_empty()).then(|| response.body.clone().into());
    Said { headers, body }
}

async fn ask(
    session: &Rc<Session>,
    snapshot: &Snapshot,
    asker: Asker<'_>,
    shared: &Shared,
    message: &Request,
) -> Result<Response, Failed> {
    let Shared { host, namespace, port, .. } = shared;
    let authority = Authority::try_from(format!("{host}:{port}")).map_err(Failed::wrong)?;
    let callee = Callee { asker: Some(asker), host, port: *port, namespace };
    let request = || grpc::request(authority.clone(), SHOULD_RATE_LIMIT, message);
    let (response, mut lease) = call(session, snapshot, &callee, true, request).await?;
    let answer = grpc::answer(response, MAX_ANSWER).await?;
    lease.finish();
    Ok(answer)
}

fn descriptor(of: &Counted) -> Descriptor {
    let limit = &of.limit.of;
    let named = |index: usize, part: &KeyPart| match &limit.counting {
        Counting::Shared(Shared { keys, .. }) if !keys.is_empty() => keys.get(index).cloned(),
        _ => Some(part.to_string()),
    };
    let parts = limit.by.iter().enumerate().zip(&of.key);
    let entry = |((index, part), value): ((usize, &KeyPart), &Option<String>)| Entry {
        key: named(index, part).unwrap_or_default(),
        value: value.clone().unwrap_or_default(),
    };
    let mut entries: Vec<_> = parts.map(entry).collect();
    if entries.is_empty() {
        // As Envoy calls what is the same for all.
        entries.push(Entry { key: "generic_key".to_owned(), value: limit.name.clone() });
    }
    let own = |rate: Rate| Limit { requests_per_unit: rate.requests(), unit: unit(rate.unit()) };
    Descriptor { entries, limit: limit.rate().map(own) }
}

fn unit(unit: Unit) -> i32 {
    match unit {
        Unit::Second => 1,
        Unit::Minute => 2,
        Unit::Hour => 3,
        Unit::Day => 4,
    }
}

/// Of the limits that are reached, the one for which it takes longest until more may pass.
fn over<'c>(counted: &[&'c Counted], statuses: &[Status], said: Said) -> Result<Over<'c>, String> {
    let reached = counted.iter().zip(statuses).filter(|(_, status)| status.code == OVER_LIMIT);
    let longest = reached.map(|(of, status)| (*of, Some(status))).max_by_key(|(_, status)| wait(*status));
    // It may say it of all at once.
    let whole = counted.first().map(|of| (*of, None));
    let (of, status) = longest.or(whole).ok_or("it answers about nothing")?;
    let current = status.and_then(|status| status.current_limit.as_ref());
    let current = current.and_then(|limit| Some((limit.requests_per_unit, seconds(limit.unit)?)));
    let own = of.limit.of.rate().map(|rate| (rate.requests(), rate.unit().duration()));
    Ok(Over { of, wait: wait(status), rate: current.or(own), said })
}

/// At least a second, which is also what it is where the service does not say.
fn wait(status: Option<&Status>) -> Duration {
    const LEAST: Duration = Duration::from_secs(1);
    // No longer than a limit can be.
    const MOST: u64 = 366 * 86_400;
    let told = status.and_then(|status| status.until_reset.as_ref()).and_then(|until| {
        let (seconds, nanos) = (u64::try_from(until.seconds).ok()?, u32::try_from(until.nanos).ok()?);
        (nanos < 1_000_000_000).then(|| Duration::new(seconds.min(MOST), nanos))
    });
    told.unwrap_or(LEAST).max(LEAST)
}

/// Of a unit.
fn seconds(unit: i32) -> Option<Duration> {
    const DAY: u64 = 86_400;
    let seconds = match unit {
        1 => 1,
        2 => 60,
        3 => 3600,
        4 => DAY,
        5 => 30 * DAY,
        6 => 365 * DAY,
        7 => 7 * DAY,
        _ => return None,
    };
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until(seconds: i64, nanos: i32) -> Option<Duration> {
        let until_reset = Some(Seconds { seconds, nanos });
        Some(wait(Some(&Status { until_reset, ..Status::default() })))
    }

    #[test]
    fn whoever_waits_waits_at_least_a_second_and_at_most_a_year() {
        let seconds = |of| Some(Duration::from_secs(of));
        assert_eq!((until(7, 0), until(0, 5)), (seconds(7), seconds(1)));
        assert_eq!(until(1, 500_000_000), Some(Duration::from_millis(1500)));
        // What is no time is as good as none.
        assert_eq!(
            (until(-1, 0), until(9, -1), until(9, 1_000_000_000)),
            (seconds(1), seconds(1), seconds(1))
        );
        assert_eq!(until(i64::MAX, 999_999_999), Some(Duration::new(366 * 86_400, 999_999_999)));
        assert_eq!(wait(None), Duration::from_secs(1));
    }

    #[test]
    fn whatever_a_service_answers_is_read_or_is_an_error() {
        let mut random = fastrand::Rng::with_seed(7);
        for length in 0..2000 {
            let bytes: Vec<u8> = (0..length % 64).map(|_| random.u8(..)).collect();
            if let Ok(response) = Response::decode(&bytes[..]) {
                let said = said(&response, &HttpLimits::default());
                assert!(over(&[], &response.statuses, said).is_err(), "{bytes:?}");
            }
        }
    }
}
