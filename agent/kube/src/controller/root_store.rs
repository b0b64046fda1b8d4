use std::collections::BTreeMap;
use std::future::ready;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Error, ResourceExt as _};

use crate::controller::root_secret::{due, make, step};
use crate::controller::{Backoff, CallError, RootPair, RootSecret, RootStep, RotationTiming};

/// The Secrets that hold the root: one plugged in, or else the controller's own.
pub struct RootStore {
    secrets: Api<Secret>,
    namespace: String,
    own: String,
    plugged_in: Option<String>,
}

/// What a store holds.
#[derive(Clone, PartialEq, Eq)]
pub struct RootFound {
    /// The name of the Secret.
    pub secret: String,
    /// What is in it, or why it can't be used.
    pub root: Result<RootSecret, String>,
}

impl RootStore {
    /// The Secret `plugged_in` of `namespace`, which is never written, comes before `own`.
    pub fn new(client: Client, namespace: &str, own: &str, plugged_in: Option<&str>) -> Self {
        Self {
            secrets: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            own: own.to_owned(),
            plugged_in: plugged_in.map(str::to_owned),
        }
    }

    /// Makes a root, unless there is one or another replica is faster. A Secret that is there and empty is filled.
    pub async fn ensure(&self, new: impl FnOnce() -> RootPair) -> Result<(), CallError> {
        if let Some(name) = &self.plugged_in
            && self.get(name).await?.is_some()
        {
            return Ok(());
        }
        let metadata = ObjectMeta { name: Some(self.own.clone()), ..ObjectMeta::default() };
        let (made, verb) = match self.get(&self.own).await? {
            None => {
                let mut secret = Secret { metadata, ..Secret::default() };
                make(&mut secret, &new());
                (self.secrets.create(&PostParams::default(), &secret).await, "create")
            }
            Some(mut secret) if secret.data.as_ref().is_none_or(BTreeMap::is_empty) => {
                make(&mut secret, &new());
                // With the version that was read: if anybody has filled it since, this is a conflict.
                (self.secrets.replace(&self.own, &PostParams::default(), &secret).await, "fill")
            }
            Some(_) => return Ok(()),
        };
        match made {
            Ok(_) => {
                tracing::info!(secret = self.own, "made a new root certificate");
                Ok(())
            }
            Err(Error::Api(status)) if status.is_already_exists() || status.is_conflict() => Ok(()),
            Err(error) => Err(CallError::new(self.action(verb, &self.own))(error)),
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Secret>, CallError> {
        self.secrets.get_opt(name).await.map_err(CallError::new(self.action("read", name)))
    }

    /// What the store holds, whenever that has changed; without end.
    pub fn follow(&self) -> impl Stream<Item = RootFound> + use<> {
        let own = follow_one(self.secrets.clone(), self.own.clone(), false);
        let plugged_in = match &self.plugged_in {
            Some(name) => follow_one(self.secrets.clone(), name.clone(), true),
            None => Box::pin(stream::once(ready((true, None)))),
        };
        let both = stream::select(plugged_in, own);
        let (own, plugged_in) = (self.own.clone(), self.plugged_in.clone().unwrap_or_default());
        // `None` as long as that Secret has not been looked for.
        let mut known: [Option<Option<Secret>>; 2] = [None, None];
        let mut last = None;
        both.filter_map(move |(is_plugged_in, secret)| {
            known[usize::from(is_plugged_in)] = Some(secret);
            let found = match &known {
                [_, Some(Some(secret))] => Some((&plugged_in, secret)),
                [Some(Some(secret)), Some(None)] => Some((&own, secret)),
                _ => None,
            };
            let found = found
                .map(|(name, secret)| RootFound { secret: name.clone(), root: RootSecret::read(secret) })
                .filter(|found| last.as_ref() != Some(found));
            if found.is_some() {
                last.clone_from(&found);
            }
            async move { found }
        })
    }

    /// Takes the steps of rotations as they are due, for ever: for the replica that leads.
    pub async fn rotate(&self, timing: RotationTiming, new: impl Fn() -> Option<RootPair>) {
        loop {
            match self.rotate_once(timing, &new).await {
                Ok(Some(step)) => tracing::info!(secret = self.own, ?step, "rotation of the root"),
                Ok(None) => tokio::time::sleep(LOOK).await,
                Err(error) => {
                    tracing::warn!(%error, "rotation of the root");
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
    }

    async fn rotate_once(
        &self,
        timing: RotationTiming,
        new: &impl Fn() -> Option<RootPair>,
    ) -> Result<Option<RootStep>, CallError> {
        let found = self.secrets.get_opt(&self.own).await;
        let Some(mut secret) = found.map_err(CallError::new(self.action("read", &self.own)))? else {
            return Ok(None);
        };
        let now = Timestamp::now();
        let Some(next) = due(&secret, now, timing) else { return Ok(None) };
        let pair = if next == RootStep::Begin { new() } else { None };
        if next == RootStep::Begin && pair.is_none() {
            return Ok(None);
        }
        step(&mut secret, next, pair.as_ref(), now);
        // With the version that was read: if anybody has changed it since, this is a conflict.
        let replaced = self.secrets.replace(&self.own, &PostParams::default(), &secret).await;
        replaced.map_err(CallError::new(self.action("rotate", &self.own)))?;
        Ok(Some(next))
    }

    fn action(&self, verb: &str, name: &str) -> String {
        format!("{verb} Secret {}/{name}", self.namespace)
    }
}

/// The Secret of this name, or that there is none, whenever it changes.
fn follow_one(
    secrets: Api<Secret>,
    name: String,
    tag: bool,
) -> Pin<Box<dyn Stream<Item = (bool, Option<Secret>)> + Send>> {
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let events = Box::pin(watcher(secrets, only));
    let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    Box::pin(stream::unfold((events, backoff, None), move |(mut events, mut backoff, mut listed)| {
        let name = name.clone();
        async move {
            loop {
                let event = match events.next().await? {
                    Ok(event) => event,
                    Err(error) => {
                        tracing::warn!(secret = name, %error, "cannot follow the root");
                        backoff.wait().await;
                        continue;
                    }
                };
                backoff.reset();
                let now = match event {
                    Event::Init => {
                        listed = None;
                        continue;
                    }
                    Event::InitApply(secret) => {
                        listed = Some(secret).filter(|secret| secret.name_any() == name);
                        continue;
                    }
                    Event::InitDone => listed.take(),
                    Event::Apply(secret) => Some(secret),
                    Event::Delete(_) => None,
                };
                return Some(((tag, now), (events, backoff, None)));
            }
        }
    }))
}

/// How often it is looked whether a step of a rotation is due.
const LOOK: Duration = Duration::from_secs(5);
