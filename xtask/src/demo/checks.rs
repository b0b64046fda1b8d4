use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use orlop_tests::traffic::{HttpServer, Response};
use orlop_tests::{Frames, Pod, wait_for};

use super::milliseconds;
use super::stage::{PORT, Stage};

type Check = fn(&mut Stage) -> Result<String>;

/// The rows of the table, in order: later ones disturb more.
pub(super) const CHECKS: &[(&str, Check)] = &[
    ("pod to pod across nodes", across_nodes),
    ("mutual TLS on the wire", encrypted),
    ("server sees the client's address", server_sees_client),
    ("client sees the address it dialled", client_sees_dialled),
    ("service spreads over its endpoints", service_spreads),
    ("to and from a pod outside the mesh", outside_the_mesh),
    ("metrics and log of a connection", seen),
    ("opt-out and opt-in take effect live", opt_out),
    ("agent killed: refused at once", killed),
    ("agent restarted: served again", restarted),
    ("nothing changed inside the pods", unchanged),
];

const TIMEOUT: Duration = Duration::from_secs(5);
/// The port of HBONE.
const HBONE: u16 = 15008;
const BULK_MIB: u64 = 64;

fn across_nodes(stage: &mut Stage) -> Result<String> {
    let mut times = Vec::new();
    for to in [stage.web_2.addr(PORT), stage.web_2.addr6(PORT)] {
        let start = Instant::now();
        expect_from(&get(&stage.client, to, "/")?, &stage.web_2)?;
        times.push(milliseconds(start.elapsed()));
    }
    let start = Instant::now();
    let bulk = get(&stage.client, stage.web_2.addr(PORT), &format!("/bulk?bytes={}", BULK_MIB << 20))?;
    ensure!(bulk.body.len() as u64 == BULK_MIB << 20, "{} bytes of {BULK_MIB} MiB arrived", bulk.body.len());
    let rate = (BULK_MIB << 20) as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9;
    Ok(format!("first request {}, over IPv6 {}; {BULK_MIB} MiB at {rate:.1} Gbit/s", times[0], times[1]))
}

fn encrypted(stage: &mut Stage) -> Result<String> {
    let secret = "/the-secret-of-the-demo";
    let frames = captured(stage, |stage| {
        for to in [stage.web_2.addr(PORT), stage.web_2.addr6(PORT)] {
            get(&stage.client, to, secret)?;
            get(&stage.client, to, "/bulk?bytes=1000000")?;
        }
        Ok(())
    })?;
    let records = frames.tls_application_records(HBONE);
    ensure!(records > 0, "no TLS record to port {HBONE} among {} frames", frames.len());
    ensure!(frames.is_all_tls(HBONE), "something else than TLS went to port {HBONE}");
    ensure!(frames.tcp_ports() == [HBONE].into(), "data went to ports {:?}", frames.tcp_ports());
    ensure!(!in_clear(&frames, secret), "the payload is on the wire in clear");
    // The same eyes see it where there is no mesh: so they can see.
    let frames = captured(stage, |stage| get(&stage.client, stage.plain.addr(PORT), secret).map(drop))?;
    ensure!(frames.contains(secret.as_bytes()), "the capture missed what is sent in clear");
    Ok(format!("{records} TLS records to port {HBONE}, nothing else, none of the payload in clear"))
}

fn server_sees_client(stage: &mut Stage) -> Result<String> {
    let mut seen = Vec::new();
    let pairs = [
        (stage.web_2.addr(PORT), stage.client.addr(0)),
        (stage.web_2.addr6(PORT), stage.client.addr6(0)),
        (stage.web_1.addr(PORT), stage.client.addr(0)),
    ];
    for (to, client) in pairs {
        let peer = get(&stage.client, to, "/")?.field("peer").context("the server does not say its peer")?;
        let peer: SocketAddr = peer.parse().with_context(|| format!("the server's peer is {peer:?}"))?;
        ensure!(peer.ip() == client.ip(), "the server at {to} saw {peer} for {}", client.ip());
        seen.push(peer.to_string());
    }
    Ok(seen[..2].join(" and "))
}

fn client_sees_dialled(stage: &mut Stage) -> Result<String> {
    for to in [stage.vip, stage.web_2.addr(PORT), stage.web_2.addr6(PORT)] {
        let stream = stage.client.connect(to, TIMEOUT).with_context(|| format!("dialling {to}"))?;
        let peer = stream.peer_addr().with_context(|| format!("getpeername after dialling {to}"))?;
        let local = stream.local_addr().with_context(|| format!("getsockname after dialling {to}"))?;
        ensure!(peer == to, "dialled {to}, sees {peer}");
        ensure!(stage.client.ips().contains(&local.ip()), "its own address is {local}");
    }
    Ok(format!("{} and its own address", stage.vip))
}

fn service_spreads(stage: &mut Stage) -> Result<String> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..40 {
        let pod =
            get(&stage.client, stage.vip, "/")?.field("pod").context("the server does not say its name")?;
        *counts.entry(pod).or_default() += 1;
    }
    let text: Vec<String> = counts.iter().map(|(pod, count)| format!("{pod} {count}")).collect();
    ensure!(counts.len() == 2, "40 connections went to {}", text.join(", "));
    Ok(format!("40 connections: {}", text.join(", ")))
}

fn outside_the_mesh(stage: &mut Stage) -> Result<String> {
    let out = get(&stage.client, stage.plain.addr(PORT), "/").context("out of the mesh")?;
    expect_from(&out, &stage.plain)?;
    let inbound = get(&stage.plain, stage.web_1.addr(PORT), "/").context("into the mesh")?;
    expect_from(&inbound, &stage.web_1)?;
    for (answer, client) in [(&out, &stage.client), (&inbound, &stage.plain)] {
        let peer = answer.field("peer").unwrap_or_default();
        ensure!(
            peer.starts_with(&format!("{}:", client.ipv4())),
            "the server saw {peer} for {}",
            client.ipv4()
        );
    }
    Ok("both ways, with the pods' own addresses".to_owned())
}

fn seen(stage: &mut Stage) -> Result<String> {
    let (vip, client) = (stage.vip, stage.client.clone());
    let labels = ["reporter=\"source\"", "source_workload=\"client\"", "destination_service_name=\"web\""];
    let agent = stage.client_agent()?;
    let peer = get(&client, vip, "/")?.field("peer").context("the server does not say whom it sees")?;
    let is_such =
        |line: &&str| ["client", "web.shop", "spiffe://", "outbound"].iter().all(|part| line.contains(part));
    let is_it = |line: &&str| is_such(line) && line.contains(&peer);
    // The kernel tells a moment later of connections that it made without the proxy. Each is counted, and has a line.
    let (mut log, mut opened) = (String::new(), 0.0);
    let told = wait_for(TIMEOUT, || {
        log = agent.log().unwrap_or_default();
        opened = agent.metric("istio_tcp_connections_opened_total", &labels).unwrap_or_default();
        log.lines().any(|line| is_it(&line)) && opened == log.lines().filter(is_such).count() as f64
    });
    let lines = log.lines().filter(is_such).count();
    ensure!(told, "istio_tcp_connections_opened_total is {opened}, and {lines} lines are in the log");
    let line = log.lines().find(is_it).context("no log line")?;
    Ok(format!("istio_tcp_connections_opened_total {opened}\n{}", wrapped(line, 96)))
}

fn opt_out(stage: &mut Stage) -> Result<String> {
    let path = "/sent-after-the-opt-out";
    let start = Instant::now();
    stage.web_2.opt_out()?;
    let clear = |stage: &Stage| {
        let frames = captured(stage, |stage| {
            expect_from(&get(&stage.client, stage.web_2.addr(PORT), path)?, &stage.web_2)
        })?;
        Ok::<_, anyhow::Error>(frames.contains(path.as_bytes()))
    };
    await_that(|| clear(stage)).context("opted out, and still through the tunnel")?;
    let out = start.elapsed();
    let start = Instant::now();
    stage.web_2.opt_in()?;
    await_that(|| clear(stage).map(|clear| !clear)).context("opted in again, and still in clear")?;
    stage.wait_enrolled()?;
    Ok(format!("out after {}, in again after {}", milliseconds(out), milliseconds(start.elapsed())))
}

fn killed(stage: &mut Stage) -> Result<String> {
    stage.client_agent()?.kill()?;
    let mut slowest = Duration::ZERO;
    let attempts = [
        ("out of", &stage.client, stage.web_2.addr(PORT)),
        ("out of", &stage.client, stage.web_2.addr6(PORT)),
        ("out of", &stage.client, stage.plain.addr(PORT)),
        ("into", &stage.plain, stage.web_1.addr(PORT)),
        ("into", &stage.plain, stage.web_1.addr6(PORT)),
    ];
    let frames = captured(stage, |_| {
        for (way, from, to) in attempts {
            let start = Instant::now();
            match from.connect(to, TIMEOUT) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => bail!("{way} the pod, {to}: not refused but {error}"),
                Ok(_) => bail!("{way} the pod, {to}: connected without an agent"),
            }
            slowest = slowest.max(start.elapsed());
        }
        // Through the service only the pod of this node, with which it was allowed to talk before.
        for _ in 0..10 {
            match stage.client.http_get(stage.vip, "/", TIMEOUT) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => bail!("the service: not refused but {error}"),
                Ok(answer) => expect_from(&answer, &stage.web_1)?,
            }
        }
        Ok(())
    })?;
    // A tunnel that lost its peer may still say goodbye, in TLS.
    let clear: Vec<u16> = frames.tcp_ports().into_iter().filter(|port| *port != HBONE).collect();
    ensure!(clear.is_empty(), "data went over the wire to ports {clear:?}");
    ensure!(slowest < Duration::from_millis(500), "refused only after {}", milliseconds(slowest));
    Ok(format!("in and out, the slowest after {}", milliseconds(slowest)))
}

fn restarted(stage: &mut Stage) -> Result<String> {
    let start = Instant::now();
    stage.client_agent()?.start_again()?;
    await_that(|| Ok(get(&stage.client, stage.vip, "/").is_ok())).context("not served after the restart")?;
    let time = start.elapsed();
    stage.client_agent()?.wait_ready()?;
    stage.wait_enrolled()?;
    expect_from(&get(&stage.plain, stage.web_1.addr(PORT), "/")?, &stage.web_1)?;
    ensure!(time < Duration::from_secs(1), "only after {}", milliseconds(time));
    Ok(format!("after {}", milliseconds(time)))
}

fn unchanged(stage: &mut Stage) -> Result<String> {
    for (pod, before) in stage.pods().into_iter().zip(&stage.before) {
        let after = pod.network_state()?;
        let lines = before.lines().zip(after.lines());
        if let Some((was, is)) = lines.into_iter().find(|(was, is)| was != is) {
            bail!("in {}: was {was:?}, is {is:?}", pod.name());
        }
        ensure!(
            after == *before,
            "in {}: {} lines more or less",
            pod.name(),
            after.len().abs_diff(before.len())
        );
    }
    Ok("firewall, rules, routes, addresses, sysctls of all four".to_owned())
}

fn get(from: &Pod, to: SocketAddr, path: &str) -> Result<Response> {
    let answer = from.http_get(to, path, TIMEOUT);
    let answer = answer.with_context(|| format!("GET {path} from {} to {to}", from.name()))?;
    ensure!(answer.status == 200, "GET {path} from {} to {to}: status {}", from.name(), answer.status);
    Ok(answer)
}

fn expect_from(answer: &Response, pod: &Pod) -> Result<()> {
    let wanted = format!("{}/{}", pod.namespace(), pod.name());
    let got = answer.field("pod").unwrap_or_default();
    ensure!(got == wanted, "{got:?} answered instead of {wanted}");
    Ok(())
}

fn captured(stage: &Stage, f: impl FnOnce(&Stage) -> Result<()>) -> Result<Frames> {
    let capture = stage.testbed.capture()?;
    f(stage)?;
    capture.stop()
}

fn in_clear(frames: &Frames, secret: &str) -> bool {
    frames.contains(secret.as_bytes()) || frames.contains(HttpServer::BULK_PATTERN.as_bytes())
}

/// Tries again until it holds, for at most 5 s; an error while trying is no answer yet.
fn await_that(mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match holds() {
            Ok(true) => return Ok(()),
            Ok(false) if Instant::now() > deadline => bail!("not within {TIMEOUT:?}"),
            Err(error) if Instant::now() > deadline => return Err(error),
            _ => {}
        }
    }
}

fn wrapped(line: &str, width: usize) -> String {
    let mut text = String::new();
    let mut column = 0;
    for word in line.split_whitespace() {
        if column > 0 && column + word.len() > width {
            text.push('\n');
            column = 0;
        }
        if column > 0 {
            text.push(' ');
        }
        text += word;
        column += word.len() + 1;
    }
    text
}
