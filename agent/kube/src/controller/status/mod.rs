//! What the authors of policies and routes are told, in the conditions of these objects.

mod attempts;
mod conditions;
mod routes;

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use orlop_model::{Finding, Hosts, Settings, Snapshot, World, compile_after};
use serde_json::{Value, json};
use tokio::sync::watch as channel;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::waypoints::OwnGateways;
use super::{CustomKinds, Events};
use crate::cluster::{Head, Seen};
use crate::object::{Key, Kind, Kinds};
use attempts::Attempts;
use conditions::{At, conditions, to_write};
use routes::Told;

/// Between two looks, at the least, and as a multiple of what a look costs: a twentieth of one core at the most.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSES: u32 = 20;

/// Keeps the conditions of policies and routes as they should be, for the replica that leads.
///
/// They are `orlop.dev/Accepted`, `orlop.dev/ResolvedRefs` and `orlop.dev/Programmed`: of a domain of our own, since
/// Istio's controller may write conditions of the same object.
///
/// Routes of the Gateway API have `Accepted` and `ResolvedRefs` for each of their parents that is a Service, or a Gateway
/// of ours.
pub struct StatusWriter {
    client: Client,
    settings: Settings,
    kinds: CustomKinds,
    events: Events,
    own: Option<channel::Receiver<OwnGateways>>,
}

impl StatusWriter {
    /// With the settings that agents have, of no node. Tells of what is no longer accepted.
    pub fn new(client: Client, settings: Settings, kinds: CustomKinds, events: Events) -> Self {
        Self { client, settings, kinds, events, own: None }
    }

    /// Goes by what is known of Gateways, as well.
    pub fn with_own(self, own: channel::Receiver<OwnGateways>) -> Self {
        Self { own: Some(own), ..self }
    }

    /// Writes what differs, for ever.
    pub async fn run(mut self) {
        let Ok(mut seen) = Seen::watch(&self.client, Kinds::OfWaypoints, &self.kinds.0).await else { return };
        let mut attempts = Attempts::new(self.client, self.events);
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
            let own = self.own.as_mut().map(|own| own.borrow_and_update().clone()).unwrap_or_default();
            let due =
                attempts.due(&now.heads, |key, head, at| judgement.status(&now.world, &own, key, head, at));
            drop(now);
            let cost = start.elapsed();
            attempts.write(due).await;
            tokio::select! {
                changed = seen.changed() => if changed.is_err() { return },
                () = attempts.next() => {}
                () = changed(&mut self.own) => {}
            }
            sleep(PAUSE.max(cost * PAUSES)).await;
        }
    }
}

/// Waits until something else is known, which may be never.
async fn changed(own: &mut Option<channel::Receiver<OwnGateways>>) {
    let known = match own {
        Some(own) => own.changed().await.is_ok(),
        None => false,
    };
    if !known {
        pending().await
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

    /// What a status must be made, `None` if it is that.
    fn status(&self, world: &World, own: &OwnGateways, key: &Key, head: &Head, at: At<'_>) -> Option<Value> {
        let findings: Vec<_> = self.findings.get(key).into_iter().flatten().collect();
        let kind = key.kind();
        let Some(route) = kind.route() else {
            let wanted = conditions(kind, head.refused.as_ref(), &findings);
            let written = to_write(&head.conditions, &wanted, at.generation, !head.each_owned, at.now);
            return written.map(|conditions| json!({ "conditions": conditions }));
        };
        let name = key.namespaced()?;
        let told = Told {
            kind,
            namespace: &name.namespace,
            head,
            route: world.route(route, name).map(|route| &**route),
            findings: &findings,
            snapshot: self.snapshot.as_ref(),
            gateways: &own.gateways,
        };
        told.to_write(at).map(|parents| json!({ "parents": parents }))
    }
}
