use std::collections::BTreeMap;
use std::path::PathBuf;
use std::slice;
use std::sync::Arc;

use super::node::{Node, parse};
use crate::error::{Place, WorldError};
use crate::field::FieldError;
use crate::object::{Key, Kind, Object, Source};

/// What one file holds, with the line of each object. Sorted by key.
#[derive(Debug, Default)]
pub(super) struct Objects(Vec<(Object, u64)>);

impl Objects {
    pub fn get(&self, key: &Key) -> Option<&(Object, u64)> {
        let at = self.0.binary_search_by(|(object, _)| object.key().cmp(key)).ok()?;
        self.0.get(at)
    }

    pub fn contains(&self, key: &Key) -> bool {
        self.get(key).is_some()
    }

    pub fn iter(&self) -> slice::Iter<'_, (Object, u64)> {
        self.0.iter()
    }

    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.0.iter().map(|(object, _)| object)
    }

    pub fn objects_mut(&mut self) -> impl Iterator<Item = &mut Object> {
        self.0.iter_mut().map(|(object, _)| object)
    }
}

/// Parses a file's text. One bad object spoils the file, so that nobody acts on half of a change.
pub(super) fn read(path: &Arc<PathBuf>, text: &str) -> Result<Objects, WorldError> {
    let documents = parse(text).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let place = Place { path: path.clone(), line };
        WorldError::Syntax { place, problem: syntax_problem(&error) }
    })?;
    let mut file = File { path: path.clone(), objects: BTreeMap::new() };
    for document in &documents {
        file.take(document, None)?;
    }
    Ok(Objects(file.objects.into_values().collect()))
}

struct File {
    path: Arc<PathBuf>,
    objects: BTreeMap<Key, (Object, u64)>,
}

impl File {
    /// Takes in a document, or an item of a typed list (`PodList`), whose items leave out version and kind.
    fn take(&mut self, node: &Node, inherited: Option<(&str, &str)>) -> Result<(), WorldError> {
        let inherited = inherited.filter(|_| node.is_mapping());
        let text = |key: &str| node.get(key).and_then(Node::string);
        let kind = text("kind").or(inherited.map(|(_, kind)| kind));
        let version = text("apiVersion").or(inherited.map(|(version, _)| version));
        let (Some(kind), Some(version)) = (kind, version) else {
            let field = if kind.is_none() { "kind" } else { "apiVersion" };
            let problem = "is missing; every document must be a Kubernetes object";
            return Err(self.wrong(node, kind.unwrap_or("object"), FieldError::new(field, problem)));
        };
        if let (Some(of), Some(items)) = (kind.strip_suffix("List"), node.get("items")) {
            let inherited = (!of.is_empty()).then_some((version, of));
            let items = items.items().ok_or_else(|| {
                self.wrong(node, kind, FieldError::new("items", "is not a sequence of objects"))
            })?;
            return items.iter().try_for_each(|item| self.take(item, inherited));
        }
        self.object(node, kind, version)
    }

    fn object(&mut self, node: &Node, kind: &str, version: &str) -> Result<(), WorldError> {
        let Some(of) = Kind::named(kind) else { return self.ignore(node, kind, version) };
        let known = of.api_versions();
        let want = known[0];
        if !known.contains(&version) {
            if of.is_foreign(version) {
                return self.ignore(node, kind, version);
            }
            let problem = format!("{version:?} has no {kind} that Orlop reads; write {want}");
            return Err(self.wrong(node, kind, FieldError::new("apiVersion", problem)));
        }
        let mut value = node.to_value();
        value["kind"] = kind.into();
        value["apiVersion"] = want.into();
        let object = of.convert(value, Source::Directory).map_err(|source| self.wrong(node, kind, source))?;
        let key = object.key();
        if let Some((_, line)) = self.objects.get(&key) {
            let place = Place { path: self.path.clone(), line: node.line() };
            let other = Place { path: self.path.clone(), line: *line };
            return Err(WorldError::Duplicate { place, object: key.to_string(), other });
        }
        self.objects.insert(key, (object, node.line()));
        Ok(())
    }

    fn ignore(&self, node: &Node, kind: &str, version: &str) -> Result<(), WorldError> {
        let place = Place { path: self.path.clone(), line: node.line() };
        tracing::debug!(%place, kind, version, "ignoring an object of a kind Orlop doesn't read");
        Ok(())
    }

    fn wrong(&self, node: &Node, kind: &str, source: FieldError) -> WorldError {
        let metadata = |key: &str| node.get("metadata")?.get(key)?.string();
        let object = match (metadata("name"), kind) {
            (None, _) => kind.to_owned(),
            (Some(name), "Namespace" | "Node") => format!("{kind} {name}"),
            (Some(name), _) => format!("{kind} {}/{name}", metadata("namespace").unwrap_or("default")),
        };
        let place = Place { path: self.path.clone(), line: node.line_of(&source.path) };
        WorldError::Object { place, object, source }
    }
}

fn syntax_problem(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    // The place is said already, in the form that editors and terminals can jump to.
    let text = text.split(" at line ").next().unwrap_or(&text);
    format!("not valid YAML: {}", text.lines().next().unwrap_or_default().trim_end())
}
