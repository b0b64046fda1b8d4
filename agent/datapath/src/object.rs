//! The eBPF object inside this binary, and loading it against the pinned maps.
//!
//! aya-obj reads, sanitizes and relocates the object. The system calls are our own, since aya's loader
//! reads the kernel's whole BTF for each load: 30 ms and 20 MB a pod for nothing that we use.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{self, ErrorKind},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use aya_obj::{
    EbpfSectionKind, Features, Function, Object, Program,
    btf::BtfFeatures,
    generated::bpf_map_type::{BPF_MAP_TYPE_RINGBUF, BPF_MAP_TYPE_SOCKHASH, BPF_MAP_TYPE_SOCKMAP},
};

use crate::{
    DatapathError,
    sys::{self, MapDefinition, ProgramDefinition, ProgramKind},
};

/// What the programs are told when they are loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Constants {
    /// Netns cookie of the pod that the inbound program will serve.
    pub pod: u64,
    /// Netns cookie of the node itself.
    pub node: u64,
    /// Id of the cgroup that every pod's is below; 0 if there is none.
    pub pods_cgroup: u64,
    /// 1 if pods are held until they are enrolled.
    pub boot_gate: u64,
}

impl Constants {
    /// With everything that programs may have to do, for the verifier to look at.
    pub const WIDEST: Self = Self { pod: 1, node: 1, pods_cgroup: 1, boot_gate: 1 };
}

/// Every kernel from 5.15 on has these kinds of BTF; newer kinds are rewritten to older ones.
const BTF_FEATURES: BtfFeatures = BtfFeatures::new(true, true, true, true, true, false, false, false);
const FEATURES: Features = Features::new(true, true, true, true, true, true, true, None);

/// `BPF_JMP | BPF_CALL`, and what makes it the call of a helper.
const CALL: u8 = 0x85;
const CALL_HELPER: u8 = 0;

/// Keeps the ELF aligned for in-place parsing.
#[repr(C, align(8))]
struct Aligned<Bytes: ?Sized>(Bytes);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("ORLOP_EBPF_OBJECT")));

/// The object, relocated against maps in the kernel. No program is in the kernel yet.
#[derive(Debug)]
pub struct Loaded {
    object: Object,
    btf: OwnedFd,
    maps: HashMap<String, OwnedFd>,
}

/// Loads the object with its maps taken from, or pinned into, the directory `pins`; without one, with maps
/// of its own.
pub fn load(pins: Option<&Path>, constants: &Constants) -> Result<Loaded, DatapathError> {
    let (mut object, btf) = parse(constants)?;
    let mut maps = HashMap::new();
    for (name, map) in &object.maps {
        let failed = |source| DatapathError::Load { what: format!("map {name}"), source };
        let fd = match map.section_kind() {
            // The globals belong to this one load.
            EbpfSectionKind::Rodata => globals(name, map).map_err(failed)?,
            _ => made(name, map, btf.as_fd(), pins).map_err(failed)?,
        };
        maps.insert(name.clone(), fd);
    }
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    let placed: Vec<_> =
        object.maps.iter().map(|(name, map)| (name.clone(), maps[name].as_raw_fd(), map.clone())).collect();
    object
        .relocate_maps(placed.iter().map(|(name, fd, map)| (name.as_str(), *fd, map)), &sections)
        .map_err(broken)?;
    object.relocate_calls(&sections).map_err(broken)?;
    object.sanitize_functions(&FEATURES);
    Ok(Loaded { object, btf, maps })
}

/// Makes a map of each type that the object has, for the time of the call.
pub fn try_maps() -> Result<BTreeMap<u32, io::Result<()>>, DatapathError> {
    let (object, btf) = parse(&Constants::WIDEST)?;
    let typed = |map: &aya_obj::Map| map.section_kind() != EbpfSectionKind::Rodata;
    let made = object.maps.iter().map(|(name, map)| {
        let definition = definition(name, map, typed(map).then_some(btf.as_fd()));
        (map.map_type(), sys::map_create(&definition).map(drop))
    });
    Ok(made.collect())
}

impl Loaded {
    /// A map of the object.
    pub fn take_map(&mut self, name: &'static str) -> Result<OwnedFd, DatapathError> {
        self.maps.remove(name).ok_or(DatapathError::Missing(name))
    }

    /// The helpers that a program calls, `enum bpf_func_id`.
    pub fn helpers(&self, name: &'static str) -> Result<BTreeSet<i32>, DatapathError> {
        let instructions = &self.function(name)?.1.instructions;
        let calls = instructions.iter().filter(|one| one.code == CALL && one.src_reg() == CALL_HELPER);
        Ok(calls.map(|call| call.imm).collect())
    }

    /// Puts a program into the kernel, through its verifier.
    pub fn program(&self, name: &'static str, kind: ProgramKind) -> Result<OwnedFd, DatapathError> {
        let (program, function) = self.function(name)?;
        let func_info = function.func_info.func_info_bytes();
        let line_info = function.line_info.line_info_bytes();
        let definition = ProgramDefinition {
            name,
            kind,
            instructions: &function.instructions,
            license: &program.license,
            btf: Some(self.btf.as_fd()),
            func_info: (&func_info, function.func_info_rec_size),
            line_info: (&line_info, function.line_info_rec_size),
        };
        sys::program_load(&definition).map_err(|(source, log)| DatapathError::Verifier {
            program: name,
            log,
            source,
        })
    }

    fn function(&self, name: &'static str) -> Result<(&Program, &Function), DatapathError> {
        let program = self.object.programs.get(name).ok_or(DatapathError::Missing(name))?;
        let function = self.object.functions.get(&program.function_key());
        Ok((program, function.ok_or(DatapathError::Missing(name))?))
    }
}

/// The object as this kernel takes it, and its BTF in the kernel.
fn parse(constants: &Constants) -> Result<(Object, OwnedFd), DatapathError> {
    if OBJECT.0.is_empty() {
        return Err(DatapathError::NoObject);
    }
    let mut object = Object::parse(&OBJECT.0).map_err(broken)?;
    let values = [
        ("POD_NETNS", constants.pod.to_ne_bytes()),
        ("NODE_NETNS", constants.node.to_ne_bytes()),
        ("PODS_CGROUP", constants.pods_cgroup.to_ne_bytes()),
        ("BOOT_GATE", constants.boot_gate.to_ne_bytes()),
    ];
    let values = values.iter().map(|(name, value)| (*name, (&value[..], true)));
    object.patch_map_data(values.collect()).map_err(broken)?;
    let btf = object.fixup_and_sanitize_btf(&BTF_FEATURES).map_err(broken)?;
    let btf = btf.ok_or(DatapathError::Missing("BTF"))?.to_bytes();
    let btf = sys::btf_load(&btf).map_err(|source| DatapathError::Load { what: "its BTF".into(), source })?;
    Ok((object, btf))
}

/// Opens the map pinned in `pins`, or makes and pins it there.
fn made(name: &str, map: &aya_obj::Map, btf: BorrowedFd<'_>, pins: Option<&Path>) -> io::Result<OwnedFd> {
    let make = || sys::map_create(&definition(name, map, Some(btf)));
    let Some(pin) = pins.map(|pins| pins.join(name)) else { return make() };
    match sys::object_get(&pin) {
        Ok(pinned) => return same_shape(pinned, &definition(name, map, None)),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let fd = make()?;
    sys::object_pin(fd.as_fd(), &pin)?;
    Ok(fd)
}

/// A map whose keys or values are of other sizes than ours would have us read past their ends.
fn same_shape(pinned: OwnedFd, definition: &MapDefinition<'_>) -> io::Result<OwnedFd> {
    let shape = sys::map_shape(pinned.as_fd())?;
    let same = shape.map_type == definition.map_type
        && shape.key_size == definition.key_size
        && shape.value_size == definition.value_size;
    if same {
        Ok(pinned)
    } else {
        Err(io::Error::other("what is pinned has another layout; run `orlop clean`"))
    }
}

/// The read-only globals, with the values that they have in `map`.
fn globals(name: &str, map: &aya_obj::Map) -> io::Result<OwnedFd> {
    let fd = sys::map_create(&definition(name, map, None))?;
    sys::map_fill(fd.as_fd(), map.data())?;
    sys::map_freeze(fd.as_fd())?;
    Ok(fd)
}

fn definition<'a>(name: &'a str, map: &aya_obj::Map, btf: Option<BorrowedFd<'a>>) -> MapDefinition<'a> {
    let types = match map {
        aya_obj::Map::Btf(btf_map) if takes_types(map) => {
            Some((btf_map.def.btf_key_type_id, btf_map.def.btf_value_type_id))
        }
        _ => None,
    };
    MapDefinition {
        name,
        map_type: map.map_type(),
        key_size: map.key_size(),
        value_size: map.value_size(),
        max_entries: map.max_entries(),
        flags: map.map_flags(),
        btf: btf.zip(types),
    }
}

/// Maps of sockets and ring buffers have none.
fn takes_types(map: &aya_obj::Map) -> bool {
    let without = [BPF_MAP_TYPE_SOCKHASH, BPF_MAP_TYPE_SOCKMAP, BPF_MAP_TYPE_RINGBUF];
    !without.iter().any(|&kind| kind as u32 == map.map_type())
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> DatapathError {
    DatapathError::Object(Box::new(error))
}
