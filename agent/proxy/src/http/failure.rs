//! Answers of our own, where there is none from a server.

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, HeaderName, WWW_AUTHENTICATE},
};
use orlop_model::Reason;

use super::{body::ResponseBody, record::RequestRecord};
use crate::refusal::Refusal;

const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const RESOURCE_EXHAUSTED: u8 = 8;
const UNAVAILABLE: u8 = 14;
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// RFC 6750, section 3.
const INVALID_TOKEN: HeaderValue = HeaderValue::from_static(r#"Bearer error="invalid_token""#);

/// What an answer of our own has beyond what its reason says.
#[derive(Default)]
pub(super) struct Extra {
    pub(super) status: Option<StatusCode>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// In place of the reason.
    pub(super) body: Option<Bytes>,
}

/// That the connection ends with the answer.
pub(super) fn and_close() -> Box<Extra> {
    Box::new(Extra { headers: vec![(CONNECTION, HeaderValue::from_static("close"))], ..Extra::default() })
}

/// Answers a request that went nowhere.
pub(super) fn answer(refusal: Refusal, mut record: RequestRecord) -> Response<ResponseBody> {
    let Extra { status, headers, body } = record.extra.take().map(|extra| *extra).unwrap_or_default();
    let mut response = plain(refusal, record, status, body);
    let grpc = response.headers().contains_key(GRPC_STATUS);
    // What gRPC's clients go by stays.
    let fits = |name: &HeaderName| !grpc || ![CONTENT_TYPE, GRPC_STATUS, GRPC_MESSAGE].contains(name);
    let headers: Vec<_> = headers.into_iter().filter(|(name, _)| fits(name)).collect();
    for (name, _) in &headers {
        response.headers_mut().remove(name);
    }
    for (name, value) in headers {
        response.headers_mut().append(name, value);
    }
    response
}

fn plain(
    refusal: Refusal,
    mut record: RequestRecord,
    given: Option<StatusCode>,
    body: Option<Bytes>,
) -> Response<ResponseBody> {
    let status = given.unwrap_or_else(|| status(refusal.reason));
    // The reason says what is wrong without telling a stranger where things are; the log says more.
    let (reason, text) = (refusal.reason, refusal.reason.as_str());
    record.code = status;
    record.outcome = Some(refusal);
    if let (Reason::FaultInjected, Some(status)) = (reason, record.grpc_status) {
        return of_grpc(status, "fault filter abort", record);
    }
    if !record.grpc {
        let body = body.unwrap_or_else(|| format!("{text}\n").into());
        let mut response = Response::new(ResponseBody::own(body, record));
        *response.status_mut() = status;
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, plain);
        if given.is_none() && status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, INVALID_TOKEN);
        }
        return response;
    }
    let grpc = match reason {
        // As GRPCRoute has it.
        Reason::InvalidRoute => UNAVAILABLE,
        // What is unavailable is tried again at once.
        Reason::RateLimited | Reason::BodyTooLarge | Reason::HeaderLimit => RESOURCE_EXHAUSTED,
        // Its own deadline is another status than the rule's.
        Reason::RequestTimeout => record.grpc_status.unwrap_or_else(|| grpc_status(status)),
        _ => grpc_status(status),
    };
    of_grpc(grpc, text, record)
}

/// An answer of the rule's own.
pub(super) fn own(response: Response<Vec<u8>>, mut record: RequestRecord) -> Response<ResponseBody> {
    record.code = response.status();
    record.outcome = None;
    response.map(|body| ResponseBody::own(body, record))
}

fn of_grpc(grpc: u8, text: &'static str, mut record: RequestRecord) -> Response<ResponseBody> {
    record.code = StatusCode::OK;
    record.grpc_status = Some(grpc);
    let mut response = Response::new(ResponseBody::own("", record));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(grpc)));
    headers.insert(GRPC_MESSAGE, HeaderValue::from_static(text));
    response
}

/// As Envoy has it.
fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::BadRequest => StatusCode::BAD_REQUEST,
        Reason::PolicyDenied | Reason::AuthorizerUnavailable => StatusCode::FORBIDDEN,
        Reason::InvalidToken | Reason::TokenKeysUnavailable => StatusCode::UNAUTHORIZED,
        Reason::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Reason::HeaderLimit => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Reason::HeaderTimeout => StatusCode::REQUEST_TIMEOUT,
        Reason::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Reason::NoRoute => StatusCode::NOT_FOUND,
        Reason::Misdirected => StatusCode::MISDIRECTED_REQUEST,
        Reason::RequestTimeout | Reason::IdleTimeout => StatusCode::GATEWAY_TIMEOUT,
        Reason::InvalidRoute => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// gRPC's own mapping (doc/http-grpc-status-mapping.md of gRPC).
pub(super) fn grpc_status(status: StatusCode) -> u8 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}
