//! Metrics of what is not a connection: pods, certificates, and what a controller signs with.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use orlop_identity::{CertificateAuthority as _, CertificateState, GivenCa, Identities};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};
use tokio::sync::watch;

use crate::enrolment::Status;

/// How the pods of a node's mesh stand.
#[derive(Debug)]
pub struct Pods(pub watch::Receiver<Status>);

impl Collector for Pods {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (enrolled, waiting, failed) = {
            let status = self.0.borrow();
            (status.enrolled.len(), status.waiting.len(), status.failed.len())
        };
        let help = "Pods of this node that are in the mesh, or are to be";
        by_state(
            &mut encoder,
            "orlop_pods",
            help,
            &[("enrolled", enrolled), ("waiting", waiting), ("failed", failed)],
        )
    }
}

/// How the certificates of a node's pods stand, or a proxy's own.
#[derive(Debug)]
pub struct Certificates(pub Identities);

impl Collector for Certificates {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let all = self.0.dump();
        let states = [
            CertificateState::Pending,
            CertificateState::Valid,
            CertificateState::RenewalFailing,
            CertificateState::Expired,
        ];
        let counts =
            states.map(|state| (state.as_str(), all.iter().filter(|one| one.state == state).count()));
        by_state(&mut encoder, "orlop_certificates", "Certificates, by how they stand", &counts)?;
        let Some(first) = all.iter().filter_map(|one| one.not_after).min() else { return Ok(()) };
        let help = "When the first of the certificates expires, if it is not renewed";
        timestamp(&mut encoder, "orlop_certificate_expiry_timestamp", help, first)
    }
}

/// What a controller signs with, and whether it leads.
#[derive(Debug)]
pub struct Authority {
    /// Empty as long as there is nothing to sign with.
    pub ca: Arc<OnceLock<Arc<GivenCa>>>,
    pub leads: watch::Receiver<bool>,
}

impl Collector for Authority {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let leads = i64::from(*self.leads.borrow());
        gauge(&mut encoder, "orlop_controller_leads", "Whether this replica leads: 1, or 0", leads)?;
        let Some(ca) = self.ca.get() else { return Ok(()) };
        let roots = ca.trust().borrow().roots().len();
        let help = "Roots that are trusted: more than usual while one is changed for another";
        gauge(&mut encoder, "orlop_trusted_roots", help, count(roots))?;
        let help = "When the certificate expires that signs";
        timestamp(&mut encoder, "orlop_authority_expiry_timestamp", help, ca.not_after())
    }
}

fn by_state(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    counts: &[(&str, usize)],
) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (state, number) in counts {
        ConstGauge::new(count(*number)).encode(family.encode_family(&[("state", *state)])?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> Result<(), fmt::Error> {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

/// Seconds since 1970.
fn timestamp(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    time: SystemTime,
) -> Result<(), fmt::Error> {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seconds = ConstGauge::new(i64::try_from(seconds).unwrap_or(i64::MAX));
    seconds.encode(encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?)
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
