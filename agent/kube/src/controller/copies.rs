//! The certificates that BackendTLSPolicies name, copied to where waypoints and gateways may read them.
//!
//! A right to read can't be limited to the ConfigMaps that somebody names. So the controller alone has it for all, and
//! puts what is named into one ConfigMap of each namespace, whose name is always the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use orlop_model::world::config_map::{COPIES, KEY, MAX_COPIES};
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout, timeout_at};

use super::bundle::has_gone;
use super::{CallError, FIELD_MANAGER, NamedConfigMaps};

/// Between two looks at what has been copied: nobody tells of a change.
const LOOK: Duration = Duration::from_secs(10);
/// How many namespaces are looked at at once.
const AT_ONCE: usize = 8;
/// How long one namespace may keep the others waiting, and for how much of that it is read.
const PATIENCE: Duration = Duration::from_secs(10);
const READING: Duration = Duration::from_secs(7);
/// From one read to the next, of whatever namespace: 200 a second are what the API server is asked for at the most.
const PACE: Duration = Duration::from_millis(5);

/// Keeps the copies, for the replica that leads.
pub struct CertificateCopies {
    client: Client,
    named: watch::Receiver<Option<NamedConfigMaps>>,
}

impl CertificateCopies {
    pub(super) fn new(client: Client, named: watch::Receiver<Option<NamedConfigMaps>>) -> Self {
        Self { client, named }
    }

    /// Copies what is missing or differs, and takes back what nobody names any more, for ever.
    pub async fn run(mut self) {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reader = Reader { client: self.client, pace: Mutex::new(pace) };
        loop {
            let named = self.named.borrow_and_update().clone().unwrap_or_default();
            let all = stream::iter(&named);
            all.for_each_concurrent(AT_ONCE, |(namespace, names)| reader.keep(namespace, names)).await;
            tokio::select! {
                changed = self.named.changed() => if changed.is_err() { return },
                () = sleep(LOOK), if !named.is_empty() => {}
            }
        }
    }
}

struct Reader {
    client: Client,
    pace: Mutex<Interval>,
}

impl Reader {
    /// Keeps the copies of one namespace, as far as that can be done now.
    async fn keep(&self, namespace: &str, names: &BTreeSet<String>) {
        let problem = match timeout(PATIENCE, self.copy(namespace, names)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it took too long".to_owned(),
        };
        tracing::warn!(namespace, problem, "certificates of BackendTLSPolicies are not copied");
    }

    async fn copy(&self, namespace: &str, names: &BTreeSet<String>) -> Result<(), CallError> {
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        let read = async |name: &str| {
            self.pace.lock().await.tick().await;
            let read = maps.get_opt(name).await;
            let read = read.map_err(CallError::new(format!("read ConfigMap {namespace}/{name}")))?;
            Ok::<_, CallError>(read.and_then(|map| map.data).unwrap_or_default())
        };
        let until = Instant::now() + READING;
        let mut copies = Copies::new(read(COPIES).await?);
        let mut failed = None;
        for name in copies.in_turn(names) {
            let text = match timeout_at(until, read(name)).await {
                Ok(Ok(mut data)) => Some(data.remove(KEY)),
                Ok(Err(error)) => {
                    failed = Some(error);
                    None
                }
                Err(_) => {
                    tracing::warn!(namespace, name, "was not read in time, so that its copy stays as it is");
                    None
                }
            };
            if !copies.take(name, text) {
                tracing::warn!(namespace, name, "has no room among the certificates of BackendTLSPolicies");
            }
        }
        let changed = CallError::new(format!("write ConfigMap {namespace}/{COPIES}"));
        copies.write(&maps).await.map_err(changed)?;
        failed.map_or(Ok(()), Err)
    }
}

/// What a namespace has, and is to have.
struct Copies {
    there: BTreeMap<String, String>,
    wanted: BTreeMap<String, String>,
    room: usize,
}

impl Copies {
    fn new(there: BTreeMap<String, String>) -> Self {
        Self { there, wanted: BTreeMap::new(), room: MAX_COPIES }
    }

    /// Those that have a copy come first, so that no other takes their room; else in no order, so that where there is no time
    /// for all each is read some time.
    fn in_turn<'n>(&self, names: &'n BTreeSet<String>) -> Vec<&'n String> {
        let (mut first, mut others): (Vec<_>, Vec<_>) =
            names.iter().partition(|name| self.there.contains_key(*name));
        fastrand::shuffle(&mut first);
        fastrand::shuffle(&mut others);
        first.extend(others);
        first
    }

    /// Wants what is under this name, which may be nothing; what can't be read stays as it is. Whether there is room.
    fn take(&mut self, name: &str, text: Option<Option<String>>) -> bool {
        let Some(text) = text.unwrap_or_else(|| self.there.get(name).cloned()) else { return true };
        let left = self.room.checked_sub(name.len() + text.len());
        if let Some(left) = left {
            self.room = left;
            self.wanted.insert(name.to_owned(), text);
        }
        left.is_some()
    }

    /// What is not wanted goes first, as it may take the room of what is. Somebody else may have written it, or own it too,
    /// which applying does not take away.
    async fn write(&self, maps: &Api<ConfigMap>) -> Result<(), kube::Error> {
        if let Some(nothing) = self.taken_back() {
            let field_manager = Some(FIELD_MANAGER.to_owned());
            let params = PatchParams { field_manager, ..PatchParams::default() };
            match maps.patch(COPIES, &params, &Patch::Merge(&nothing)).await {
                // So nothing is left of it.
                Err(kube::Error::Api(status)) if has_gone(&status) => {}
                written => drop(written?),
            }
        }
        if !self.is_less() {
            return Ok(());
        }
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": COPIES, "labels": {"app.kubernetes.io/managed-by": FIELD_MANAGER}},
            "data": self.wanted,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        maps.patch(COPIES, &params, &Patch::Apply(&map)).await.map(drop)
    }

    /// Whether something is missing, or says something else.
    fn is_less(&self) -> bool {
        self.wanted.iter().any(|(name, text)| self.there.get(name) != Some(text))
    }

    /// What leaves nothing there that is not wanted, if anything is.
    fn taken_back(&self) -> Option<Value> {
        let more = self.there.keys().filter(|name| !self.wanted.contains_key(*name));
        let more: BTreeMap<_, _> = more.map(|name| (name, Value::Null)).collect();
        (!more.is_empty()).then(|| json!({ "data": more }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copies(there: &[(&str, &str)]) -> Copies {
        Copies::new(there.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect())
    }

    fn text(of: &str) -> Option<Option<String>> {
        Some(Some(of.to_owned()))
    }

    #[test]
    fn what_can_not_be_read_stays_as_it_was_and_holds_up_nothing_else() {
        let mut copies = copies(&[("failing", "old"), ("changed", "old"), ("gone", "old")]);
        for (name, text) in
            [("failing", None), ("never", None), ("changed", text("new")), ("gone", Some(None))]
        {
            assert!(copies.take(name, text), "{name}");
        }
        assert!(copies.is_less());
        let wanted: Vec<_> = copies.wanted.iter().map(|(name, text)| (&**name, &**text)).collect();
        assert_eq!(wanted, [("changed", "new"), ("failing", "old")]);
        assert_eq!(copies.taken_back(), Some(json!({"data": {"gone": null}})));
    }

    #[test]
    fn what_has_a_copy_keeps_its_room() {
        let copies = copies(&[("z", "1"), ("y", "1")]);
        let names = ["a", "y", "b", "z"].map(str::to_owned).into();
        let turns = copies.in_turn(&names);
        let sorted = |turns: &[&String]| turns.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
        assert_eq!(
            (sorted(&turns[..2]), sorted(&turns[2..])),
            (["y", "z"].map(str::to_owned).into(), ["a", "b"].map(str::to_owned).into())
        );
    }

    #[test]
    fn what_is_not_wanted_is_taken_back_whoever_has_written_it() {
        let mut same = copies(&[("a", "1")]);
        assert!(same.take("a", text("1")));
        assert_eq!((same.is_less(), same.taken_back()), (false, None));
        let mut more = copies(&[("a", "1"), ("b", "2")]);
        assert!(more.take("a", text("1")));
        assert_eq!((more.is_less(), more.taken_back()), (false, Some(json!({"data": {"b": null}}))));
        // Nobody names any.
        let all = copies(&[("a", "1")]);
        assert_eq!((all.is_less(), all.taken_back()), (false, Some(json!({"data": {"a": null}}))));
        let none = copies(&[]);
        assert_eq!((none.is_less(), none.taken_back()), (false, None));
    }

    #[test]
    fn what_has_no_room_is_not_copied_and_leaves_room_for_others() {
        let mut copies = copies(&[("long", "old")]);
        assert!(!copies.take("long", text(&"x".repeat(MAX_COPIES))));
        assert!(copies.take("short", text("1")));
        assert_eq!(copies.taken_back(), Some(json!({"data": {"long": null}})));
    }
}
