use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use orlop_model::world::{Namespace, Pod};
use orlop_model::{NamespacedName, Settings, compile};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::*;

mod worlds;

const NODE: &str = "n1";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_read_is_what_was_written(world in worlds::world()) {
        let read = text::read(&written(&world), NODE).unwrap();
        prop_assert_eq!(read.as_of, Some(noon()));
        let (kept, live) = (compile(&read, &settings(), 1), compile(&world, &settings(), 1));
        prop_assert_eq!(kept.as_of(), Some(noon()));
        prop_assert_eq!(serde_json::to_value(kept).unwrap(), serde_json::to_value(live).unwrap());
        prop_assert_eq!(World { as_of: None, ..read }, world);
    }
}

#[test]
fn less_than_all_of_it_is_refused() {
    let bytes = some();
    for length in 0..bytes.len() {
        assert!(text::read(&bytes[..length], NODE).is_err(), "the first {length} bytes");
    }
    assert!(text::read(&[&bytes[..], b"\n"].concat(), NODE).is_err());
    text::read(&bytes, NODE).unwrap();
}

#[test]
fn one_bit_that_differs_is_enough_to_refuse_it() {
    let bytes = some();
    for bit in 0..8 * bytes.len() {
        let mut other = bytes.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        assert!(text::read(&other, NODE).is_err(), "bit {bit}");
    }
}

#[test]
fn that_of_another_node_or_program_is_refused() {
    let problem = |bytes: &[u8], node| text::read(bytes, node).unwrap_err();
    assert_eq!(problem(&some(), "n2"), r#"is of node "n1", and this is "n2""#);
    let text = String::from_utf8(some()).unwrap();
    let newer = text.replacen(r#""orlop_world":1"#, r#""orlop_world":2"#, 1);
    assert!(problem(&signed(&newer), NODE).contains("in format 2"));
    let program = format!(r#""program":"{}""#, env!("CARGO_PKG_VERSION"));
    let newer = text.replacen(&program, r#""program":"99.0.0""#, 1);
    assert!(problem(&signed(&newer), NODE).contains(r#"by orlop "99.0.0""#));
    let later = text.replacen(r#""written":"#, r#""written":9999"#, 1);
    assert!(problem(&signed(&later), NODE).contains("which can't be"));
}

/// Only who may write the file can do this, and who may is root: nothing breaks even so.
#[test]
fn what_makes_no_sense_is_refused_whoever_wrote_it() {
    let text = String::from_utf8(some()).unwrap();
    let world = text.lines().nth(1).unwrap();
    for wrong in [
        String::new(),
        "null".to_owned(),
        "{}".to_owned(),
        world[..world.len() / 2].to_owned(),
        "[".repeat(100_000),
        "{\"pods\":".repeat(100_000),
        world.replace("shop/web", "shop"),
        world.replace(r#""shop/web":"#, r#""shop/other":"#),
        world.replace("shop/web", "../web"),
        world.replace(r#""service_account":"till""#, r#""service_account":"till/ns/bank/sa/till""#),
        world.replace(r#""service_account":"till""#, r#""service_account":"""#),
        world.replace(r#""shop":{"#, r#""a/b":{"#),
        world.replace(r#""phase":"Running""#, r#""phase":"Walking""#),
        world.replace("10.0.0.1", "10.0.0.300"),
    ] {
        assert_ne!(wrong, world);
        assert!(text::read(&signed(&text.replacen(world, &wrong, 1)), NODE).is_err(), "{wrong:.200}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(text::read(&bytes, NODE).is_err());
        let text = String::from_utf8(some()).unwrap();
        let header = text.lines().next().unwrap().as_bytes();
        let with_header = [header, b"\n", &bytes[..], b"\n"].concat();
        let digest = digest(&SHA256, &with_header);
        let all = [&with_header[..], last_line_of(digest.as_ref()).as_bytes()].concat();
        prop_assert!(text::read(&all, NODE).is_err());
    }
}

#[test]
fn nobody_but_its_owner_may_read_it() {
    let directory = Directory::new();
    let file = directory.file();
    assert!(file.read().unwrap().is_none());
    file.write(Arc::new(world()), noon()).unwrap();
    assert_eq!(file.read().unwrap(), Some(World { as_of: Some(noon()), ..world() }));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(file.path()), mode(&file.directory)), (0o600, 0o700));
}

#[test]
fn where_others_may_write_it_is_not_believed() {
    let directory = Directory::new();
    let file = directory.file();
    file.write(Arc::new(world()), noon()).unwrap();
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    set(&file.directory, 0o770);
    assert!(matches!(file.read(), Err(WorldFileError::Exposed { mode: 0o770, .. })));
    assert!(matches!(file.write(Arc::new(world()), noon()), Err(WorldFileError::Exposed { .. })));
    set(&file.directory, 0o755);
    assert!(file.read().unwrap().is_some());
    set(file.path(), 0o602);
    assert!(matches!(file.read(), Err(WorldFileError::Exposed { mode: 0o602, .. })));
    // Nor is what a link leads to.
    let elsewhere = file.directory.join("elsewhere");
    set(file.path(), 0o600);
    fs::rename(file.path(), &elsewhere).unwrap();
    symlink(&elsewhere, file.path()).unwrap();
    assert!(matches!(file.read(), Err(WorldFileError::Io { .. })));
}

#[test]
fn a_write_that_fails_or_was_broken_off_leaves_what_was_there() {
    let directory = Directory::new();
    let file = directory.file();
    file.write(Arc::new(world()), noon()).unwrap();
    let before = fs::read(file.path()).unwrap();
    // Nothing can take the place of a directory.
    let new = file.directory.join("world.new");
    fs::create_dir(&new).unwrap();
    let error = file.write(Arc::default(), noon()).unwrap_err();
    assert!(error.to_string().starts_with(&new.display().to_string()), "{error}");
    assert_eq!(fs::read(file.path()).unwrap(), before);
    fs::remove_dir(&new).unwrap();
    fs::write(&new, &before[..100]).unwrap();
    file.write(Arc::default(), noon()).unwrap();
    assert!(!new.exists());
    assert_eq!(file.read().unwrap(), Some(World { as_of: Some(noon()), ..World::default() }));
}

#[test]
fn two_do_not_write_at_once() {
    let directory = Directory::new();
    let file = directory.file();
    let held = file.open_directory().unwrap();
    held.lock().unwrap();
    assert!(matches!(file.write(Arc::new(world()), noon()), Err(WorldFileError::Busy { .. })));
    drop(held);
    file.write(Arc::new(world()), noon()).unwrap();
}

/// A world that has a bit of everything, always the same.
fn some() -> Vec<u8> {
    let mut runner = TestRunner::deterministic();
    let mut some = worlds::world().new_tree(&mut runner).unwrap().current();
    some.namespaces.extend(world().namespaces);
    some.pods.extend(world().pods);
    written(&some)
}

fn world() -> World {
    let name = NamespacedName::new("shop", "web");
    let pod = Pod {
        name: name.clone(),
        service_account: "till".into(),
        addresses: [[10, 0, 0, 1].into()].into(),
        ..Pod::default()
    };
    World {
        namespaces: [("shop".into(), Namespace::default())].into(),
        pods: [(name, pod)].into(),
        ..World::default()
    }
}

fn written(world: &World) -> Vec<u8> {
    let mut bytes = Vec::new();
    text::write(&mut bytes, world, NODE, noon()).unwrap();
    bytes
}

/// The same with the checksum that belongs to it.
fn signed(text: &str) -> Vec<u8> {
    let lines: String = text.split_inclusive('\n').take(2).collect();
    let last = last_line_of(digest(&SHA256, lines.as_bytes()).as_ref());
    [lines, last].concat().into_bytes()
}

fn last_line_of(digest: &[u8]) -> String {
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256 {digits}\n")
}

fn noon() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn settings() -> Settings {
    Settings {
        node: NODE.to_owned(),
        trust_domain: "cluster.local".parse().unwrap(),
        trust_domain_aliases: Vec::new(),
        root_namespace: "istio-system".to_owned(),
        cluster: "Kubernetes".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        network: None,
    }
}

/// Removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("orlop-world-file-{}-{number}", std::process::id())))
    }

    fn file(&self) -> WorldFile {
        WorldFile::new(&self.0.join("state"), NODE)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
