//! Whether a pod that opens all it can slows another pod of its node: how long the other one's calls take while it
//! does, against just before, with no mesh and with Orlop in turn.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use orlop_tests::traffic::EchoServer;
use orlop_tests::{
    Agent, AgentOptions, Greed, Pod, PodSpec, Testbed, call_times, call_times_while, raise_descriptors,
    wait_for,
};

use super::figure::{Figure, Unit};
use super::measure::prepare;
use super::record::Output;

const CALLS: usize = 2000;
/// Between two calls.
const CALL_EVERY: Duration = Duration::from_millis(5);
/// While the greedy pod dials; of fewer a p99 says little.
const FEWEST_CALLS: usize = 300;
/// What the greedy pod dials; with few descriptors most of these are shed.
const CONNECTIONS: usize = 50_000;
/// A listener's queue holds 4096.
const SINKS: u16 = 16;
/// Another pod's calls take no longer than this, times what they take when it is quiet.
const TARGET: u32 = 2;
/// A pod that is held to 500 connections a second takes 100 s.
const PATIENCE: Duration = Duration::from_secs(240);

/// A greedy pod and a modest one on one node, and whom they dial on the other.
struct Case {
    name: &'static str,
    agents: Vec<Agent>,
    greedy: Pod,
    modest: Pod,
    sinks: Pod,
    server: EchoServer,
}

/// p99 of the modest pod's calls.
#[derive(Clone, Copy)]
struct Sample {
    quiet: Duration,
    /// While the other pod dials, and while it has what it got.
    during: [Duration; 2],
}

impl Sample {
    fn ratios(self) -> [f64; 2] {
        self.during.map(|during| during.as_secs_f64() / self.quiet.as_secs_f64())
    }
}

#[derive(Args)]
pub(super) struct Options {
    /// The greedy pod dials so often a second; 0 is without pause, which by itself takes all of two cores.
    #[arg(long = "rate", value_name = "DIALS", default_values_t = [2000, 0])]
    rates: Vec<u32>,
    /// How often each case is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(options: &Options) -> Result<()> {
    let binary = &prepare()?.orlop;
    raise_descriptors()?;
    let testbed = Testbed::new()?;
    testbed.world().namespace("bare", &[])?;
    testbed.world().enrolled_namespace("mesh")?;
    let cases = [
        Case::new(&testbed, "no mesh", "bare", None)?,
        Case::new(&testbed, "orlop", "mesh", Some(binary.as_path()))?,
    ];
    let mut figures = Vec::new();
    for &rate in &options.rates {
        let rate = (rate > 0).then_some(rate);
        let pace = rate.map_or_else(|| "without pause".to_owned(), |rate| format!("{rate} times a second"));
        figures.extend(compare(&cases, rate, &pace, options.rounds)?);
    }
    options.output.finish("fairness", &figures)
}

/// Has the greedy pod of each case dial at that rate, in turn, and tells what the modest one notices: p99, each by what
/// it was just before.
fn compare(cases: &[Case; 2], rate: Option<u32>, pace: &str, rounds: usize) -> Result<Vec<Figure>> {
    println!("{CONNECTIONS} connections, dialled {pace}");
    let mut samples = [Vec::new(), Vec::new()];
    for round in 1..=rounds {
        for (case, samples) in cases.iter().zip(&mut samples) {
            let sample = case.measure(rate).with_context(|| format!("fairness with {}", case.name))?;
            let [opening, open] = sample.ratios();
            println!(
                "  round {round} {:8} p99 {:8.3?} quiet, {:8.3?} while another pod dials ({opening:.2}), \
                 {:8.3?} while it has what it got ({open:.2})",
                case.name, sample.quiet, sample.during[0], sample.during[1]
            );
            samples.push(sample);
        }
    }
    println!("  ratio of p99 to quiet (median; target {TARGET})   opening    open");
    let mut figures = Vec::new();
    for (case, samples) in cases.iter().zip(samples) {
        let [opening, open] = [0, 1].map(|which| {
            let figure = |sample: &Sample| (sample.during[which].as_secs_f64(), sample.ratios()[which]);
            let (times, ratios) = samples.iter().map(figure).unzip();
            (median(times), median(ratios))
        });
        println!("  {:46}  {:8.2}  {:6.2}", case.name, opening.1, open.1);
        for (what, (value, ratio)) in [("another pod dials", opening), ("it has what it got", open)] {
            let (what, case) = (format!("{what}, {pace}"), case.name.to_owned());
            let quantity = "p99".to_owned();
            figures.push(Figure { what, case, quantity, value, unit: Unit::Seconds, ratio: Some(ratio) });
        }
    }
    Ok(figures)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

impl Case {
    fn new(testbed: &Testbed, name: &'static str, namespace: &str, binary: Option<&Path>) -> Result<Self> {
        let nodes = ["near", "far"].map(|node| testbed.node(&format!("{namespace}-{node}")));
        let [near, far] = nodes;
        let (near, far) = (near?, far?);
        let pod = |name: &str| near.pod(namespace, name, PodSpec::new().service_account(name));
        let (greedy, modest) = (pod("greedy")?, pod("modest")?);
        let server = far.pod(namespace, "server", PodSpec::new())?;
        let sinks = far.pod("street", &format!("sinks-{namespace}"), PodSpec::new())?;
        let mut agents = Vec::new();
        if let Some(binary) = binary {
            let args = ["--log", "warn"].map(str::to_owned).into();
            let options = AgentOptions { binary: Some(binary.to_owned()), args, ..AgentOptions::default() };
            for (node, pods) in [(&near, vec![&greedy, &modest]), (&far, vec![&server])] {
                let agent = node.agent(options.clone())?;
                agent.wait_enrolled(pods)?;
                agents.push(agent);
            }
        }
        let server = server.serve_echo(80)?;
        Ok(Self { name, agents, greedy, modest, sinks, server })
    }

    fn measure(&self, rate: Option<u32>) -> Result<Sample> {
        // Nobody accepts these, which costs no descriptor.
        let listeners =
            (0..SINKS).map(|n| self.sinks.listen(false, 1000 + n)).collect::<Result<Vec<_>, _>>()?;
        let to: Vec<_> = (0..SINKS).map(|n| self.sinks.addr(1000 + n)).collect();
        let quiet = self.p99()?;
        let greed = Greed::at(rate);
        let sample = thread::scope(|scope| {
            let greedy = scope.spawn(|| greed.run(&self.greedy, &to, CONNECTIONS));
            let measured = self.measure_others(&greed, quiet);
            greed.stop();
            match greedy.join() {
                Ok(result) => result?,
                Err(_) => bail!("the greedy pod's thread panicked"),
            }
            measured
        })?;
        drop(listeners);
        // What one round leaves is not the next one's.
        let gone = || {
            self.agents
                .iter()
                .all(|agent| agent.metric("orlop_connections_active", &[]).is_ok_and(|n| n < 10.0))
        };
        if !wait_for(PATIENCE, gone) {
            bail!("connections are left after a round");
        }
        Ok(sample)
    }

    fn measure_others(&self, greed: &Greed, quiet: Duration) -> Result<Sample> {
        if !wait_for(PATIENCE, || greed.dialled() > 500) {
            bail!("the greedy pod opens nothing: {greed:?}");
        }
        let until = Instant::now() + PATIENCE;
        let dials = || greed.dialled() < CONNECTIONS && Instant::now() < until;
        let opening = call_times_while(&self.modest, self.server.addr(), CALL_EVERY, dials)?;
        if greed.dialled() < CONNECTIONS {
            bail!("the greedy pod does not get its connections: {greed:?}");
        }
        if opening.len() < FEWEST_CALLS {
            bail!("the other pod made {} calls while it dialled: too few for a p99", opening.len());
        }
        Ok(Sample { quiet, during: [p99(&opening)?, self.p99()?] })
    }

    fn p99(&self) -> Result<Duration> {
        p99(&call_times(&self.modest, self.server.addr(), CALLS, CALL_EVERY)?)
    }
}

/// Of times in order.
fn p99(times: &[Duration]) -> Result<Duration> {
    times.get(times.len() * 99 / 100).copied().context("no call was made")
}
