//! Links: attached once, pinned, and from then on only the programs behind them are replaced.

use std::{
    fs,
    io::{self, ErrorKind},
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use nix::libc::ENOLINK;

use crate::{
    DatapathError,
    object::Loaded,
    sys::{self, ProgramKind},
};

/// The cgroup programs in the order in which they may start to act: what answers for redirected
/// sockets is there before the first one is redirected.
const CGROUP_PROGRAMS: [(&str, ProgramKind); 12] = [
    ("orlop_sockops", ProgramKind::SockOps),
    ("orlop_peer4", ProgramKind::Getpeername4),
    ("orlop_peer6", ProgramKind::Getpeername6),
    ("orlop_recvmsg4", ProgramKind::UdpReceive4),
    ("orlop_recvmsg6", ProgramKind::UdpReceive6),
    ("orlop_sendmsg4", ProgramKind::UdpSend4),
    ("orlop_sendmsg6", ProgramKind::UdpSend6),
    ("orlop_connect4", ProgramKind::Connect4),
    ("orlop_connect6", ProgramKind::Connect6),
    ("orlop_made", ProgramKind::SocketMade),
    ("orlop_out", ProgramKind::Egress),
    ("orlop_in", ProgramKind::Ingress),
];

/// The program of each pod's netns.
const INBOUND_PROGRAM: (&str, ProgramKind) = ("orlop_inbound", ProgramKind::SkLookup);

/// Every program.
pub fn programs() -> impl Iterator<Item = (&'static str, ProgramKind)> {
    CGROUP_PROGRAMS.into_iter().chain([INBOUND_PROGRAM])
}

/// Puts this build's cgroup programs behind the links pinned in `links`, attaching what is not there. None
/// is touched if the kernel refuses any program, the inbound one included.
pub fn attach_cgroup(loaded: &Loaded, cgroup: BorrowedFd<'_>, links: &Path) -> Result<(), DatapathError> {
    let accepted: Vec<_> =
        programs().map(|(name, kind)| loaded.program(name, kind)).collect::<Result<_, _>>()?;
    for ((name, kind), program) in CGROUP_PROGRAMS.into_iter().zip(accepted) {
        put(program.as_fd(), cgroup, kind, &links.join(name))?;
    }
    Ok(())
}

/// Puts this build's inbound program behind the link pinned at `pin`, attaching it if it is not there.
pub fn attach_inbound(loaded: &Loaded, netns: BorrowedFd<'_>, pin: &Path) -> Result<(), DatapathError> {
    let (name, kind) = INBOUND_PROGRAM;
    put(loaded.program(name, kind)?.as_fd(), netns, kind, pin)
}

/// Whether the netns of a pinned link is gone; `None` without such a pin.
pub fn lost_netns(pin: &Path) -> Result<Option<bool>, DatapathError> {
    let failed = |source| DatapathError::Link { action: "look at", path: pin.to_owned(), source };
    match sys::object_get(pin) {
        Ok(link) => sys::lost_netns(link.as_fd()).map(Some).map_err(failed),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Detaches a pinned link, in force when this returns, and removes its pin. That there is none is no error.
pub fn detach(pin: &Path) -> Result<(), DatapathError> {
    let failed = |source| DatapathError::Link { action: "detach", path: pin.to_owned(), source };
    match sys::object_get(pin) {
        Ok(link) => sys::link_detach(link.as_fd()).map_err(failed)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    fs::remove_file(pin).map_err(|source| DatapathError::File {
        action: "remove",
        path: pin.to_owned(),
        source,
    })
}

/// Replaces the program behind the pinned link in one step; without a link, or with one whose cgroup or
/// netns is gone, attaches and pins a new one.
fn put(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    kind: ProgramKind,
    pin: &Path,
) -> Result<(), DatapathError> {
    let failed =
        |action| move |source: io::Error| DatapathError::Link { action, path: pin.to_owned(), source };
    match sys::object_get(pin) {
        Ok(link) => match sys::link_update(link.as_fd(), program) {
            Err(error) if error.raw_os_error() == Some(ENOLINK) => detach(pin)?,
            result => return result.map_err(failed("replace the program of")),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed("open")(error)),
    }
    let link = sys::link_create(program, target, kind).map_err(failed("attach"))?;
    sys::object_pin(link.as_fd(), pin).map_err(failed("pin"))
}
