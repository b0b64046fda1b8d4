//! The states of the world, each compiled and put in force.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use orlop_model::{
    Finding, NamespacedName, Settings, Severity, Snapshot, World, compile_after, hosts_of,
    http::{Grants, OwnGateway},
};
use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use crate::hosts::Names;

/// Puts a snapshot in force.
type Publish = Box<dyn Fn(Arc<Snapshot>)>;

/// Whose routes are made ready.
#[derive(Clone, Debug)]
pub enum RoutesOf {
    /// A waypoint's.
    Waypoint(NamespacedName, Grants),
    /// A gateway's.
    Gateway(OwnGateway),
}

/// The states of the world, each compiled and put in force for new connections.
pub struct Worlds {
    worlds: watch::Receiver<Arc<World>>,
    names: Names,
    settings: Settings,
    /// Whose routes are made ready too.
    routes: Option<RoutesOf>,
    publish: Publish,
    generation: u64,
    previous: Option<Arc<Snapshot>>,
    /// Whose findings are to be told.
    told: watch::Sender<Arc<Snapshot>>,
}

impl Worlds {
    /// Must be called within a runtime.
    pub fn new(
        worlds: watch::Receiver<Arc<World>>,
        names: Names,
        settings: Settings,
        publish: Publish,
    ) -> Self {
        let (told, snapshots) = watch::channel(Arc::default());
        tokio::spawn(tell(snapshots));
        Self { worlds, names, settings, routes: None, publish, generation: 0, previous: None, told }
    }

    /// Makes ready these routes as well.
    pub fn with_routes(self, of: RoutesOf) -> Self {
        Self { routes: Some(of), ..self }
    }

    /// Gives DNS a moment, so that the first state has an address for every host that has one.
    pub async fn resolve(&mut self) {
        self.names.want(hosts_of(&self.worlds.borrow()));
        self.names.resolved().await;
    }

    /// Puts the newest state in force.
    pub fn publish(&mut self) -> Arc<Snapshot> {
        let world = Arc::clone(&self.worlds.borrow_and_update());
        self.names.want(hosts_of(&world));
        self.generation += 1;
        let (previous, hosts) = (self.previous.as_deref(), self.names.known());
        let snapshot = compile_after(previous, &world, &hosts, &self.settings, self.generation);
        let snapshot = match &self.routes {
            Some(RoutesOf::Waypoint(name, grants)) => {
                snapshot.with_routes_after(previous, name, &world, &self.settings, *grants)
            }
            Some(RoutesOf::Gateway(gateway)) => {
                snapshot.with_gateway_after(previous, gateway, &world, &self.settings)
            }
            None => snapshot,
        };
        let snapshot = Arc::new(snapshot);
        self.previous = Some(Arc::clone(&snapshot));
        (self.publish)(Arc::clone(&snapshot));
        self.told.send_replace(Arc::clone(&snapshot));
        snapshot
    }

    pub async fn changed(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            changed = self.worlds.changed() => changed.context("the world's watcher has ended"),
            () = self.names.changed() => Ok(()),
        }
    }

    /// Goes on putting states in force, and enrols nobody.
    pub async fn publish_all(&mut self) -> anyhow::Result<Infallible> {
        loop {
            self.changed().await?;
            self.publish();
        }
    }
}

/// Between two looks for findings, at the least, and as a multiple of what a look costs: a twentieth of one core at the
/// most.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSES: u32 = 20;

/// Tells the findings of the newest snapshot, after it is in force: to find them takes a look at the whole world.
async fn tell(mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut known = Vec::new();
    while snapshots.changed().await.is_ok() {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let start = Instant::now();
        known = match spawn_blocking(move || report(&known, &snapshot)).await {
            Ok(found) => found,
            Err(error) => return tracing::error!(%error, "no findings are told any more"),
        };
        sleep(PAUSE.max(start.elapsed() * PAUSES)).await;
    }
}

/// Says of each resource that needs attention what is the matter, once.
fn report(known: &[Finding], snapshot: &Snapshot) -> Vec<Finding> {
    let found = snapshot.findings();
    for finding in found.iter().filter(|finding| !known.contains(finding)) {
        let Finding { kind, name, severity, reason, message } = finding;
        match severity {
            Severity::Info => tracing::info!(kind, %name, ?reason, message, "finding"),
            Severity::Warning | Severity::Error => tracing::warn!(kind, %name, ?reason, message, "finding"),
        }
    }
    found.to_vec()
}
