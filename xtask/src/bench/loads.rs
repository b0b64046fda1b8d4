use std::time::Duration;

use anyhow::{Result, bail};
use orlop_tests::{Requests, WrkOptions, h2load, iperf3, wrk};

use super::figure::Unit;
use super::rig::{Case, HTTP_PORT, HTTP2_PORT, IPERF_PORT};

/// A load and how to run it.
pub(super) struct Load {
    pub(super) name: &'static str,
    /// What its rate counts.
    pub(super) unit: Unit,
    pub(super) run: fn(&Case, Duration) -> Result<Sample>,
}

/// What one run measured.
#[derive(Clone, Copy, Default)]
pub(super) struct Sample {
    /// In the load's unit.
    pub(super) rate: f64,
    /// GB or requests in all.
    pub(super) work: f64,
    /// Zero for bulk.
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    /// Of the proxies together.
    pub(super) cpu: Duration,
}

pub(super) const BULK_1_STREAM: Load =
    Load { name: "bulk, 1 stream", unit: Unit::GigabitsPerSecond, run: |c, t| bulk(c, t, 1) };
pub(super) const BULK_4_STREAMS: Load =
    Load { name: "bulk, 4 streams", unit: Unit::GigabitsPerSecond, run: |c, t| bulk(c, t, 4) };
pub(super) const REQUESTS_1_CONNECTION: Load = Load {
    name: "requests, 1 connection",
    unit: Unit::RequestsPerSecond,
    run: |c, t| requests(c, t, 1, false),
};
pub(super) const REQUESTS_32_CONNECTIONS: Load = Load {
    name: "requests, 32 connections",
    unit: Unit::RequestsPerSecond,
    run: |c, t| requests(c, t, 32, false),
};
pub(super) const NEW_CONNECTIONS: Load = Load {
    name: "new connections, 8 clients",
    unit: Unit::RequestsPerSecond,
    run: |c, t| requests(c, t, 8, true),
};
/// HTTP/2 from the client to the server.
pub(super) const HTTP2_1_CONNECTION: Load =
    Load { name: "HTTP/2, 1 connection", unit: Unit::RequestsPerSecond, run: |c, t| http2(c, t, 1) };
pub(super) const HTTP2_32_CONNECTIONS: Load =
    Load { name: "HTTP/2, 32 connections", unit: Unit::RequestsPerSecond, run: |c, t| http2(c, t, 32) };

fn bulk(case: &Case, time: Duration, streams: u32) -> Result<Sample> {
    let result = iperf3(&case.client, case.server.addr(IPERF_PORT), streams, time)?;
    Ok(Sample { rate: result.bits_per_second / 1e9, work: result.bytes / 1e9, ..Sample::default() })
}

fn requests(case: &Case, time: Duration, connections: u32, close: bool) -> Result<Sample> {
    sample(wrk(&case.client, (case.web, HTTP_PORT).into(), WrkOptions { connections, time, close })?)
}

fn http2(case: &Case, time: Duration, connections: u32) -> Result<Sample> {
    sample(h2load(&case.client, (case.web, HTTP2_PORT).into(), connections, time)?)
}

fn sample(result: Requests) -> Result<Sample> {
    // wrk counts a server's orderly close as a read error now and then; a broken load it does not excuse.
    if result.errors * 100 > result.requests {
        bail!("{} of {} requests failed", result.errors, result.requests);
    }
    Ok(Sample {
        rate: result.requests_per_second,
        work: result.requests as f64,
        p50: result.p50,
        p99: result.p99,
        cpu: Duration::ZERO,
    })
}
