use std::collections::BTreeMap;

use orlop_model::world::routing::Percent;
use orlop_model::world::security::Target;
use orlop_model::world::{
    AccessLogging, Expression, Metric, MetricOverride, SpanTag, TagOverride, Telemetry, Tracing,
};
use serde::Deserialize;

use crate::field::{FieldError, FieldPath, Ignored, NotNull};
use crate::metadata::namespaced;
use crate::read::Metadata;
use crate::selector::{self, Selector};
use crate::target::{TargetObject, targets};
use crate::virtual_service::header_name;

/// The name of the provider of metrics that there is; Istio's own.
const PROMETHEUS: &str = "prometheus";
/// The same of the access log.
const ENVOY: &str = "envoy";
/// Tags of metrics, or of spans, in all of an object: each is kept for each target and found out for each request.
const MAX_TAGS: usize = 32;
/// Overrides of metrics in all of an object.
const MAX_OVERRIDES: usize = 64;
const MAX_TARGETS: usize = 16;
/// How often expressions in an object may test by a regular expression, each of which may become half a megabyte.
const MAX_TESTS: usize = 8;
/// Of a text that is told with each span, in bytes.
const MAX_TEXT: usize = 256;

/// A `telemetry.istio.io` Telemetry as it is written.
#[derive(Debug, Deserialize)]
pub(crate) struct Object {
    metadata: Metadata,
    #[serde(default)]
    spec: SpecObject,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct SpecObject {
    /// Pods that this is for. Waypoints go by targetRefs instead.
    selector: NotNull<Selector>,
    /// What this is for, if it is one thing; see targetRefs.
    target_ref: NotNull<TargetObject>,
    /// The Services, ServiceEntries, Gateways or GatewayClass whose requests this is for. Without any all of the
    /// waypoints of the namespace, or of the mesh in the root namespace.
    target_refs: NotNull<Vec<TargetObject>>,
    /// Which spans there are, and what they say.
    tracing: Vec<TracingObject>,
    /// Which metrics there are, and what they are told apart by.
    metrics: Vec<MetricsObject>,
    /// What is written to the access log.
    access_logging: Vec<LoggingObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct TracingObject {
    /// Whose spans: waypoints have those of servers.
    #[serde(rename = "match")]
    matches: ModeObject,
    /// Whatever they are called, they are the collector that waypoints know.
    providers: Vec<ProviderObject>,
    /// Of the requests that begin a trace, so many percent are traced.
    random_sampling_percentage: Option<f64>,
    /// Whether there are no spans.
    disable_span_reporting: Option<bool>,
    /// What spans are tagged with, by name.
    custom_tags: Option<BTreeMap<String, SpanTagObject>>,
    /// Has no effect.
    use_request_id_for_trace_sampling: Option<Ignored>,
    /// Has no effect.
    enable_istio_tags: Option<Ignored>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SpanTagObject {
    /// A text.
    literal: Option<LiteralObject>,
    /// A header of the request.
    header: Option<HeaderObject>,
    /// Has no effect.
    environment: Option<Ignored>,
    /// Has no effect.
    formatter: Option<Ignored>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct LiteralObject {
    /// The text.
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct HeaderObject {
    /// Its name.
    name: String,
    /// Where there is no such header.
    default_value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct MetricsObject {
    /// Only prometheus is known; without any it is meant as well.
    providers: Vec<ProviderObject>,
    /// What is otherwise than Istio has it, one after the other.
    overrides: Vec<OverrideObject>,
    /// Has no effect.
    reporting_interval: Option<Ignored>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct OverrideObject {
    /// Which metrics: all if left out.
    #[serde(rename = "match")]
    matches: MetricMatchObject,
    /// Whether there are none.
    disabled: Option<bool>,
    /// What they are told apart by, by the tag's name.
    tag_overrides: BTreeMap<String, TagObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct MetricMatchObject {
    /// ALL_METRICS (if left out), REQUEST_COUNT, REQUEST_DURATION, REQUEST_SIZE, RESPONSE_SIZE,
    /// TCP_OPENED_CONNECTIONS, TCP_CLOSED_CONNECTIONS, TCP_SENT_BYTES, TCP_RECEIVED_BYTES, GRPC_REQUEST_MESSAGES or
    /// GRPC_RESPONSE_MESSAGES.
    metric: Option<String>,
    /// Has no effect.
    custom_metric: Option<Ignored>,
    /// CLIENT_AND_SERVER (if left out), SERVER or CLIENT. Waypoints are servers.
    mode: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct TagObject {
    /// UPSERT (if left out) or REMOVE.
    operation: Option<String>,
    /// What it is, in CEL: attributes of requests, literals, comparisons, tests of texts.
    value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct LoggingObject {
    /// Whose: waypoints are servers.
    #[serde(rename = "match")]
    matches: ModeObject,
    /// Whatever they are called, they are the access log that there is.
    providers: Vec<ProviderObject>,
    /// Whether nothing is written.
    disabled: Option<bool>,
    /// What is written.
    filter: Option<FilterObject>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct FilterObject {
    /// Only that for which this is true, in CEL.
    expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct ModeObject {
    /// CLIENT_AND_SERVER (if left out), SERVER or CLIENT.
    mode: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct ProviderObject {
    /// What it is called.
    name: String,
}

/// What is written and not understood, each once.
#[derive(Default)]
struct Unread(Vec<String>);

impl Unread {
    fn note(&mut self, what: impl Into<String>) {
        let what = what.into();
        if !self.0.contains(&what) {
            self.0.push(what);
        }
    }

    fn note_if(&mut self, there: bool, what: &str) {
        if there {
            self.note(what);
        }
    }
}

/// Converts a Telemetry.
pub(crate) fn convert(object: Object) -> Result<Telemetry, FieldError> {
    let name = namespaced(&object.metadata)?;
    let spec = object.spec;
    is_small(&spec)?;
    let targets: Vec<Target> = targets(spec.target_refs, spec.target_ref, &name.namespace)?;
    at_most(targets.len(), MAX_TARGETS, || "spec.targetRefs".into())?;
    if !targets.is_empty() && spec.selector.0.is_some() {
        return Err(FieldError::new("spec.selector", "can't be together with targetRefs; keep one of them"));
    }
    let mut unread = Unread::default();
    let mut metrics = Vec::new();
    for (index, of) in spec.metrics.into_iter().enumerate() {
        overrides(of, &FieldPath::from("spec.metrics").index(index), &mut unread, &mut metrics)?;
    }
    let mut tracing = Tracing::default();
    for (index, of) in spec.tracing.into_iter().enumerate() {
        self::tracing(of, &FieldPath::from("spec.tracing").index(index), &mut unread, &mut tracing)?;
    }
    let mut logging = None;
    for (index, of) in spec.access_logging.into_iter().enumerate() {
        let path = FieldPath::from("spec.accessLogging").index(index);
        if is_for_servers(of.matches.mode.as_deref(), || path.clone().key("match").key("mode"))? {
            // What can't be read leaves what is wider as it is.
            logging = self::logging(of, &path, &mut unread).or(logging);
        }
    }
    Ok(Telemetry {
        created: object.metadata.creation_timestamp.map(|time| time.0.as_second()),
        selector: selector::convert(spec.selector.0)?,
        targets,
        metrics,
        tracing,
        logging,
        unread: unread.0,
        name,
    })
}

/// Before anything is made of it.
fn is_small(spec: &SpecObject) -> Result<(), FieldError> {
    let all = || spec.metrics.iter().flat_map(|metrics| &metrics.overrides);
    at_most(all().count(), MAX_OVERRIDES, || "spec.metrics".into())?;
    let tags = || all().flat_map(|of| &of.tag_overrides);
    at_most(tags().count(), MAX_TAGS, || "spec.metrics".into())?;
    let of_spans = spec.tracing.iter().filter_map(|of| of.custom_tags.as_ref());
    at_most(of_spans.map(BTreeMap::len).sum(), MAX_TAGS, || "spec.tracing".into())?;
    let filters = spec.access_logging.iter().filter_map(|of| of.filter.as_ref()).map(|of| &of.expression);
    let expressions = tags().filter_map(|(_, tag)| tag.value.as_ref()).chain(filters);
    let tests = expressions.map(|text| text.matches("matches").count()).sum();
    at_most(tests, MAX_TESTS, || "spec".into())
}

/// Whether it is for waypoints, which stand for the server.
fn is_for_servers(mode: Option<&str>, path: impl FnOnce() -> FieldPath) -> Result<bool, FieldError> {
    match mode {
        None | Some("CLIENT_AND_SERVER" | "SERVER") => Ok(true),
        Some("CLIENT") => Ok(false),
        Some(other) => {
            let problem = format!("{other:?} is not CLIENT_AND_SERVER, CLIENT or SERVER");
            Err(FieldError::new(path(), problem))
        }
    }
}

fn overrides(
    of: MetricsObject,
    path: &FieldPath,
    unread: &mut Unread,
    found: &mut Vec<MetricOverride>,
) -> Result<(), FieldError> {
    unread.note_if(of.reporting_interval.is_some(), "metrics.reportingInterval");
    if !of.providers.is_empty() && !of.providers.iter().any(|provider| provider.name == PROMETHEUS) {
        unread.note("metrics.providers other than prometheus");
        return Ok(());
    }
    for (index, of) in of.overrides.into_iter().enumerate() {
        let path = path.clone().key("overrides").index(index);
        let at_match = || path.clone().key("match");
        if !is_for_servers(of.matches.mode.as_deref(), || at_match().key("mode"))? {
            continue;
        }
        if of.matches.custom_metric.is_some() {
            unread.note("metrics.overrides.match.customMetric");
            continue;
        }
        let metric = match of.matches.metric.as_deref() {
            None | Some("ALL_METRICS") => None,
            Some("REQUEST_COUNT") => Some(Metric::Requests),
            Some("REQUEST_DURATION") => Some(Metric::Duration),
            Some("REQUEST_SIZE") => Some(Metric::RequestSize),
            Some("RESPONSE_SIZE") => Some(Metric::ResponseSize),
            Some("TCP_OPENED_CONNECTIONS") => Some(Metric::Opened),
            Some("TCP_CLOSED_CONNECTIONS") => Some(Metric::Closed),
            Some("TCP_SENT_BYTES") => Some(Metric::Sent),
            Some("TCP_RECEIVED_BYTES") => Some(Metric::Received),
            Some("GRPC_REQUEST_MESSAGES") => Some(Metric::RequestMessages),
            Some("GRPC_RESPONSE_MESSAGES") => Some(Metric::ResponseMessages),
            Some(other) => {
                let problem = format!("{other:?} is no metric");
                return Err(FieldError::new(at_match().key("metric"), problem));
            }
        };
        let mut tags = Vec::new();
        for (name, tag) in of.tag_overrides {
            let path = path.clone().key("tagOverrides").key(&name);
            if !is_label(&name) {
                return Err(FieldError::new(path, "is no name of a label in Prometheus"));
            }
            tags.extend(self::tag(tag, &path, unread)?.map(|tag| (name, tag)));
        }
        found.push(MetricOverride { metric, disabled: of.disabled, tags });
    }
    Ok(())
}

fn tag(of: TagObject, path: &FieldPath, unread: &mut Unread) -> Result<Option<TagOverride>, FieldError> {
    match (of.operation.as_deref(), of.value) {
        (Some("REMOVE"), _) => Ok(Some(TagOverride::Remove)),
        (None | Some("UPSERT"), Some(text)) => {
            Ok(expression(&text, &path.clone().key("value"), unread).map(TagOverride::Set))
        }
        (None | Some("UPSERT"), None) => {
            Err(FieldError::new(path.clone().key("value"), "is missing; UPSERT wants one"))
        }
        (Some(other), _) => {
            let problem = format!("{other:?} is not UPSERT or REMOVE");
            Err(FieldError::new(path.clone().key("operation"), problem))
        }
    }
}

fn tracing(
    of: TracingObject,
    path: &FieldPath,
    unread: &mut Unread,
    found: &mut Tracing,
) -> Result<(), FieldError> {
    unread.note_if(of.use_request_id_for_trace_sampling.is_some(), "tracing.useRequestIdForTraceSampling");
    unread.note_if(of.enable_istio_tags.is_some(), "tracing.enableIstioTags");
    if !is_for_servers(of.matches.mode.as_deref(), || path.clone().key("match").key("mode"))? {
        return Ok(());
    }
    unread.note_if(!of.providers.is_empty(), "tracing.providers");
    if let Some(percent) = of.random_sampling_percentage {
        if !(0.0..=100.0).contains(&percent) {
            let problem = format!("{percent} is not from 0 to 100");
            return Err(FieldError::new(path.clone().key("randomSamplingPercentage"), problem));
        }
        found.sampling = Some(Percent((percent * 10_000.0).round() as u32));
    }
    found.disabled = of.disable_span_reporting.or(found.disabled);
    let Some(written) = of.custom_tags else { return Ok(()) };
    let mut tags = Vec::new();
    for (name, tag) in written {
        let path = path.clone().key("customTags").key(&name);
        let texts = [
            tag.literal.as_ref().map(|of| &of.value),
            tag.header.as_ref().and_then(|of| of.default_value.as_ref()),
        ];
        if texts.into_iter().flatten().chain([&name]).any(|text| text.len() > MAX_TEXT) {
            return Err(FieldError::new(
                path,
                format!("is longer than {MAX_TEXT} bytes, and told with each span"),
            ));
        }
        let tag = match (tag.literal, tag.header) {
            (Some(literal), _) => SpanTag::Literal(literal.value),
            (None, Some(header)) => {
                let name = header_name(&header.name, || path.key("header").key("name"))?;
                SpanTag::Header { name, default: header.default_value }
            }
            (None, None) => {
                unread.note_if(tag.environment.is_some(), "tracing.customTags.environment");
                unread.note_if(tag.formatter.is_some(), "tracing.customTags.formatter");
                if tag.environment.is_none() && tag.formatter.is_none() {
                    return Err(FieldError::new(path, "says nothing; give it a literal or a header"));
                }
                continue;
            }
        };
        tags.push((name, tag));
    }
    found.tags = Some(tags);
    Ok(())
}

/// `None` where it can't be read whole.
fn logging(of: LoggingObject, path: &FieldPath, unread: &mut Unread) -> Option<AccessLogging> {
    let other = of.providers.iter().any(|provider| provider.name != ENVOY);
    unread.note_if(other, "accessLogging.providers other than envoy");
    let disabled = of.disabled.unwrap_or_default();
    let Some(filter) = of.filter else { return Some(AccessLogging { disabled, filter: None }) };
    let path = path.clone().key("filter").key("expression");
    let found = expression(&filter.expression, &path, unread)?;
    if !found.is_condition() {
        unread.note(format!("{path}: it is neither true nor false, so that it"));
        return None;
    }
    Some(AccessLogging { disabled, filter: Some(found) })
}

/// What can't be understood has no effect, as if it were not there.
fn expression(text: &str, path: &FieldPath, unread: &mut Unread) -> Option<Expression> {
    match text.parse() {
        Ok(expression) => Some(expression),
        Err(error) => {
            unread.note(format!("{path}, which {error}, and so"));
            None
        }
    }
}

fn at_most(count: usize, most: usize, path: impl FnOnce() -> FieldPath) -> Result<(), FieldError> {
    if count > most {
        let what = "of what becomes many (tags, overrides, targets or regular expressions)";
        return Err(FieldError::new(path(), format!("has {count} {what}; there may be {most}")));
    }
    Ok(())
}

fn is_label(name: &str) -> bool {
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && !name.starts_with("__");
    // Histograms have it themselves.
    begins && name != "le" && name.len() <= 128 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn converted(spec: Value) -> Result<Telemetry, FieldError> {
        let object = json!({"metadata": {"name": "t", "namespace": "shop"}, "spec": spec});
        convert(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn everything_that_is_understood_is_carried_over() {
        let of = converted(json!({
            "targetRefs": [{"kind": "Service", "group": "", "name": "web"}],
            "metrics": [{"providers": [{"name": "prometheus"}], "overrides": [
                {"match": {"metric": "REQUEST_SIZE", "mode": "SERVER"}, "disabled": true},
                {"match": {"mode": "CLIENT"}, "disabled": true},
                {"tagOverrides": {
                    "path": {"value": "request.url_path"},
                    "source_version": {"operation": "REMOVE"},
                }},
            ]}],
            "tracing": [{"randomSamplingPercentage": 12.5, "disableSpanReporting": false, "customTags": {
                "place": {"literal": {"value": "here"}},
                "user": {"header": {"name": "X-User", "defaultValue": "nobody"}},
            }}],
            "accessLogging": [
                {"providers": [{"name": "envoy"}], "filter": {"expression": "response.code >= 400"}},
            ],
        }))
        .unwrap();
        assert_eq!(of.unread, Vec::<String>::new());
        assert_eq!(of.targets, [Target::Service("web".into())]);
        let path = TagOverride::Set("request.url_path".parse().unwrap());
        let tags = vec![("path".to_owned(), path), ("source_version".to_owned(), TagOverride::Remove)];
        assert_eq!(
            of.metrics,
            [
                MetricOverride { metric: Some(Metric::RequestSize), disabled: Some(true), tags: Vec::new() },
                MetricOverride { metric: None, disabled: None, tags },
            ]
        );
        assert_eq!((of.tracing.sampling, of.tracing.disabled), (Some(Percent(125_000)), Some(false)));
        let user = SpanTag::Header { name: "x-user".into(), default: Some("nobody".into()) };
        let tags = [("place".to_owned(), SpanTag::Literal("here".into())), ("user".to_owned(), user)];
        assert_eq!(of.tracing.tags.unwrap(), tags);
        assert_eq!(of.logging.unwrap().filter.unwrap().text(), "response.code >= 400");
    }

    #[test]
    fn what_is_not_understood_is_noted_and_has_no_effect() {
        let of = converted(json!({
            "metrics": [
                {"providers": [{"name": "stackdriver"}], "overrides": [{"disabled": true}]},
                {"overrides": [{"tagOverrides": {"a": {"value": "filter_state['x']"}}}]},
            ],
            "tracing": [
                {"enableIstioTags": false, "customTags": {"a": {"environment": {"name": "A"}}}},
                {"providers": [{"name": "otel"}], "randomSamplingPercentage": 5},
            ],
            "accessLogging": [{"providers": [{"name": "otel"}], "filter": {"expression": "response.code"}}],
        }))
        .unwrap();
        assert_eq!(of.unread.len(), 7, "{:?}", of.unread);
        for providers in ["tracing.providers", "accessLogging.providers other than envoy"] {
            assert!(of.unread.iter().any(|unread| unread == providers), "{:?}", of.unread);
        }
        assert_eq!(of.tracing.sampling, Some(Percent(50_000)), "it is for the collector that there is");
        assert!(of.metrics.iter().all(|of| of.tags.is_empty() && of.disabled.is_none()));
        assert_eq!(of.logging, None, "what is wider stays");
    }

    #[test]
    fn mistakes_are_told_with_their_field() {
        let many: BTreeMap<_, _> =
            (0..=MAX_TAGS).map(|n| (format!("t{n}"), json!({"value": "'x'"}))).collect();
        let test = json!({"filter": {"expression": "request.path.matches('a')"}});
        let tags = |tags: Value| json!({"metrics": [{"overrides": [{"tagOverrides": tags}]}]});
        for (spec, path) in [
            (tags(json!(many)), "spec.metrics"),
            (
                json!({"metrics": [{"overrides": vec![json!({"disabled": true}); MAX_OVERRIDES + 1]}]}),
                "spec.metrics",
            ),
            (json!({"accessLogging": vec![test; MAX_TESTS + 1]}), "spec"),
            (
                json!({"tracing": [{"customTags": {"a": {"literal": {"value": "x".repeat(MAX_TEXT + 1)}}}}]}),
                "spec.tracing[0].customTags.a",
            ),
            (tags(json!({"le": {"value": "'x'"}})), "spec.metrics[0].overrides[0].tagOverrides.le"),
            (tags(json!({"a": {}})), "spec.metrics[0].overrides[0].tagOverrides.a.value"),
            (
                json!({"tracing": [{"randomSamplingPercentage": 101}]}),
                "spec.tracing[0].randomSamplingPercentage",
            ),
            (json!({"accessLogging": [{"match": {"mode": "ALL"}}]}), "spec.accessLogging[0].match.mode"),
            (json!({"targetRefs": []}), "spec.targetRefs"),
        ] {
            assert_eq!(converted(spec).unwrap_err().path.to_string(), path);
        }
    }
}
