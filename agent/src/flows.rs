//! `orlop flows`: what nodes' proxies tell of their last connections.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;

use crate::{
    agents::{Which, ask_cluster, ask_here, complain},
    cli::FlowsArguments,
};

const PATH: &str = "/flows";

/// Prints the flows of each node, the oldest first.
pub fn run(arguments: &FlowsArguments) -> anyhow::Result<ExitCode> {
    let agents = &arguments.agents;
    let (flows, complete) = match ask_here(agents, PATH)? {
        Some(flows) => (vec![flows], true),
        None => {
            let (came, complete) = complain(ask_cluster(agents, Which::All, PATH)?);
            (came.into_iter().map(|(_, body)| body).collect(), complete)
        }
    };
    for flows in flows {
        match io::stdout().write_all(&flows) {
            // Who reads them has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            result => result.context("cannot print")?,
        }
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
