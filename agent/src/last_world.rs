//! The last known world, on disk: written while the API server answers, and what an agent goes by that starts while it
//! does not.

use std::{
    fmt,
    future::pending,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use orlop_kube::{WorldFile, WorldFileError};
use orlop_model::{
    Map, NamespacedName, Text, World,
    world::{
        Namespace,
        security::{AuthorizationPolicy, PeerAuthentication},
    },
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};
use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use crate::{enrolment::Status, handover};

/// How long the API server may take before the world on disk is better than none.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two writes: a world on disk is this much behind at most.
const PERIOD: Duration = Duration::from_secs(10);
/// The same for what decides who may talk, at the least, and as a multiple of what a write takes.
const SOON: Duration = Duration::from_secs(1);
const SOON_TIMES: u32 = 4;
/// So many times in a row; after that once more for each [`PERIOD`]. Whoever may write one policy could otherwise have
/// each node write its whole world each second.
const EARLY: u32 = 5;

/// The world on disk, once the API server has had its time. For ever if there is none that can be used.
///
/// An agent that serves in `run_dir` knows more than the disk does, and has the pods' certificates: for as long as
/// there is one, nothing is to be taken over from it with this.
pub async fn instead(file: WorldFile, run_dir: &Path) -> World {
    sleep(PATIENCE).await;
    if handover::is_served(run_dir) {
        tracing::warn!(
            "the Kubernetes API has not answered yet, and another agent serves this node: waiting"
        );
    }
    handover::nobody_serves(run_dir).await;
    let path = file.path().display().to_string();
    match spawn_blocking(move || file.read()).await.context("reading it panicked") {
        Ok(Ok(Some(world))) => {
            let Age { as_of, age } = Age::now(world.as_of.unwrap_or(SystemTime::UNIX_EPOCH));
            tracing::warn!(
                file = path,
                "the Kubernetes API has not answered yet: until then the world is that of {as_of} from disk, {age} old"
            );
            return world;
        }
        Ok(Ok(None)) => {
            tracing::warn!(
                file = path,
                "the Kubernetes API has not answered yet, and no world is on disk: waiting"
            );
        }
        Ok(Err(error)) => tracing::error!("{error}; waiting for the Kubernetes API"),
        Err(error) => {
            tracing::error!(file = path, error = format!("{error:#}"), "waiting for the Kubernetes API")
        }
    }
    pending().await
}

/// Writes each world that is of the present, at most one in [`PERIOD`], or in [`SOON`] if it decides otherwise than the
/// one before and not many have lately. What fails is tried again.
pub async fn keep(file: WorldFile, mut worlds: watch::Receiver<Arc<World>>) {
    let mut failing = None;
    let mut early = Early::new(Instant::now());
    worlds.mark_changed();
    while worlds.changed().await.is_ok() {
        let world = Arc::clone(&worlds.borrow_and_update());
        if world.as_of.is_some() {
            continue;
        }
        let written_of = Deciding::of(&world);
        let to = file.clone();
        let start = Instant::now();
        let written = spawn_blocking(move || to.write(world, SystemTime::now())).await;
        let problem = match written {
            Ok(Ok(())) => None,
            // An agent that leaves writes its own just now, which is as good.
            Ok(Err(WorldFileError::Busy { .. })) => {
                worlds.mark_changed();
                failing.clone()
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        match (&failing, &problem) {
            (Some(_), None) => tracing::info!("the world is written to disk again"),
            (before, Some(problem)) if before.as_ref() != Some(problem) => tracing::warn!(
                "the world is not written to disk, so that an agent that starts while the Kubernetes API is away \
                 knows less: {problem}; mend that, or name another --state-dir; trying again"
            ),
            _ => {}
        }
        if problem.is_some() {
            worlds.mark_changed();
        }
        failing = problem;
        sleep(SOON.max(start.elapsed() * SOON_TIMES)).await;
        while start.elapsed() < PERIOD {
            if !written_of.is_of(&worlds.borrow()) && early.take(Instant::now()) {
                break;
            }
            sleep(SOON).await;
        }
    }
}

/// What of a world decides who is in the mesh and who may talk to whom: a world on disk that is behind in this lets pass
/// what has been forbidden since.
struct Deciding {
    namespaces: Map<Text, Namespace>,
    authorization_policies: Map<NamespacedName, AuthorizationPolicy>,
    peer_authentications: Map<NamespacedName, PeerAuthentication>,
}

impl Deciding {
    fn of(world: &World) -> Self {
        Self {
            namespaces: world.namespaces.clone(),
            authorization_policies: world.authorization_policies.clone(),
            peer_authentications: world.peer_authentications.clone(),
        }
    }

    fn is_of(&self, world: &World) -> bool {
        self.namespaces.is_same(&world.namespaces)
            && self.authorization_policies.is_same(&world.authorization_policies)
            && self.peer_authentications.is_same(&world.peer_authentications)
    }
}

/// Writes before their time: a bucket of tokens.
struct Early {
    left: u32,
    /// When the last token came, or would have come into a bucket that was full.
    since: Instant,
}

impl Early {
    fn new(now: Instant) -> Self {
        Self { left: EARLY, since: now }
    }

    /// Whether there is one more.
    fn take(&mut self, now: Instant) -> bool {
        let periods = now.duration_since(self.since).as_secs() / PERIOD.as_secs();
        let came = u32::try_from(periods).unwrap_or(u32::MAX);
        self.since += PERIOD.saturating_mul(came);
        self.left = self.left.saturating_add(came).min(EARLY);
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

/// How old a world is, for people.
pub struct Age {
    /// When it was so.
    pub as_of: humantime::Rfc3339Timestamp,
    /// How long ago that is.
    pub age: humantime::FormattedDuration,
}

impl Age {
    /// Of a world that was so then.
    pub fn now(as_of: SystemTime) -> Self {
        Self {
            as_of: humantime::format_rfc3339_seconds(as_of),
            age: humantime::format_duration(Duration::from_secs(seconds_since(as_of))),
        }
    }
}

/// Exports the age of the world from disk.
#[derive(Debug)]
pub struct Gauge(pub watch::Receiver<Status>);

impl Collector for Gauge {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let age = self.0.borrow().as_of.map_or(0, seconds_since);
        let help = "Age of the world that is in force, if it is from disk since the Kubernetes API has not answered yet; else 0";
        let gauge = ConstGauge::new(i64::try_from(age).unwrap_or(i64::MAX));
        let unit = Unit::Seconds;
        gauge.encode(encoder.encode_descriptor(
            "orlop_world_from_disk_age",
            help,
            Some(&unit),
            MetricType::Gauge,
        )?)
    }
}

/// 0 for a time that is yet to come: clocks are set.
fn seconds_since(time: SystemTime) -> u64 {
    SystemTime::now().duration_since(time).map_or(0, |age| age.as_secs())
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    #[test]
    fn early_writes_are_few_if_they_are_wanted_each_second() {
        let start = Instant::now();
        let mut early = Early::new(start);
        let mut in_seconds =
            |seconds: Range<u32>| seconds.filter(|at| early.take(start + SOON * *at)).count();
        assert_eq!(in_seconds(0..10), 5);
        assert_eq!(in_seconds(10..110), 10);
        // Not more than there is room for, after a quiet hour.
        assert_eq!(in_seconds(3600..3610), 5);
    }
}
