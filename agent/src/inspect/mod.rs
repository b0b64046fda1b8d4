//! `orlop status`, `workloads`, `services`, `policies` and `certs`: what a node's agent knows, for people.

mod table;
mod views;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use serde_json::Value;

use crate::{
    agents::{Which, ask_cluster, ask_here, complain},
    cli::{InspectArguments, Output},
};
use table::Table;

const PATH: &str = "/config_dump";

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub enum View {
    Status,
    Workloads,
    Services,
    Policies,
    Certificates,
}

impl View {
    /// Which agents of a cluster know it: of what is on nodes each knows its own, and of the rest all know the same.
    fn known_to(self) -> Which {
        match self {
            Self::Status | Self::Certificates => Which::All,
            Self::Workloads | Self::Services | Self::Policies => Which::Any,
        }
    }
}

/// Prints one view of the agent on this machine, or of a cluster's.
pub fn run(view: View, arguments: &InspectArguments) -> anyhow::Result<ExitCode> {
    let agents = &arguments.agents;
    if let Some(answer) = ask_here(agents, PATH)? {
        let dump = parse(&answer)?;
        print(arguments.output, &views::data(view, &dump), &views::table(view, &dump))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (came, complete) = complain(ask_cluster(agents, view.known_to(), PATH)?);
    let dumps = came.iter().map(|(node, body)| Ok((node.clone(), parse(body)?)));
    let dumps: Vec<(String, Value)> = dumps.collect::<anyhow::Result<_>>()?;
    match (&dumps[..], agents.node.is_some() || view.known_to() == Which::Any) {
        ([], _) => anyhow::bail!("no agent has answered"),
        ([(_, dump), ..], true) => {
            print(arguments.output, &views::data(view, dump), &views::table(view, dump))?
        }
        (dumps, false) => {
            let tables = dumps.iter().map(|(node, dump)| (node.clone(), views::table(view, dump)));
            print(arguments.output, &views::data_of_nodes(view, dumps), &Table::of_nodes(tables.collect()))?;
        }
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn parse(body: &[u8]) -> anyhow::Result<Value> {
    let dump: Value =
        serde_json::from_slice(body).context("the agent's answer is no JSON; is it another version?")?;
    if let Some(as_of) = dump["from_disk_as_of"].as_str() {
        eprintln!(
            "orlop: the agent goes by the world of {as_of} from disk: the Kubernetes API has not answered it yet"
        );
    }
    Ok(dump)
}

fn print(output: Output, data: &Value, table: &Table) -> anyhow::Result<()> {
    let mut text = match output {
        Output::Json => serde_json::to_string_pretty(data)?,
        Output::Yaml => serde_saphyr::to_string(data).context("cannot write YAML")?,
        Output::Table => table.render(false),
        Output::Wide => table.render(true),
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    match io::stdout().write_all(text.as_bytes()) {
        // Who reads it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot print"),
    }
}
