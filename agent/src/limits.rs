use nix::sys::{
    prctl,
    resource::{Resource, getrlimit, setrlimit},
};

/// The allocator asks for huge pages, of which a few small objects would make tens of megabytes.
pub fn refuse_huge_pages() {
    if let Err(error) = prctl::set_thp_disable(true) {
        tracing::warn!(%error, "cannot refuse huge pages; memory use will be higher");
    }
}

/// Each connection takes two descriptors: takes as many as the system allows.
pub fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files; fewer connections will fit");
    }
}
