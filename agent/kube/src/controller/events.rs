//! Events (`events.k8s.io/v1`): what `kubectl describe` and `kubectl events` show beside an object's state.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

/// What wrote an event.
const REPORTER: &str = "orlop.dev/controller";
/// Of an event's fields, in bytes: the API server's own limits.
const MAX_NOTE: usize = 1024;
const MAX_INSTANCE: usize = 128;
/// Of an object's name, in front of what makes the event's name its own.
const MAX_NAME: usize = 200;

/// Events a second at the most, after so many at once; what would be more is left out.
const RATE: u32 = 2;
const BURST: u32 = 50;
/// How many may wait.
const ROOM: usize = 64;
const TIMEOUT: Duration = Duration::from_secs(10);

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Regarding {
    pub api_version: String,
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// Something that went wrong with an object.
#[derive(Debug)]
struct Warning {
    regarding: Regarding,
    action: &'static str,
    reason: String,
    note: String,
}

/// Takes events of the replica that leads. Whoever tells of something does not wait for the API server, and nobody
/// fills that by having much go wrong.
#[derive(Clone, Debug)]
pub struct Events(mpsc::Sender<Warning>);

/// Writes what [`Events`] takes.
pub struct EventWriter {
    client: Client,
    /// Which replica this is.
    instance: String,
    warnings: mpsc::Receiver<Warning>,
}

impl Events {
    /// What takes events, and what writes them as this replica.
    pub fn new(client: Client, instance: &str) -> (Self, EventWriter) {
        let (sender, warnings) = mpsc::channel(ROOM);
        (
            Self(sender),
            EventWriter { client, instance: shortened(instance, MAX_INSTANCE).to_owned(), warnings },
        )
    }

    /// Tells that an object is not what its author wants it to be. `action` is what was tried.
    pub(super) fn warn(&self, regarding: Regarding, action: &'static str, reason: &str, note: &str) {
        let (reason, note) = (reason.to_owned(), note.to_owned());
        if self.0.try_send(Warning { regarding, action, reason, note }).is_err() {
            tracing::debug!("an event is left out, since too many wait");
        }
    }
}

impl EventWriter {
    /// For as long as somebody may tell of something.
    pub async fn run(mut self) {
        let step = Duration::from_secs(1) / RATE;
        let now = Instant::now();
        let mut free = now.checked_sub(step * BURST).unwrap_or(now);
        let mut said = false;
        while let Some(warning) = self.warnings.recv().await {
            let now = Instant::now();
            free = free.max(now.checked_sub(step * BURST).unwrap_or(now)) + step;
            sleep_until(free).await;
            let written = timeout(TIMEOUT, self.write(&warning)).await;
            let problem = match written {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            let name = &warning.regarding.name;
            if std::mem::replace(&mut said, true) {
                tracing::debug!(problem, name, "an event is not written");
            } else {
                tracing::warn!(problem, name, "an event is not written; of more of them nothing is said");
            }
        }
    }

    async fn write(&self, warning: &Warning) -> Result<(), kube::Error> {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("events.k8s.io", "v1", "Event"));
        let event = event(warning, &self.instance, Timestamp::now());
        let event: DynamicObject = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &warning.regarding.namespace, &kind);
        api.create(&PostParams::default(), &event).await.map(drop)
    }
}

fn event(of: &Warning, instance: &str, now: Timestamp) -> Value {
    let Regarding { api_version, kind, namespace, name, uid } = &of.regarding;
    let prefix = shortened(name, MAX_NAME).trim_end_matches(['.', '-']);
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"generateName": format!("{prefix}-"), "namespace": namespace},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        "type": "Warning", "reason": of.reason, "action": of.action, "note": shortened(&of.note, MAX_NOTE),
        "reportingController": REPORTER, "reportingInstance": instance,
        "regarding": {
            "apiVersion": api_version, "kind": kind, "namespace": namespace, "name": name, "uid": uid,
        },
    })
}

/// As much of a text as fits.
fn shortened(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_that_the_api_server_takes() {
        let regarding = Regarding {
            api_version: "security.istio.io/v1".to_owned(),
            kind: "AuthorizationPolicy",
            namespace: "shop".to_owned(),
            name: format!("{}.{}", "a".repeat(199), "b".repeat(50)),
            uid: "u".to_owned(),
        };
        let note = "é".repeat(1000);
        let warning = Warning { regarding, action: "Accept", reason: "Invalid".to_owned(), note };
        let event = event(&warning, "orlop-controller-0", "2026-01-02T03:04:05.000006Z".parse().unwrap());
        assert_eq!(event["metadata"]["generateName"], format!("{}-", "a".repeat(199)));
        assert_eq!(event["eventTime"], "2026-01-02T03:04:05.000006Z");
        assert_eq!(event["note"], "é".repeat(512));
        assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("Invalid")));
        assert_eq!(event["regarding"]["uid"], "u");
    }
}
