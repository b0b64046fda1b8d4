//! The keys of tokens' issuers: how they are fetched, and how often they were.

use std::{fmt, net::SocketAddr, path::Path};

use anyhow::Context as _;
use orlop_identity::jwt::KeySources;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter},
};

use crate::hosts;

/// Fetches nothing yet.
pub fn sources(resolver: Option<SocketAddr>, roots: Option<&Path>) -> anyhow::Result<KeySources> {
    let roots = match roots {
        Some(file) => orlop_identity::jwt::read_roots(file)
            .with_context(|| format!("cannot read the roots in {}", file.display()))?,
        None => Vec::new(),
    };
    KeySources::new(hosts::resolve(resolver), roots).context("cannot use the roots of --jwks-roots")
}

/// Exports how often keys were fetched.
#[derive(Debug)]
pub struct Fetches(pub KeySources);

impl Collector for Fetches {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let fetches = self.0.fetches();
        for (name, help, count) in [
            ("orlop_token_key_fetches", "Times that an issuer's keys were fetched", fetches.good),
            (
                "orlop_token_key_fetches_failed",
                "Times that an issuer's keys could not be fetched",
                fetches.failed,
            ),
        ] {
            let counter = ConstCounter::new(count);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        Ok(())
    }
}
