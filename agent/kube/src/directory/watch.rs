use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use orlop_model::World;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::files::{Files, is_world_name};
use crate::error::WorldError;

/// How long it must be quiet before the files are read, so that a change of several files is seen as one.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// How long to wait at most for writers to finish.
const MAX_SETTLE: Duration = Duration::from_secs(1);
/// How often to look again while the directory can't be watched.
const POLL: Duration = Duration::from_secs(1);

/// Keeps `sender` in step with the directory until nobody listens any more.
pub(super) async fn run(directory: PathBuf, files: Files, sender: watch::Sender<Arc<World>>) {
    let files = Arc::new(Mutex::new(files));
    let mut keeper = Keeper { directory, files, reported: BTreeMap::new(), sender: sender.clone() };
    tokio::select! {
        () = sender.closed() => {}
        () = keeper.run() => {}
    }
}

struct Keeper {
    directory: PathBuf,
    files: Arc<Mutex<Files>>,
    /// Files known to be bad, and what was said about them.
    reported: Problems,
    sender: watch::Sender<Arc<World>>,
}

/// What is wrong, by file.
type Problems = BTreeMap<PathBuf, String>;

/// What happened, as far as it matters.
enum Change {
    /// Someone writes the file and may not be done.
    Writing(PathBuf),
    /// The files are whole, or gone.
    Done(Vec<PathBuf>),
    /// The watch is no longer on the directory.
    Lost,
}

impl Keeper {
    async fn run(&mut self) {
        loop {
            let (events, mut changes) = mpsc::unbounded_channel();
            let watcher = start(&self.directory, events);
            let unwatched = watcher.as_ref().err().map(|error| {
                let path = self.directory.display();
                format!("{path}: can't watch the world directory, so looking every second: {error}")
            });
            // What happened before the watch began is seen now.
            let mut lost = self.update(&mut changes, unwatched, false).await;
            while let (false, Some(change)) = (lost, changes.recv().await) {
                lost = settle(Some(change), &mut changes).await;
                lost |= self.update(&mut changes, None, true).await;
            }
            if !lost {
                sleep(POLL).await;
            }
        }
    }

    /// Takes over what is in the files now; `settled` says that nobody was writing a moment ago. Returns whether
    /// the watch was lost meanwhile.
    async fn update(
        &mut self,
        changes: &mut mpsc::UnboundedReceiver<Change>,
        unwatched: Option<String>,
        settled: bool,
    ) -> bool {
        let mut lost = false;
        let (mut problems, mut world) = self.read().await;
        let differs = world.as_ref().is_some_and(|world| *world != **self.sender.borrow());
        let is_new = |(path, problem): (_, &String)| self.reported.get(path) != Some(problem);
        if (differs && !settled) || problems.iter().any(is_new) {
            // A file may have been caught half written.
            lost = settle(None, changes).await;
            (problems, world) = self.read().await;
        }
        if let Some(problem) = unwatched {
            problems.entry(self.directory.clone()).or_insert(problem);
        }
        self.report(problems);
        self.sender.send_if_modified(|current| match world {
            Some(world) if world != **current => {
                *current = Arc::new(world);
                true
            }
            _ => false,
        });
        lost
    }

    /// Reads on a thread where that may block.
    async fn read(&self) -> (Problems, Option<World>) {
        let (directory, files) = (self.directory.clone(), self.files.clone());
        let read = tokio::task::spawn_blocking(move || {
            // A panic leaves the files as they were, since they are only changed at the end of a refresh.
            let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
            let errors = files.refresh(&directory).unwrap_or_else(|error| vec![error]);
            let problem = |error: &WorldError| format!("{error} ({})", files.meanwhile(error.path()));
            let problems = errors.iter().map(|error| (error.path().to_owned(), problem(error))).collect();
            (problems, Some(files.world()))
        });
        let failed = |error| ([(self.directory.clone(), format!("reading failed: {error}"))].into(), None);
        read.await.unwrap_or_else(failed)
    }

    fn report(&mut self, problems: Problems) {
        for (path, problem) in &problems {
            if self.reported.get(path) != Some(problem) {
                tracing::error!("{problem}");
            }
        }
        for path in self.reported.keys().filter(|path| !problems.contains_key(*path)) {
            tracing::info!("{}: good again", path.display());
        }
        self.reported = problems;
    }
}

/// Waits until the directory is quiet and no file is half written, or long enough. Returns whether the watch was
/// lost.
async fn settle(first: Option<Change>, changes: &mut mpsc::UnboundedReceiver<Change>) -> bool {
    let limit = Instant::now() + MAX_SETTLE;
    let mut writing = BTreeSet::new();
    let mut lost = false;
    let mut next = first;
    loop {
        match next.take() {
            Some(Change::Writing(path)) => {
                writing.insert(path);
            }
            Some(Change::Done(paths)) => writing.retain(|path| !paths.contains(path)),
            Some(Change::Lost) => lost = true,
            None => {}
        }
        let quiet = if writing.is_empty() { Instant::now() + DEBOUNCE } else { limit };
        match timeout_at(quiet.min(limit), changes.recv()).await {
            Ok(Some(change)) => next = Some(change),
            Ok(None) | Err(_) => return lost,
        }
    }
}

fn start(directory: &Path, changes: mpsc::UnboundedSender<Change>) -> notify::Result<RecommendedWatcher> {
    let root = std::path::absolute(directory)?;
    let watched = root.clone();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        let change = match event {
            Ok(event) => change(&root, event),
            Err(_) => Some(Change::Done(Vec::new())),
        };
        if let Some(change) = change {
            // Nobody listens any more: the watcher is about to be dropped.
            let _ = changes.send(change);
        }
    })?;
    watcher.watch(&watched, RecursiveMode::Recursive)?;
    Ok(watcher)
}

fn change(root: &Path, event: Event) -> Option<Change> {
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Change::Done(event.paths)),
        // The reading itself causes these.
        EventKind::Access(_) => None,
        // Editors hold files of other names open for as long as they run.
        EventKind::Modify(ModifyKind::Data(_)) => {
            event.paths.into_iter().find(|path| is_world_name(path)).map(Change::Writing)
        }
        EventKind::Modify(ModifyKind::Metadata(_)) => Some(Change::Done(Vec::new())),
        EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_)
            if event.paths.iter().any(|path| path == root) =>
        {
            Some(Change::Lost)
        }
        // An overflow of the kernel's queue is among these: everything is read again anyway.
        _ => Some(Change::Done(event.paths)),
    }
}
