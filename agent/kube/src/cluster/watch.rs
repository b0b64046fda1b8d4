//! One watch for each kind: a list in pages, and from then on events, resumed where they broke off.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::{ApiResource, GroupVersionKind, PartialObjectMeta};
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use kube::{Api, Client};
use orlop_model::world::config_map::COPIES;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::head::Head;
use super::item::Item;
use super::pods::{Part, Pods};
use super::store::Update;
use crate::object::Kind;

/// The keeper of the world has ended.
#[derive(Debug)]
pub(super) struct Ended;

/// Names of the custom kinds that the API server knows, such as `peerauthentications.security.istio.io`; `None`
/// until it was asked.
pub(crate) type Definitions = Option<BTreeSet<String>>;

/// Between two attempts to watch a kind whose definition is there and which is not, as just after it came.
const NOT_YET: Duration = Duration::from_millis(300);

/// Keeps `definitions` in step with the custom kinds. Only their names are asked for.
pub(crate) async fn watch_definitions(client: Client, definitions: watch::Sender<Definitions>) {
    let api = Api::<PartialObjectMeta<CustomResourceDefinition>>::all(client);
    let events = watcher(api, watcher::Config::default());
    pin_mut!(events);
    let mut listed = BTreeSet::new();
    let mut pauses = Pauses::default();
    while let Some(event) = events.next().await {
        let known = |definitions: &mut Definitions| definitions.clone().unwrap_or_default();
        if works(&event) {
            pauses = Pauses::default();
        }
        match event {
            Ok(Event::Init) => listed = BTreeSet::new(),
            Ok(Event::InitApply(definition)) => listed.extend(definition.metadata.name),
            Ok(Event::InitDone) => drop(definitions.send_replace(Some(std::mem::take(&mut listed)))),
            Ok(Event::Apply(definition)) => definitions.send_modify(|definitions| {
                let mut names = known(definitions);
                names.extend(definition.metadata.name);
                *definitions = Some(names);
            }),
            Ok(Event::Delete(definition)) => definitions.send_modify(|definitions| {
                let mut names = known(definitions);
                definition.metadata.name.map(|name| names.remove(&name));
                *definitions = Some(names);
            }),
            Err(error) => {
                let error = describe(&error);
                tracing::debug!(error, "can't watch the definitions of custom kinds");
                if let Some(pause) = pauses.next() {
                    sleep(pause).await;
                }
            }
        }
    }
}

/// What is told of objects.
#[derive(Clone, Copy, Debug)]
pub(super) enum Telling {
    /// What they are to the world.
    Objects,
    /// And what those say of themselves that have conditions of ours.
    Heads,
}

/// What one watch is for.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    kind: Kind,
    /// Where there are two watches of the kind.
    part: Option<Part>,
    config: watcher::Config,
}

impl Watched {
    /// The watches of a kind.
    pub fn of(kind: Kind, pods: Pods<'_>) -> Vec<Self> {
        let all = watcher::Config::default();
        match kind {
            Kind::Pod => {
                let watched = |(part, fields): (_, Option<String>)| {
                    let config = fields.map_or_else(|| all.clone(), |fields| all.clone().fields(&fields));
                    Self { kind, part, config }
                };
                pods.watches().into_iter().map(watched).collect()
            }
            // All that anybody has the right to read, and all that counts.
            // Each may be as long as an object can be, whoever wrote it.
            Kind::ConfigMap => {
                let config = all.fields(&format!("metadata.name={COPIES}")).page_size(16);
                vec![Self { kind, part: None, config }]
            }
            _ => vec![Self { kind, part: None, config: all }],
        }
    }

    /// What it tells.
    fn told(&self, update: Update) -> Update {
        match self.part {
            Some(part) => Update::OfPart(part, Box::new(update)),
            None => update,
        }
    }
}

/// Tells of all objects of a kind, or of a part of them, for as long as somebody listens.
pub(super) async fn watch_kind(
    watched: Watched,
    client: Client,
    mut definitions: watch::Receiver<Definitions>,
    telling: Telling,
    updates: mpsc::Sender<Update>,
) -> Result<(), Ended> {
    let kind = watched.kind;
    let versions = kind.api_versions();
    // Of whatever version: the next one may do where the last was not served.
    let mut failing = false;
    if !is_custom(kind) {
        loop {
            // It can't be absent; an API server that starts may say so.
            let problem =
                watch_version(&watched, versions[0], &client, telling, &updates, &mut failing).await?;
            failing = true;
            send(&updates, Update::Failing(kind, problem)).await?;
            sleep(NOT_YET).await;
        }
    }
    let name = format!("{}.{}", plural(kind), group(versions[0]));
    let there = |definitions: &Definitions| definitions.as_ref().map(|names| names.contains(&name));
    let mut version = versions.iter().enumerate().cycle();
    loop {
        let known = definitions.wait_for(|definitions| there(definitions).is_some()).await;
        if known.map_err(|_| Ended)?.as_ref().is_none_or(|names| !names.contains(&name)) {
            send(&updates, Update::Listed(kind, BTreeSet::new())).await?;
            if std::mem::take(&mut failing) {
                send(&updates, Update::Works(kind)).await?;
            }
            definitions.wait_for(|definitions| there(definitions) == Some(true)).await.map_err(|_| Ended)?;
        }
        let Some((index, version)) = version.next() else { return Ok(()) };
        let problem = tokio::select! {
            problem = watch_version(&watched, version, &client, telling, &updates, &mut failing) => problem?,
            gone = definitions.wait_for(|definitions| there(definitions) == Some(false)) => {
                drop(gone.map_err(|_| Ended)?);
                continue;
            }
        };
        // It may be served in another version.
        if index + 1 == versions.len() {
            failing = true;
            send(&updates, Update::Failing(kind, problem)).await?;
        }
        sleep(NOT_YET).await;
    }
}

/// Watches a kind in one version of its group; returns with what the API server says if it has no such kind.
async fn watch_version(
    watched: &Watched,
    api_version: &'static str,
    client: &Client,
    telling: Telling,
    updates: &mpsc::Sender<Update>,
    failing: &mut bool,
) -> Result<Problem, Ended> {
    let kind = watched.kind;
    let api = Api::<Item>::all_with(client.clone(), &resource(kind, api_version));
    let update = |item: &Item| watched.told(update(kind, item, api_version, telling));
    let events = watcher(api, watched.config.clone());
    pin_mut!(events);
    let mut listed = BTreeSet::new();
    let mut pauses = Pauses::default();
    while let Some(event) = events.next().await {
        if works(&event) {
            pauses = Pauses::default();
            if std::mem::take(failing) {
                send(updates, Update::Works(kind)).await?;
            }
        }
        match event {
            Ok(Event::Init) => listed = BTreeSet::new(),
            Ok(Event::InitApply(item)) => {
                listed.insert(item.key(kind));
                send(updates, update(&item)).await?;
            }
            Ok(Event::InitDone) => {
                let there = std::mem::take(&mut listed);
                send(updates, watched.told(Update::Listed(kind, there))).await?;
            }
            Ok(Event::Apply(item)) => send(updates, update(&item)).await?,
            Ok(Event::Delete(item)) => {
                send(updates, watched.told(Update::Delete(item.key(kind)))).await?;
            }
            Err(error) => {
                let problem = Problem::of(&error);
                if status_code(&error) == Some(404) {
                    return Ok(problem);
                }
                *failing = true;
                send(updates, Update::Failing(kind, problem)).await?;
                if let Some(pause) = pauses.next() {
                    sleep(pause).await;
                }
            }
        }
    }
    Ok(Problem { text: "the watch has ended".to_owned(), may_pass: true })
}

/// Whether the API server has said something. `Init` comes before each attempt to list, whatever becomes of that: it must
/// not end the pauses between attempts that fail.
fn works<K>(event: &Result<Event<K>, watcher::Error>) -> bool {
    event.as_ref().is_ok_and(|event| !matches!(event, Event::Init))
}

fn update(kind: Kind, item: &Item, api_version: &'static str, telling: Telling) -> Update {
    let (update, refused) = match item.convert(kind) {
        Ok(object) => (Update::Apply(object), None),
        Err(error) => (Update::Malformed(item.key(kind), error.clone(), item.text().to_owned()), Some(error)),
    };
    match telling {
        Telling::Heads if kind.has_conditions() => {
            let head = Head::read(item.text(), api_version, refused);
            Update::Told(item.key(kind), Arc::new(head), Box::new(update))
        }
        Telling::Heads | Telling::Objects => update,
    }
}

/// A kind as the API has it in one version of its group.
pub(crate) fn resource(kind: Kind, api_version: &str) -> ApiResource {
    let version = api_version.rsplit('/').next().unwrap_or_default();
    let named = GroupVersionKind::gvk(group(api_version), version, kind.name());
    ApiResource::from_gvk_with_plural(&named, &plural(kind))
}

async fn send(updates: &mpsc::Sender<Update>, update: Update) -> Result<(), Ended> {
    updates.send(update).await.map_err(|_| Ended)
}

/// How long to wait after each failure in a row: longer each time, and at random, since many agents lose one API
/// server at the same moment.
struct Pauses(Duration);

impl Pauses {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(10);
}

impl Default for Pauses {
    fn default() -> Self {
        Self(Self::FIRST)
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (2 * pause).min(Self::LONGEST);
        Some(pause.mul_f64(0.5 + fastrand::f64() / 2.0))
    }
}

/// Why a kind can't be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// What the client or the server said.
    pub text: String,
    /// Whether the server answers, and may say something else in a moment: a kind that was just defined is not there at
    /// once (404), and one whose definition was changed is told to come again (429) or anew (410).
    pub may_pass: bool,
}

impl Problem {
    fn of(error: &watcher::Error) -> Self {
        let may_pass = status_code(error).is_some_and(|code| matches!(code, 404 | 410 | 429 | 500..));
        Self { text: describe(error), may_pass }
    }
}

/// What the API server answered, if it did.
fn status_code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

/// With all that it comes from.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let also = error.to_string();
        if !text.contains(&also) {
            text = format!("{text}: {also}");
        }
        source = error.source();
    }
    text
}

fn is_custom(kind: Kind) -> bool {
    let group = group(kind.api_versions()[0]);
    group.contains("istio.io") || group.starts_with("gateway.networking.") || group == "orlop.dev"
}

fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

fn plural(kind: Kind) -> String {
    let name = kind.name().to_lowercase();
    // A vowel before it keeps the letter, as of gateways.
    let stem = name.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o', 'u']));
    stem.map_or_else(|| format!("{name}s"), |stem| format!("{stem}ies"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Kinds;

    #[test]
    fn resources_are_named_as_the_api_has_them() {
        let plurals: Vec<_> = Kinds::OfWaypoints.all().map(plural).collect();
        let wanted = [
            "namespaces",
            "nodes",
            "pods",
            "services",
            "endpointslices",
            "serviceentries",
            "workloadentries",
            "authorizationpolicies",
            "peerauthentications",
            "virtualservices",
            "destinationrules",
            "requestauthentications",
            "ratelimits",
            "extensionproviders",
            "gateways",
            "telemetries",
            "httproutes",
            "grpcroutes",
            "tlsroutes",
            "tcproutes",
            "referencegrants",
            "backendtlspolicies",
            "configmaps",
        ];
        assert_eq!(plurals, wanted);
        assert!(is_custom(Kind::WorkloadEntry) && !is_custom(Kind::EndpointSlice));
        assert!(is_custom(Kind::HttpRoute));
    }

    #[test]
    fn the_manifests_let_each_role_watch_what_it_reads() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/manifests/orlop.yaml");
        let manifests: Vec<serde_json::Value> =
            serde_saphyr::from_multiple(&std::fs::read_to_string(path).unwrap()).unwrap();
        for (name, kinds) in [("orlop-node", Kinds::OfNodes), ("orlop-waypoint", Kinds::OfWaypoints)] {
            let is_role = |object: &&serde_json::Value| {
                object["kind"] == "ClusterRole" && object["metadata"]["name"] == name
            };
            let role = manifests.iter().find(is_role).unwrap();
            for kind in kinds.all() {
                let (group, plural) = (group(kind.api_versions()[0]), plural(kind));
                let allows = |rule: &serde_json::Value| {
                    let has = |field: &str, value: &str| {
                        rule[field].as_array().is_some_and(|values| values.iter().any(|one| one == value))
                    };
                    has("apiGroups", group)
                        && has("resources", &plural)
                        && has("verbs", "list")
                        && has("verbs", "watch")
                };
                assert!(
                    role["rules"].as_array().unwrap().iter().any(allows),
                    "{name} may not watch {plural}"
                );
            }
        }
    }

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let pauses: Vec<_> = Pauses::default().take(20).collect();
        assert!(pauses[0] <= Pauses::FIRST && pauses[0] >= Pauses::FIRST / 2);
        assert!(pauses[19] <= Pauses::LONGEST && pauses[19] >= Pauses::LONGEST / 2);
        // Agents of many nodes do not come all at once.
        assert_ne!(pauses, Pauses::default().take(20).collect::<Vec<_>>());
    }
}
