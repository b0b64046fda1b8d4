//! The `orlop` binary: parse the arguments, choose the role, wire it.

#![forbid(unsafe_code)]

mod admin;
mod agents;
mod authority;
mod boot_gate;
mod ca;
mod check;
mod cli;
mod controller;
mod dump;
mod enrolment;
mod events;
mod explain;
mod figures;
mod flows;
mod handover;
mod hosts;
mod http_proxy;
mod inspect;
mod keeper;
mod last_world;
mod limits;
mod logging;
mod node;
mod replay;
mod request;
mod sandboxes;
mod seqpacket;
mod source;
mod token_keys;
mod traces;
mod udp;
mod webhook;
mod worlds;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::cli::{Cli, Command};
use crate::inspect::View;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Node(arguments) => node::run(*arguments).map(|()| ExitCode::SUCCESS),
        Command::Gate(arguments) => boot_gate::start::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Keeper(arguments) => keeper::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Waypoint(arguments) => http_proxy::waypoint(*arguments).map(|()| ExitCode::SUCCESS),
        Command::Gateway(arguments) => http_proxy::gateway(*arguments).map(|()| ExitCode::SUCCESS),
        Command::Controller(arguments) => controller::run(*arguments).map(|()| ExitCode::SUCCESS),
        Command::Webhook(arguments) => webhook::run(*arguments).map(|()| ExitCode::SUCCESS),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Ca(command) => ca::run(&command).map(|()| ExitCode::SUCCESS),
        Command::Flows(arguments) => flows::run(&arguments),
        Command::Status(arguments) => inspect::run(View::Status, &arguments),
        Command::Workloads(arguments) => inspect::run(View::Workloads, &arguments),
        Command::Services(arguments) => inspect::run(View::Services, &arguments),
        Command::Policies(arguments) => inspect::run(View::Policies, &arguments),
        Command::Certs(arguments) => inspect::run(View::Certificates, &arguments),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "orlop", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Clean(arguments) => node::clean(&arguments).map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("orlop: {}", on_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// What failed, and why: the whole chain, but for causes that others have in their own text already.
fn on_one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said {
        said if said.is_empty() => cause,
        said if said.contains(&cause) => said,
        said => format!("{said}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_nothing_twice() {
        let error =
            anyhow::anyhow!("no such file").context("reading /x: no such file").context("cannot start");
        assert_eq!(on_one_line(&error), "cannot start: reading /x: no such file");
    }
}
