//! Requests in the access log, where it has a format of its own.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, uri::Authority};
use orlop_model::world::header_text::HeaderOperator;

use super::RequestRecord;
use crate::{
    hbone::CLIENT_CERT,
    http::{flags::Flag, grpc, tokens::TokenPlaces, trace::shortened},
    log_format::{Ended, HOSTNAME, Operator, Said, Value},
};

/// What a line may tell of headers.
#[derive(Default)]
pub(super) struct LoggedHeaders(Vec<(HeaderName, String)>);

impl LoggedHeaders {
    /// Those of these names, but for what says who asks: a client may have written it, or a token is in it.
    pub(super) fn of<'a>(
        names: impl Iterator<Item = &'a HeaderName>,
        headers: &HeaderMap,
        tokens: &TokenPlaces,
    ) -> Self {
        let names = names.filter(|name| *name != CLIENT_CERT && !tokens.has_header(name.as_str()));
        let value = |name: &HeaderName| Some((name.clone(), shortened(headers.get(name)?.to_str().ok()?)));
        Self(names.filter_map(value).collect())
    }

    fn get(&self, name: &HeaderName) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A request that has taken this long.
pub(super) struct Line<'a>(pub(super) &'a RequestRecord, pub(super) Duration);

/// What a header tells of a request.
pub(super) fn told(record: &RequestRecord, operator: &HeaderOperator) -> Option<Vec<u8>> {
    let operator = match operator {
        HeaderOperator::StartTime => Operator::StartTime,
        HeaderOperator::Protocol => Operator::Protocol,
        HeaderOperator::RouteName => Operator::RouteName,
        HeaderOperator::UpstreamHost => Operator::UpstreamHost,
        HeaderOperator::DownstreamLocalAddress => Operator::DownstreamLocalAddress,
        HeaderOperator::DownstreamRemoteAddress => Operator::DownstreamRemoteAddress,
        HeaderOperator::DownstreamRemoteIp => Operator::DownstreamRemoteIp,
        HeaderOperator::DownstreamPeer => Operator::DownstreamPeer,
        HeaderOperator::Hostname => Operator::Hostname,
        HeaderOperator::Request(name, other, most) => {
            let said = asked(record, name).or_else(|| asked(record, other.as_ref()?))?;
            return Some(said[..said.len().min(most.unwrap_or(usize::MAX))].to_vec());
        }
    };
    match Line(record, record.age()).value(&operator)? {
        Value::Text(text) => Some(text.into_owned().into_bytes()),
        Value::Number(number) => Some(number.to_string().into_bytes()),
    }
}

/// A header as it was before rules changed it, or a part of the request that is named like one.
fn asked<'a>(record: &'a RequestRecord, name: &str) -> Option<&'a [u8]> {
    let before = record.before.as_ref()?;
    Some(match name {
        ":method" => record.method.as_str().as_bytes(),
        ":scheme" => record.session.scheme.as_bytes(),
        ":path" => before.destined.path.as_str().as_bytes(),
        ":authority" | "host" => before.destined.authority.as_str().as_bytes(),
        name => before.headers.get(name)?.as_bytes(),
    })
}

impl Line<'_> {
    fn said(&self, said: &Said) -> Option<Value<'_>> {
        let Self(record, _) = self;
        let text = match said {
            Said::Method => record.method.as_str(),
            Said::Path => return Some(Value::Text(shortened(&record.tokens.path(&record.path)).into())),
            Said::Authority => record.authority.as_ref().map(Authority::as_str)?,
            Said::Scheme => record.session.scheme,
            Said::Header(name) => record.request_headers.get(name)?,
        };
        Some(Value::Text(text.into()))
    }
}

impl Ended for Line<'_> {
    fn value(&self, operator: &Operator) -> Option<Value<'_>> {
        let Self(record, duration) = self;
        let session = &record.session;
        let text = |text: String| Some(Value::Text(text.into()));
        let known = |text: &'static str| Some(Value::Text(text.into()));
        let milliseconds = |time: Duration| Some(Value::Number(time.as_millis() as u64));
        let detail = || record.outcome.as_ref().map(|refusal| refusal.detail.clone());
        match operator {
            Operator::StartTime => {
                text(humantime::format_rfc3339_millis(SystemTime::now() - *duration).to_string())
            }
            Operator::StartTimeAs(format) => text(format.of(SystemTime::now() - *duration)),
            Operator::Duration => milliseconds(*duration),
            Operator::ResponseDuration => milliseconds(record.waited?),
            Operator::Protocol => known(record.protocol()),
            Operator::ResponseCode => Some(Value::Number(record.told_code().into())),
            Operator::ResponseCodeDetails => known(match &record.outcome {
                Some(refusal) => refusal.reason.as_str(),
                None if record.waited.is_some() => "via_upstream",
                None => "direct_response",
            }),
            Operator::ConnectionTerminationDetails => text(detail()?),
            Operator::UpstreamTransportFailureReason => {
                text(detail().filter(|_| record.flags().has(Flag::UpstreamConnectionFailure))?)
            }
            Operator::ResponseFlags => text(record.flags().to_string()),
            Operator::BytesReceived => Some(Value::Number(record.sent.bytes())),
            Operator::BytesSent => Some(Value::Number(record.received.bytes())),
            Operator::GrpcStatus => {
                let status = record.grpc_status?;
                text(grpc::status_name(status).map_or_else(|| status.to_string(), str::to_owned))
            }
            Operator::GrpcStatusNumber => Some(Value::Number(record.grpc_status?.into())),
            Operator::UpstreamHost => text(record.upstream?.to_string()),
            Operator::UpstreamCluster | Operator::UpstreamClusterRaw => {
                text(record.service.as_ref()?.hostname.to_string())
            }
            Operator::UpstreamPeer => text(record.destination_identity.as_ref()?.to_string()),
            Operator::Attempts => Some(Value::Number(record.attempts.into())),
            Operator::DownstreamLocalAddress => text(session.dialled()?.to_string()),
            Operator::DownstreamRemoteAddress => text(session.client.to_string()),
            Operator::DownstreamRemoteIp => text(session.client.ip().to_string()),
            Operator::DownstreamPeer => text(session.identity()?.to_string()),
            Operator::RouteName => {
                let (resource, name) = record.rule.as_ref()?;
                text(if name.is_empty() { resource.to_string() } else { name.clone() })
            }
            Operator::Request(said, other) => self.said(said).or_else(|| self.said(other.as_ref()?)),
            Operator::Response(name, other) => {
                let found = record.answer_headers.get(name);
                let found = found.or_else(|| record.answer_headers.get(other.as_ref()?));
                Some(Value::Text(found?.into()))
            }
            Operator::TraceId => text(record.trace.as_ref()?.id()),
            Operator::Hostname => Some(Value::Text(HOSTNAME.as_deref()?.into())),
            Operator::UpstreamLocalAddress | Operator::RequestedServerName => None,
        }
    }
}
