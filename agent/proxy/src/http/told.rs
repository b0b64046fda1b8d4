//! What Telemetries want told of requests.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::HeaderMap;
use opentelemetry::KeyValue;
use orlop_model::{
    http::Told,
    world::{Attribute, Attributes, Metric, SpanTag, TagOverride, Value},
};

use super::{tokens::TokenPlaces, trace::shortened};

/// The metrics of requests, in the order in which their tags are.
pub(super) const METRICS: [Metric; 4] =
    [Metric::Requests, Metric::Duration, Metric::RequestSize, Metric::ResponseSize];
/// Those that gRPC has besides, whose tags come after.
pub(super) const OF_MESSAGES: [Metric; 2] = [Metric::RequestMessages, Metric::ResponseMessages];
/// How much of a text a metric is told apart by.
const MAX_TAG: usize = 64;
/// How much of a text an expression sees, in bytes: what it costs to ask it is a client's to choose otherwise.
const MAX_SEEN: usize = 1024;
/// What a tag is that depends on what is not there.
pub(crate) const UNKNOWN: &str = "unknown";

/// What is to be told of one request, and what of it that depends on.
pub(super) struct Telling {
    pub(super) told: Arc<Told>,
    /// Of each header that is asked for what the request has, but for tokens.
    headers: Vec<Option<String>>,
}

impl Telling {
    pub(super) fn new(told: &Arc<Told>, headers: &HeaderMap, tokens: &TokenPlaces) -> Self {
        let value = |name: &String| {
            let value = headers.get(name).filter(|_| !tokens.has_header(name))?;
            Some(shortened(value.to_str().ok()?))
        };
        Self { told: Arc::clone(told), headers: told.headers.iter().map(value).collect() }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let at = self.told.headers.iter().position(|known| known == name)?;
        self.headers.get(at)?.as_deref()
    }

    /// What its span is tagged with.
    pub(super) fn span_tags(&self) -> impl Iterator<Item = KeyValue> {
        self.told.span_tags.iter().filter_map(|(name, tag)| {
            let value = match tag {
                SpanTag::Literal(text) => text.clone(),
                SpanTag::Header { name, default } => self.header(name).or(default.as_deref())?.to_owned(),
            };
            Some(KeyValue::new(name.clone(), value))
        })
    }
}

/// The values of the tags that these metrics have by Telemetries, one after the other.
pub(crate) fn tags(told: &Told, metrics: &[Metric], of: &dyn Attributes) -> Vec<String> {
    let all = metrics.iter().filter_map(|metric| told.metric(*metric)).flat_map(|metric| &metric.tags);
    let set = all.filter_map(|(_, tag)| match tag {
        TagOverride::Set(expression) => Some(expression),
        TagOverride::Remove => None,
    });
    set.map(|expression| {
        let mut text = expression.text_of(of).unwrap_or_else(|| UNKNOWN.to_owned());
        text.truncate(text.floor_char_boundary(MAX_TAG));
        text
    })
    .collect()
}

/// A request that has ended.
pub(super) struct Ended<'a> {
    pub(super) telling: &'a Telling,
    pub(super) method: &'a str,
    pub(super) uri: &'a http::Uri,
    pub(super) tokens: &'a TokenPlaces,
    pub(super) host: Option<&'a str>,
    pub(super) scheme: &'static str,
    pub(super) protocol: &'static str,
    pub(super) code: u16,
    pub(super) grpc_status: Option<u8>,
    pub(super) reason: Option<&'static str>,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) duration: Duration,
    pub(super) client: SocketAddr,
    pub(super) principal: Option<&'a str>,
    pub(super) upstream: Option<SocketAddr>,
    /// `None` where it was a name.
    pub(super) dialled: Option<SocketAddr>,
    pub(super) port: u16,
}

impl Attributes for Ended<'_> {
    fn get(&self, attribute: &Attribute) -> Option<Value<'_>> {
        let text =
            |text: &'_ str| Some(Value::Text(text[..text.floor_char_boundary(MAX_SEEN)].to_owned().into()));
        let number = |number: u64| Some(Value::Number(i64::try_from(number).unwrap_or(i64::MAX)));
        match attribute {
            Attribute::Method => text(self.method),
            Attribute::Path => text(&self.tokens.path(self.uri)),
            Attribute::UrlPath => text(self.uri.path()),
            Attribute::Query => text(&self.tokens.query(self.uri).unwrap_or_default()),
            Attribute::Host => text(self.host?),
            Attribute::Scheme => text(self.scheme),
            Attribute::Protocol => text(self.protocol),
            Attribute::Header(name) => text(self.telling.header(name)?),
            Attribute::RequestSize => number(self.received),
            Attribute::Duration => Some(Value::Time(self.duration)),
            Attribute::Code => number(self.code.into()),
            Attribute::GrpcStatus => number(self.grpc_status?.into()),
            Attribute::Details => text(self.reason?),
            Attribute::ResponseSize => number(self.sent),
            Attribute::Source => text(&self.client.to_string()),
            Attribute::SourcePort => number(self.client.port().into()),
            Attribute::Destination => text(&self.dialled?.to_string()),
            Attribute::Upstream => text(&self.upstream?.to_string()),
            Attribute::DestinationPort => number(self.port.into()),
            Attribute::Mtls => Some(Value::Flag(self.principal.is_some())),
            Attribute::Principal => text(self.principal?),
            Attribute::Sni => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use orlop_model::world::TokenLocation;

    use super::*;

    #[test]
    fn no_tag_is_a_token_and_all_else_is_what_it_was() {
        let tag = |name: &str| {
            let header = SpanTag::Header { name: name.to_owned(), default: None };
            (name.to_owned(), header)
        };
        let names = ["authorization", "cookie", "x-token", "x-user"];
        let mut told = Told::default();
        told.span_tags = names.map(tag).to_vec();
        told.headers = names.map(str::to_owned).to_vec();
        let headers = names.map(|name| (name.parse().unwrap(), "value".parse().unwrap()));
        let tokens = TokenPlaces::from(vec![
            TokenLocation::Header { name: "Authorization".into(), prefix: "Bearer ".into() },
            TokenLocation::Header { name: "x-token".into(), prefix: String::new() },
            TokenLocation::Cookie("session".into()),
            TokenLocation::Parameter("token".into()),
        ]);
        let telling = Telling::new(&Arc::new(told), &headers.into_iter().collect(), &tokens);
        let tags: Vec<_> = telling.span_tags().map(|tag| tag.key.to_string()).collect();
        assert_eq!(tags, ["x-user"]);
        let seen = |uri: &str, attribute: Attribute| {
            let ended = Ended {
                telling: &telling,
                method: "GET",
                uri: &uri.parse().unwrap(),
                tokens: &tokens,
                host: None,
                scheme: "https",
                protocol: "HTTP/1.0",
                code: 200,
                grpc_status: None,
                reason: None,
                received: 0,
                sent: 0,
                duration: Duration::ZERO,
                client: ([127, 0, 0, 1], 1).into(),
                principal: None,
                upstream: Some(([127, 0, 0, 2], 8080).into()),
                dialled: Some(([127, 0, 0, 3], 80).into()),
                port: 80,
            };
            match ended.get(&attribute) {
                Some(Value::Text(text)) => text.into_owned(),
                _ => UNKNOWN.to_owned(),
            }
        };
        assert_eq!(seen("/a?x=1&token=secret&y=2", Attribute::Path), "/a?x=1&y=2");
        assert_eq!(seen("/a?x=1&to%6ben=secret", Attribute::Query), "x=1");
        assert_eq!(seen("/a?token=secret", Attribute::Path), "/a");
        assert_eq!(seen("/a?token=secret", Attribute::Query), "");
        assert_eq!(seen("/a?x=1", Attribute::Header("cookie".to_owned())), UNKNOWN);
        assert_eq!(seen("/a?x=1", Attribute::Header("x-user".to_owned())), "value");
        for (attribute, wanted) in [
            (Attribute::Scheme, "https"),
            (Attribute::Protocol, "HTTP/1.0"),
            (Attribute::Destination, "127.0.0.3:80"),
            (Attribute::Upstream, "127.0.0.2:8080"),
            (Attribute::Source, "127.0.0.1:1"),
        ] {
            assert_eq!(seen("/", attribute), wanted);
        }
    }
}
