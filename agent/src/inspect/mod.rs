//! `orlop status`, `workloads`, `services`, `policies` and `certs`: what a node's agent knows, for people.

mod table;
mod views;

use std::io::{self, Write as _};

use anyhow::Context as _;
use serde_json::Value;

use crate::{
    cli::{InspectArguments, Output},
    flows,
};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub enum View {
    Status,
    Workloads,
    Services,
    Policies,
    Certificates,
}

/// Prints one view of the agent at the admin address.
pub fn run(view: View, arguments: &InspectArguments) -> anyhow::Result<()> {
    let dump = flows::fetch(arguments.admin, "/config_dump").with_context(|| {
        format!("no answer from {}; is `orlop node` running here, with this --admin?", arguments.admin)
    })?;
    let dump: Value =
        serde_json::from_slice(&dump).context("the agent's answer is no JSON; is it another version?")?;
    let mut text = match arguments.output {
        Output::Json => serde_json::to_string_pretty(&views::data(view, &dump))?,
        Output::Yaml => serde_saphyr::to_string(&views::data(view, &dump)).context("cannot write YAML")?,
        Output::Table => views::table(view, &dump).render(false),
        Output::Wide => views::table(view, &dump).render(true),
    };
    if let Some(as_of) = dump["from_disk_as_of"].as_str() {
        eprintln!(
            "orlop: the agent goes by the world of {as_of} from disk: the Kubernetes API has not answered it yet"
        );
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    match io::stdout().write_all(text.as_bytes()) {
        // Who reads it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot print"),
    }
}
