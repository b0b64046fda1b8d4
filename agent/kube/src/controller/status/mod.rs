//! What the authors of policies and routes are told, in the conditions of these objects.

mod attempts;
mod conditions;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use orlop_model::{Finding, Hosts, Settings, Snapshot, compile_after};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::cluster::Seen;
use crate::field::FieldError;
use crate::object::{Key, Kind, Kinds};
use attempts::Attempts;
use conditions::{Condition, conditions};

/// Between two looks, at the least, and as a multiple of what a look costs: a twentieth of one core at the most.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSES: u32 = 20;

/// Keeps the conditions of policies and routes as they should be, for the replica that leads.
///
/// They are `orlop.dev/Accepted`, `orlop.dev/ResolvedRefs` and `orlop.dev/Programmed`: of a domain of our own, since
/// Istio's controller may write conditions of the same object.
pub struct StatusWriter {
    client: Client,
    settings: Settings,
}

impl StatusWriter {
    /// With the settings that agents have, of no node.
    pub fn new(client: Client, settings: Settings) -> Self {
        Self { client, settings }
    }

    /// Writes what differs, for ever.
    pub async fn run(self) {
        let Ok(mut seen) = Seen::watch(&self.client, Kinds::OfWaypoints).await else { return };
        let mut attempts = Attempts::new(self.client);
        let mut judgement = Judgement::default();
        loop {
            let now = Arc::clone(&seen.borrow_and_update());
            let start = Instant::now();
            if judgement.revision != Some(now.revision) {
                let settings = self.settings.clone();
                let seen = Arc::clone(&now);
                judgement = match spawn_blocking(move || judgement.after(&seen, &settings)).await {
                    Ok(judgement) => judgement,
                    Err(error) => {
                        return tracing::error!(%error, "no conditions are written by this replica any more");
                    }
                };
            }
            let due = attempts.due(&now.heads, |key, head| judgement.of(key, head.refused.as_ref()));
            drop(now);
            let cost = start.elapsed();
            attempts.write(due).await;
            tokio::select! {
                changed = seen.changed() => if changed.is_err() { return },
                () = attempts.next() => {}
            }
            sleep(PAUSE.max(cost * PAUSES)).await;
        }
    }
}

/// What was found in one state of the world.
#[derive(Default)]
struct Judgement {
    revision: Option<u64>,
    snapshot: Option<Snapshot>,
    findings: HashMap<Key, Vec<Finding>>,
}

impl Judgement {
    fn after(self, seen: &Seen, settings: &Settings) -> Self {
        let (world, hosts) = (&seen.world, Hosts::new());
        let snapshot = compile_after(self.snapshot.as_ref(), world, &hosts, settings, seen.revision);
        let mut findings: HashMap<_, Vec<_>> = HashMap::new();
        for finding in snapshot.findings_of_all(world, settings) {
            if let Some(kind) = Kind::named(finding.kind) {
                let key = Key::new(kind, &finding.name.namespace, &finding.name.name);
                findings.entry(key).or_default().push(finding);
            }
        }
        Self { revision: Some(seen.revision), snapshot: Some(snapshot), findings }
    }

    fn of(&self, key: &Key, refused: Option<&FieldError>) -> [Condition; 3] {
        let findings: Vec<_> = self.findings.get(key).into_iter().flatten().collect();
        conditions(key.kind(), refused, &findings)
    }
}
