//! An archive (POSIX ustar) whose files all belong to root and are as old as Unix: the same content, the same bytes.

use anyhow::{Result, bail};

/// Of files with their names, permission bits and content.
pub fn archive(files: &[(&str, u32, &[u8])]) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    for (name, mode, content) in files {
        archive.extend(header(name, *mode, content.len())?);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }
    archive.resize(archive.len() + 2 * BLOCK, 0);
    Ok(archive)
}

fn header(name: &str, mode: u32, size: usize) -> Result<[u8; BLOCK]> {
    if name.len() > 100 || size >= 1 << 33 {
        bail!("{name} does not fit a ustar header");
    }
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{mode:07o}"));
    // Owner and group.
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    // While the sum is taken, it counts as spaces.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

const BLOCK: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    #[test]
    fn tar_reads_it() {
        let archive = archive(&[("orlop", 0o755, b"content"), ("empty", 0o644, b"")]).unwrap();
        let mut tar = Command::new("tar")
            .args(["--list", "--verbose", "--numeric-owner", "--utc"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success());
        let listed = String::from_utf8(output.stdout).unwrap();
        let words: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
        let expected = [
            ["-rwxr-xr-x", "0/0", "7", "1970-01-01", "00:00", "orlop"],
            ["-rw-r--r--", "0/0", "0", "1970-01-01", "00:00", "empty"],
        ];
        assert_eq!(words, expected);
    }
}
