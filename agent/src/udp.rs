//! What enrolled pods exchange over UDP, which passes untouched: as metrics by pod, and by peer at `/udp`.

use std::{cmp::Reverse, collections::HashMap, fmt, sync::Arc};

use orlop_datapath::{Datapath, NetnsCookie, UdpTraffic};
use orlop_model::{NamespacedName, Snapshot};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter},
};
use serde_json::json;
use tokio::sync::watch;

use crate::enrolment::Status;

/// Exports the counts by pod: as many label sets as this node has enrolled pods.
#[derive(Debug)]
pub struct Counts {
    pub datapath: Arc<Datapath>,
    pub status: watch::Receiver<Status>,
}

type Metric = (&'static str, &'static str, fn(&UdpTraffic) -> u64);

const METRICS: [Metric; 4] = [
    ("orlop_udp_sent_packets", "Datagrams that an enrolled pod sent", |traffic| traffic.sent_packets),
    ("orlop_udp_sent_bytes", "Bytes that an enrolled pod sent in datagrams", |traffic| traffic.sent_bytes),
    ("orlop_udp_received_packets", "Datagrams that an enrolled pod was sent", |traffic| {
        traffic.received_packets
    }),
    ("orlop_udp_received_bytes", "Bytes that an enrolled pod was sent in datagrams", |traffic| {
        traffic.received_bytes
    }),
];

impl Collector for Counts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let pods = match self.datapath.udp_of_pods() {
            Ok(pods) => pods,
            Err(error) => {
                tracing::warn!(%error, "no figures of UDP");
                return Ok(());
            }
        };
        let names = names(&self.status.borrow());
        for (metric, help, of) in METRICS {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Counter)?;
            for (cookie, traffic) in &pods {
                let Some(name) = names.get(cookie) else { continue };
                let labels = [("namespace", &*name.namespace), ("pod", &*name.name)];
                ConstCounter::new(of(traffic)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// `/udp`: who exchanged how much with whom, as JSON, the most first.
pub fn dump(datapath: &Datapath, status: &Status, snapshot: &Snapshot) -> anyhow::Result<String> {
    let names = names(status);
    let mut exchanges = datapath.udp_exchanges()?;
    exchanges.sort_by_key(|exchange| Reverse(exchange.traffic.sent_bytes + exchange.traffic.received_bytes));
    let exchanges: Vec<_> = exchanges
        .iter()
        .map(|exchange| {
            let UdpTraffic { sent_packets, sent_bytes, received_packets, received_bytes } = exchange.traffic;
            json!({
                "pod": names.get(&exchange.pod).map(ToString::to_string),
                "peer": exchange.peer,
                "peer_pod": snapshot.workload_at(exchange.peer).map(|workload| workload.name.to_string()),
                "port": exchange.port,
                "port_of": if exchange.serves { "pod" } else { "peer" },
                "sent_packets": sent_packets,
                "sent_bytes": sent_bytes,
                "received_packets": received_packets,
                "received_bytes": received_bytes,
            })
        })
        .collect();
    Ok(serde_json::to_string_pretty(&exchanges)? + "\n")
}

fn names(status: &Status) -> HashMap<NetnsCookie, NamespacedName> {
    status.enrolled.iter().map(|(name, cookie)| (*cookie, name.clone())).collect()
}
