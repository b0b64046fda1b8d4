//! Pins of other layouts than this agent's: left by an agent of another version, and in force until this one has
//! the same pods.
//!
//! Every layout has, and will have, `BPFFS/vN/maps/PODS` with the netns cookie as its key, links below
//! `BPFFS/vN/links`, and a pod's below `BPFFS/vN/pods`. One with the boot gate has `BPFFS/vN/maps/GATED` and `HELD`, of
//! which every layout uses the same two maps, so that who is held stays so. Nothing else of another layout is touched.

use std::{
    fs,
    io::{self, ErrorKind},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use orlop_common::ABI_VERSION;

use crate::{DatapathError, NetnsCookie, file, links, maps, sys};

/// Where this build's layout is pinned.
pub fn own(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("v{ABI_VERSION}"))
}

/// The maps of the boot gate.
const GATE: [&str; 2] = ["GATED", "HELD"];

/// Pins the boot gate's maps of another layout in this one too, if there are any and this has none: who is held is
/// known to both from then on, and the mark of a socket that is held counts in both.
pub fn share_gate(own: &Path) -> Result<(), DatapathError> {
    let mut others = others(own)?;
    others.sort_by_key(|other| version(other));
    let own = own.join("maps");
    for map in GATE {
        let pin = own.join(map);
        if pin.exists() {
            continue;
        }
        for other in others.iter().rev() {
            let share = sys::object_get(&other.join("maps").join(map))
                .and_then(|shared| sys::object_pin(shared.as_fd(), &pin));
            match share {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(source) => return Err(DatapathError::Map { action: "share", map, source }),
                Ok(()) => break,
            }
        }
    }
    Ok(())
}

/// The pods that the others serve.
pub fn pods(own: &Path) -> Result<Vec<NetnsCookie>, DatapathError> {
    let mut cookies = Vec::new();
    for other in others(own)? {
        match keys(&other.join("maps/PODS")) {
            Ok(keys) => cookies.extend(keys),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(DatapathError::Map { action: "list", map: "PODS", source }),
        }
        let pins = other.join("pods");
        if pins.is_dir() {
            cookies.extend(list(&pins)?.iter().filter_map(|pin| cookie_of(pin)));
        }
    }
    Ok(cookies)
}

/// Whether the netns of a pod is gone, as far as a layout has a link to it.
pub fn lost_netns(own: &Path, cookie: NetnsCookie) -> Result<bool, DatapathError> {
    let layouts = others(own)?.into_iter().chain([own.to_owned()]);
    let pins = layouts.map(|layout| layout.join("pods").join(cookie.to_string()));
    let found: Vec<_> = pins.map(|pin| links::lost_netns(&pin)).collect::<Result<_, _>>()?;
    let mut known = found.into_iter().flatten().peekable();
    Ok(known.peek().is_some() && known.all(|lost| lost))
}

/// Takes a pod that this layout serves, or that has left the mesh, out of the others. With both in force it is refused.
pub fn leave_pod(own: &Path, cookie: NetnsCookie) -> Result<(), DatapathError> {
    for other in others(own)? {
        match forget(&other.join("maps/PODS"), cookie) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(DatapathError::Map { action: "write", map: "PODS", source: error });
            }
            _ => links::detach(&other.join("pods").join(cookie.to_string()))?,
        }
    }
    Ok(())
}

/// The pod whose link is pinned here.
pub fn cookie_of(pin: &Path) -> Option<NetnsCookie> {
    pin.file_name()?.to_str()?.parse().ok()
}

/// Removes the others, and with them what they still have in force. Returns which these were.
pub fn remove_others(own: &Path) -> Result<Vec<PathBuf>, DatapathError> {
    let others = others(own)?;
    for other in &others {
        remove(other)?;
        fs::remove_dir_all(other).map_err(file("remove", other))?;
    }
    Ok(others)
}

/// Takes a layout's links out of force.
pub fn remove(layout: &Path) -> Result<(), DatapathError> {
    for part in ["links", "pods"].map(|part| layout.join(part)) {
        if part.is_dir() {
            list(&part)?.iter().try_for_each(|pin| links::detach(pin))?;
        }
    }
    Ok(())
}

pub fn list(directory: &Path) -> Result<Vec<PathBuf>, DatapathError> {
    let entries = fs::read_dir(directory).map_err(file("list", directory))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

fn others(own: &Path) -> Result<Vec<PathBuf>, DatapathError> {
    let Some(bpffs) = own.parent() else { return Ok(Vec::new()) };
    Ok(list(bpffs)?.into_iter().filter(|path| path != own && version(path).is_some()).collect())
}

/// Of the layout that is pinned here, if it is one.
fn version(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()
}

fn forget(pods: &Path, cookie: NetnsCookie) -> io::Result<()> {
    maps::remove(by_cookie(pods)?.as_fd(), cookie)
}

fn keys(pods: &Path) -> io::Result<Vec<NetnsCookie>> {
    // Of its values nothing is read.
    maps::Map::<NetnsCookie, u32>::new(by_cookie(pods)?).keys()
}

/// Opens a map of which no more is known than its key.
fn by_cookie(pods: &Path) -> io::Result<OwnedFd> {
    let map = sys::object_get(pods)?;
    if sys::map_shape(map.as_fd())?.key_size != size_of::<NetnsCookie>() as u32 {
        return Err(io::Error::other("its key is no netns cookie"));
    }
    Ok(map)
}
