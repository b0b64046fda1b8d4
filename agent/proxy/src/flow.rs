//! Flows: what is told of a connection once it has ended, in the log, in metrics and to who asks for it.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use orlop_model::{DryRun, Identity, NamespacedName, Service, Workload};
use serde::{Serialize, Serializer};
use tracing::field::display;

use crate::log_format::{Ended, HOSTNAME, LogFormat, Operator, Value};
pub use crate::metrics::Direction;

/// A connection that has ended. Serializes with the names that it has in the access log; what is not known is
/// left out.
#[derive(Clone, Debug, Serialize)]
pub struct Flow {
    /// When it ended; serialized as RFC 3339, in UTC.
    #[serde(serialize_with = "time")]
    pub time: SystemTime,
    /// Whose node tells of it.
    pub direction: Direction,
    /// The client's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<SocketAddr>,
    /// The client's pod, as `namespace/name`.
    #[serde(serialize_with = "name", skip_serializing_if = "Option::is_none")]
    pub src_workload: Option<Arc<Workload>>,
    /// The client's identity, verified or of this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src_identity: Option<Identity>,
    /// Whom the client, a waypoint, speaks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller_identity: Option<Identity>,
    /// What the client dialled, if this is its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dialled: Option<SocketAddr>,
    /// The server's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<SocketAddr>,
    /// The server's pod, as `namespace/name`.
    #[serde(serialize_with = "name", skip_serializing_if = "Option::is_none")]
    pub dst_workload: Option<Arc<Workload>>,
    /// The server's identity, verified or of this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst_identity: Option<Identity>,
    /// The host name of the service that was dialled.
    #[serde(serialize_with = "hostname", skip_serializing_if = "Option::is_none")]
    pub dst_service: Option<Arc<Service>>,
    /// The far end of the tunnel, if it went through one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<SocketAddr>,
    /// From the client.
    pub bytes_received: u64,
    /// To the client.
    pub bytes_sent: u64,
    /// From its beginning to its end; serialized as `duration_us`, in microseconds.
    #[serde(rename = "duration_us", serialize_with = "microseconds")]
    pub duration: Duration,
    /// How it ended.
    pub result: FlowResult,
    /// Why, unless it ended well: the name of a [`Reason`](orlop_model::Reason), or one of the hooks' own list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// What else is known of why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The AuthorizationPolicy that allowed or refused it; where the reason is `plaintext_refused`, the
    /// PeerAuthentication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<NamespacedName>>,
    /// Whether an AUDIT policy matches.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub audit: bool,
    /// What policies in dry run would have said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dry_run: Vec<DryRun>,
    /// Of a connection that did without the proxy.
    #[serde(flatten)]
    pub figures: Option<Figures>,
}

/// What only the kernel knows of a connection; serialized with `path: "kernel"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "path", rename = "kernel")]
pub struct Figures {
    /// From the SYN to its answer; serialized as `connect_us`, in microseconds.
    #[serde(rename = "connect_us", serialize_with = "microseconds")]
    pub connecting: Duration,
    /// Smoothed round-trip time; serialized as `srtt_us`, in microseconds.
    #[serde(rename = "srtt_us", serialize_with = "microseconds")]
    pub srtt: Duration,
    /// Segments that were sent again.
    pub retransmits: u32,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowResult {
    /// As its two ends wanted.
    Ok,
    /// Before it reached the other side.
    Refused,
    /// After that, and not as both ends wanted.
    Cut,
}

impl FlowResult {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Cut => "cut",
        }
    }
}

impl Flow {
    pub(crate) fn log(&self) {
        let workload =
            |of: &Option<Arc<Workload>>| of.as_ref().map(|workload| display(workload.name.clone()));
        let dry_run = self.dry_run.iter().map(|said| format!("{}: {}", said.policy, said.outcome.as_str()));
        let dry_run = (!self.dry_run.is_empty()).then(|| dry_run.collect::<Vec<_>>().join(", "));
        tracing::info!(
            target: "access",
            direction = self.direction.as_str(),
            src = self.src.map(display),
            src_workload = workload(&self.src_workload),
            src_identity = self.src_identity.clone().map(display),
            caller_identity = self.caller_identity.clone().map(display),
            dialled = self.dialled.map(display),
            dst = self.dst.map(display),
            dst_workload = workload(&self.dst_workload),
            dst_identity = self.dst_identity.clone().map(display),
            dst_service = self.dst_service.as_ref().map(|service| &*service.hostname),
            tunnel = self.tunnel.map(display),
            bytes_received = self.bytes_received,
            bytes_sent = self.bytes_sent,
            path = self.figures.map(|_| "kernel"),
            connect_us = self.figures.map(|figures| figures.connecting.as_micros() as u64),
            srtt_us = self.figures.map(|figures| figures.srtt.as_micros() as u64),
            retransmits = self.figures.map(|figures| figures.retransmits),
            duration_us = self.duration.as_micros() as u64,
            result = self.result.as_str(),
            reason = self.reason,
            detail = self.detail.as_deref(),
            policy = self.policy.as_ref().map(display),
            audit = self.audit.then_some(true),
            dry_run,
            "connection"
        );
    }
}

impl Ended for Flow {
    fn value(&self, operator: &Operator) -> Option<Value<'_>> {
        let text = |text: String| Some(Value::Text(text.into()));
        match operator {
            Operator::StartTime => {
                text(humantime::format_rfc3339_millis(self.time - self.duration).to_string())
            }
            Operator::StartTimeAs(format) => text(format.of(self.time - self.duration)),
            Operator::Hostname => Some(Value::Text(HOSTNAME.as_deref()?.into())),
            Operator::Duration => Some(Value::Number(self.duration.as_millis() as u64)),
            Operator::ResponseCode => Some(Value::Number(0)),
            Operator::ResponseCodeDetails => Some(Value::Text(self.reason?.into())),
            Operator::ConnectionTerminationDetails => Some(Value::Text(self.detail.as_deref()?.into())),
            Operator::BytesReceived => Some(Value::Number(self.bytes_received)),
            Operator::BytesSent => Some(Value::Number(self.bytes_sent)),
            Operator::UpstreamHost => text(self.dst?.to_string()),
            Operator::UpstreamCluster | Operator::UpstreamClusterRaw => {
                text(self.dst_service.as_ref()?.hostname.to_string())
            }
            Operator::UpstreamPeer => text(self.dst_identity.as_ref()?.to_string()),
            Operator::DownstreamLocalAddress => text(self.dialled?.to_string()),
            Operator::DownstreamRemoteAddress => text(self.src?.to_string()),
            Operator::DownstreamRemoteIp => text(self.src?.ip().to_string()),
            Operator::DownstreamPeer => text(self.src_identity.as_ref()?.to_string()),
            _ => None,
        }
    }
}

/// The last flows, as many as there is room for.
#[derive(Debug)]
pub(crate) struct Flows {
    capacity: usize,
    recent: Mutex<VecDeque<Arc<Flow>>>,
    /// Of the access log, if it has one of its own.
    format: Option<Arc<LogFormat>>,
}

impl Flows {
    pub(crate) fn new(capacity: usize, format: Option<Arc<LogFormat>>) -> Self {
        Self { capacity, recent: Mutex::default(), format }
    }

    /// Writes the flow to the access log and keeps it.
    pub(crate) fn tell(&self, flow: Flow) {
        match &self.format {
            Some(format) if tracing::enabled!(target: "access", tracing::Level::INFO) => format.write(&flow),
            Some(_) => {}
            None => flow.log(),
        }
        self.keep(flow);
    }

    /// Keeps it; the oldest makes room.
    pub(crate) fn keep(&self, flow: Flow) {
        if self.capacity == 0 {
            return;
        }
        let flow = Arc::new(flow);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        // Freed after the lock is.
        let _oldest = if recent.len() >= self.capacity { recent.pop_front() } else { None };
        recent.push_back(flow);
        drop(recent);
    }

    /// The oldest first.
    pub(crate) fn recent(&self) -> Vec<Arc<Flow>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

fn time<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_micros(*time))
}

fn microseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_micros() as u64)
}

fn name<S: Serializer>(workload: &Option<Arc<Workload>>, serializer: S) -> Result<S::Ok, S::Error> {
    workload.as_ref().map(|workload| &workload.name).serialize(serializer)
}

fn hostname<S: Serializer>(service: &Option<Arc<Service>>, serializer: S) -> Result<S::Ok, S::Error> {
    service.as_ref().map(|service| &service.hostname).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(bytes_sent: u64) -> Flow {
        Flow {
            time: SystemTime::UNIX_EPOCH,
            direction: Direction::Inbound,
            src: Some(([10, 0, 0, 1], 4711).into()),
            src_workload: None,
            src_identity: None,
            caller_identity: None,
            dialled: None,
            dst: None,
            dst_workload: None,
            dst_identity: None,
            dst_service: None,
            tunnel: None,
            bytes_received: 0,
            bytes_sent,
            duration: Duration::from_millis(3),
            result: FlowResult::Refused,
            reason: Some("policy_denied"),
            detail: None,
            policy: Some(Arc::new(NamespacedName::new("shop", "no-buyers"))),
            audit: false,
            dry_run: Vec::new(),
            figures: None,
        }
    }

    #[test]
    fn the_oldest_make_room() {
        let flows = Flows::new(2, None);
        (0..5).for_each(|number| flows.tell(flow(number)));
        let left: Vec<_> = flows.recent().iter().map(|flow| flow.bytes_sent).collect();
        assert_eq!(left, [3, 4]);
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let flows = Flows::new(0, None);
        flows.tell(flow(1));
        assert!(flows.recent().is_empty());
    }
}
