//! The eBPF object inside this binary, and loading it against the pinned maps.

use std::path::Path;

use aya::{Ebpf, EbpfLoader};

use crate::DatapathError;

/// Every map that is pinned, by the name it has in the object and under the pin directory.
pub const MAPS: [&str; 7] =
    ["PODS", "LISTENERS", "DIALLED", "AGENT_SOCKETS", "ORIGINAL_DST", "CLIENTS", "REFUSED"];

/// The program that is loaded once a pod.
pub const INBOUND: &str = "orlop_inbound";

/// Keeps the ELF aligned for in-place parsing.
#[repr(C, align(8))]
struct Aligned<Bytes: ?Sized>(Bytes);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("ORLOP_EBPF_OBJECT")));

/// Loads the object with its maps taken from, or pinned into, `maps`. `netns` is the pod that
/// `orlop_inbound` will serve; no program is in the kernel yet.
pub fn load(maps: &Path, netns: u64) -> Result<Ebpf, DatapathError> {
    if OBJECT.0.is_empty() {
        return Err(DatapathError::NoObject);
    }
    let mut loader = EbpfLoader::new();
    loader.override_global("POD_NETNS", &netns, true);
    for map in MAPS {
        loader.map_pin_path(map, maps.join(map));
    }
    loader.load(&OBJECT.0).map_err(DatapathError::Load)
}
