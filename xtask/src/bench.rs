//! The same loads with no mesh, with Orlop and with the ztunnel that `$ZTUNNEL` names, in turn, so that a noisy
//! machine is noisy for all. Only the ratios travel to other machines.

mod changes;
mod chart;
mod envoy;
mod fairness;
mod figure;
mod loads;
mod measure;
mod nodes;
mod record;
mod report;
mod rig;
mod samenode;
mod scale;
mod serve;
mod waypoint;

use anyhow::Result;
use clap::{Args as ClapArgs, Subcommand};

use measure::Options;

#[derive(ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    bench: Option<Bench>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Bench {
    /// Two pods of two nodes; what runs where none of these is named.
    Nodes(Options),
    /// Two pods of one node, with and without the proxy in the way.
    Samenode(Options),
    /// A pod that dials all it can, and another one of its node.
    Fairness(fairness::Options),
    /// Worlds of up to 100,000 workloads: what a change, the agent's memory and a decision cost.
    Scale(scale::Options),
    /// How long until a changed route or endpoint has effect through a waypoint before up to 1,000 services.
    Changes(changes::Options),
    /// Draw the figures that are on record.
    Charts,
    /// Requests that are read and routed between two pods, by a waypoint and by Envoy.
    Waypoint(waypoint::Options),
}

#[derive(ClapArgs)]
pub(crate) struct ServeArgs {
    port: u16,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.bench {
        None => nodes::run(&args.options),
        Some(Bench::Nodes(options)) => nodes::run(options),
        Some(Bench::Samenode(options)) => samenode::run(options),
        Some(Bench::Fairness(options)) => fairness::run(options),
        Some(Bench::Scale(options)) => scale::run(options),
        Some(Bench::Changes(options)) => changes::run(options),
        Some(Bench::Charts) => record::draw_all(),
        Some(Bench::Waypoint(options)) => waypoint::run(options),
    }
}

pub(crate) fn serve(args: &ServeArgs) -> Result<()> {
    serve::run(args.port)
}
