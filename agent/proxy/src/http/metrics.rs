//! Istio's HTTP metrics, with Istio's label names.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use orlop_model::{Identity, Reason, Service, Workload, http::Told};
use prometheus_client::{
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

use super::{
    flags::Flags,
    told::{METRICS, OF_MESSAGES},
};
use crate::{
    metrics::{Direction, End, Labels, UNKNOWN, labels},
    retold::{Retold, Tagged},
    series::{Admitted, Place},
};

/// Past this, a worker's cache starts again: most of what it holds is then of earlier snapshots.
const MAX_ENTRIES: usize = 4096;
/// The last that gRPC has (doc/statuscodes.md of gRPC); a server may say more.
const MAX_GRPC_STATUS: u8 = 16;
/// Istio's, of milliseconds and of bytes.
const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// The waypoint's metrics of requests.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    requests: Family<Labels, Counter>,
    duration: Histograms,
    sent: Histograms,
    received: Histograms,
    request_messages: Family<Labels, Counter>,
    response_messages: Family<Labels, Counter>,
    folded: Counter,
    pub(super) ejected: Counter,
    pub(super) mirrors_dropped: Counter,
    /// Requests that shared the bucket of a limit's keys past [`super::buckets`]' room.
    pub(super) keys_folded: Counter,
    /// Requests that a limit let pass unasked.
    pub(super) limits_open: Counter,
    /// Of providers, by what came of asking.
    asked: Family<[(&'static str, &'static str); 1], Counter>,
    failed: Family<[(&'static str, &'static str); 1], Counter>,
    admitted: Admitted,
    tagged: Tagged,
}

impl RequestMetrics {
    /// Makes the metrics and enters them into `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let histograms = || Histograms::new_with_constructor(|| Histogram::new(BUCKETS));
        let metrics = Self {
            requests: Family::default(),
            duration: histograms(),
            sent: histograms(),
            received: histograms(),
            request_messages: Family::default(),
            response_messages: Family::default(),
            folded: Counter::default(),
            ejected: Counter::default(),
            mirrors_dropped: Counter::default(),
            keys_folded: Counter::default(),
            limits_open: Counter::default(),
            asked: Family::default(),
            failed: Family::default(),
            admitted: Admitted::default(),
            tagged: Tagged::default(),
        };
        registry.register("istio_requests", "Requests", metrics.requests.clone());
        let help = "From a request's head to its answer's end, in milliseconds";
        registry.register("istio_request_duration_milliseconds", help, metrics.duration.clone());
        registry.register("istio_request_bytes", "Bytes of requests' bodies", metrics.sent.clone());
        registry.register("istio_response_bytes", "Bytes of answers' bodies", metrics.received.clone());
        let help = "Messages of gRPC that clients have sent";
        registry.register("istio_request_messages", help, metrics.request_messages.clone());
        let help = "Messages of gRPC that servers have sent";
        registry.register("istio_response_messages", help, metrics.response_messages.clone());
        let help = "Label sets that were one too many, whose requests count under unknown names";
        registry.register("orlop_request_series_folded", help, metrics.folded.clone());
        registry.register(
            "orlop_endpoints_ejected",
            "Endpoints ejected for their errors",
            metrics.ejected.clone(),
        );
        let help = "Copies of requests that were not sent, since too many were under way";
        registry.register("orlop_mirrors_dropped", help, metrics.mirrors_dropped.clone());
        let help = "Requests whose keys were too many for their limit, which share a bucket";
        registry.register("orlop_rate_limit_keys_folded", help, metrics.keys_folded.clone());
        let help = "Requests that passed since who counts them could not be asked";
        registry.register("orlop_rate_limit_failed_open", help, metrics.limits_open.clone());
        let help = "Requests that a provider was asked about, by what came of that";
        registry.register("orlop_authorizer_checks", help, metrics.asked.clone());
        let help = "Requests that were refused or cut short, by reason";
        registry.register("orlop_requests_failed", help, metrics.failed.clone());
        metrics
    }

    fn series(&self, key: &RequestKey) -> RequestSeries {
        let mut labels = key.labels();
        if !self.admitted.admit(&labels) {
            self.folded.inc();
            labels = key.folded();
        }
        let Some(told) = key.told.0.as_deref() else {
            return RequestSeries {
                requests: self.requests.get_or_create_owned(&labels),
                duration: self.duration.get_or_create_owned(&labels),
                sent: self.sent.get_or_create_owned(&labels),
                received: self.received.get_or_create_owned(&labels),
                messages: key.grpc.then(|| MessageSeries {
                    sent: self.request_messages.get_or_create_owned(&labels),
                    received: self.response_messages.get_or_create_owned(&labels),
                }),
            };
        };
        let mut retold = Retold::new(told, &key.tags, key.service.0.as_deref());
        let mut of = |metric| retold.labels(metric, &labels, &self.tagged);
        let [requests, duration, sent, received] = METRICS.map(&mut of);
        let messages = key.grpc.then(|| OF_MESSAGES.map(&mut of));
        if retold.folded {
            self.folded.inc();
        }
        // What there is to be none of is counted where nobody sees it.
        let histogram = |family: &Histograms, labels: Option<Labels>| {
            labels.map_or_else(|| Histogram::new(BUCKETS), |labels| family.get_or_create_owned(&labels))
        };
        let counter = |family: &Family<Labels, Counter>, labels: Option<Labels>| {
            labels.map_or_else(Counter::default, |labels| family.get_or_create_owned(&labels))
        };
        RequestSeries {
            requests: counter(&self.requests, requests),
            duration: histogram(&self.duration, duration),
            sent: histogram(&self.sent, sent),
            received: histogram(&self.received, received),
            messages: messages.map(|[sent, received]| MessageSeries {
                sent: counter(&self.request_messages, sent),
                received: counter(&self.response_messages, received),
            }),
        }
    }

    /// A provider was asked.
    pub(super) fn asked(&self, outcome: &'static str) {
        self.asked.get_or_create_owned(&[("outcome", outcome)]).inc();
    }

    /// A request has ended otherwise than both ends wanted.
    pub(super) fn failed(&self, reason: Reason) {
        self.failed.get_or_create_owned(&[("reason", reason.as_str())]).inc();
    }
}

/// What the labels are made from.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct RequestKey {
    /// Who tells of it.
    pub(super) direction: Direction,
    pub(super) source: Place<Workload>,
    pub(super) source_identity: Identity,
    pub(super) destination: Place<Workload>,
    pub(super) destination_identity: Option<Identity>,
    pub(super) service: Place<Service>,
    pub(super) grpc: bool,
    pub(super) code: u16,
    pub(super) grpc_status: Option<u8>,
    pub(super) flags: Flags,
    pub(super) told: Place<Told>,
    /// Of tags that Telemetries ask for.
    pub(super) tags: Vec<String>,
}

impl RequestKey {
    fn labels(&self) -> Labels {
        let source = End { workload: self.source.0.as_deref(), identity: Some(&self.source_identity) };
        let destination =
            End { workload: self.destination.0.as_deref(), identity: self.destination_identity.as_ref() };
        let (flags, code) = (self.flags.to_string(), self.code.to_string());
        self.with(source, destination, self.service.0.as_deref(), &flags, code)
    }

    /// Of what a server or a client chooses only as much as leaves few of them.
    fn folded(&self) -> Labels {
        let nobody = End { workload: None, identity: None };
        let code = match self.code {
            100..600 => format!("{}xx", self.code / 100),
            _ => UNKNOWN.to_owned(),
        };
        self.with(nobody, nobody, None, UNKNOWN, code)
    }

    fn with(
        &self,
        source: End<'_>,
        destination: End<'_>,
        service: Option<&Service>,
        flags: &str,
        code: String,
    ) -> Labels {
        let protocol = if self.grpc { "grpc" } else { "http" };
        let mut labels = labels(
            self.direction,
            self.destination_identity.is_some() || self.direction == Direction::Waypoint,
            source,
            destination,
            service,
            protocol,
            flags,
        );
        labels.push(("response_code".into(), code));
        if let Some(status) = self.grpc_status {
            let known = (status <= MAX_GRPC_STATUS).then(|| status.to_string());
            labels.push(("grpc_response_status".into(), known.unwrap_or_else(|| UNKNOWN.to_owned())));
        }
        labels
    }
}

/// The metrics of one label set.
pub(super) struct RequestSeries {
    pub(super) requests: Counter,
    pub(super) duration: Histogram,
    pub(super) sent: Histogram,
    pub(super) received: Histogram,
    /// Of gRPC.
    pub(super) messages: Option<MessageSeries>,
}

/// Those of messages.
pub(super) struct MessageSeries {
    pub(super) sent: Counter,
    pub(super) received: Counter,
}

/// One worker's way to the series that it used before.
#[derive(Default)]
pub(crate) struct RequestSeriesCache(RefCell<HashMap<RequestKey, Rc<RequestSeries>>>);

impl RequestSeriesCache {
    pub(super) fn get(&self, metrics: &RequestMetrics, key: RequestKey) -> Rc<RequestSeries> {
        let mut cache = self.0.borrow_mut();
        if let Some(series) = cache.get(&key) {
            return Rc::clone(series);
        }
        if cache.len() >= MAX_ENTRIES {
            cache.clear();
        }
        let series = Rc::new(metrics.series(&key));
        cache.insert(key, Rc::clone(&series));
        series
    }
}

#[cfg(test)]
mod tests {
    use orlop_model::Reason;

    use super::*;
    use crate::series::MAX_SERIES;

    fn key(caller: usize, code: u16, grpc_status: Option<u8>) -> RequestKey {
        RequestKey {
            direction: Direction::Waypoint,
            source: Place(None),
            source_identity: format!("spiffe://cluster.local/ns/a/sa/n{caller}").parse().unwrap(),
            destination: Place(None),
            destination_identity: None,
            service: Place(None),
            grpc: grpc_status.is_some(),
            code,
            grpc_status,
            flags: Flags::default(),
            told: Place(None),
            tags: Vec::new(),
        }
    }

    fn series(registry: &Registry) -> Vec<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text.lines().filter(|line| line.starts_with("istio_requests_total{")).map(str::to_owned).collect()
    }

    #[test]
    fn whatever_servers_answer_there_are_so_many_series_and_few_more() {
        let metrics = RequestMetrics::register(&mut Registry::default());
        // Without the histograms, which have as many sets and a line for each bucket.
        let mut registry = Registry::default();
        registry.register("istio_requests", "Requests", metrics.requests.clone());
        for caller in 0..MAX_SERIES {
            metrics.series(&key(caller, 200, None)).requests.inc();
        }
        assert_eq!((series(&registry).len(), metrics.folded.get()), (MAX_SERIES, 0));
        let mut asked = 0;
        for code in (0..1000).step_by(7) {
            for status in (0..=u8::MAX).step_by(5).map(Some).chain([None]) {
                let mut key = key(MAX_SERIES + asked, code, status);
                key.flags = key.flags.with(Reason::ALL[asked % Reason::ALL.len()]);
                metrics.series(&key).requests.inc();
                asked += 1;
            }
        }
        let all = series(&registry);
        // Five classes and none; seventeen statuses, others, and no gRPC.
        assert!(all.len() <= MAX_SERIES + 6 * 19, "{}", all.len() - MAX_SERIES);
        assert_eq!(metrics.folded.get(), asked as u64);
        assert!(all.iter().any(|line| line.contains("response_code=\"5xx\"")), "{:?}", all.last());
        // What was known before still is.
        metrics.series(&key(7, 200, None)).requests.inc();
        assert_eq!((series(&registry).len(), metrics.folded.get()), (all.len(), asked as u64));
        let of_seven = |line: &&String| line.contains("sa/n7\"") && line.ends_with(" 2");
        assert_eq!(series(&registry).iter().filter(of_seven).count(), 1);
    }

    #[test]
    fn a_status_that_grpc_does_not_have_is_unknown() {
        let status = |of| key(0, 200, Some(of)).labels().pop().unwrap().1;
        assert_eq!((status(16), status(17), status(255)), ("16".into(), UNKNOWN.into(), UNKNOWN.into()));
    }
}
