//! Wrappers of the load generators iperf3, wrk and h2load.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{Pod, Process};

/// `iperf3 -s` in a pod; ends when this is dropped.
#[derive(Debug)]
pub struct Iperf3Server {
    _process: Process,
}

impl Iperf3Server {
    /// Starts it and waits until it listens.
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        let mut command = pod.command("iperf3")?;
        command
            .args(["-s", "--forceflush", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut process =
            Process::spawn(&mut command).context("is iperf3 installed? (`apt-get install iperf3`)")?;
        let output = process.child().stdout.take().context("no output of iperf3")?;
        let mut lines = BufReader::new(output).lines();
        if !lines.by_ref().any(|line| line.is_ok_and(|line| line.contains("listening"))) {
            bail!("iperf3 -s in {}/{} ended: is port {port} taken?", pod.namespace(), pod.name());
        }
        // It goes on printing: someone must read.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { _process: process })
    }
}

/// What `iperf3` measured.
#[derive(Clone, Copy, Debug)]
pub struct Iperf3 {
    /// Payload the server received, bits per second.
    pub bits_per_second: f64,
    /// Payload the server received, bytes.
    pub bytes: f64,
}

/// Sends as fast as possible from `pod` to an [`Iperf3Server`].
pub fn iperf3(pod: &Pod, to: SocketAddr, streams: u32, time: Duration) -> Result<Iperf3> {
    let family = if to.is_ipv6() { "-6" } else { "-4" };
    let (ip, port) = (to.ip().to_string(), to.port().to_string());
    let (streams, time) = (streams.to_string(), time.as_secs().max(1).to_string());
    let json = pod.output("iperf3", &["-J", family, "-c", &ip, "-p", &port, "-P", &streams, "-t", &time])?;
    parse_iperf3(&json).with_context(|| format!("no result in iperf3's output:\n{json}"))
}

/// How `wrk` should load.
#[derive(Clone, Copy, Debug)]
pub struct WrkOptions {
    /// Connections kept at the same time.
    pub connections: u32,
    /// For how long.
    pub time: Duration,
    /// A new connection for each request.
    pub close: bool,
}

/// What `wrk` or `h2load` measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Requests {
    /// Answers per second.
    pub requests_per_second: f64,
    /// All answers.
    pub requests: u64,
    /// Half of the answers came faster.
    pub p50: Duration,
    /// All but one in a hundred came faster.
    pub p99: Duration,
    /// Failed connects, reads, writes, timeouts, and answers other than 2xx and 3xx.
    pub errors: u64,
}

/// Loads an [`HttpServer`](crate::traffic::HttpServer) from `pod`.
pub fn wrk(pod: &Pod, to: SocketAddr, options: WrkOptions) -> Result<Requests> {
    let (connections, time) =
        (options.connections.to_string(), format!("{}s", options.time.as_secs().max(1)));
    let url = format!("http://{to}/");
    let mut args = vec!["-t1", "-c", &connections, "-d", &time, "--latency"];
    if options.close {
        args.extend(["-H", "Connection: close"]);
    }
    args.push(&url);
    let output = pod.output("wrk", &args)?;
    parse_wrk(&output).with_context(|| format!("no result in wrk's output:\n{output}"))
}

/// Sends requests by HTTP/2 in clear, one at a time on each connection.
pub fn h2load(pod: &Pod, to: SocketAddr, connections: u32, time: Duration) -> Result<Requests> {
    let log = pod.node().lab().dir.join(format!("h2load-{}.{}.log", pod.namespace(), pod.name()));
    let log = log.to_string_lossy();
    // It appends.
    let _ = fs::remove_file(&*log);
    let (connections, seconds) = (connections.to_string(), time.as_secs().max(1).to_string());
    let (log_file, url) = (format!("--log-file={log}"), format!("http://{to}/"));
    let args = ["-t", "1", "-c", &connections, "-m", "1", "-D", &seconds, &log_file, &url];
    let output = pod.output("h2load", &args)?;
    let answers = fs::read_to_string(&*log).with_context(|| format!("reading {log}"))?;
    parse_h2load(&answers, time).with_context(|| format!("no result in h2load's output:\n{output}"))
}

fn parse_iperf3(json: &str) -> Option<Iperf3> {
    let (_, sum) = json.rsplit_once("\"sum_received\"")?;
    let number = |key: &str| -> Option<f64> {
        let (_, rest) = sum.split_once(&format!("\"{key}\":"))?;
        rest.split([',', '}']).next()?.trim().parse().ok()
    };
    Some(Iperf3 { bits_per_second: number("bits_per_second")?, bytes: number("bytes")? })
}

fn parse_wrk(output: &str) -> Option<Requests> {
    let mut result = Requests::default();
    for line in output.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["50%", time] => result.p50 = parse_time(time)?,
            ["99%", time] => result.p99 = parse_time(time)?,
            ["Requests/sec:", rate] => result.requests_per_second = rate.parse().ok()?,
            [count, "requests", "in", ..] => result.requests = count.parse().ok()?,
            ["Socket", "errors:", counts @ ..] => {
                result.errors +=
                    counts.iter().filter_map(|n| n.trim_end_matches(',').parse::<u64>().ok()).sum::<u64>();
            }
            ["Non-2xx", .., count] => result.errors += count.parse::<u64>().ok()?,
            _ => {}
        }
    }
    (result.requests > 0).then_some(result)
}

/// A line an answer: when it was asked for, its status, or -1, and microseconds.
fn parse_h2load(log: &str, time: Duration) -> Option<Requests> {
    let mut result = Requests::default();
    let mut times = Vec::new();
    for line in log.lines() {
        let mut words = line.split_whitespace().skip(1);
        let (status, micros): (i32, u64) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        result.errors += u64::from(!(200..400).contains(&status));
        times.push(micros);
    }
    times.sort_unstable();
    let share = |percent: usize| times.get(times.len() * percent / 100).copied().map(Duration::from_micros);
    (result.p50, result.p99) = (share(50)?, share(99)?);
    result.requests = u64::try_from(times.len()).ok()?;
    result.requests_per_second = result.requests as f64 / time.as_secs_f64();
    Some(result)
}

/// wrk prints `66.00us`, `1.20ms`, `1.00s`.
fn parse_time(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(number.parse::<f64>().ok()? * scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_output_is_read() {
        let output = "Running 5s test @ http://10.2.0.2:80/\n  1 threads and 1 connections\n  \
            Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency    70.50us   10.00us   1.00ms   90.00%\n  \
            Latency Distribution\n     50%   66.00us\n     75%   70.00us\n     90%   80.00us\n     99%    1.20ms\n  \
            71234 requests in 5.10s, 10.00MB read\n  Socket errors: connect 1, read 2, write 0, timeout 3\n  \
            Non-2xx or 3xx responses: 4\nRequests/sec:  14246.80\nTransfer/sec:      2.00MB\n";
        let result = parse_wrk(output).unwrap();
        assert_eq!((result.requests, result.errors), (71234, 10));
        assert_eq!((result.p50, result.p99), (Duration::from_micros(66), Duration::from_micros(1200)));
        assert!((result.requests_per_second - 14246.8).abs() < 0.01);
    }

    #[test]
    fn h2loads_log_is_read() {
        let log = "1795879473602643\t200\t4959\n1795879473602637\t503\t8751\n1795879473602638\t-1\t9000\n";
        let result = parse_h2load(log, Duration::from_secs(2)).unwrap();
        assert_eq!((result.requests, result.errors), (3, 2));
        assert_eq!((result.p50, result.p99), (Duration::from_micros(8751), Duration::from_micros(9000)));
        assert!(parse_h2load("", Duration::from_secs(2)).is_none());
    }

    #[test]
    fn iperf3_output_is_read() {
        let json = r#"{"end": {"sum_sent": {"bytes": 1, "bits_per_second": 2},
            "sum_received": {"start": 0, "bytes": 1500, "bits_per_second": 4.5e9, "sender": true}}}"#;
        let result = parse_iperf3(json).unwrap();
        assert!((result.bits_per_second - 4.5e9).abs() < 1.0 && (result.bytes - 1500.0).abs() < 1e-9);
    }
}
