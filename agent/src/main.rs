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
mod last_world;
mod limits;
mod logging;
mod node;
mod replay;
mod request;
mod sandboxes;
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
            // The whole chain on one line: what failed, and why.
            eprintln!("orlop: {error:#}");
            ExitCode::FAILURE
        }
    }
}
