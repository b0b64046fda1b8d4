//! The layout that kernel and user space share, against the record of its versions.

use super::{Problem, Tree, source::code_only};

const COMMON: &str = "ebpf/common/src/lib.rs";
const MAPS: &str = "ebpf/src/maps.rs";
/// A line for each version: its number, and the fingerprint of its layout.
const RECORD: &str = "ebpf/common/layouts";

/// A layout that changes takes a new version, so that no agent reads another's maps by its own layout.
pub(super) fn versions(tree: &Tree) -> Vec<Problem> {
    let (Some(common), Some(maps)) = (tree.files.get(COMMON), tree.files.get(MAPS)) else {
        return Vec::new();
    };
    let Some(version) = version(common) else {
        return vec![Problem::new(COMMON, 1, "say which layout it is: `pub const ABI_VERSION: u32 = N;`")];
    };
    let wanted = format!("{version} {:016x}", fingerprint(common, maps));
    let record = tree.files.get(RECORD).map_or("", String::as_str);
    let versions: Vec<_> = record.lines().map(|line| line.split(' ').next().unwrap_or_default()).collect();
    for (index, one) in versions.iter().enumerate() {
        if versions[..index].contains(one) {
            let what = format!("version {one} is there twice: the older line stays as it was");
            return vec![Problem::new(RECORD, index + 1, what)];
        }
    }
    match record.lines().last() {
        Some(last) if last == wanted => Vec::new(),
        Some(last) if last.split(' ').next() == Some(&version.to_string()) => {
            let what = format!(
                "the layout is no longer that of version {version}: raise ABI_VERSION to {}, and add the line \
                 that this says then to {RECORD}",
                version + 1
            );
            vec![Problem::new(COMMON, 1, what)]
        }
        _ => vec![Problem::new(RECORD, versions.len() + 1, format!("add the line `{wanted}`"))],
    }
}

fn version(common: &str) -> Option<u32> {
    let (_, rest) = common.split_once("pub const ABI_VERSION: u32 = ")?;
    rest.split(';').next()?.parse().ok()
}

/// Of every type that has a layout, of every map's type, and of the constants in these (FNV-1a).
fn fingerprint(common: &str, maps: &str) -> u64 {
    let (common, maps) = (code_only(common), code_only(maps));
    let maps: Vec<_> =
        statements(&maps, "pub static ").iter().filter_map(|one| one.split('=').next()).collect();
    let mut parts = items(&common);
    parts.extend(statements(&common, "pub type "));
    parts.extend(statements(&common, "pub const ").into_iter().filter(|constant| {
        let name = constant["pub const ".len()..].split(':').next().unwrap_or_default();
        maps.iter().any(|map| map.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name))
    }));
    parts.extend(maps);
    let words = parts.iter().flat_map(|part| part.split_whitespace());
    words
        .flat_map(|word| word.bytes().chain([b' ']))
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// From each `#[repr(` to the end of its item.
fn items(code: &str) -> Vec<&str> {
    let item = |(start, _)| {
        let rest: &str = &code[start..];
        rest.find("\n}").map_or(rest, |end| &rest[..end])
    };
    code.match_indices("#[repr(").map(item).collect()
}

fn statements<'a>(code: &'a str, head: &str) -> Vec<&'a str> {
    let statement = |(start, _)| {
        let rest: &'a str = &code[start..];
        rest.find(';').map_or(rest, |end| &rest[..end])
    };
    code.match_indices(head).map(statement).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    const LIB: &str = "pub const ABI_VERSION: u32 = 3;\npub const ROOM: u32 = 8;\npub const LIMIT: u32 = 1;\n\
                       /// A pod.\n#[repr(C)]\npub struct Pod {\n    /// Its address.\n    pub address: u32,\n}\n";
    const STATICS: &str = "/// Pods.\npub static PODS: HashMap<u64, Pod, ROOM> = HashMap::new();\n";

    fn check(lib: &str, statics: &str, record: &str) -> Vec<String> {
        let tree = tree(&[(COMMON, lib), (MAPS, statics), (RECORD, record)]);
        versions(&tree).into_iter().map(|problem| problem.what).collect()
    }

    fn line() -> String {
        format!("3 {:016x}\n", fingerprint(LIB, STATICS))
    }

    #[test]
    fn a_recorded_layout_is_fine() {
        assert_eq!(check(LIB, STATICS, &format!("2 0\n{}", line())), [""; 0]);
    }

    #[test]
    fn comments_and_other_constants_are_no_layout() {
        let lib = LIB.replace("Its address", "Where it is").replace("LIMIT: u32 = 1", "LIMIT: u32 = 2");
        assert_eq!(check(&lib, STATICS, &line()), [""; 0]);
    }

    #[test]
    fn a_changed_layout_takes_a_new_version() {
        for (old, new) in [("address: u32", "address: u64"), ("ROOM: u32 = 8", "ROOM: u32 = 9")] {
            let problems = check(&LIB.replace(old, new), STATICS, &line());
            assert!(problems[0].contains("raise ABI_VERSION to 4"), "{problems:?}");
        }
        let problems = check(LIB, &STATICS.replace("u64", "u32"), &line());
        assert!(problems[0].contains("raise ABI_VERSION to 4"), "{problems:?}");
    }

    #[test]
    fn a_new_version_is_recorded_once() {
        assert_eq!(check(LIB, STATICS, "2 0\n"), [format!("add the line `{}`", line().trim_end())]);
        let problems = check(LIB, STATICS, &format!("3 0\n{}", line()));
        assert!(problems[0].contains("twice"), "{problems:?}");
    }
}
