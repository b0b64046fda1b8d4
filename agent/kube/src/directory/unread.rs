//! What the policies of a file that can't be taken would have kept out, as far as the file can be read.

use std::collections::BTreeSet;
use std::path::Path;

use orlop_model::world::security::Action;
use serde_json::Value;

use super::node::{Node, parse};
use super::objects::Objects;
use crate::object::{Key, Kind, Object, Source};
use crate::stand_in::stand_in;

const POLICIES: [Kind; 5] = [
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
    Kind::RequestAuthentication,
    Kind::RateLimit,
    Kind::BackendTls,
];
/// Where a policy is that names no namespace.
const DEFAULT_NAMESPACE: &str = "default";

/// Stands in for the policies that a file's text names. Those that are in force meanwhile need none: that is the
/// caller's to see, but for documents that are no YAML, of which only kind and namespace are told. There, what is
/// `in_force` of the file for the same namespace is taken for what the document was before.
pub(super) fn stand_ins(path: &Path, text: &str, in_force: &Objects) -> Vec<Object> {
    let mut found = Vec::new();
    // One that is no YAML does not hide the others.
    for document in documents(text) {
        match parse(&document) {
            Ok(nodes) => nodes.iter().for_each(|node| of_node(node, None, path, &mut found)),
            Err(_) => found.extend(of_text(&document, path, in_force)),
        }
    }
    found
}

fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line.starts_with("---") {
            documents.push(String::new());
        }
        let document = documents.len() - 1;
        documents[document].extend([line, "\n"]);
    }
    documents
}

/// Of a document, or of an item of a list with the kind that its list gives it.
fn of_node(node: &Node, inherited: Option<&str>, path: &Path, found: &mut Vec<Object>) {
    let text = |key: &str| node.get(key).and_then(Node::string);
    let Some(kind) = text("kind").or(inherited.filter(|_| node.is_mapping())) else { return };
    if let (Some(of), Some(items)) = (kind.strip_suffix("List"), node.get("items").and_then(Node::items)) {
        let inherited = (!of.is_empty()).then_some(of);
        return items.iter().for_each(|item| of_node(item, inherited, path, found));
    }
    let Some(kind) = POLICIES.into_iter().find(|policy| policy.name() == kind) else { return };
    if text("apiVersion").is_some_and(|version| kind.is_foreign(version)) {
        return;
    }
    let mut value = node.to_value();
    let metadata = |key| value.pointer(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let namespace = metadata("/metadata/namespace").unwrap_or(DEFAULT_NAMESPACE);
    let name = metadata("/metadata/name").map_or_else(|| name_of(path), str::to_owned);
    let (key, text) = (Key::new(kind, namespace, &name), value.to_string());
    value["kind"] = kind.name().into();
    value["apiVersion"] = kind.api_versions()[0].into();
    let refuses = match kind.convert(value, Source::Directory) {
        Ok(Object::AuthorizationPolicy(policy)) => !policy.dry_run && policy.action != Action::Audit,
        _ => true,
    };
    found.extend(stand_in(&key, &text).filter(|_| refuses));
}

/// Of a document that is no YAML: the words that matter can often be told still.
fn of_text(text: &str, path: &Path, in_force: &Objects) -> Vec<Object> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    let mut namespaces: BTreeSet<_> = values(&text, "namespace").collect();
    if namespaces.is_empty() {
        namespaces.insert(DEFAULT_NAMESPACE);
    }
    let version = values(&text, "apiVersion").next();
    let named =
        |kind: &Kind| text.contains(kind.name()) && !version.is_some_and(|version| kind.is_foreign(version));
    let was_good = |kind: Kind, namespace: &str| {
        in_force.objects().any(|object| match object {
            Object::AuthorizationPolicy(policy) => {
                kind == Kind::AuthorizationPolicy && policy.name.namespace == namespace
            }
            Object::PeerAuthentication(policy) => {
                kind == Kind::PeerAuthentication && policy.name.namespace == namespace
            }
            Object::RequestAuthentication(of) => {
                kind == Kind::RequestAuthentication && of.name.namespace == namespace
            }
            Object::RateLimit(of) => kind == Kind::RateLimit && of.name.namespace == namespace,
            Object::BackendTls(of) => kind == Kind::BackendTls && of.name.namespace == namespace,
            _ => false,
        })
    };
    let kinds = POLICIES.into_iter().filter(named);
    let scopes = kinds.flat_map(|kind| namespaces.iter().map(move |namespace| (kind, *namespace)));
    let new = scopes.filter(|(kind, namespace)| !was_good(*kind, namespace));
    new.filter_map(|(kind, namespace)| stand_in(&Key::new(kind, namespace, &name_of(path)), "")).collect()
}

/// The plain values that a text seems to give a key.
fn values<'a>(text: &'a str, key: &str) -> impl Iterator<Item = &'a str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-./".contains(c);
    text.match_indices(key).filter_map(move |(start, key)| {
        if text[..start].ends_with(is_plain) {
            return None;
        }
        let quotes = ['"', '\''];
        let after = text[start + key.len()..].trim_start_matches(quotes).trim_start_matches(' ');
        let value = after.strip_prefix(':')?.trim_start_matches(' ').trim_start_matches(quotes);
        let value = &value[..value.find(|c| !is_plain(c)).unwrap_or(value.len())];
        (!value.is_empty()).then_some(value)
    })
}

/// What a policy is called whose own name can't be told.
fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use orlop_model::world::security::Target;

    use super::*;

    const WRONG: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                         metadata: {name: wrong, namespace: shop}\nspec: {ruels: []}\n";

    fn found(text: &str) -> Vec<String> {
        found_after(text, "")
    }

    /// In a file that held `before`.
    fn found_after(text: &str, before: &str) -> Vec<String> {
        let path = Path::new("/world/a.yaml");
        let before = super::super::objects::read(&Arc::new(path.to_owned()), before).unwrap();
        stand_ins(path, text, &before).iter().map(|object| object.key().to_string()).collect()
    }

    #[test]
    fn policies_that_can_be_read_as_yaml_are_told_by_name() {
        assert_eq!(found(WRONG), ["AuthorizationPolicy shop/wrong"]);
        assert_eq!(found(&WRONG.replace(", namespace: shop", "")), ["AuthorizationPolicy default/wrong"]);
        assert_eq!(found(&WRONG.replace("name: wrong, ", "")), ["AuthorizationPolicy shop/a.yaml"]);
        assert_eq!(found(&WRONG.replace("apiVersion: security.istio.io/v1\n", "")).len(), 1);
        assert_eq!(found("kind: PeerAuthentication\nmetadata: []\n"), ["PeerAuthentication default/a.yaml"]);
        let list = "kind: AuthorizationPolicyList\nitems:\n- {metadata: {name: a}}\n- text\n- {kind: Pod}\n";
        assert_eq!(found(list), ["AuthorizationPolicy default/a"]);
    }

    #[test]
    fn the_selector_counts_if_it_can_be_read() {
        let text = WRONG.replace("ruels: []", "selector: {matchLabels: {app: web}}, ruels: []");
        let objects = stand_ins(Path::new("a.yaml"), &text, &Objects::default());
        let [Object::AuthorizationPolicy(policy)] = &objects[..] else { panic!("{objects:?}") };
        assert_eq!((policy.action, policy.selector["app"].as_str()), (Action::Deny, "web"));
    }

    #[test]
    fn the_targets_count_if_they_can_be_read() {
        let targets = |written: &str| {
            let text = WRONG.replace("ruels: []", &format!("{written}, ruels: []"));
            let objects = stand_ins(Path::new("a.yaml"), &text, &Objects::default());
            let [Object::AuthorizationPolicy(policy)] = &objects[..] else { panic!("{objects:?}") };
            assert_eq!(policy.action, Action::Deny);
            policy.targets.clone()
        };
        let (web, api) = ("{kind: Service, name: web}", "{kind: Service, group: \"\", name: api}");
        assert_eq!(
            targets(&format!("targetRefs: [{web}, {api}]")),
            [Target::Service("web".into()), Target::Service("api".into())]
        );
        assert_eq!(targets(&format!("targetRef: {web}")), [Target::Service("web".into())]);
        // Then it is for all of its namespace: what is left of them may not be all that it was meant for.
        for unsure in [
            format!("targetRefs: [{web}, {{kind: Service}}]"),
            format!("targetRefs: [{web}, {{kind: Pod, name: api}}]"),
            format!("targetRefs: {web}"),
            "targetRefs: []".into(),
            format!("targetRefs: [{web}], selector: {{}}"),
        ] {
            assert_eq!(targets(&unsure), [], "{unsure}");
        }
    }

    #[test]
    fn what_is_good_stands_in_as_well_unless_it_refuses_nobody() {
        let good = WRONG.replace("ruels: []", "action: ALLOW");
        assert_eq!(found(&format!("{good}---\nkind: Pod\nspec: 7\n")), ["AuthorizationPolicy shop/wrong"]);
        assert!(found(&good.replace("ALLOW", "AUDIT, rules: [{}]")).is_empty());
        let dry = good.replace("name: wrong", "name: wrong, annotations: {istio.io/dry-run: \"true\"}");
        assert!(found(&dry).is_empty());
    }

    #[test]
    fn documents_that_are_no_yaml_are_told_by_kind_and_namespace() {
        let broken = WRONG.replace("spec: {ruels: []}", "spec: {rules: [");
        assert_eq!(found(&broken), ["AuthorizationPolicy shop/a.yaml"]);
        assert_eq!(found(&broken.replace(", namespace: shop", "")), ["AuthorizationPolicy default/a.yaml"]);
        let json = "{\"kind\": \"PeerAuthentication\", \"metadata\": {\"namespace\": \"x\"}, \"spec\"";
        assert_eq!(found(json), ["PeerAuthentication x/a.yaml"]);
        let several = format!("{broken}---\n{}", WRONG.replace("name: wrong", "name: other"));
        assert_eq!(found(&several), ["AuthorizationPolicy shop/a.yaml", "AuthorizationPolicy shop/other"]);
        assert_eq!(found(&broken.replace("kind: ", "kind")), ["AuthorizationPolicy shop/a.yaml"]);
    }

    #[test]
    fn a_document_that_is_no_yaml_any_more_stays_what_it_was() {
        let good = WRONG.replace("ruels: []", "rules: [{}]");
        let broken = WRONG.replace("spec: {ruels: []}", "spec: {rules: [");
        assert!(found_after(&broken, &good).is_empty());
        assert_eq!(found_after(&broken.replace("shop", "bank"), &good), ["AuthorizationPolicy bank/a.yaml"]);
    }

    #[test]
    fn what_is_no_policy_of_ours_stands_for_nothing() {
        let foreign = WRONG.replace("security.istio.io/v1", "policy.linkerd.io/v1alpha1");
        for text in
            [&foreign, &format!("{foreign}  ]["), "kind: Pod\nspec: [", "", "- 7", "# AuthorizationPolicy\n["]
        {
            assert!(found(text).is_empty(), "{text}");
        }
    }
}
