//! A directory of Kubernetes YAML as the source of the world.

mod files;
mod node;
mod objects;
#[cfg(test)]
mod tests;
mod unread;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_model::World;
use tokio::sync::watch as channel;

use crate::error::WorldError;
use files::{Files, Look};

/// A directory of ordinary Kubernetes objects, in files named `*.yaml`, `*.yml` or `*.json`.
///
/// Directories in it are read as well, hidden ones and symbolic links to directories are not. A file holds any
/// number of documents; a document is one object or a list of them. Kinds that Orlop doesn't read are ignored.
#[derive(Debug)]
pub struct WorldDirectory {
    path: PathBuf,
    files: Files,
    world: World,
}

impl WorldDirectory {
    /// Reads the directory. Every file must be good; the error is the first in the order of the files' names.
    pub fn open(path: &Path) -> Result<Self, WorldError> {
        let mut files = Files::default();
        files.refresh(path, &Look::Everywhere)?;
        if let Some(error) = files.pop_error() {
            return Err(error);
        }
        let world = files.world();
        Ok(Self { path: path.to_owned(), files, world })
    }

    /// The world as read by [`open`](Self::open).
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Watches the directory from now on, until the receiver and all its clones are dropped. Must be called
    /// within a tokio runtime with time enabled.
    ///
    /// A change is there within some 20 ms, whatever the size of the world: only the files that changed are read. A
    /// bad file is logged with its line, and its last good objects stay
    /// in force until it is good again or gone; in place of policies in it that never were good, nothing passes.
    /// If the directory itself goes away, everything stays in force.
    pub fn watch(self) -> channel::Receiver<Arc<World>> {
        let (sender, receiver) = channel::channel(Arc::new(self.world));
        tokio::spawn(watch::run(self.path, self.files, sender));
        receiver
    }
}

/// Reads a world directory once, for commands that work offline. Tells everything that is wrong with it.
pub fn read_world(path: &Path) -> Result<World, Vec<WorldError>> {
    let mut files = Files::default();
    files.refresh(path, &Look::Everywhere).map_err(|error| vec![error])?;
    let errors: Vec<_> = std::iter::from_fn(|| files.pop_error()).collect();
    if errors.is_empty() { Ok(files.world()) } else { Err(errors) }
}

/// The world of a single file with this text. The policies that it names are looked for also if it is good.
#[cfg(fuzzing)]
pub fn world(text: &str) -> Result<World, WorldError> {
    let path = Path::new("fuzz.yaml");
    unread::stand_ins(path, text, &objects::Objects::default());
    Files::of(path, text).map(|files| files.world())
}
