//! Calls of gRPC with one message and one answer, over the connections that requests have; and what several of Envoy's
//! messages have in common.

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONTENT_TYPE, TE},
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::body::Incoming;
use prost::Message;

use super::{
    body::{grpc_status, read},
    call::Failed,
    headers::is_grpc,
    replay::RequestBody,
};

const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The units of [`TIMEOUT`], the smallest first.
const UNITS: [(&str, Duration); 6] = [
    ("n", Duration::from_nanos(1)),
    ("u", Duration::from_micros(1)),
    ("m", Duration::from_millis(1)),
    ("S", Duration::from_secs(1)),
    ("M", Duration::from_secs(60)),
    ("H", Duration::from_secs(3600)),
];
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// Compressed or not, and how long it is.
const PREFIX: usize = 5;

/// What a status is called (doc/statuscodes.md of gRPC), as Envoy writes it.
pub(super) fn status_name(status: u8) -> Option<&'static str> {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    NAMES.get(usize::from(status)).copied()
}

/// The request of a call.
pub(super) fn request(
    authority: Authority,
    path: &'static str,
    message: &impl Message,
) -> Result<Request<RequestBody>, Failed> {
    let mut body = Vec::with_capacity(PREFIX + message.encoded_len());
    let length = u32::try_from(message.encoded_len()).map_err(Failed::wrong)?;
    body.push(0);
    body.extend(length.to_be_bytes());
    message.encode(&mut body).map_err(Failed::wrong)?;
    let path = PathAndQuery::from_static(path);
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path).build();
    let request = Request::builder()
        .version(Version::HTTP_2)
        .method(Method::POST)
        .uri(uri.map_err(Failed::wrong)?)
        .header(CONTENT_TYPE, GRPC)
        .header(TE, HeaderValue::from_static("trailers"));
    request.body(RequestBody::whole(body.into())).map_err(Failed::wrong)
}

/// The answer of a call. Reads no more than `most` bytes.
pub(super) async fn answer<M: Message + Default>(
    response: Response<Incoming>,
    most: usize,
) -> Result<M, Failed> {
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        let problem = format!("it answers with status {}", head.status);
        return Err(if head.status.is_server_error() {
            Failed::Away(problem)
        } else {
            Failed::Wrong(problem)
        });
    }
    // An answer without a message has its status in its head.
    succeeded(&head.headers)?;
    let (bytes, trailers) = read(body, true, most).await?;
    match trailers {
        Some(trailers) if grpc_status(&trailers).is_some() => succeeded(&trailers)?,
        _ if grpc_status(&head.headers).is_some() => {}
        _ => return Err(Failed::wrong("it answers without a status of gRPC")),
    }
    decoded(bytes)
}

fn succeeded(headers: &HeaderMap) -> Result<(), Failed> {
    let status = match grpc_status(headers) {
        None | Some(0) => return Ok(()),
        Some(status) => status,
    };
    let problem = format!("it answers with status {status} of gRPC");
    Err(if is_away(status) { Failed::Away(problem) } else { Failed::Wrong(problem) })
}

/// Of a call whose client would not wait longer.
pub(super) const DEADLINE_EXCEEDED: u8 = 4;

/// Whether a server that answers a call with this status has failed, rather than refused it or never heard of it:
/// `CANCELLED`, `UNKNOWN`, `DEADLINE_EXCEEDED`, `RESOURCE_EXHAUSTED`, `ABORTED`, `INTERNAL`, `UNAVAILABLE`, `DATA_LOSS`.
fn is_away(status: u8) -> bool {
    matches!(status, 1 | 2 | 4 | 8 | 10 | 13 | 14 | 15)
}

fn decoded<M: Message + Default>(mut bytes: Bytes) -> Result<M, Failed> {
    if bytes.len() < PREFIX {
        return Err(Failed::wrong("it answers without a message"));
    }
    let (compressed, length) = (bytes.get_u8(), bytes.get_u32() as usize);
    if compressed != 0 || length != bytes.len() {
        return Err(Failed::wrong("it answers with something other than one message"));
    }
    M::decode(bytes).map_err(Failed::wrong)
}

/// How long the client of a call of gRPC waits in all. `None` where it does not say, or nothing that gRPC knows.
pub(super) fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let given = headers.get(TIMEOUT).filter(|_| is_grpc(headers))?;
    timeout(given.to_str().ok()?)
}

/// Has a call say how long its client still waits.
pub(super) fn tell_deadline(headers: &mut HeaderMap, left: Duration) {
    headers.insert(TIMEOUT, timeout_text(left));
}

/// `TimeoutValue TimeoutUnit` of gRPC over HTTP/2: up to eight digits, and not zero.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let (_, length) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let value: u32 = digits.parse().ok().filter(|value| is_number && *value > 0)?;
    Some(*length * value)
}

/// In the smallest unit in which it has eight digits; of what is over, one nanosecond is left.
fn timeout_text(left: Duration) -> HeaderValue {
    let written = UNITS.iter().find_map(|(unit, length)| {
        let value = left.as_nanos() / length.as_nanos();
        (value < 100_000_000).then(|| format!("{}{unit}", value.max(1)))
    });
    // Eight digits of hours are the most that was read.
    written.and_then(|text| HeaderValue::try_from(text).ok()).unwrap_or(HeaderValue::from_static("99999999H"))
}

/// `envoy.config.core.v3.HeaderValue`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Header {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
    #[prost(bytes = "vec", tag = "3")]
    raw_value: Vec<u8>,
}

impl Header {
    /// Name and value; `None` where it is about something that is no header, such as `:path`.
    pub(super) fn pair(&self) -> Result<Option<(HeaderName, HeaderValue)>, &'static str> {
        if self.key.starts_with(':') {
            return Ok(None);
        }
        let value = if self.value.is_empty() { &self.raw_value[..] } else { self.value.as_bytes() };
        let name = HeaderName::try_from(self.key.as_str());
        match name.ok().zip(HeaderValue::from_bytes(value).ok()) {
            Some(pair) => Ok(Some(pair)),
            None => Err("it sets what is no header"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_told_on_without_the_time_that_is_spent() {
        let second = Duration::from_secs(1);
        let told = |given: &str, kind: &str, spent: Duration| {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT, HeaderValue::from_str(given).unwrap());
            headers.insert(CONTENT_TYPE, HeaderValue::from_str(kind).unwrap());
            let left = deadline(&headers)?.saturating_sub(spent);
            tell_deadline(&mut headers, left);
            Some(headers[TIMEOUT].to_str().unwrap().to_owned())
        };
        let grpc = "application/grpc";
        assert_eq!(told("5S", grpc, second).as_deref(), Some("4000000u"));
        assert_eq!(told("99999999H", grpc, Duration::ZERO).as_deref(), Some("99999999H"));
        assert_eq!(told("2M", "application/grpc+proto", Duration::ZERO).as_deref(), Some("120000m"));
        assert_eq!(told("100m", grpc, second).as_deref(), Some("1n"));
        for given in ["", "5", "S", "0S", "123456789n", "-1S", "+1S", "1s", "1 S", "1.5S"] {
            assert_eq!(told(given, grpc, second), None);
        }
        assert_eq!(told("5S", "text/plain", second), None);
    }
}
