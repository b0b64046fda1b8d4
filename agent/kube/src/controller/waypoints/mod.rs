//! Waypoints: what a Gateway of one of our classes becomes, and what its status says of that.
//!
//! A Gateway owns what was made for it, so that the cluster's garbage collector removes that with it.

mod class;
mod gateway;
mod objects;
mod readers;
mod reconcile;
mod status;

use std::collections::BTreeSet;
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
use kube::runtime::{Controller, WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client, ResourceExt as _};
use orlop_model::NamespacedName;
use tokio::sync::watch;
use tokio::time::sleep;

use super::Events;
use crate::cluster::{Definitions, describe, watch_definitions};
use objects::MANAGED_BY;
pub use objects::WaypointSettings;
use reconcile::{Context, reconcile};

/// The definitions without which there is nothing to do.
const GATEWAYS: &str = "gateways.gateway.networking.k8s.io";
const CLASSES: &str = "gatewayclasses.gateway.networking.k8s.io";

/// How many objects are brought into order at once.
const AT_ONCE: u16 = 8;
/// How long an object must be left alone before, so that many changes are one.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// After a call of the API that failed.
const RETRY: Duration = Duration::from_secs(3);

/// What of the Gateway API's objects is ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnGateways {
    /// Gateways of our classes.
    pub gateways: BTreeSet<NamespacedName>,
}

/// Makes waypoints, for the replica that leads.
pub struct WaypointProvisioner {
    client: Client,
    settings: WaypointSettings,
    events: Events,
    own: watch::Sender<OwnGateways>,
}

impl WaypointProvisioner {
    /// Makes them all with these settings, and tells of those that can't be made.
    pub fn new(client: Client, settings: WaypointSettings, events: Events) -> Self {
        Self { client, settings, events, own: watch::Sender::default() }
    }

    /// What is ours: now, and whenever it changes.
    pub fn own(&self) -> watch::Receiver<OwnGateways> {
        self.own.subscribe()
    }

    /// For ever. Where the Gateway API is not installed it waits for it.
    pub async fn run(self) {
        let (definitions, known) = watch::channel(None);
        tokio::join!(watch_definitions(self.client.clone(), definitions), self.follow(known));
    }

    async fn follow(&self, mut definitions: watch::Receiver<Definitions>) {
        let there = |names: &BTreeSet<String>| names.contains(GATEWAYS) && names.contains(CLASSES);
        loop {
            let Ok(known) = definitions.wait_for(Option::is_some).await.map(|known| known.clone()) else {
                return;
            };
            if !known.is_some_and(|names| there(&names)) {
                tracing::info!("the Gateway API is not installed: waypoints are made as soon as it is");
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
        class::ensure(&self.client).await;
        let classes = controller_of(&self.client, class::resource());
        let waypoints = controller_of(&self.client, gateways());
        let known = Known { classes: classes.store(), gateways: waypoints.store() };
        let (classes_changed, accounts_changed) = (watch::Sender::new(()), watch::Sender::new(()));

        // A Controller hears of what is deleted only where it watches others' objects.
        let named = watcher::Config::default().fields(&format!("metadata.name={}", class::CLASS));
        let all = Api::<DynamicObject>::all_with(self.client.clone(), &class::resource());
        let classes = classes
            .watches_with(all, class::resource(), named, |class| {
                [ObjectRef::from_obj_with(&class, class::resource())]
            })
            .run(reconcile_class, |_, _, _| Action::requeue(RETRY), Arc::new(self.client.clone()))
            .for_each(async |done| {
                report(&done);
                if matches!(&done, Err(ControllerError::ObjectNotFound(gone)) if gone.name == class::CLASS) {
                    class::ensure(&self.client).await;
                }
                classes_changed.send_replace(());
            });

        let (client, settings) = (self.client.clone(), self.settings.clone());
        let events = self.events.clone();
        let context = Context { client: client.clone(), known: known.clone(), settings, events };
        let made = watcher::Config::default().labels(&format!("{}={}", MANAGED_BY.0, MANAGED_BY.1));
        let waypoints = waypoints
            .owns(Api::<ServiceAccount>::all(client.clone()), made.clone())
            .owns(Api::<Service>::all(client.clone()), made.clone())
            .owns(Api::<Deployment>::all(client.clone()), made.clone())
            .owns(Api::<PodDisruptionBudget>::all(client.clone()), made.clone())
            .owns(Api::<HorizontalPodAutoscaler>::all(client.clone()), made.clone())
            .reconcile_all_on(changes(classes_changed.subscribe()))
            .run(reconcile, |_, _, _| Action::requeue(RETRY), Arc::new(context))
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
        tokio::join!(classes, waypoints, following, own, readers);
    }

    /// Tells what is ours, whenever that may have changed.
    async fn publish(&self, known: Known, mut changed: watch::Receiver<()>) {
        if !known.listed().await {
            return;
        }
        loop {
            let names = known.ours().into_iter().map(|gateway| {
                NamespacedName::new(gateway.namespace().unwrap_or_default(), gateway.name_any())
            });
            let now = OwnGateways { gateways: names.collect() };
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
}

impl Known {
    /// Waits until everything was listed. False if it never will be.
    async fn listed(&self) -> bool {
        self.classes.wait_until_ready().await.is_ok() && self.gateways.wait_until_ready().await.is_ok()
    }

    fn is_ours(&self, gateway: &DynamicObject) -> bool {
        let class = gateway.data["spec"]["gatewayClassName"].as_str().unwrap_or_default();
        let class = self.classes.get(&ObjectRef::new_with(class, class::resource()));
        class.is_some_and(|class| class::is_ours(&class))
    }

    /// The Gateways of our classes.
    fn ours(&self) -> Vec<Arc<DynamicObject>> {
        self.gateways.state_filter(|gateway| self.is_ours(gateway))
    }
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

fn gateways() -> ApiResource {
    resource("Gateway", "gateways")
}

fn resource(kind: &str, plural: &str) -> ApiResource {
    let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", kind);
    ApiResource::from_gvk_with_plural(&kind, plural)
}

/// A stream of what a channel tells.
fn changes(of: watch::Receiver<()>) -> impl Stream<Item = ()> + Send + 'static {
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
