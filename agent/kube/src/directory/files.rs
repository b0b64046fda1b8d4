use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::BuildHasher;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_model::{NamespacedName, World};

use super::objects::{Objects, read};
use super::unread;
use crate::error::{Place, WorldError};
use crate::object::{Key, Object};

const MAX_FILE: u64 = 64 << 20;
const MAX_DEPTH: usize = 16;

/// The files of a world directory and what is in force of each.
#[derive(Debug, Default)]
pub(super) struct Files {
    files: BTreeMap<PathBuf, File>,
    /// Of the bad files: what is in force in place of the policies that never were good.
    stand_ins: BTreeMap<PathBuf, Vec<Object>>,
    hasher: RandomState,
    /// Addresses already warned of.
    shared: BTreeSet<IpAddr>,
}

#[derive(Debug, Default)]
struct File {
    /// The text that `in_force` was made from.
    good: Option<u64>,
    in_force: Objects,
}

impl Files {
    /// One file with this text.
    #[cfg(fuzzing)]
    pub fn of(path: &Path, text: &str) -> Result<Self, WorldError> {
        let in_force = read(&Arc::new(path.to_owned()), text)?;
        let files = BTreeMap::from([(path.to_owned(), File { good: None, in_force })]);
        Ok(Self { files, ..Self::default() })
    }

    /// Reads the directory again and puts in force what is good. The errors say which files are not; those stay
    /// as they were, but that no policy that is new in them is taken for none. An error for the directory as a whole
    /// changes nothing.
    pub fn refresh(&mut self, directory: &Path) -> Result<Vec<WorldError>, WorldError> {
        let mut errors = Vec::new();
        let mut changed = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for path in list(directory)? {
            match self.read_if_changed(&path) {
                Ok(Some(new)) => drop(changed.insert(path.clone(), new)),
                Ok(None) => {}
                Err(WorldError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => errors.push((path.clone(), error)),
            }
            seen.insert(path);
        }
        self.files.retain(|path, _| seen.contains(path));
        errors.extend(self.reject_duplicates(&mut changed));
        self.files.extend(changed);
        self.stand_ins = errors.iter().map(|(path, _)| (path.clone(), self.stand_ins(path))).collect();
        errors.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(errors.into_iter().map(|(_, error)| error).collect())
    }

    /// Everything in force.
    pub fn world(&mut self) -> World {
        let mut world = World::default();
        for (object, _) in self.files.values().flat_map(|file| file.in_force.0.values()) {
            object.clone().put(&mut world);
        }
        for object in self.stand_ins.values().flatten() {
            if !object.key().is_in(&world) {
                object.clone().put(&mut world);
            }
        }
        self.warn_of_shared_addresses(&world);
        world
    }

    /// What else is in force of a bad file.
    pub fn meanwhile(&self, path: &Path) -> String {
        let is_good = |key: &Key| self.files.values().any(|file| file.in_force.0.contains_key(key));
        let keys =
            self.stand_ins.get(path).into_iter().flatten().map(Object::key).filter(|key| !is_good(key));
        let refused: Vec<_> = keys.map(|key| key.to_string()).collect();
        let before = "what was read before stays in force";
        match refused.is_empty() {
            true => before.to_owned(),
            false => format!("{before}, and nothing passes where {} is for", refused.join(" or ")),
        }
    }

    fn stand_ins(&self, path: &Path) -> Vec<Object> {
        let Ok(bytes) = read_bytes(path) else { return Vec::new() };
        let none = Objects::default();
        let in_force = self.files.get(path).map_or(&none, |file| &file.in_force);
        unread::stand_ins(path, &String::from_utf8_lossy(&bytes), in_force)
    }

    fn read_if_changed(&self, path: &Path) -> Result<Option<File>, WorldError> {
        let text = read_text(path)?;
        let hash = self.hasher.hash_one(&text);
        if self.files.get(path).is_some_and(|file| file.good == Some(hash)) {
            return Ok(None);
        }
        let in_force = read(&Arc::new(path.to_owned()), &text)?;
        Ok(Some(File { good: Some(hash), in_force }))
    }

    /// Takes those files out of `changed` that would bring an object another file has. What stays in force
    /// instead can be at odds with a third, so it goes round until nothing is; in the worst case all files stay
    /// as they were, which was free of duplicates.
    fn reject_duplicates(&self, changed: &mut BTreeMap<PathBuf, File>) -> Vec<(PathBuf, WorldError)> {
        let mut errors = Vec::new();
        'again: loop {
            let mut owners: BTreeMap<&Key, Place> = BTreeMap::new();
            let unchanged = self.files.iter().filter(|(path, _)| !changed.contains_key(*path));
            let all = unchanged.map(|entry| (entry, false)).chain(changed.iter().map(|entry| (entry, true)));
            for ((path, file), is_new) in all {
                let shown = Arc::new(path.clone());
                for (key, (_, line)) in &file.in_force.0 {
                    let place = Place { path: shown.clone(), line: *line };
                    if let (Some(other), true) = (owners.get(key), is_new) {
                        let (object, other) = (key.to_string(), other.clone());
                        let path = path.clone();
                        errors.push((path.clone(), WorldError::Duplicate { place, object, other }));
                        changed.remove(&path);
                        continue 'again;
                    }
                    owners.insert(key, place);
                }
            }
            return errors;
        }
    }

    fn warn_of_shared_addresses(&mut self, world: &World) {
        let mut owners: BTreeMap<IpAddr, &NamespacedName> = BTreeMap::new();
        let mut shared = BTreeSet::new();
        for pod in world.pods.values().filter(|pod| !pod.phase.is_terminal() && !pod.host_network) {
            for &address in &pod.addresses {
                match owners.get(&address) {
                    Some(first) if **first != pod.name => {
                        if shared.insert(address) && !self.shared.contains(&address) {
                            tracing::warn!(%address, %first, second = %pod.name, "two live pods have one address");
                        }
                    }
                    _ => drop(owners.insert(address, &pod.name)),
                }
            }
        }
        self.shared = shared;
    }
}

fn read_text(path: &Path) -> Result<String, WorldError> {
    let bytes = read_bytes(path).map_err(|source| WorldError::File { path: path.to_owned(), source })?;
    let wrong = |line, problem: String| {
        let place = Place { path: Arc::new(path.to_owned()), line };
        Err(WorldError::Syntax { place, problem })
    };
    if bytes.len() as u64 > MAX_FILE {
        return wrong(0, format!("the file is larger than {} MiB; split it", MAX_FILE >> 20));
    }
    String::from_utf8(bytes).or_else(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|&&b| b == b'\n').count() as u64 + 1;
        wrong(line, "the file is not UTF-8".to_owned())
    })
}

/// At most one byte more than a file may have.
fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The paths of all files of the directory, sorted.
fn list(directory: &Path) -> Result<Vec<PathBuf>, WorldError> {
    let failed = |source| WorldError::Directory { path: directory.to_owned(), source };
    let mut found = Vec::new();
    let mut left = vec![(directory.to_owned(), 0)];
    while let Some((path, depth)) = left.pop() {
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            // Gone since it was listed.
            Err(error) if depth > 0 && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let Ok(kind) = entry.file_type() else { continue };
            let path = entry.path();
            if kind.is_dir() && depth < MAX_DEPTH && !is_hidden(&path) {
                left.push((path, depth + 1));
            } else if is_world_name(&path) && fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
                // The metadata is that of a symbolic link's target, as in a mounted ConfigMap. Pipes and
                // devices are never opened.
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Whether the name is that of a file of objects.
pub(super) fn is_world_name(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json")) && !is_hidden(path)
}

/// Version control, editors and mounted ConfigMaps keep their own things in hidden names.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}
