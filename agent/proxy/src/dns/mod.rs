//! The pods' DNS: what the snapshot knows is answered here, the rest is asked of the resolver that the pod asked,
//! from the pod's own netns, and remembered for as long as it may be.
//!
//! UDP is answered query by query ([`udp`]). A TCP connection is answered here for as long as its queries can be;
//! the first other one makes it a connection to the resolver like any other ([`tcp`]).

mod cache;
mod message;
mod tcp;
mod udp;
mod upstream;

use std::{net::SocketAddr, time::Duration};

use hickory_proto::op::{Message, ResponseCode};
use orlop_model::{Answer, RecordData, Snapshot};

use crate::metrics::Metrics;
use message::Query;
#[cfg(fuzzing)]
pub use message::exercise;
pub(crate) use tcp::serve as serve_tcp;
pub(crate) use udp::serve as serve_udp;

/// Limits and timeouts of the pods' DNS.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// Whether the pods' DNS is answered at all.
    pub enabled: bool,
    /// Asked from the node instead of the resolver that the pod asked.
    pub upstream: Option<SocketAddr>,
    /// How long a resolver may take to answer; it is asked again at half of it.
    pub timeout: Duration,
    /// A query that the resolver has not answered by then is answered from memory, if that still has an answer
    /// that has expired (RFC 8767, 5).
    pub patience: Duration,
    /// Questions of one pod under way at once; further ones fail.
    pub max_questions: usize,
    /// Memory for the answers of resolvers to one pod, in bytes.
    pub cache_size: usize,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            upstream: None,
            // glibc gives up after 5 s.
            timeout: Duration::from_secs(4),
            patience: Duration::from_millis(1800),
            max_questions: 256,
            cache_size: 256 * 1024,
        }
    }
}

/// Where an answer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The snapshot.
    Cluster,
    /// Memory.
    Cache,
    /// Memory, past its time, as the resolver does not answer.
    Stale,
    /// The resolver.
    Upstream,
    /// Nowhere: the query is malformed, or the resolver can't be had.
    Failure,
}

impl Source {
    fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Cache => "cache",
            Self::Stale => "stale",
            Self::Upstream => "upstream",
            Self::Failure => "failure",
        }
    }
}

/// The answer that needs nobody else. Without one, `query` says what to ask the resolver.
fn answer(snapshot: &Snapshot, namespace: &str, query: &mut Query) -> Option<Message> {
    match snapshot.resolve(namespace, &query.name(), query.record_type()) {
        Answer::Forward => None,
        Answer::Alias(other) => {
            query.stand_for(&other);
            None
        }
        Answer::NoSuchName => Some(query.deny(snapshot, ResponseCode::NXDomain)),
        Answer::Records { answers, .. } if answers.is_empty() => {
            Some(query.deny(snapshot, ResponseCode::NoError))
        }
        Answer::Records { mut answers, additional } => {
            // The first is what most clients take; aliases come before what they stand for.
            let aliases =
                answers.iter().take_while(|record| matches!(record.data, RecordData::Alias(_))).count();
            fastrand::shuffle(&mut answers[aliases..]);
            Some(query.answer(answers, additional))
        }
    }
}

fn count(metrics: &Metrics, protocol: &'static str, source: Source, code: ResponseCode) {
    let code = match code {
        ResponseCode::NoError => "noerror",
        ResponseCode::NXDomain => "nxdomain",
        ResponseCode::ServFail => "servfail",
        ResponseCode::FormErr => "formerr",
        ResponseCode::Refused => "refused",
        _ => "other",
    };
    metrics.dns(protocol, source.as_str(), code).inc();
}
