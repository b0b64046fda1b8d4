//! The `orlop` binary: parse the arguments, choose the role, wire it.

#![forbid(unsafe_code)]

mod admin;
mod cli;
mod dump;
mod enrolment;
mod limits;
mod logging;
mod node;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Node(arguments) => node::run(*arguments),
        Command::Clean(arguments) => node::clean(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain on one line: what failed, and why.
            eprintln!("orlop: {error:#}");
            ExitCode::FAILURE
        }
    }
}
