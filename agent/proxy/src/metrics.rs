//! Istio's TCP metrics, with Istio's label names, so that existing dashboards work.

use std::borrow::Cow;

use orlop_model::{Identity, Reason, Service, Workload, http::Told, world::Metric};
use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use serde::Serialize;

use crate::{
    flow::Figures,
    retold::{Retold, Tagged},
    series::Admitted,
};

/// Those that Telemetries ask for have names of their own.
pub(crate) type Labels = Vec<(Cow<'static, str>, String)>;

/// Which side of a connection reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The node of the pod that is reached.
    Inbound,
    /// The node of the pod that dials.
    Outbound,
    /// A waypoint between them.
    Waypoint,
    /// A gateway, which dials for whoever comes from outside.
    Gateway,
}

impl Direction {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
            Self::Waypoint => "waypoint",
            Self::Gateway => "gateway",
        }
    }

    fn reporter(self) -> &'static str {
        match self {
            Self::Inbound => "destination",
            Self::Outbound | Self::Gateway => "source",
            Self::Waypoint => "waypoint",
        }
    }
}

/// Who is at one end of a connection, as far as is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub(crate) workload: Option<&'a Workload>,
    /// Verified, or of this node.
    pub(crate) identity: Option<&'a Identity>,
}

/// The metrics of one label set.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) opened: Counter,
    pub(crate) closed: Counter,
    pub(crate) sent: Counter,
    pub(crate) received: Counter,
}

/// The proxy's metrics.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    opened: Family<Labels, Counter>,
    closed: Family<Labels, Counter>,
    sent: Family<Labels, Counter>,
    received: Family<Labels, Counter>,
    refused: Family<Labels, Counter>,
    dns: Family<Labels, Counter>,
    held: Counter,
    active: Gauge,
    tunnels: Family<Labels, Gauge>,
    same_node: SameNode,
    /// Label sets that were one too many.
    folded: Counter,
    admitted: Admitted,
    tagged: Tagged,
}

/// Of connections between two pods of this node that did without the proxy.
#[derive(Clone, Debug)]
struct SameNode {
    connecting: Histogram,
    srtt: Histogram,
    retransmits: Counter,
}

impl Default for SameNode {
    fn default() -> Self {
        // From 10 µs to 2.6 s.
        let times = || Histogram::new(exponential_buckets(10e-6, 4.0, 10));
        Self { connecting: times(), srtt: times(), retransmits: Counter::default() }
    }
}

impl Metrics {
    /// Makes the metrics and enters them into `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("istio_tcp_connections_opened", "TCP connections opened", metrics.opened.clone());
        registry.register("istio_tcp_connections_closed", "TCP connections closed", metrics.closed.clone());
        registry.register(
            "istio_tcp_sent_bytes",
            "Bytes sent to the client during a connection",
            metrics.sent.clone(),
        );
        registry.register(
            "istio_tcp_received_bytes",
            "Bytes received from the client during a connection",
            metrics.received.clone(),
        );
        registry.register(
            "orlop_connection_series_folded",
            "Label sets that were one too many, whose connections count under unknown names",
            metrics.folded.clone(),
        );
        registry.register(
            "orlop_connections_failed",
            "Connections and tunnels refused or cut short, by reason",
            metrics.refused.clone(),
        );
        registry.register(
            "orlop_connections_held",
            "Times that a pod's next connection had to wait, so that the node's other pods did not",
            metrics.held.clone(),
        );
        registry.register(
            "orlop_dns_requests",
            "DNS queries answered, by where the answer came from",
            metrics.dns.clone(),
        );
        registry.register("orlop_connections_active", "Connections open now", metrics.active.clone());
        registry.register("orlop_tunnels_active", "HBONE tunnels open now", metrics.tunnels.clone());
        let SameNode { connecting, srtt, retransmits } = metrics.same_node.clone();
        registry.register(
            "orlop_same_node_connect_seconds",
            "From SYN to answer, between pods of this node without the proxy",
            connecting,
        );
        registry.register(
            "orlop_same_node_srtt_seconds",
            "Smoothed round-trip time at the end of a connection, between pods of this node without the proxy",
            srtt,
        );
        registry.register(
            "orlop_same_node_retransmits",
            "Segments sent again, between pods of this node without the proxy",
            retransmits,
        );
        metrics
    }

    pub(crate) fn same_node(&self, figures: &Figures) {
        self.same_node.connecting.observe(figures.connecting.as_secs_f64());
        self.same_node.srtt.observe(figures.srtt.as_secs_f64());
        self.same_node.retransmits.inc_by(figures.retransmits.into());
    }

    pub(crate) fn failed(&self, direction: Direction, reason: Reason) -> Counter {
        let labels =
            vec![("reporter".into(), direction.reporter().into()), ("reason".into(), reason.as_str().into())];
        self.refused.get_or_create_owned(&labels)
    }

    /// Every label has a few values only.
    pub(crate) fn dns(&self, protocol: &'static str, source: &'static str, code: &'static str) -> Counter {
        let labels = vec![
            ("protocol".into(), protocol.into()),
            ("source".into(), source.into()),
            ("rcode".into(), code.into()),
        ];
        self.dns.get_or_create_owned(&labels)
    }

    /// Times that what a pod dials was held to the pod's share.
    pub(crate) fn held(&self) -> &Counter {
        &self.held
    }

    pub(crate) fn active(&self) -> &Gauge {
        &self.active
    }

    pub(crate) fn tunnels(&self, direction: Direction) -> Gauge {
        self.tunnels.get_or_create_owned(&vec![("direction".into(), direction.as_str().into())])
    }

    pub(crate) fn series(
        &self,
        direction: Direction,
        mutual_tls: bool,
        source: End<'_>,
        destination: End<'_>,
        service: Option<&Service>,
        told: Option<(&Told, &[String])>,
    ) -> Series {
        let of = |source, destination, service| {
            labels(direction, mutual_tls, source, destination, service, "tcp", "-")
        };
        let mut labels = of(source, destination, service);
        let mut is_folded = !self.admitted.admit(&labels);
        if is_folded {
            let nobody = End { workload: None, identity: None };
            labels = of(nobody, nobody, None);
        }
        let mut retold = told.map(|(told, values)| Retold::new(told, values, service));
        let mut of = |metric, family: &Family<Labels, Counter>| match &mut retold {
            None => family.get_or_create_owned(&labels),
            Some(retold) => match retold.labels(metric, &labels, &self.tagged) {
                Some(labels) => family.get_or_create_owned(&labels),
                None => Counter::default(),
            },
        };
        let series = Series {
            opened: of(Metric::Opened, &self.opened),
            closed: of(Metric::Closed, &self.closed),
            sent: of(Metric::Sent, &self.sent),
            received: of(Metric::Received, &self.received),
        };
        is_folded |= retold.is_some_and(|retold| retold.folded);
        if is_folded {
            self.folded.inc();
        }
        series
    }
}

/// The labels that connections and requests have in common.
pub(crate) fn labels(
    direction: Direction,
    mutual_tls: bool,
    source: End<'_>,
    destination: End<'_>,
    service: Option<&Service>,
    protocol: &str,
    flags: &str,
) -> Labels {
    let mut labels = Vec::with_capacity(26);
    labels.push(("reporter".into(), direction.reporter().to_owned()));
    labels.extend(end_labels(&SOURCE, source));
    labels.extend(end_labels(&DESTINATION, destination));
    // A pod dialled by its own address still has its service's canonical name, as Istio reports it.
    let name = service.map(|service| (&*service.hostname, &*service.name.name, &*service.name.namespace));
    let (host, name, namespace) = name.unwrap_or((UNKNOWN, UNKNOWN, UNKNOWN));
    labels.push(("destination_service".into(), host.to_owned()));
    labels.push(("destination_service_name".into(), name.to_owned()));
    labels.push(("destination_service_namespace".into(), namespace.to_owned()));
    labels.push(("request_protocol".into(), protocol.to_owned()));
    labels.push(("response_flags".into(), flags.to_owned()));
    labels.push((
        "connection_security_policy".into(),
        if mutual_tls { "mutual_tls" } else { UNKNOWN }.to_owned(),
    ));
    labels
}

pub(crate) const UNKNOWN: &str = "unknown";

const SOURCE: [&str; 8] = [
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "source_canonical_service",
    "source_canonical_revision",
];
const DESTINATION: [&str; 8] = [
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_canonical_service",
    "destination_canonical_revision",
];

fn end_labels(names: &[&'static str; 8], end: End<'_>) -> impl Iterator<Item = (Cow<'static, str>, String)> {
    let principal = end.identity.map_or(UNKNOWN, Identity::as_str).to_owned();
    let of = |field: fn(&Workload) -> &str| end.workload.map_or(UNKNOWN, field).to_owned();
    let values = [
        of(|workload| &workload.names.owner),
        of(|workload| &workload.name.namespace),
        principal,
        of(|workload| &workload.names.app),
        of(|workload| &workload.names.version),
        of(|workload| &workload.names.cluster),
        of(|workload| &workload.names.canonical_service),
        of(|workload| &workload.names.canonical_revision),
    ];
    names.iter().map(|name| Cow::Borrowed(*name)).zip(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::MAX_SERIES;

    const NOBODY: End<'static> = End { workload: None, identity: None };

    fn opened(registry: &Registry) -> usize {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text.lines().filter(|line| line.starts_with("istio_tcp_connections_opened_total{")).count()
    }

    #[test]
    fn whoever_connects_there_are_so_many_series_and_one_for_all_others() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let connects = |caller: usize| {
            let identity: Identity = format!("spiffe://cluster.local/ns/a/sa/n{caller}").parse().unwrap();
            let source = End { workload: None, identity: Some(&identity) };
            metrics.series(Direction::Inbound, true, source, NOBODY, None, None)
        };
        for caller in 0..MAX_SERIES {
            connects(caller).opened.inc();
        }
        assert_eq!((opened(&registry), metrics.folded.get()), (MAX_SERIES, 0));
        for caller in MAX_SERIES..MAX_SERIES + 100 {
            connects(caller).opened.inc();
        }
        assert_eq!((opened(&registry), metrics.folded.get()), (MAX_SERIES + 1, 100));
        assert_eq!(connects(MAX_SERIES).opened.get(), 100);
        connects(7).opened.inc();
        assert_eq!((connects(7).opened.get(), metrics.folded.get()), (2, 101));
    }
}
