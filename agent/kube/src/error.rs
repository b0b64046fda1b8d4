use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::field::FieldError;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: Arc<PathBuf>,
    /// The line, from 1; 0 where none can be told.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.path.display()),
            line => write!(f, "{}:{line}", self.path.display()),
        }
    }
}

/// Why a world directory, or one file of it, can't be taken.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// The directory itself can't be read.
    #[error("{}: can't read the world directory: {source}; name a directory of Kubernetes YAML files", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file can't be read.
    #[error("{}: can't read the file: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not YAML or JSON, or past what a file may hold.
    #[error("{place}: {problem}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser says.
        problem: String,
    },
    /// YAML, but not a Kubernetes object.
    #[error("{place}: {object}: {source}")]
    Object {
        /// Where.
        place: Place,
        /// Kind and name as far as known, such as `Pod default/web`.
        object: String,
        /// Which field and why.
        source: FieldError,
    },
    /// One object is in the directory twice.
    #[error("{place}: {object} is also in {other}; keep one of them")]
    Duplicate {
        /// Where.
        place: Place,
        /// Kind and name, such as `Pod default/web`.
        object: String,
        /// Where else.
        other: Place,
    },
}

impl WorldError {
    /// The file or directory at fault.
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory { path, .. } | Self::File { path, .. } => path,
            Self::Syntax { place, .. } | Self::Object { place, .. } | Self::Duplicate { place, .. } => {
                &place.path
            }
        }
    }
}
