use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Error};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout};

use super::conditions::{At, refusals};
use crate::cluster::{Head, Item, resource};
use crate::controller::events::Regarding;
use crate::controller::{Backoff, Events};
use crate::object::{Key, Kind};

/// Under which name conditions are applied, and nothing else is.
const FIELD_MANAGER: &str = "orlop-status";

/// Writes a second at the most, after so many at once.
const RATE: u32 = 50;
const BURST: u32 = 100;
/// How long to write before looking again whether it is still to be.
const ROUND: Duration = Duration::from_secs(1);
/// How long one write may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between attempts at one object: doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(300);
/// After so many objects of a kind in a row that may not be written, none may.
const FORBIDDEN: u32 = 3;
/// How long a kind is left alone whose status can't be written.
const NEXT_LOOK: Duration = Duration::from_secs(60);

/// What is written, what was, and what could not be.
pub(super) struct Attempts {
    client: Client,
    events: Events,
    /// Of what was written, the state that the watch may not have told yet.
    written: HashMap<Key, Arc<Head>>,
    failed: HashMap<Key, Failed>,
    /// How many objects of a kind in a row may not be written.
    forbidden: HashMap<Kind, u32>,
    /// Kinds that can't be written at all, until when.
    closed: HashMap<Kind, Instant>,
    /// What was said of a kind already.
    said: HashSet<(Kind, &'static str)>,
    /// Kinds whose conditions have no `observedGeneration`.
    plain: HashSet<Kind>,
    /// When the next write may be.
    free: Instant,
    backoff: Backoff,
    /// No write before, since the API server is away.
    away: Option<Instant>,
    /// Something was left for the next round.
    left: bool,
    /// What was written last.
    last: Option<Key>,
}

/// An object that could not be written, in the state that it had.
struct Failed {
    version: String,
    times: u32,
    next: Instant,
}

/// Something to write.
pub(super) struct Due {
    key: Key,
    head: Arc<Head>,
    status: Value,
}

impl Attempts {
    pub fn new(client: Client, events: Events) -> Self {
        Self {
            client,
            events,
            written: HashMap::new(),
            failed: HashMap::new(),
            forbidden: HashMap::new(),
            closed: HashMap::new(),
            said: HashSet::new(),
            plain: HashSet::new(),
            free: Instant::now(),
            backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(30)),
            away: None,
            left: false,
            last: None,
        }
    }

    /// What is to be written now, from where the last round ended: whoever changes much makes nobody wait for long.
    /// `wanted` says what a status must be made, `None` if it is that.
    pub fn due(
        &mut self,
        heads: &BTreeMap<Key, Arc<Head>>,
        wanted: impl Fn(&Key, &Head, At<'_>) -> Option<Value>,
    ) -> Vec<Due> {
        let now = Instant::now();
        self.written.retain(|key, written| heads.get(key).is_some_and(|head| written.is_after(head)));
        self.failed.retain(|key, _| heads.contains_key(key));
        self.closed.retain(|_, until| *until > now);
        self.away = self.away.filter(|until| *until > now);
        let time = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut due = Vec::new();
        for (key, head) in heads {
            let head = self.written.get(key).unwrap_or(head);
            let waits = |of: &Failed| of.next > now && of.version == head.resource_version;
            if self.closed.contains_key(&key.kind()) || self.failed.get(key).is_some_and(waits) {
                continue;
            }
            let generation = head.generation.filter(|_| !self.plain.contains(&key.kind()));
            match wanted(key, head, At { generation, now: &time }) {
                Some(status) => due.push(Due { key: key.clone(), head: Arc::clone(head), status }),
                None => drop(self.failed.remove(key)),
            }
        }
        let next = self.last.as_ref().map_or(0, |last| due.partition_point(|due| due.key <= *last));
        due.rotate_left(next);
        due
    }

    /// Writes for a while, as fast as is fit.
    pub async fn write(&mut self, due: Vec<Due>) {
        let start = Instant::now();
        self.left = false;
        for due in due {
            if self.away.is_some() || start.elapsed() > ROUND {
                self.left = true;
                return;
            }
            if !self.closed.contains_key(&due.key.kind()) {
                self.pace().await;
                self.last = Some(due.key.clone());
                self.write_one(due).await;
            }
        }
    }

    /// When there may be something to write though nothing has changed.
    pub async fn next(&self) {
        let retries = self.failed.values().map(|failed| failed.next).chain(self.closed.values().copied());
        let next = match self.away {
            Some(back) => Some(back),
            None if self.left => return,
            None => retries.min(),
        };
        match next {
            Some(next) => sleep_until(next).await,
            None => pending().await,
        }
    }

    async fn pace(&mut self) {
        let now = Instant::now();
        let step = Duration::from_secs(1) / RATE;
        let earliest = now.checked_sub(step * BURST).unwrap_or(now);
        self.free = self.free.max(earliest) + step;
        if self.free > now {
            sleep_until(self.free).await;
        }
    }

    async fn write_one(&mut self, due: Due) {
        let Due { key, head, status } = due;
        let kind = key.kind();
        let Some(name) = key.namespaced() else { return };
        let api: Api<Item> =
            Api::namespaced_with(self.client.clone(), &name.namespace, &resource(kind, head.api_version));
        let mut object = json!({
            "apiVersion": head.api_version, "kind": kind.name(),
            "metadata": {"name": name.name, "namespace": name.namespace, "uid": head.uid},
            "status": status,
        });
        if kind.is_route() || kind == Kind::BackendTls || !head.each_owned {
            // What others say is written again with ours: it must be what they say now.
            object["metadata"]["resourceVersion"] = head.resource_version.as_str().into();
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let answer = timeout(TIMEOUT, api.patch_status(&name.name, &params, &Patch::Apply(&object))).await;
        match answer {
            Ok(Ok(item)) => {
                self.backoff.reset();
                self.forbidden.remove(&kind);
                self.failed.remove(&key);
                self.tell(kind, &head, &name.namespace, &name.name, &object["status"]);
                let refused = head.refused.clone();
                self.written.insert(key, Arc::new(Head::read(item.text(), head.api_version, refused)));
            }
            Ok(Err(Error::Api(status))) => match status.code {
                429 | 503 => self.is_away(&status.message),
                403 => self.forbidden(key, &head, &status.message),
                404 if self.lacks_status(kind, head.api_version).await => {
                    let why = "its definition has no status subresource";
                    self.close(kind, why, "what is found in its objects is told nowhere but in agents' logs");
                }
                // It has changed or gone meanwhile, which the watch will tell.
                404 | 409 => self.retry(key, &head),
                _ if status.message.contains("observedGeneration") && self.plain.insert(kind) => {
                    self.left = true;
                }
                code => {
                    if !self.failed.contains_key(&key) {
                        tracing::warn!("{key}: its status can't be written: {} ({code})", status.message);
                    }
                    self.retry(key, &head);
                }
            },
            Ok(Err(error)) => self.is_away(&error.to_string()),
            Err(_) => self.is_away("no answer"),
        }
    }

    /// Has an event say what is not accepted, and was or was so for another reason.
    fn tell(&self, kind: Kind, head: &Head, namespace: &str, name: &str, status: &Value) {
        for (reason, note) in refusals(&head.conditions, &head.parents.told, status) {
            let regarding = Regarding {
                api_version: head.api_version.to_owned(),
                kind: kind.name(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: head.uid.clone(),
            };
            self.events.warn(regarding, "Accept", reason, note);
        }
    }

    fn is_away(&mut self, why: &str) {
        tracing::debug!(why, "conditions can't be written");
        self.away = Some(Instant::now() + self.backoff.next());
    }

    /// An admission policy may refuse one object, which keeps no other from being written.
    fn forbidden(&mut self, key: Key, head: &Head, message: &str) {
        let kind = key.kind();
        let times = self.forbidden.entry(kind).or_default();
        *times += 1;
        if *times >= FORBIDDEN {
            self.forbidden.remove(&kind);
            return self.close(kind, "the controller may not patch its status", message);
        }
        if !self.failed.contains_key(&key) {
            tracing::warn!("{key}: its status may not be written: {message}");
        }
        self.retry(key, head);
    }

    fn close(&mut self, kind: Kind, why: &'static str, more: &str) {
        self.closed.insert(kind, Instant::now() + NEXT_LOOK);
        if self.said.insert((kind, why)) {
            tracing::warn!(kind = kind.name(), more, "no conditions are written: {why}");
        }
    }

    fn retry(&mut self, key: Key, head: &Head) {
        let times = self.failed.get(&key).map_or(0, |failed| failed.times);
        let pause = FIRST_RETRY.saturating_mul(1 << times.min(16)).min(LAST_RETRY);
        let (version, next) = (head.resource_version.clone(), Instant::now() + pause);
        self.failed.insert(key, Failed { version, times: times.saturating_add(1), next });
    }

    /// Whether the API server has the kind, and no status of it.
    async fn lacks_status(&self, kind: Kind, api_version: &str) -> bool {
        let known = self.client.list_api_group_resources(api_version);
        let Ok(Ok(known)) = timeout(TIMEOUT, known).await else { return false };
        let names: BTreeSet<_> = known.resources.iter().map(|resource| resource.name.as_str()).collect();
        let plural = resource(kind, api_version).plural;
        names.contains(plural.as_str()) && !names.contains(format!("{plural}/status").as_str())
    }
}
