use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use orlop_model::world::security::Action;
use orlop_model::{NamespacedName, World};
use tokio::sync::watch::Receiver;

use super::{WorldDirectory, read_world};

#[test]
fn documents_lists_and_directories_are_all_read() {
    let dir = Dir::new();
    dir.write(
        "a.yaml",
        &format!("{NAMESPACE}---\n{}---\n---\n{}", pod("a", "10.0.0.1"), pod("b", "10.0.0.2")),
    );
    dir.write("deep/er/c.yml", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: c}\n- {apiVersion: v1, kind: Secret}\n");
    dir.write("pods.json", r#"{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"d"}}]}"#);
    dir.write(
        "service.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1}\naddressType: IPv4\n\
         endpoints: [{addresses: [10.0.0.1]}]\n",
    );
    let world = WorldDirectory::open(&dir.0).unwrap().world().clone();
    assert_eq!(names(&world), ["a", "b", "c", "d"]);
    assert_eq!((world.namespaces.len(), world.services.len(), world.endpoint_slices.len()), (1, 1, 1));
    assert_eq!(world.namespaces["default"].labels["orlop.dev/mesh"], "enabled");
}

#[test]
fn other_files_kinds_and_hidden_names_are_ignored() {
    let dir = Dir::new();
    for name in ["notes.txt", ".hidden.yaml", ".git/config.yaml", "..data/a.yaml", "a.yaml~", "a.yaml.swp"] {
        dir.write(name, "not: [valid");
    }
    dir.write("b.yaml", "# nothing here\n");
    dir.write("c.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n");
    dir.write("d.yaml", "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: web}\n");
    assert_eq!(read_world(&dir.0).unwrap(), World::default());
}

#[test]
fn policies_of_both_versions_are_read() {
    let dir = Dir::new();
    dir.write(
        "policies.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\n\
         spec: {rules: [{to: [{operation: {ports: [\"80\"]}}]}]}\nstatus: {conditions: []}\n---\n\
         apiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\nmetadata: {name: b}\nspec: {}\n---\n\
         apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {name: a}\n\
         spec: {mtls: {mode: STRICT}}\n",
    );
    dir.write(
        "list.yaml",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthenticationList\nitems: [{metadata: {name: b}}]\n",
    );
    let world = read_world(&dir.0).unwrap();
    assert_eq!((world.authorization_policies.len(), world.peer_authentications.len()), (2, 2));
    assert_eq!(
        world.authorization_policies[&NamespacedName::new("shop", "a")].rules[0].to[0].ports.values,
        [80]
    );
}

#[tokio::test]
async fn a_bad_policy_keeps_what_it_said_before() {
    let dir = Dir::new();
    let policy = |mode: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: a}}\n\
             spec: {{mtls: {{mode: {mode}}}}}\n"
        )
    };
    dir.write("a.yaml", &policy("STRICT"));
    let mut world = watch(&dir);
    dir.write("a.yaml", &policy("strict"));
    dir.write("b.yaml", &pod("b", "10.0.0.2"));
    let seen = until(&mut world, |world| names(world) == ["b"]).await;
    assert_eq!(seen.peer_authentications.len(), 1);
    dir.write("a.yaml", &policy("DISABLE"));
    let mode = |world: &World| world.peer_authentications.values().next().and_then(|policy| policy.mode);
    until(&mut world, |world| mode(world) == Some(orlop_model::Mode::Disable)).await;
}

#[test]
fn an_error_names_file_line_and_field_and_what_to_do() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n";
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web}\n";
    let table = [
        (
            format!("---\n{pod}status:\n  podIPs:\n  - ip: 10.0.0.300\n"),
            r#"8: Pod default/web: status.podIPs[0].ip: "10.0.0.300" is not an IP address"#,
        ),
        (
            format!("{pod}  labels:\n    version: 1.0\n"),
            "6: Pod default/web: metadata.labels.version: invalid type: floating point `1.0`, expected a string; put it in quotes",
        ),
        (
            format!("{pod}spec:\n  containers: web\n"),
            r#"6: Pod default/web: spec.containers: invalid type: string "web", expected a sequence"#,
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: shop\n".to_owned(),
            "4: Pod: metadata.name: is missing; give the object a name",
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: Shop}\n".to_owned(),
            r#"3: Namespace Shop: metadata.name: "Shop" is not a valid name: use lower-case letters, digits and '-', at most 63"#,
        ),
        (
            "apiVersion: v2\nkind: Pod\nmetadata: {name: web}\n".to_owned(),
            r#"1: Pod default/web: apiVersion: "v2" has no Pod that Orlop reads; write v1"#,
        ),
        (
            "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: web}\n".to_owned(),
            r#"1: EndpointSlice default/web: apiVersion: "discovery.k8s.io/v1beta1" has no EndpointSlice that Orlop reads; write discovery.k8s.io/v1"#,
        ),
        (
            "apiVersion: v1\nmetadata: {name: web}\n".to_owned(),
            "1: object default/web: kind: is missing; every document must be a Kubernetes object",
        ),
        (
            "apiVersion: v1\nkind: List\nitems: none\n".to_owned(),
            "3: List: items: is not a sequence of objects",
        ),
        (
            "apiVersion: v1\nkind: PodList\nitems:\n- text\n".to_owned(),
            "4: object: kind: is missing; every document must be a Kubernetes object",
        ),
        (
            format!("{policy}spec:\n  rules:\n  - from:\n    - source:\n        princpals: [a]\n"),
            "8: AuthorizationPolicy default/web: spec.rules[0].from[0].source.princpals: unknown field `princpals`, expected one of ",
        ),
        (
            format!("{policy}spec:\n  rules:\n  - from:\n"),
            "6: AuthorizationPolicy default/web: spec.rules[0].from: there is nothing in it; fill it, or leave it out",
        ),
        (
            format!("{policy}spec:\n  rules:\n  - to:\n    - operation:\n        ports: [80]\n"),
            "8: AuthorizationPolicy default/web: spec.rules[0].to[0].operation.ports[0]: invalid type: integer `80`, expected a string; put it in quotes",
        ),
        (
            format!(
                "{policy}spec:\n  rules:\n  - from:\n    - source:\n        namespaces:\n        - a*b\n"
            ),
            r#"9: AuthorizationPolicy default/web: spec.rules[0].from[0].source.namespaces[0]: "a*b" has a '*' where it means nothing; write it once, as the first or the last character"#,
        ),
        (
            "apiVersion: security.istio.io/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: web}\n"
                .to_owned(),
            r#"1: PeerAuthentication default/web: apiVersion: "security.istio.io/v1alpha1" has no PeerAuthentication that Orlop reads; write security.istio.io/v1"#,
        ),
        ("just text\n".to_owned(), "1: object: kind: is missing; every document must be a Kubernetes object"),
        (format!("{pod}---\n{pod}"), "6: Pod default/web is also in WORLD/a.yaml:1; keep one of them"),
        ("a: 1\nb: [1, 2\n".to_owned(), "2: not valid YAML: unclosed bracket '['"),
        ("a: 1\na: 2\n".to_owned(), "2: not valid YAML: "),
    ];
    for (text, want) in table {
        let dir = Dir::new();
        dir.write("a.yaml", &text);
        let error = WorldDirectory::open(&dir.0).unwrap_err().to_string();
        let error = error.replace(dir.0.to_str().unwrap(), "WORLD");
        let want = format!("WORLD/a.yaml:{want}");
        let partial = want.ends_with(": ") || want.ends_with(" of ");
        assert!(
            error == want || (partial && error.starts_with(&want) && error.len() > want.len()),
            "\n got {error}\nwant {want}"
        );
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn text_that_is_not_utf8_is_an_error_with_its_line() {
    let dir = Dir::new();
    fs::write(dir.0.join("a.yaml"), b"# one\n# \xff\n").unwrap();
    let error = WorldDirectory::open(&dir.0).unwrap_err().to_string();
    assert!(error.ends_with("a.yaml:2: the file is not UTF-8"), "{error}");
}

#[test]
fn one_object_in_two_files_is_an_error_naming_both() {
    let dir = Dir::new();
    dir.write("a.yaml", &pod("web", "10.0.0.1"));
    dir.write("b.yaml", &format!("# moved\n{}", pod("web", "10.0.0.2")));
    let error = WorldDirectory::open(&dir.0).unwrap_err().to_string();
    let error = error.replace(dir.0.to_str().unwrap(), "WORLD");
    assert_eq!(error, "WORLD/b.yaml:2: Pod default/web is also in WORLD/a.yaml:1; keep one of them");
}

#[test]
fn all_errors_are_told_at_once() {
    let dir = Dir::new();
    dir.write("a.yaml", "kind: [");
    dir.write("b.yaml", &pod("ok", "10.0.0.1"));
    dir.write("c.yaml", "x: 1");
    assert_eq!(read_world(&dir.0).unwrap_err().len(), 2);
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    let error = WorldDirectory::open(Path::new("/nonexistent/world")).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/world: can't read the world directory"), "{error}");
}

#[tokio::test]
async fn changes_additions_and_removals_are_seen() {
    let dir = Dir::new();
    dir.write("a.yaml", &pod("a", "10.0.0.1"));
    let mut world = watch(&dir);
    dir.write("a.yaml", &pod("a", "10.0.0.9"));
    until(&mut world, |world| pod_address(world, "a") == Some("10.0.0.9".into())).await;
    dir.write("b.yaml", &pod("b", "10.0.0.2"));
    until(&mut world, |world| names(world) == ["a", "b"]).await;
    dir.write("sub/c.yaml", &pod("c", "10.0.0.3"));
    until(&mut world, |world| names(world) == ["a", "b", "c"]).await;
    dir.write("sub/c.yaml", &pod("d", "10.0.0.3"));
    until(&mut world, |world| names(world) == ["a", "b", "d"]).await;
    fs::remove_file(dir.0.join("b.yaml")).unwrap();
    until(&mut world, |world| names(world) == ["a", "d"]).await;
    fs::remove_dir_all(dir.0.join("sub")).unwrap();
    until(&mut world, |world| names(world) == ["a"]).await;
}

#[tokio::test]
async fn a_file_renamed_into_place_is_seen() {
    let dir = Dir::new();
    dir.write("a.yaml", &pod("a", "10.0.0.1"));
    let mut world = watch(&dir);
    dir.write(".a.yaml.tmp", &pod("b", "10.0.0.2"));
    fs::rename(dir.0.join(".a.yaml.tmp"), dir.0.join("a.yaml")).unwrap();
    until(&mut world, |world| names(world) == ["b"]).await;
}

#[tokio::test]
async fn a_mounted_config_map_is_followed_when_it_is_swapped() {
    let dir = Dir::new();
    dir.write("..1/a.yaml", &pod("a", "10.0.0.1"));
    dir.write("..2/a.yaml", &pod("b", "10.0.0.2"));
    std::os::unix::fs::symlink("..1", dir.0.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", dir.0.join("a.yaml")).unwrap();
    let mut world = watch(&dir);
    assert_eq!(names(&world.borrow()), ["a"]);
    std::os::unix::fs::symlink("..2", dir.0.join("..data_tmp")).unwrap();
    fs::rename(dir.0.join("..data_tmp"), dir.0.join("..data")).unwrap();
    until(&mut world, |world| names(world) == ["b"]).await;
}

#[tokio::test]
async fn a_bad_file_keeps_its_last_good_objects_until_it_is_good_or_gone() {
    let dir = Dir::new();
    dir.write("a.yaml", &pod("a", "10.0.0.1"));
    let mut world = watch(&dir);
    dir.write("a.yaml", "kind: [");
    dir.write("b.yaml", &pod("b", "10.0.0.2"));
    until(&mut world, |world| names(world) == ["a", "b"]).await;
    dir.write("a.yaml", &pod("c", "10.0.0.3"));
    until(&mut world, |world| names(world) == ["b", "c"]).await;
    dir.write("a.yaml", "kind: [");
    fs::remove_file(dir.0.join("a.yaml")).unwrap();
    until(&mut world, |world| names(world) == ["b"]).await;
}

#[tokio::test]
async fn a_policy_that_never_was_good_lets_nothing_pass() {
    let dir = Dir::new();
    let policy = |name: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let actions = |world: &World| -> Vec<(String, Action)> {
        let policies = world.authorization_policies.values();
        policies.map(|policy| (policy.name.name.to_string(), policy.action)).collect()
    };
    dir.write("a.yaml", &policy("a", "{action: ALLOW}"));
    let mut world = watch(&dir);
    // What was good before stays what it was; what is new beside it does not.
    dir.write("a.yaml", &format!("{}---\n{}", policy("a", "7"), policy("b", "{action: ALLOW}")));
    let wanted = [("a".to_owned(), Action::Allow), ("b".to_owned(), Action::Deny)];
    until(&mut world, |world| actions(world) == wanted).await;
    dir.write("a.yaml", &format!("{}---\n{}", policy("a", "{}"), policy("b", "{action: ALLOW}")));
    let wanted = [("a".to_owned(), Action::Allow), ("b".to_owned(), Action::Allow)];
    until(&mut world, |world| actions(world) == wanted).await;
    // One that another file has is in force, and what comes with it is not.
    dir.write("b.yaml", &format!("{}---\n{}", policy("a", "{}"), policy("c", "{action: ALLOW}")));
    let wanted =
        [("a".to_owned(), Action::Allow), ("b".to_owned(), Action::Allow), ("c".to_owned(), Action::Deny)];
    until(&mut world, |world| actions(world) == wanted).await;
    fs::remove_file(dir.0.join("b.yaml")).unwrap();
    until(&mut world, |world| actions(world).len() == 2).await;
}

#[tokio::test]
async fn an_object_can_move_from_file_to_file() {
    let dir = Dir::new();
    dir.write("a.yaml", &format!("{}---\n{}", pod("x", "10.0.0.1"), pod("a", "10.0.0.2")));
    dir.write("b.yaml", &pod("b", "10.0.0.3"));
    let mut world = watch(&dir);
    // Until it is gone from the first, the second stays as it was.
    dir.write("b.yaml", &format!("{}---\n{}", pod("x", "10.0.0.9"), pod("b", "10.0.0.4")));
    dir.write("c.yaml", &pod("c", "10.0.0.5"));
    let seen = until(&mut world, |world| names(world) == ["a", "b", "c", "x"]).await;
    assert_eq!(pod_address(&seen, "b"), Some("10.0.0.3".into()));
    dir.write("a.yaml", &pod("a", "10.0.0.2"));
    let seen = until(&mut world, |world| pod_address(world, "x") == Some("10.0.0.9".into())).await;
    assert_eq!(pod_address(&seen, "b"), Some("10.0.0.4".into()));
}

#[tokio::test]
async fn nothing_is_lost_while_a_file_is_half_written() {
    let dir = Dir::new();
    let (a, b) = (pod("a", "10.0.0.1"), pod("b", "10.0.0.2"));
    dir.write("pods.yaml", &format!("{a}---\n{b}"));
    let mut world = watch(&dir);
    let mut file = fs::File::create(dir.0.join("pods.yaml")).unwrap();
    file.write_all(a.as_bytes()).unwrap();
    tokio::task::yield_now().await;
    write!(file, "---\n{b}---\n{}", pod("c", "10.0.0.3")).unwrap();
    drop(file);
    loop {
        let now = until(&mut world, |_| true).await;
        assert!(["a", "b"].iter().all(|name| pod_address(&now, name).is_some()), "{:?}", names(&now));
        if names(&now) == ["a", "b", "c"] {
            break;
        }
        within(world.changed()).await.unwrap();
    }
}

#[tokio::test]
async fn a_directory_that_goes_away_keeps_everything_and_may_come_back() {
    let dir = Dir::new();
    dir.write("world/a.yaml", &pod("a", "10.0.0.1"));
    let path = dir.0.join("world");
    let mut world = WorldDirectory::open(&path).unwrap().watch();
    fs::rename(&path, dir.0.join("old")).unwrap();
    dir.write("new/b.yaml", &pod("b", "10.0.0.2"));
    fs::rename(dir.0.join("new"), &path).unwrap();
    until(&mut world, |world| names(world) == ["b"]).await;
    dir.write("world/b.yaml", &pod("c", "10.0.0.2"));
    until(&mut world, |world| names(world) == ["c"]).await;
    fs::remove_dir_all(&path).unwrap();
    assert_eq!(names(&world.borrow()), ["c"]);
}

#[tokio::test]
async fn watching_ends_with_the_last_receiver() {
    let dir = Dir::new();
    let (sender, receiver) = tokio::sync::watch::channel(Arc::new(World::default()));
    let task = tokio::spawn(super::watch::run(dir.0.clone(), super::files::Files::default(), sender));
    drop(receiver);
    within(task).await.unwrap();
}

const NAMESPACE: &str =
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {orlop.dev/mesh: enabled}}\n";

pub(super) fn pod(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{podIPs: [{{ip: {address}}}]}}\n"
    )
}

pub(super) fn names(world: &World) -> Vec<&str> {
    world.pods.keys().map(|name| name.name.as_str()).collect()
}

fn pod_address(world: &World, name: &str) -> Option<String> {
    Some(world.pods.get(&NamespacedName::new("default", name))?.addresses.first()?.to_string())
}

fn watch(dir: &Dir) -> Receiver<Arc<World>> {
    WorldDirectory::open(&dir.0).unwrap().watch()
}

async fn until(world: &mut Receiver<Arc<World>>, holds: impl Fn(&World) -> bool) -> Arc<World> {
    within(world.wait_for(|world| holds(world))).await.unwrap().clone()
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("nothing came in 20 s")
}

pub(super) struct Dir(pub PathBuf);

impl Dir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("orlop-world-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
