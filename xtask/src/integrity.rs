//! The test of integrity with as many bytes as one wants.

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args as ClapArgs;

use crate::{cargo, setup, test};

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// How many bytes every way carries, in both directions together: `100GiB`, `3GB`, `1000000`.
    #[arg(long, default_value = "10GiB", value_parser = bytes)]
    bytes: u64,
    /// Only these of the ways: `tunnel`, `node`, `service`.
    ways: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::require_root("the test makes network namespaces and loads eBPF", "cargo xtask integrity")?;
    setup::ensure(setup::For::Test)?;
    let binary = cargo::build(&cargo::BuildArgs { release: true })?;
    let tests = cargo::build_tests()?;
    test::sweep()?;
    let ways = if args.ways.is_empty() { vec![String::new()] } else { args.ways.clone() };
    for way in ways {
        let start = Instant::now();
        let mut command = std::process::Command::new(&tests);
        // One after the other, so that none waits for the others.
        command.args([&*format!("integrity::{way}"), "--test-threads", "1"]);
        command.env("ORLOP_BIN", &binary).env("ORLOP_INTEGRITY_BYTES", args.bytes.to_string());
        cargo::run(&mut command)?;
        println!("{} bytes a way, every one compared, in {:.0?}", args.bytes, start.elapsed());
    }
    Ok(())
}

fn bytes(text: &str) -> Result<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit {
        "" => 1,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => bail!("no unit of bytes: {unit}; MB, GB, MiB and GiB are"),
    };
    Ok(number.parse::<u64>()? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        assert_eq!(bytes("100GiB").unwrap(), 100 << 30);
        assert_eq!(bytes("17").unwrap(), 17);
        assert!(bytes("3 apples").is_err() && bytes("GiB").is_err());
    }
}
