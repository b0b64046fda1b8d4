//! What is told of requests and connections: `telemetry.istio.io` Telemetry.

use super::Labels;
use super::expression::Expression;
use super::routing::Percent;
use super::security::Target;
use crate::name::NamespacedName;

/// A Telemetry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Telemetry {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `metadata.creationTimestamp`: of several for the same the oldest counts.
    pub created: Option<i64>,
    /// `spec.selector`
    pub selector: Labels,
    /// `spec.targetRefs`
    pub targets: Vec<Target>,
    /// `spec.metrics`, each of the `overrides` in its turn: later ones count.
    pub metrics: Vec<MetricOverride>,
    /// `spec.tracing`
    pub tracing: Tracing,
    /// `spec.accessLogging`; `None` where nothing is said.
    pub logging: Option<AccessLogging>,
    /// What is written and not understood.
    pub unread: Vec<String>,
}

/// A metric of Istio's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// `REQUEST_COUNT`
    Requests,
    /// `REQUEST_DURATION`
    Duration,
    /// `REQUEST_SIZE`
    RequestSize,
    /// `RESPONSE_SIZE`
    ResponseSize,
    /// `GRPC_REQUEST_MESSAGES`
    RequestMessages,
    /// `GRPC_RESPONSE_MESSAGES`
    ResponseMessages,
    /// `TCP_OPENED_CONNECTIONS`
    Opened,
    /// `TCP_CLOSED_CONNECTIONS`
    Closed,
    /// `TCP_SENT_BYTES`
    Sent,
    /// `TCP_RECEIVED_BYTES`
    Received,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Requests,
        Self::Duration,
        Self::RequestSize,
        Self::ResponseSize,
        Self::RequestMessages,
        Self::ResponseMessages,
        Self::Opened,
        Self::Closed,
        Self::Sent,
        Self::Received,
    ];
}

/// An entry of `overrides`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricOverride {
    /// `match.metric`; `None` is all.
    pub metric: Option<Metric>,
    /// `disabled`
    pub disabled: Option<bool>,
    /// `tagOverrides`, by the tag's name.
    pub tags: Vec<(String, TagOverride)>,
}

/// What becomes of a tag of a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagOverride {
    /// `REMOVE`
    Remove,
    /// `UPSERT`
    Set(Expression),
}

/// `spec.tracing`; what is `None` is as elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tracing {
    /// `randomSamplingPercentage`
    pub sampling: Option<Percent>,
    /// `disableSpanReporting`
    pub disabled: Option<bool>,
    /// `customTags`
    pub tags: Option<Vec<(String, SpanTag)>>,
}

/// What a span is tagged with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpanTag {
    /// `literal`
    Literal(String),
    /// `header` of the request, in lower case; without a default there is no tag where that is not there.
    Header {
        /// `name`
        name: String,
        /// `defaultValue`
        default: Option<String>,
    },
}

/// `spec.accessLogging`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessLogging {
    /// `disabled`
    pub disabled: bool,
    /// `filter.expression`: only what it holds for is logged.
    pub filter: Option<Expression>,
}
