//! Holds a look at some files against one at all of them.

use proptest::prelude::*;

use super::super::tests::{Dir, names, pod};
use super::*;

const NAMES: [&str; 5] = ["a.yaml", "b.yaml", "c.yaml", "deep/d.yaml", "deep.yaml/e.yaml"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn to_look_where_something_changed_finds_what_a_look_everywhere_does(
        steps in prop::collection::vec(prop::collection::vec(change(), 1..4), 1..12),
    ) {
        let dir = Dir::new();
        let (mut some, mut all) = (Files::default(), Files::default());
        for changes in steps {
            let mut paths = BTreeSet::new();
            for (name, text) in changes {
                let path = dir.0.join(name);
                match text {
                    Some(text) => dir.write(name, &text),
                    None => drop(fs::remove_file(&path)),
                }
                paths.insert(path);
            }
            some.refresh(&dir.0, &Look::At(paths)).unwrap();
            all.refresh(&dir.0, &Look::Everywhere).unwrap();
            let errors = |files: &Files| files.errors().map(ToString::to_string).collect::<Vec<_>>();
            prop_assert_eq!(errors(&some), errors(&all));
            prop_assert_eq!(some.world(), all.world());
        }
    }
}

/// What is written to a file, or that it is removed. Objects are in several files at times, and files can be bad.
fn change() -> impl Strategy<Value = (&'static str, Option<String>)> {
    let document =
        (0..4, 1..4).prop_map(|(name, address)| pod(&format!("p{name}"), &format!("10.0.0.{address}")));
    let policy = Just(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {mtls: {mode: wrong}}\n"
            .to_owned(),
    );
    let bad = Just("kind: [\n".to_owned());
    let document = prop_oneof![8 => document, 1 => policy, 1 => bad];
    let text = prop::collection::vec(document, 0..3).prop_map(|documents| documents.join("---\n"));
    (prop::sample::select(&NAMES[..]), prop::option::weighted(0.8, text))
}

#[test]
fn no_other_file_is_read() {
    let dir = Dir::new();
    dir.write("a.yaml", &pod("a", "10.0.0.1"));
    dir.write("b.yaml", &pod("b", "10.0.0.2"));
    let mut files = Files::default();
    files.refresh(&dir.0, &Look::Everywhere).unwrap();
    let before = files.world();
    dir.write("a.yaml", &pod("c", "10.0.0.3"));
    dir.write("b.yaml", &pod("d", "10.0.0.4"));
    files.refresh(&dir.0, &Look::At([dir.0.join("a.yaml")].into())).unwrap();
    assert_eq!(names(&files.world()), ["b", "c"]);
    files.refresh(&dir.0, &Look::At([dir.0.join("b.yaml")].into())).unwrap();
    assert_eq!(names(&files.world()), ["c", "d"]);
    assert_eq!(names(&before), ["a", "b"]);
}

#[test]
fn what_is_the_same_in_a_changed_file_stays_where_it_is() {
    let dir = Dir::new();
    let file = |address: &str| format!("{}---\n{}", pod("a", "10.0.0.1"), pod("b", address));
    dir.write("a.yaml", &file("10.0.0.2"));
    let mut files = Files::default();
    files.refresh(&dir.0, &Look::Everywhere).unwrap();
    let before = files.world();
    dir.write("a.yaml", &file("10.0.0.3"));
    files.refresh(&dir.0, &Look::At([dir.0.join("a.yaml")].into())).unwrap();
    let now = files.world();
    let changed: Vec<_> = before.pods.differences(&now.pods).map(|(name, ..)| name.name.as_str()).collect();
    assert_eq!(changed, ["b"]);
}

#[test]
fn a_directory_named_like_a_file_comes_and_goes_as_a_whole() {
    let dir = Dir::new();
    dir.write("a.yaml/b.yaml", &pod("b", "10.0.0.2"));
    let look = Look::At([dir.0.join("a.yaml")].into());
    let mut files = Files::default();
    files.refresh(&dir.0, &look).unwrap();
    assert_eq!(names(&files.world()), ["b"]);
    fs::remove_dir_all(dir.0.join("a.yaml")).unwrap();
    files.refresh(&dir.0, &look).unwrap();
    assert!(names(&files.world()).is_empty());
}

#[test]
fn a_missing_directory_changes_nothing() {
    let dir = Dir::new();
    dir.write("a.yaml", &pod("a", "10.0.0.1"));
    let mut files = Files::default();
    files.refresh(&dir.0, &Look::Everywhere).unwrap();
    fs::remove_dir_all(&dir.0).unwrap();
    for look in [Look::Everywhere, Look::At([dir.0.join("a.yaml")].into())] {
        assert!(files.refresh(&dir.0, &look).is_err());
    }
    assert_eq!(names(&files.world()), ["a"]);
}
