use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Error, ResourceExt as _};
use tokio::sync::watch;

use crate::controller::events::Regarding;
use crate::controller::root_rotation::{due, step, take_up};
use crate::controller::root_secret::{is_marked, make};
use crate::controller::{Backoff, CallError, Events, RootJudge, RootSecret, RootStep, RotationTiming};

/// The Secret that holds the root, and the one by which somebody plugs in another.
///
/// What signs is in the first alone, which every replica follows: what is plugged in gets there by the steps of a
/// rotation. So what signed before stays until what replaces it may sign, whoever leads and whenever they start.
pub struct RootStore {
    secrets: Api<Secret>,
    namespace: String,
    own: String,
    plugged_in: Option<String>,
    /// Why what is plugged in is not taken up, as it was said last, but for numbers.
    refused: Mutex<Option<String>>,
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
    /// The Secret `own` of `namespace`. What is in `plugged_in`, which is never written, is taken up into it.
    pub fn new(client: Client, namespace: &str, own: &str, plugged_in: Option<&str>) -> Self {
        Self {
            secrets: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            own: own.to_owned(),
            plugged_in: plugged_in.filter(|name| *name != own).map(str::to_owned),
            refused: Mutex::default(),
        }
    }

    /// Has something in the Secret that can sign: what is there, what is plugged in, or else a new root, unless another
    /// replica is faster. Where something is plugged in that can't be used, no other is made.
    pub async fn ensure(&self, judge: &impl RootJudge) -> Result<(), CallError> {
        let found = self.get(&self.own).await?;
        let is_empty = |secret: &Secret| secret.data.as_ref().is_none_or(BTreeMap::is_empty);
        let can_sign =
            |secret: &Secret| RootSecret::read(secret).and_then(|root| judge.usable(&root)).is_ok();
        let (secret, verb) = match found {
            Some(secret) if can_sign(&secret) && is_marked(&secret) => return Ok(()),
            Some(mut secret) if !is_empty(&secret) => {
                let Some(plugged_in) = self.plugged_in().await? else { return Ok(()) };
                if self.take_up(&mut secret, &plugged_in, judge, None).is_none() {
                    return Ok(());
                }
                (secret, "mend")
            }
            found => {
                let root = match self.plugged_in().await? {
                    None => judge.generate().map(RootSecret::from),
                    Some(plugged_in) => {
                        let root = RootSecret::signing(&plugged_in).and_then(|root| judge.usable(&root));
                        self.say(&plugged_in, root.as_ref().err(), None);
                        root.ok()
                    }
                };
                let Some(root) = root else { return Ok(()) };
                let verb = if found.is_some() { "fill" } else { "create" };
                let metadata = ObjectMeta { name: Some(self.own.clone()), ..ObjectMeta::default() };
                let mut secret = found.unwrap_or_else(|| Secret { metadata, ..Secret::default() });
                make(&mut secret, &root);
                (secret, verb)
            }
        };
        let written = match verb {
            "create" => self.secrets.create(&PostParams::default(), &secret).await,
            // With the version that was read: if anybody has changed it since, this is a conflict.
            _ => self.secrets.replace(&self.own, &PostParams::default(), &secret).await,
        };
        match written {
            Ok(_) => {
                tracing::info!(
                    secret = self.own,
                    "made a new root certificate, or took up what is plugged in"
                );
                Ok(())
            }
            Err(Error::Api(status)) if status.is_already_exists() || status.is_conflict() => Ok(()),
            Err(error) => Err(CallError::new(self.action(verb, &self.own))(error)),
        }
    }

    /// What the Secret holds, whenever that has changed; without end.
    pub fn follow(&self) -> impl Stream<Item = RootFound> + use<> {
        let own = self.own.clone();
        let mut last = None;
        follow_one(self.secrets.clone(), own.clone()).filter_map(move |secret| {
            let found = secret
                .map(|secret| RootFound { secret: own.clone(), root: RootSecret::read(&secret) })
                .filter(|found| last.as_ref() != Some(found));
            if found.is_some() {
                last.clone_from(&found);
            }
            async move { found }
        })
    }

    /// Takes the steps of rotations as they are due, for ever: for the replica that leads. `published` says which roots
    /// every namespace has.
    pub async fn rotate(
        &self,
        timing: RotationTiming,
        judge: &impl RootJudge,
        published: watch::Receiver<String>,
        events: Events,
    ) {
        loop {
            let roots = published.borrow().clone();
            match self.rotate_once(timing, judge, &roots, &events).await {
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
        judge: &impl RootJudge,
        published: &str,
        events: &Events,
    ) -> Result<Option<RootStep>, CallError> {
        let Some(mut secret) = self.get(&self.own).await? else { return Ok(None) };
        let plugged_in = self.plugged_in().await?;
        let mut taken = None;
        if let Some(plugged_in) = &plugged_in {
            taken = self.take_up(&mut secret, plugged_in, judge, Some(events));
        }
        if taken.is_none() {
            let now = Timestamp::now();
            let next = due(&secret, now, timing, published, plugged_in.is_some());
            let unsaid = (plugged_in.is_none() && !is_marked(&secret)).then_some(RootStep::Mark);
            taken = next.or(unsaid).and_then(|next| step(&mut secret, next, judge, now));
        }
        if taken.is_some() {
            // With the version that was read: if anybody has changed it since, this is a conflict.
            let replaced = self.secrets.replace(&self.own, &PostParams::default(), &secret).await;
            replaced.map_err(CallError::new(self.action("rotate", &self.own)))?;
        }
        Ok(taken)
    }

    /// Has the Secret go on to what is plugged in, if that can be used.
    fn take_up(
        &self,
        secret: &mut Secret,
        plugged_in: &Secret,
        judge: &impl RootJudge,
        events: Option<&Events>,
    ) -> Option<RootStep> {
        let wanted = RootSecret::signing(plugged_in);
        let taken = wanted.and_then(|wanted| take_up(secret, &wanted, judge, Timestamp::now()));
        self.say(plugged_in, taken.as_ref().err(), events);
        taken.unwrap_or_default()
    }

    /// Tells once why what is plugged in can't be used, in the log and in an event of its Secret.
    fn say(&self, plugged_in: &Secret, refused: Option<&String>, events: Option<&Events>) {
        let mut said = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        // That another second has passed is nothing new.
        let timeless = refused.map(|reason| reason.replace(|letter: char| letter.is_ascii_digit(), ""));
        if *said == timeless {
            return;
        }
        *said = timeless;
        let Some(reason) = refused else { return };
        let name = plugged_in.name_any();
        tracing::error!(
            secret = name,
            reason,
            "what is plugged in is not taken up; what signed before, if anything did, goes on"
        );
        let Some(events) = events else { return };
        let regarding = Regarding {
            api_version: "v1".to_owned(),
            kind: "Secret",
            namespace: self.namespace.clone(),
            name,
            uid: plugged_in.uid().unwrap_or_default(),
        };
        let note = format!("{reason}; mend the Secret: what signed before goes on meanwhile");
        events.warn(regarding, "TakeUp", "NotUsable", &note);
    }

    async fn plugged_in(&self) -> Result<Option<Secret>, CallError> {
        match &self.plugged_in {
            Some(name) => self.get(name).await,
            None => Ok(None),
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Secret>, CallError> {
        self.secrets.get_opt(name).await.map_err(CallError::new(self.action("read", name)))
    }

    fn action(&self, verb: &str, name: &str) -> String {
        format!("{verb} Secret {}/{name}", self.namespace)
    }
}

/// The Secret of this name, or that there is none, whenever it changes.
fn follow_one(secrets: Api<Secret>, name: String) -> Pin<Box<dyn Stream<Item = Option<Secret>> + Send>> {
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
                return Some((now, (events, backoff, None)));
            }
        }
    }))
}

/// How often it is looked whether a step of a rotation is due.
const LOOK: Duration = Duration::from_secs(5);
