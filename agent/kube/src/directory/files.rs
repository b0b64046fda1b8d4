use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::BuildHasher;
use std::io::{self, Read};
use std::net::IpAddr;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_model::World;

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
    /// What is in force of all files.
    world: World,
    /// The bad files, which stay as they were.
    bad: BTreeMap<PathBuf, WorldError>,
    /// Of the bad files: what is in force in place of the policies that never were good.
    stand_ins: BTreeMap<PathBuf, Vec<Object>>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct File {
    /// The text that `in_force` was made from.
    good: Option<u64>,
    in_force: Objects,
}

/// Where something may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Everywhere,
    /// At these files alone.
    At(BTreeSet<PathBuf>),
}

impl Look {
    /// Here and there.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::At(mut here), Self::At(there)) => {
                here.extend(there);
                Self::At(here)
            }
            _ => Self::Everywhere,
        }
    }
}

impl Files {
    /// One file with this text.
    #[cfg(fuzzing)]
    pub fn of(path: &Path, text: &str) -> Result<Self, WorldError> {
        let in_force = read(&Arc::new(path.to_owned()), text)?;
        let mut files = Self::default();
        files.put(BTreeMap::from([(path.to_owned(), File { good: None, in_force })]), &[]);
        Ok(files)
    }

    /// Reads the directory again, and puts in force what is good. Files that are not have [`errors`](Self::errors) and
    /// stay as they were, but that no policy that is new in them is taken for none. An error for the directory as a
    /// whole changes nothing.
    pub fn refresh(&mut self, directory: &Path, look: &Look) -> Result<(), WorldError> {
        let mut changed = BTreeMap::new();
        let mut bad = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let paths = match look {
            // Of a directory by such a name, all that is in it is meant.
            Look::At(paths) if !paths.iter().any(|path| path.is_dir()) => {
                is_directory(directory)?;
                // What was wrong with a file may have been another one.
                Some(paths.iter().chain(self.bad.keys()).cloned().collect::<BTreeSet<_>>())
            }
            _ => None,
        };
        let look_at = match &paths {
            Some(paths) => paths.iter().filter(|path| is_listed(directory, path)).cloned().collect(),
            None => list(directory)?,
        };
        for path in look_at {
            match self.read_if_changed(&path) {
                Ok(Some(new)) => drop(changed.insert(path.clone(), new)),
                Ok(None) => {}
                Err(WorldError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => drop(bad.insert(path.clone(), error)),
            }
            seen.insert(path);
        }
        let known: Vec<_> = match &paths {
            Some(paths) => paths.iter().flat_map(|path| self.below(path)).collect(),
            None => self.files.keys().collect(),
        };
        let gone: Vec<_> = known.into_iter().filter(|path| !seen.contains(*path)).cloned().collect();
        bad.extend(self.reject_duplicates(&mut changed, &gone));
        self.put(changed, &gone);
        self.stand_ins = bad.keys().map(|path| (path.clone(), self.stand_ins(path))).collect();
        self.bad = bad;
        Ok(())
    }

    /// The file of this name, or those of a directory of this name.
    fn below<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a PathBuf> {
        let from = (Bound::Included(path), Bound::Unbounded);
        self.files.range::<Path, _>(from).map(|(of, _)| of).take_while(move |of| of.starts_with(path))
    }

    /// What is wrong, sorted by file.
    pub fn errors(&self) -> impl Iterator<Item = &WorldError> {
        self.bad.values()
    }

    /// The first of what is wrong, which is forgotten.
    pub fn pop_error(&mut self) -> Option<WorldError> {
        self.bad.pop_first().map(|(_, error)| error)
    }

    /// Everything in force.
    pub fn world(&self) -> World {
        let mut world = self.world.clone();
        for object in self.stand_ins.values().flatten() {
            if !object.key().is_in(&world) {
                object.clone().put(&mut world);
            }
        }
        world
    }

    /// Puts the files in the place of those of their names, and of those that are gone nothing.
    fn put(&mut self, changed: BTreeMap<PathBuf, File>, gone: &[PathBuf]) {
        // First, as an object may have moved from one file to another.
        for path in gone.iter().chain(changed.keys()) {
            let now = changed.get(path).map(|file| &file.in_force);
            let then = self.files.get(path).into_iter().flat_map(|file| file.in_force.objects());
            for key in then.map(Object::key).filter(|key| now.is_none_or(|now| !now.contains(key))) {
                key.remove_from(&mut self.world);
            }
        }
        for object in changed.values().flat_map(|file| file.in_force.objects()) {
            object.clone().put_if_new(&mut self.world);
        }
        gone.iter().for_each(|path| drop(self.files.remove(path)));
        self.files.extend(changed);
    }

    /// What else is in force of a bad file.
    pub fn meanwhile(&self, path: &Path) -> String {
        let is_good = |key: &Key| self.files.values().any(|file| file.in_force.contains(key));
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
        let mut in_force = read(&Arc::new(path.to_owned()), &text)?;
        // What is the same in both stays where it is.
        let before = self.files.get(path).map(|file| &file.in_force);
        for object in in_force.objects_mut() {
            match before.and_then(|before| before.get(&object.key())) {
                Some((same, _)) if same == object => object.clone_from(same),
                _ => {}
            }
        }
        Ok(Some(File { good: Some(hash), in_force }))
    }

    /// Takes those files out of `changed` that would bring an object another file has. What stays in force
    /// instead can be at odds with a third, so it goes round until nothing is; in the worst case all files stay
    /// as they were, which was free of duplicates.
    fn reject_duplicates(
        &self,
        changed: &mut BTreeMap<PathBuf, File>,
        gone: &[PathBuf],
    ) -> Vec<(PathBuf, WorldError)> {
        let mut errors = Vec::new();
        'again: loop {
            let mut new: BTreeMap<Key, Place> = BTreeMap::new();
            for (path, file) in &*changed {
                let shown = Arc::new(path.clone());
                for (object, line) in file.in_force.iter() {
                    let key = object.key();
                    let place = Place { path: shown.clone(), line: *line };
                    let other = new.get(&key).cloned();
                    if let Some(other) = other.or_else(|| self.owner(&key, changed, gone)) {
                        let object = key.to_string();
                        let path = path.clone();
                        errors.push((path.clone(), WorldError::Duplicate { place, object, other }));
                        changed.remove(&path);
                        continue 'again;
                    }
                    new.insert(key, place);
                }
            }
            return errors;
        }
    }

    /// Where an object is in a file that stays as it is.
    fn owner(&self, key: &Key, changed: &BTreeMap<PathBuf, File>, gone: &[PathBuf]) -> Option<Place> {
        if !key.is_in(&self.world) {
            return None;
        }
        // Of the files that don't stay one has it nearly always.
        let mut leaving = changed.keys().chain(gone).filter_map(|path| self.files.get(path));
        if leaving.any(|file| file.in_force.contains(key)) {
            return None;
        }
        self.files.iter().find_map(|(path, file)| {
            let (_, line) = file.in_force.get(key)?;
            Some(Place { path: Arc::new(path.clone()), line: *line })
        })
    }
}

/// Says which addresses several live pods have, but for those `known` before.
pub(super) fn warn_of_shared_addresses(world: &World, known: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let pods = world.pods.values().filter(|pod| !pod.phase.is_terminal() && !pod.host_network);
    let mut owners: Vec<_> = pods.flat_map(|pod| pod.addresses.iter().map(|ip| (*ip, &pod.name))).collect();
    owners.sort();
    let mut shared = BTreeSet::new();
    for pair in owners.windows(2) {
        if let [(address, first), (other, second)] = pair
            && address == other
            && first != second
            && shared.insert(*address)
            && !known.contains(address)
        {
            tracing::warn!(%address, %first, %second, "two live pods have one address");
        }
    }
    shared
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

fn is_directory(directory: &Path) -> Result<(), WorldError> {
    let failed = |source| WorldError::Directory { path: directory.to_owned(), source };
    match fs::metadata(directory).map_err(failed)?.is_dir() {
        true => Ok(()),
        false => Err(failed(io::ErrorKind::NotADirectory.into())),
    }
}

/// Whether [`list`] would name the path.
fn is_listed(directory: &Path, path: &Path) -> bool {
    let Ok(below) = path.strip_prefix(directory) else { return false };
    let directories = || below.ancestors().skip(1).filter(|parent| *parent != Path::new(""));
    directories().count() <= MAX_DEPTH
        && !directories().any(is_hidden)
        && !directories()
            .any(|parent| fs::symlink_metadata(directory.join(parent)).is_ok_and(|of| of.is_symlink()))
        && is_world_name(path)
        && fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
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

#[cfg(test)]
mod tests;
