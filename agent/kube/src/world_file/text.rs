//! What is in the file.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{Context, Digest, SHA256, digest};
use orlop_model::World;
use serde::{Deserialize, Serialize};

use super::check::check;

/// Of the three lines, and of the world's JSON: to be raised where a field becomes part of it that may be missing.
const FORMAT: u32 = 1;
/// Programs of different versions have different worlds.
const PROGRAM: &str = env!("CARGO_PKG_VERSION");

/// The end of the year 9999: no later time can be shown.
const LATEST: u64 = 253_402_300_799;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    /// [`FORMAT`]
    orlop_world: u32,
    program: String,
    node: String,
    /// In seconds since 1970.
    written: u64,
}

/// Writes all three lines, without a copy of them in memory.
pub(super) fn write(file: &mut impl Write, world: &World, node: &str, now: SystemTime) -> io::Result<()> {
    let header = Header {
        orlop_world: FORMAT,
        program: PROGRAM.to_owned(),
        node: node.to_owned(),
        written: now.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
    };
    let mut digested = Digested { file, digest: Context::new(&SHA256) };
    serde_json::to_writer(&mut digested, &header)?;
    digested.write_all(b"\n")?;
    serde_json::to_writer(&mut digested, world)?;
    digested.write_all(b"\n")?;
    let Digested { file, digest } = digested;
    file.write_all(last_line(&digest.finish()).as_bytes())
}

/// What [`write`] has written for the same node, or what is wrong with it.
pub(super) fn read(bytes: &[u8], node: &str) -> Result<World, String> {
    let first = bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    let header: Header =
        serde_json::from_slice(first).map_err(|_| "begins with no header that can be read".to_owned())?;
    if header.orlop_world != FORMAT || header.program != PROGRAM {
        let Header { orlop_world, program, .. } = header;
        return Err(format!(
            "was written by orlop {program:?} in format {orlop_world}, and this is {PROGRAM:?} with format {FORMAT}"
        ));
    }
    let (written, last) = bytes.split_at_checked(bytes.len().saturating_sub(LAST_LINE)).unwrap_or_default();
    if last != last_line(&digest(&SHA256, written)).as_bytes() {
        return Err("is broken: it has not the checksum that is its last line".to_owned());
    }
    if header.written > LATEST {
        return Err(format!("was written {} s after 1970, which can't be", header.written));
    }
    if header.node != node {
        return Err(format!("is of node {:?}, and this is {node:?}", header.node));
    }
    let world = written.get(first.len()..).unwrap_or_default();
    let world: World =
        serde_json::from_slice(world).map_err(|error| format!("can't be understood: {error}"))?;
    check(&world)?;
    Ok(World { as_of: Some(UNIX_EPOCH + Duration::from_secs(header.written)), ..world })
}

/// How long the last line is: `sha256 `, 64 digits, and its end.
const LAST_LINE: usize = 7 + 64 + 1;

fn last_line(digest: &Digest) -> String {
    let digits: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256 {digits}\n")
}

/// Digests what passes.
struct Digested<W> {
    file: W,
    digest: Context,
}

impl<W: Write> Write for Digested<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
