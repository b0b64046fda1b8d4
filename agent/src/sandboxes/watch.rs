//! The kernel's word that pods' cgroups have changed: inotify works on cgroups too.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use tokio::{io::unix::AsyncFd, time::sleep};

use super::{children, names, pods_roots};

/// How long to wait for what comes with a change: a runtime makes several cgroups for a pod.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// Tells of changes, also of those between two calls.
#[derive(Debug)]
pub struct Changes {
    inotify: AsyncFd<Queue>,
    /// Where to look for pods' cgroups that come.
    hierarchies: Vec<PathBuf>,
    watched: HashMap<WatchDescriptor, (PathBuf, Level)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// The root of a hierarchy.
    Hierarchy,
    /// What pods' cgroups are made in.
    Pods,
    /// A pod's.
    Pod,
    /// The file that says whether processes live in a pod's.
    Populated,
}

#[derive(Debug)]
struct Queue(Inotify);

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Changes {
    /// Changes in the cgroup that all pods' are below.
    pub(super) fn of_pods(root: &Path) -> io::Result<Self> {
        let mut changes = Self::new(Vec::new())?;
        changes.add(root, Level::Pods);
        Ok(changes)
    }

    /// Changes of pods anywhere in these hierarchies.
    pub(super) fn below(hierarchies: &[PathBuf]) -> io::Result<Self> {
        let mut changes = Self::new(hierarchies.to_vec())?;
        for hierarchy in hierarchies {
            changes.add(hierarchy, Level::Hierarchy);
        }
        changes.look_for_pods();
        Ok(changes)
    }

    fn new(hierarchies: Vec<PathBuf>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "the other way is unsafe; a queue keeps its descriptor as long as it lives"
        )]
        let inotify = AsyncFd::new(Queue(inotify))?;
        Ok(Self { inotify, hierarchies, watched: HashMap::new() })
    }

    /// Waits for a change. Nothing is lost if this is dropped.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match ready.try_io(|queue| queue.get_ref().0.read_events().map_err(io::Error::from)) {
                Ok(events) => {
                    let events = events?;
                    if self.take(&events) {
                        break;
                    }
                }
                Err(_not_ready) => {}
            }
        }
        sleep(DEBOUNCE).await;
        loop {
            match self.inotify.get_ref().0.read_events() {
                Ok(events) => {
                    self.take(&events);
                }
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Watches what has come. Says whether any of it matters.
    fn take(&mut self, events: &[InotifyEvent]) -> bool {
        // Each is looked at, as it may be of something to watch.
        events.iter().fold(false, |matters, event| self.take_one(event) | matters)
    }

    fn take_one(&mut self, event: &InotifyEvent) -> bool {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            self.look_for_pods();
            let pods: Vec<_> =
                self.watched.values().filter(|(_, level)| *level == Level::Pods).cloned().collect();
            pods.iter().for_each(|(path, level)| self.add(path, *level));
            return true;
        }
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.watched.remove(&event.wd);
            return false;
        }
        let Some((path, level)) = self.watched.get(&event.wd).cloned() else { return false };
        let is_dir = event.mask.contains(AddWatchFlags::IN_ISDIR);
        let name = event.name.as_ref().and_then(|name| name.to_str());
        match (level, name) {
            (Level::Populated, _) => true,
            (Level::Hierarchy, Some(name)) if is_dir && names::is_pods_root(name) => {
                self.look_for_pods();
                true
            }
            (Level::Pods, Some(name)) if is_dir => {
                if event.mask.contains(AddWatchFlags::IN_CREATE) {
                    self.add_child(name, &path.join(name));
                }
                true
            }
            (Level::Pod, Some(_)) => is_dir,
            _ => false,
        }
    }

    fn look_for_pods(&mut self) {
        for hierarchy in self.hierarchies.clone() {
            let roots = pods_roots(&hierarchy).unwrap_or_default();
            roots.iter().for_each(|root| self.add(root, Level::Pods));
        }
    }

    /// Watches a cgroup and what is in it already. One that is gone needs no watch.
    fn add(&mut self, path: &Path, level: Level) {
        let mask = match level {
            Level::Populated => AddWatchFlags::IN_MODIFY,
            _ => AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR,
        };
        match self.inotify.get_ref().0.add_watch(path, mask) {
            Ok(descriptor) => drop(self.watched.insert(descriptor, (path.to_owned(), level))),
            Err(Errno::ENOENT | Errno::ENOTDIR) => return,
            Err(error) => {
                // The API tells of new pods as well, somewhat later.
                tracing::warn!(path = %path.display(), %error, "can't watch a cgroup");
                return;
            }
        }
        match level {
            Level::Pods => {
                for (name, child) in children(path).unwrap_or_default() {
                    self.add_child(&name, &child);
                }
            }
            Level::Pod => self.add(&path.join("cgroup.events"), Level::Populated),
            Level::Hierarchy | Level::Populated => {}
        }
    }

    fn add_child(&mut self, name: &str, path: &Path) {
        if names::pod_uid(name).is_some() {
            self.add(path, Level::Pod);
        } else if names::is_quality(name) {
            self.add(path, Level::Pods);
        }
    }
}
