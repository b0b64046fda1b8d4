//! Waypoints and gateways: what a Gateway of one of our classes becomes, and what its status says of that.
//!
//! A Gateway owns what was made for it, so that the cluster's garbage collector removes that with it.

mod class;
mod gateway;
mod ingress;
mod objects;
mod readers;
mod reconcile;
mod secrets;
mod status;
mod verdict;

use std::collections::BTreeSet;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::runtime::controller::{self, Action, Error as ControllerError};
use kube::runtime::reflector::{ObjectRef, Store, store::Writer};
use kube::runtime::watcher::Event;
use kube::runtime::{Controller, WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client, ResourceExt as _};
use orlop_model::{NamespacedName, World};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::{AttachedRoutes, CustomKinds, Events, NamedCredentials};
use crate::cluster::{Definitions, describe};
use class::Role;
use objects::MANAGED_BY;
pub use objects::{Resources, WaypointSettings};
use reconcile::{Context, Failures, reconcile};
pub use secrets::CertificateCheck;
use secrets::Looks;
pub(crate) use verdict::judge_gateway;

/// The definitions without which there is nothing to do.
const GATEWAYS: &str = "gateways.gateway.networking.k8s.io";
const CLASSES: &str = "gatewayclasses.gateway.networking.k8s.io";

/// How many objects are brought into order at once.
const AT_ONCE: u16 = 8;
/// How long an object must be left alone before, so that many changes are one.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// After a call of the API that failed: at first, and at the most.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(120);

/// What of the Gateway API's objects is ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnGateways {
    /// Those that become waypoints.
    pub waypoints: BTreeSet<NamespacedName>,
    /// Those that become gateways.
    pub gateways: BTreeSet<NamespacedName>,
}

impl OwnGateways {
    /// As far as it can be told from the names of the classes that there are without anybody having made them.
    pub(crate) fn of_classes(world: &World) -> Self {
        let of = |role: Role| {
            let ours = world.gateways.values().filter(|gateway| gateway.class == role.class());
            ours.map(|gateway| gateway.name.clone()).collect()
        };
        Self { waypoints: of(Role::Waypoint), gateways: of(Role::Gateway) }
    }
}

/// Makes waypoints and gateways, for the replica that leads.
pub struct WaypointProvisioner {
    client: Client,
    settings: WaypointSettings,
    kinds: CustomKinds,
    events: Events,
    own: watch::Sender<OwnGateways>,
    attached: watch::Receiver<AttachedRoutes>,
    credentials: watch::Receiver<Option<NamedCredentials>>,
}

impl WaypointProvisioner {
    /// Makes them all with these settings, and tells of those that can't be made.
    pub fn new(client: Client, settings: WaypointSettings, kinds: CustomKinds, events: Events) -> Self {
        let attached = watch::Sender::default().subscribe();
        let credentials = watch::Sender::new(Some(NamedCredentials::new())).subscribe();
        Self { client, settings, kinds, events, own: watch::Sender::default(), attached, credentials }
    }

    /// Tells in Gateways which routes are attached to them, by what somebody else finds.
    pub fn with_attached(self, attached: watch::Receiver<AttachedRoutes>) -> Self {
        Self { attached, ..self }
    }

    /// Gives pods the Secrets that DestinationRules of their namespaces name, by what somebody else finds.
    pub fn with_credentials(self, credentials: watch::Receiver<Option<NamedCredentials>>) -> Self {
        Self { credentials, ..self }
    }

    /// What is ours: now, and whenever it changes.
    pub fn own(&self) -> watch::Receiver<OwnGateways> {
        self.own.subscribe()
    }

    /// For ever. Where the Gateway API is not installed it waits for it.
    pub async fn run(self) {
        self.follow(self.kinds.0.clone()).await;
    }

    async fn follow(&self, mut definitions: watch::Receiver<Definitions>) {
        let there = |names: &BTreeSet<String>| names.contains(GATEWAYS) && names.contains(CLASSES);
        loop {
            let Ok(known) = definitions.wait_for(Option::is_some).await.map(|known| known.clone()) else {
                return;
            };
            if !known.is_some_and(|names| there(&names)) {
                tracing::info!(
                    "the Gateway API is not installed: waypoints and gateways are made as soon as it is"
                );
            }
            if definitions.wait_for(|known| known.as_ref().is_some_and(there)).await.is_err() {
                return;
            }
            tokio::select! {
                () = self.provision() => {}
                _ = definitions.wait_for(|known| known.as_ref().is_some_and(|names| !there(names))) => {}
            }
        }
    }

    /// For ever, or until the Gateway API is gone.
    async fn provision(&self) {
        let gone = Notify::new();
        let ensured = async {
            loop {
                class::ensure(&self.client).await;
                gone.notified().await;
            }
        };
        let waypoints = controller_of(&self.client, gateways());
        let class_writer = Writer::<DynamicObject>::new(class::resource());
        let listed = watch::Sender::new(false);
        let known = Known {
            classes: class_writer.as_reader(),
            gateways: waypoints.store(),
            listed: listed.subscribe(),
        };
        // Of several tasks that wait for a store, kube wakes the last one alone (kube-runtime 5.0, DelayedInit).
        let (classes, gateways) = (known.classes.clone(), known.gateways.clone());
        let listing = async {
            if let (Ok(()), Ok(())) = (classes.wait_until_ready().await, gateways.wait_until_ready().await) {
                listed.send_replace(true);
            }
        };
        let [classes_changed, accounts_changed, secrets_changed] = [(); 3].map(|()| watch::Sender::new(()));

        // A Controller does not hear of what is deleted.
        let all = Api::<DynamicObject>::all_with(self.client.clone(), &class::resource());
        let events = watcher(all, watcher::Config::default()).default_backoff();
        let own_classes = known.clone();
        let mut ours = BTreeSet::new();
        let following_classes = reflector(class_writer, events).for_each(|event| {
            match event {
                // Whose a Gateway is depends on nothing else of them.
                Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_)) => {
                    let now = own_classes.classes();
                    if !class::are_there(&now) {
                        gone.notify_one();
                    }
                    if now != ours {
                        ours = now;
                        classes_changed.send_replace(());
                    }
                }
                Ok(Event::Init | Event::InitApply(_)) => {}
                Err(error) => tracing::warn!(error = describe(&error), "cannot follow GatewayClasses"),
            }
            ready(())
        });
        let of_classes = controller_of(&self.client, class::resource())
            .run(reconcile_class, |_, _, _| Action::requeue(retry(1)), Arc::new(self.client.clone()))
            .for_each(async |done| report(&done));

        let (client, settings) = (self.client.clone(), self.settings.clone());
        let events = self.events.clone();
        let context = Context {
            client: client.clone(),
            known: known.clone(),
            settings,
            attached: self.attached.clone(),
            credentials: self.credentials.clone(),
            events,
            failures: Failures::default(),
            looks: Looks::default(),
        };
        let context = Arc::new(context);
        let made = watcher::Config::default().labels(&format!("{}={}", MANAGED_BY.0, MANAGED_BY.1));
        let waypoints = waypoints
            .owns(Api::<ServiceAccount>::all(client.clone()), made.clone())
            .owns(Api::<Service>::all(client.clone()), made.clone())
            .owns(Api::<Deployment>::all(client.clone()), made.clone())
            .owns(Api::<PodDisruptionBudget>::all(client.clone()), made.clone())
            .owns(Api::<HorizontalPodAutoscaler>::all(client.clone()), made.clone())
            .reconcile_all_on(changes(classes_changed.subscribe()))
            .reconcile_all_on(changes(self.attached.clone()))
            .reconcile_all_on(changes(self.credentials.clone()))
            .reconcile_all_on(changes(secrets_changed.subscribe()))
            .run(reconcile, |of, _, context| context.failures.again(&of), Arc::clone(&context))
            .for_each(async |done| {
                report(&done);
                accounts_changed.send_replace(());
            });

        let writer = Writer::<PartialObjectMeta<ServiceAccount>>::default();
        let accounts = writer.as_reader();
        let events =
            watcher(Api::<PartialObjectMeta<ServiceAccount>>::all(client.clone()), made).default_backoff();
        let following = reflector(writer, events).for_each(async |event| {
            if let Err(error) = event {
                tracing::warn!(%error, "cannot follow the service accounts of waypoints");
            }
            accounts_changed.send_replace(());
        });
        let own = self.publish(known.clone(), accounts_changed.subscribe());
        let readers = readers::keep(client, known, accounts, accounts_changed.subscribe());
        let looking = async {
            if let Some(check) = context.settings.check {
                let ours = || context.known.ours().iter().map(|gateway| name_of(gateway)).collect();
                let tell = || {
                    secrets_changed.send_replace(());
                };
                context.looks.repeat(&context.client, check, ours, tell).await;
            }
        };
        tokio::join!(
            listing,
            ensured,
            following_classes,
            of_classes,
            waypoints,
            following,
            own,
            readers,
            looking
        );
    }

    /// Tells what is ours, whenever that may have changed.
    async fn publish(&self, known: Known, mut changed: watch::Receiver<()>) {
        if !known.listed().await {
            return;
        }
        loop {
            let mut now = OwnGateways::default();
            for gateway in known.ours() {
                let name = name_of(&gateway);
                match known.role(&gateway) {
                    Some(Role::Waypoint) => drop(now.waypoints.insert(name)),
                    Some(Role::Gateway) => drop(now.gateways.insert(name)),
                    None => {}
                }
            }
            self.own.send_if_modified(|own| std::mem::replace(own, now.clone()) != now);
            sleep(DEBOUNCE).await;
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

/// What is known of the Gateway API's objects.
#[derive(Clone)]
struct Known {
    classes: Store<DynamicObject>,
    gateways: Store<DynamicObject>,
    listed: watch::Receiver<bool>,
}

impl Known {
    /// Waits until everything was listed. False if it never will be.
    async fn listed(&self) -> bool {
        self.listed.clone().wait_for(|listed| *listed).await.is_ok()
    }

    /// What a Gateway becomes, if it is ours.
    fn role(&self, gateway: &DynamicObject) -> Option<Role> {
        let class = gateway.data["spec"]["gatewayClassName"].as_str().unwrap_or_default();
        let class = self.classes.get(&ObjectRef::new_with(class, class::resource()));
        class.and_then(|class| class::role(&class))
    }

    /// The names of our classes.
    fn classes(&self) -> BTreeSet<String> {
        self.classes.state_filter(class::is_ours).iter().map(|class| class.name_any()).collect()
    }

    /// The Gateways of our classes.
    fn ours(&self) -> Vec<Arc<DynamicObject>> {
        self.gateways.state_filter(|gateway| self.role(gateway).is_some())
    }
}

/// How long to wait after so many failures: doubled each time, half of it by chance.
fn retry(failures: u32) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(LAST_RETRY).mul_f64(0.5 + 0.5 * fastrand::f64())
}

async fn reconcile_class(class: Arc<DynamicObject>, client: Arc<Client>) -> Result<Action, kube::Error> {
    if class::is_ours(&class) {
        class::write_status(&client, &class).await?;
    }
    Ok(Action::await_change())
}

fn controller_of(client: &Client, resource: ApiResource) -> Controller<DynamicObject> {
    let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
    let config = controller::Config::default().concurrency(AT_ONCE).debounce(DEBOUNCE);
    Controller::new_with(api, watcher::Config::default(), resource).with_config(config)
}

fn name_of(gateway: &DynamicObject) -> NamespacedName {
    NamespacedName::new(gateway.namespace().unwrap_or_default(), gateway.name_any())
}

fn gateways() -> ApiResource {
    resource("Gateway", "gateways")
}

fn resource(kind: &str, plural: &str) -> ApiResource {
    let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", kind);
    ApiResource::from_gvk_with_plural(&kind, plural)
}

/// A stream of what a channel tells.
fn changes<T: Send + Sync + 'static>(of: watch::Receiver<T>) -> impl Stream<Item = ()> + Send + 'static {
    stream::unfold(of, async |mut of| of.changed().await.ok().map(|()| ((), of)))
}

fn report<T, E, Q>(done: &Result<T, ControllerError<E, Q>>)
where
    E: std::error::Error + 'static,
    Q: std::error::Error + 'static,
{
    match done {
        // What is gone needs nothing.
        Ok(_) | Err(ControllerError::ObjectNotFound(_)) => {}
        Err(ControllerError::ReconcilerFailed(error, of)) => {
            tracing::warn!(object = %of, error = describe(error), "tried again");
        }
        Err(error) => {
            tracing::warn!(error = describe(error), "cannot follow Gateways and what was made of them")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_limit() {
        for (failures, least, most) in
            [(1, 500, 1000), (2, 1000, 2000), (5, 8000, 16_000), (90, 60_000, 120_000)]
        {
            let pause = retry(failures).as_millis();
            assert!((least..=most).contains(&pause), "{failures}: {pause}");
        }
    }
}
