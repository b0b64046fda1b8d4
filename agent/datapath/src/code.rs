//! This program's own code in memory.

use std::{fs, io, num::ParseIntError};

use nix::{errno::Errno, libc};

/// Lets go of the pages of code that have been mapped so far. Most of what has run by the time that everything is set
/// up never runs again; what does is mapped again from the page cache as it is needed.
///
/// # Errors
///
/// Without `/proc`, or if the kernel refuses.
pub fn let_go_of_code() -> io::Result<()> {
    for line in fs::read_to_string("/proc/self/maps")?.lines() {
        let Some((start, end)) = code(line).map_err(io::Error::other)? else { continue };
        // SAFETY: these are pages of a file, mapped private, that nobody may write: what is read there next is what
        // was there before. Nothing is unmapped.
        let result = unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        Errno::result(result)?;
    }
    Ok(())
}

/// The range of a mapping, if it is of a file's code: `start-end perms offset device inode path`, see proc(5).
fn code(line: &str) -> Result<Option<(usize, usize)>, ParseIntError> {
    let mut fields = line.split_ascii_whitespace();
    let (range, permissions, path) = (fields.next(), fields.next(), fields.nth(3));
    let Some((start, end)) = range.and_then(|range| range.split_once('-')) else { return Ok(None) };
    if permissions != Some("r-xp") || !path.is_some_and(|path| path.starts_with('/')) {
        return Ok(None);
    }
    Ok(Some((usize::from_str_radix(start, 16)?, usize::from_str_radix(end, 16)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_code_is_let_go() {
        let of = |line| code(line).unwrap();
        assert_eq!(of("7f10-7f20 r-xp 00001000 fe:01 42    /usr/bin/orlop"), Some((0x7f10, 0x7f20)));
        assert_eq!(
            of("7f10-7f20 r-xp 00001000 fe:01 42    /usr/bin/orlop (deleted)"),
            Some((0x7f10, 0x7f20))
        );
        for other in [
            "7f10-7f20 r--p 00001000 fe:01 42    /usr/bin/orlop",
            "7f10-7f20 rwxp 00001000 fe:01 42    /usr/bin/orlop",
            "7f10-7f20 rw-p 00000000 00:00 0     [heap]",
            "7f10-7f20 r-xp 00000000 00:00 0     [vdso]",
            "7f10-7f20 r-xp 00000000 00:00 0 ",
            "",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn less_of_the_code_is_resident_and_it_runs_on() {
        let before = resident_code();
        let_go_of_code().unwrap();
        assert!(resident_code() < before);
    }

    /// kB, of this program's file.
    fn resident_code() -> u64 {
        let own = std::env::current_exe().unwrap();
        let text = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut of_code = false;
        let mut sum = 0;
        for line in text.lines() {
            if line.contains(" r-xp ") {
                of_code = line.ends_with(own.to_str().unwrap());
            } else if line.split_ascii_whitespace().next().is_some_and(|word| word.contains('-')) {
                of_code = false;
            } else if let Some(rss) = line.strip_prefix("Rss:").filter(|_| of_code) {
                sum += rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
            }
        }
        sum
    }
}
