use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use orlop_model::world::Pod;
use orlop_model::{Map, NamespacedName, World};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::files::{Files, Look, is_world_name, warn_of_shared_addresses};
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
    let (pods, shared) = (Map::new(), BTreeSet::new());
    let reported = BTreeMap::new();
    let mut keeper = Keeper { directory, files, reported, pods, shared, sender: sender.clone() };
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
    /// The pods of which it was told who shares an address, and these.
    pods: Map<NamespacedName, Pod>,
    shared: BTreeSet<IpAddr>,
    sender: watch::Sender<Arc<World>>,
}

/// What is wrong, by file.
type Problems = BTreeMap<PathBuf, String>;

/// What happened, as far as it matters.
enum Change {
    /// Someone writes the file and may not be done.
    Writing(PathBuf),
    /// What is there is whole, or gone.
    Done(Look),
    /// The watch is no longer on the directory.
    Lost,
}

/// What happened until it was quiet.
struct Settled {
    look: Look,
    /// The watch is no longer on the directory.
    lost: bool,
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
            let mut lost = self.update(&mut changes, unwatched, Look::Everywhere, false).await;
            while let (false, Some(change)) = (lost, changes.recv().await) {
                let settled = settle(Some(change), &mut changes).await;
                lost = settled.lost | self.update(&mut changes, None, settled.look, true).await;
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
        look: Look,
        settled: bool,
    ) -> bool {
        let mut lost = false;
        let (mut problems, mut world) = self.read(look.clone()).await;
        let differs = world.as_ref().is_some_and(|world| *world != **self.sender.borrow());
        let is_new = |(path, problem): (_, &String)| self.reported.get(path) != Some(problem);
        if (differs && !settled) || problems.iter().any(is_new) {
            // A file may have been caught half written.
            let settled = settle(None, changes).await;
            lost = settled.lost;
            (problems, world) = self.read(look.and(settled.look)).await;
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
        self.tell_of_shared_addresses().await;
        lost
    }

    /// Reads on a thread where that may block.
    async fn read(&self, look: Look) -> (Problems, Option<World>) {
        let (directory, files) = (self.directory.clone(), self.files.clone());
        let read = tokio::task::spawn_blocking(move || {
            let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
            let whole = files.refresh(&directory, &look);
            let problem = |error: &WorldError| {
                (error.path().to_owned(), format!("{error} ({})", files.meanwhile(error.path())))
            };
            let problems = match &whole {
                Ok(()) => files.errors().map(problem).collect(),
                Err(error) => [problem(error)].into(),
            };
            (problems, Some(files.world()))
        });
        let failed = |error| ([(self.directory.clone(), format!("reading failed: {error}"))].into(), None);
        read.await.unwrap_or_else(failed)
    }

    /// After what was read is on its way: it takes a look at all pods.
    async fn tell_of_shared_addresses(&mut self) {
        let world = Arc::clone(&self.sender.borrow());
        if self.pods.is_same(&world.pods) {
            return;
        }
        self.pods = world.pods.clone();
        let known = mem::take(&mut self.shared);
        let told = tokio::task::spawn_blocking(move || warn_of_shared_addresses(&world, &known)).await;
        self.shared = told.unwrap_or_default();
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

/// Waits until the directory is quiet and no file is half written, or long enough.
async fn settle(first: Option<Change>, changes: &mut mpsc::UnboundedReceiver<Change>) -> Settled {
    let limit = Instant::now() + MAX_SETTLE;
    let mut writing = BTreeSet::new();
    let mut settled = Settled { look: Look::At(BTreeSet::new()), lost: false };
    let mut next = first;
    loop {
        match next.take() {
            Some(Change::Writing(path)) => {
                settled.look = settled.look.and(Look::At([path.clone()].into()));
                writing.insert(path);
            }
            Some(Change::Done(look)) => {
                match &look {
                    Look::At(paths) => writing.retain(|path| !paths.contains(path)),
                    Look::Everywhere => {}
                }
                settled.look = settled.look.and(look);
            }
            Some(Change::Lost) => settled = Settled { look: Look::Everywhere, lost: true },
            None => {}
        }
        let quiet = if writing.is_empty() { Instant::now() + DEBOUNCE } else { limit };
        match timeout_at(quiet.min(limit), changes.recv()).await {
            Ok(Some(change)) => next = Some(change),
            Ok(None) | Err(_) => return settled,
        }
    }
}

fn start(directory: &Path, changes: mpsc::UnboundedSender<Change>) -> notify::Result<RecommendedWatcher> {
    let root = std::path::absolute(directory)?;
    let (watched, directory) = (root.clone(), directory.to_owned());
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        let change = match event {
            Ok(event) => change(&root, &directory, event),
            Err(_) => Some(Change::Done(Look::Everywhere)),
        };
        if let Some(change) = change {
            // Nobody listens any more: the watcher is about to be dropped.
            let _ = changes.send(change);
        }
    })?;
    watcher.watch(&watched, RecursiveMode::Recursive)?;
    Ok(watcher)
}

fn change(root: &Path, directory: &Path, event: Event) -> Option<Change> {
    // As the files are named that are read from the directory.
    let named = |path: &PathBuf| Some(directory.join(path.strip_prefix(root).ok()?));
    match event.kind {
        // The reading itself causes these.
        EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write) => None,
        // Editors hold files of other names open for as long as they run.
        EventKind::Modify(ModifyKind::Data(_)) => {
            event.paths.iter().find(|path| is_world_name(path)).and_then(named).map(Change::Writing)
        }
        EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_)
            if event.paths.iter().any(|path| path == root) =>
        {
            Some(Change::Lost)
        }
        EventKind::Create(CreateKind::Folder) | EventKind::Remove(RemoveKind::Folder) => {
            Some(Change::Done(Look::Everywhere))
        }
        // A hidden name may be where links lead, any other that of a directory; an overflow of the kernel's queue has
        // none.
        _ => {
            let files = event.paths.iter().map(|path| named(path).filter(|path| is_world_name(path)));
            let files = files.collect::<Option<BTreeSet<_>>>().filter(|files| !files.is_empty());
            Some(Change::Done(files.map_or(Look::Everywhere, Look::At)))
        }
    }
}
