//! The last known world of a cluster, on disk, for a node that starts while the API server is away.
//!
//! The file has three lines: a header that says what wrote it, for which node and when; the [`World`] as JSON; and the
//! SHA-256 of both. What is not exactly that, or of another node or program, is not read.

mod check;
mod text;

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use orlop_model::World;

/// What a file may hold: 5,000 pods take 2 MB.
const MAX_SIZE: u64 = 1 << 28;

/// The file in a directory that is root's, or the program's own user's.
#[derive(Clone, Debug)]
pub struct WorldFile {
    directory: PathBuf,
    path: PathBuf,
    node: String,
}

/// Why a world can't be kept, or one that was can't be used.
#[derive(Debug, thiserror::Error)]
pub enum WorldFileError {
    /// The file system says no.
    #[error("{}: can't {action}: {source}", .path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could put a world of their own there.
    #[error("{}: is of user {owner} with mode {mode:o}; it must belong to user {wanted}, and nobody else may write it", .path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Its permissions.
        mode: u32,
        /// Whose it should be.
        wanted: u32,
    },
    /// What is in it can't be used.
    #[error("{}: {problem}; it is left alone until a new one takes its place", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// Another process writes it just now.
    #[error("{}: another process is writing there", .path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
}

impl WorldFile {
    /// The file of this node in `directory`, which need not be there yet.
    pub fn new(directory: &Path, node: &str) -> Self {
        Self { directory: directory.to_owned(), path: directory.join("world"), node: node.to_owned() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts a world in the place of the one that is there: whoever reads finds either of them, whole, and so does one
    /// who comes after a crash.
    pub fn write(&self, world: Arc<World>, now: SystemTime) -> Result<(), WorldFileError> {
        let directory = self.open_directory()?;
        match directory.try_lock() {
            Ok(()) => {}
            // An agent that leaves, while this one takes over.
            Err(TryLockError::WouldBlock) => {
                return Err(WorldFileError::Busy { path: self.directory.clone() });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", &self.directory)(source)),
        }
        let new = self.directory.join("world.new");
        let write = || {
            match fs::remove_file(&new) {
                // Of one that was broken off.
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            let mut buffered = BufWriter::with_capacity(1 << 16, file);
            text::write(&mut buffered, &world, &self.node, now)?;
            // While somebody has it, the next change copies all of it.
            drop(world);
            buffered.flush()?;
            buffered.get_ref().sync_all()
        };
        write().map_err(failed("write", &new))?;
        fs::rename(&new, &self.path).map_err(failed("write", &self.path))?;
        directory.sync_all().map_err(failed("write", &self.directory))
    }

    /// The world that was kept, with the time [as of](World::as_of) which it is; `None` if there is none.
    pub fn read(&self) -> Result<Option<World>, WorldFileError> {
        // Whatever it is: neither elsewhere, nor something to wait for.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let open = OpenOptions::new().read(true).custom_flags(flags.bits()).open(&self.path);
        let file = match open {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            open => open.map_err(failed("read", &self.path))?,
        };
        let directory = fs::metadata(&self.directory).map_err(failed("read", &self.directory))?;
        only_ours(&self.directory, &directory)?;
        let metadata = file.metadata().map_err(failed("read", &self.path))?;
        only_ours(&self.path, &metadata)?;
        let unusable = |problem: String| WorldFileError::Unusable { path: self.path.clone(), problem };
        if !metadata.is_file() || metadata.len() > MAX_SIZE {
            return Err(unusable(format!("is no file of at most {MAX_SIZE} bytes")));
        }
        let mut bytes = Vec::new();
        file.take(MAX_SIZE).read_to_end(&mut bytes).map_err(failed("read", &self.path))?;
        text::read(&bytes, &self.node).map(Some).map_err(unusable)
    }

    /// Makes the directory if it is not there.
    fn open_directory(&self) -> Result<File, WorldFileError> {
        let path = &self.directory;
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create", path))?;
        let directory = File::open(path).map_err(failed("open", path))?;
        only_ours(path, &directory.metadata().map_err(failed("read", path))?)?;
        Ok(directory)
    }
}

/// Whoever else could write it could make the node believe in another world.
fn only_ours(path: &Path, metadata: &Metadata) -> Result<(), WorldFileError> {
    let (owner, mode, wanted) = (metadata.uid(), metadata.mode() & 0o7777, geteuid().as_raw());
    if owner == wanted && mode & 0o022 == 0 {
        return Ok(());
    }
    Err(WorldFileError::Exposed { path: path.to_owned(), owner, mode, wanted })
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WorldFileError {
    let path = path.to_owned();
    move |source| WorldFileError::Io { action, path, source }
}

#[cfg(test)]
mod tests;
