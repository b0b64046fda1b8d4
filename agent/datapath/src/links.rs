//! Links: attached once, pinned, and from then on only the programs behind them are replaced.
//!
//! aya can pin links but neither updates a cgroup or netns link nor shows a pinned link's descriptor,
//! so the four link calls are our own.

use std::{
    fs,
    io::{self, ErrorKind},
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use aya::{
    Ebpf,
    programs::{Program, ProgramError, ProgramFd},
};
use nix::libc::ENOLINK;

use crate::{
    DatapathError,
    object::INBOUND,
    sys::{self, AttachType},
};

/// The cgroup programs in the order in which they may start to act: what answers for redirected
/// sockets is there before the first one is redirected.
const CGROUP_PROGRAMS: [(&str, AttachType); 5] = [
    ("orlop_sockops", AttachType::CgroupSockOps),
    ("orlop_peer4", AttachType::CgroupInet4Getpeername),
    ("orlop_peer6", AttachType::CgroupInet6Getpeername),
    ("orlop_connect4", AttachType::CgroupInet4Connect),
    ("orlop_connect6", AttachType::CgroupInet6Connect),
];

/// Puts this build's cgroup programs behind the links pinned in `links`, attaching what is not there.
pub fn attach_cgroup(ebpf: &mut Ebpf, cgroup: BorrowedFd<'_>, links: &Path) -> Result<(), DatapathError> {
    for (name, attach_type) in CGROUP_PROGRAMS {
        let program = load_program(ebpf, name)?;
        put(program.as_fd(), cgroup, attach_type, &links.join(name))?;
    }
    Ok(())
}

/// Puts this build's inbound program behind the link pinned at `pin`, attaching it if it is not there.
pub fn attach_inbound(ebpf: &mut Ebpf, netns: BorrowedFd<'_>, pin: &Path) -> Result<(), DatapathError> {
    let program = load_program(ebpf, INBOUND)?;
    put(program.as_fd(), netns, AttachType::SkLookup, pin)
}

/// Removes a pin; the kernel then detaches the link.
pub fn detach(pin: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(DatapathError::File { action: "remove", path: pin.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<ProgramFd, DatapathError> {
    let program = ebpf.program_mut(name).ok_or(DatapathError::Missing(name))?;
    load(program).map_err(|source| DatapathError::Program { program: name, source })
}

fn load(program: &mut Program) -> Result<ProgramFd, ProgramError> {
    match program {
        Program::SockOps(program) => program.load()?,
        Program::SkLookup(program) => program.load()?,
        Program::CgroupSockAddr(program) => program.load()?,
        _ => return Err(ProgramError::UnexpectedProgramType),
    }
    Ok(program.fd()?.try_clone()?)
}

/// Replaces the program behind the pinned link in one step; without a link, or with one whose cgroup or
/// netns is gone, attaches and pins a new one.
fn put(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: AttachType,
    pin: &Path,
) -> Result<(), DatapathError> {
    let failed = |action| {
        move |source: io::Error| DatapathError::Link { action, path: pin.to_owned(), source }
    };
    match sys::object_get(pin) {
        Ok(link) => match sys::link_update(link.as_fd(), program) {
            Err(error) if error.raw_os_error() == Some(ENOLINK) => detach(pin)?,
            result => return result.map_err(failed("replace the program of")),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed("open")(error)),
    }
    let link = sys::link_create(program, target, attach_type).map_err(failed("attach"))?;
    sys::object_pin(link.as_fd(), pin).map_err(failed("pin"))
}
