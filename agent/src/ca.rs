//! `orlop ca`: the embedded authority's root and revocations, in the directory that the nodes watch.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::Context as _;
use orlop_identity::{EmbeddedCa, parse_serial, serials_in};

use crate::cli::{CaCommand, CaDirectory};

pub fn run(command: &CaCommand) -> anyhow::Result<()> {
    match command {
        CaCommand::Rotate { directory, finish: false, wait } => rotate(directory, *wait),
        CaCommand::Rotate { directory, finish: true, wait } => finish(directory, *wait),
        CaCommand::Revoke { directory, certificates } => revoke(directory, certificates),
    }
}

/// Nobody signs with a root before everybody trusts it.
fn rotate(CaDirectory { ca_dir, trust_domain }: &CaDirectory, wait: Duration) -> anyhow::Result<()> {
    EmbeddedCa::begin_rotation(ca_dir, trust_domain)?;
    println!("made the next root; waiting {} until every node trusts it", humantime::format_duration(wait));
    thread::sleep(wait);
    EmbeddedCa::switch_root(ca_dir, trust_domain)?;
    println!("it signs from now on, and the nodes renew every certificate");
    println!("once they have: orlop ca rotate --finish --ca-dir {}", ca_dir.display());
    Ok(())
}

/// Nobody stops trusting a root whose certificates are still being renewed.
fn finish(CaDirectory { ca_dir, .. }: &CaDirectory, wait: Duration) -> anyhow::Result<()> {
    loop {
        let since = EmbeddedCa::finish_rotation(ca_dir, wait)?;
        if since >= wait {
            println!("the previous root is no longer trusted");
            return Ok(());
        }
        thread::sleep(wait - since);
    }
}

fn revoke(directory: &CaDirectory, certificates: &[String]) -> anyhow::Result<()> {
    let mut serials = Vec::new();
    for certificate in certificates {
        let path = Path::new(certificate);
        if path.is_file() {
            let content = fs::read(path).with_context(|| format!("cannot read {certificate}"))?;
            let found = serials_in(&content).with_context(|| format!("no certificate in {certificate}"))?;
            serials.extend(found);
        } else {
            serials.push(parse_serial(certificate).with_context(|| {
                format!("{certificate:?} is neither a serial number in hex nor a file that is there")
            })?);
        }
    }
    EmbeddedCa::revoke(&directory.ca_dir, &directory.trust_domain, &serials)?;
    println!("revoked {}; nodes refuse what shows them, and cut what is open", serials.len());
    Ok(())
}
