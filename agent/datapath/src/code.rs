//! This program's own code in memory.

use std::{fs, io, num::ParseIntError, ptr};

use nix::sys::mman::{MmapAdvise, madvise};

/// Lets go of the pages of code that have been mapped so far. Most of what has run by the time that everything is set
/// up never runs again; what does is mapped again from the page cache as it is needed.
///
/// # Errors
///
/// Without `/proc`, or if the kernel refuses.
pub fn let_go_of_code() -> io::Result<()> {
    for line in fs::read_to_string("/proc/self/maps")?.lines() {
        let Some((start, end)) = code(line).map_err(io::Error::other)? else { continue };
        let Some(address) = ptr::NonNull::new(ptr::with_exposed_provenance_mut(start)) else { continue };
        // SAFETY: these are pages of a file, mapped private, that nobody may write: what is read there next is what
        // was there before. Nothing is unmapped.
        unsafe { madvise(address, end - start, MmapAdvise::MADV_DONTNEED) }?;
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
    use std::num::NonZero;

    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

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
    fn code_that_was_mapped_is_resident_no_more_and_the_program_runs_on() {
        // Mapped once more, as code that nothing runs: what the other tests run meanwhile doesn't come back there.
        let file = fs::File::open("/proc/self/exe").unwrap();
        let len = NonZero::new(64 * 1024).unwrap();
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_EXEC;
        // SAFETY: a mapping at an address of the kernel's choice, of a file that nobody writes while it runs.
        let code = unsafe { mmap(None, len, access, MapFlags::MAP_PRIVATE, &file, 0) }.unwrap();
        for page in (0..len.get()).step_by(4096) {
            // SAFETY: within the mapping, which is readable.
            unsafe { code.cast::<u8>().add(page).read_volatile() };
        }
        assert_eq!(resident(code.as_ptr().addr()), 64);
        let_go_of_code().unwrap();
        assert_eq!(resident(code.as_ptr().addr()), 0);
        // SAFETY: nothing points there any more.
        unsafe { munmap(code, len.get()) }.unwrap();
    }

    /// kB of the mapping that begins at this address.
    fn resident(start: usize) -> u64 {
        let text = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("{start:x}-")));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }
}
