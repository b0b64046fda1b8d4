//! Cgroups by their ids.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use nix::{errno::Errno, fcntl::AtFlags, libc, sys::stat::fstatat};

use crate::CgroupId;

/// What a file handle of kernfs is, `enum fid_type`: the id alone (5.5).
const FILEID_KERNFS: libc::c_int = 0xfe;

/// `struct file_handle`, as long as one of kernfs is.
#[repr(C)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    id: CgroupId,
}

/// Whether there is a cgroup with this id in the hierarchy that `root` is of, wherever it is. Needs
/// `CAP_DAC_READ_SEARCH`.
pub fn exists(root: BorrowedFd<'_>, id: CgroupId) -> io::Result<bool> {
    let cgroup = match open(root, id) {
        Err(error) if error.raw_os_error() == Some(libc::ESTALE) => return Ok(false),
        opened => opened?,
    };
    // Before 6.6, one that is removed can be opened for as long as anything of it is in memory, but is empty.
    match fstatat(cgroup.as_fd(), "cgroup.procs", AtFlags::empty()) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn open(root: BorrowedFd<'_>, id: CgroupId) -> io::Result<OwnedFd> {
    let bytes = size_of::<CgroupId>() as libc::c_uint;
    let mut handle = Handle { bytes, kind: FILEID_KERNFS, id };
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the handle is as long as it says, and the kernel reads it during the call alone.
    let fd = unsafe { libc::open_by_handle_at(root.as_raw_fd(), (&raw mut handle).cast(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::MetadataExt as _,
        process,
    };

    use super::*;

    #[test]
    fn a_cgroup_is_there_until_it_is_removed() {
        let root = crate::cgroup2_mount().unwrap();
        let path = root.join(format!("orlop-exists-{}", process::id()));
        fs::create_dir(&path).unwrap();
        let id = fs::metadata(&path).unwrap().ino();
        let root = File::open(root).unwrap();
        assert!(exists(root.as_fd(), id).unwrap());
        fs::remove_dir(&path).unwrap();
        assert!(!exists(root.as_fd(), id).unwrap());
        assert!(!exists(root.as_fd(), u64::MAX).unwrap());
    }
}
