use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Each connection takes two descriptors: takes as many as the system allows.
pub fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files; fewer connections will fit");
    }
}
