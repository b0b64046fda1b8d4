//! What the authors of policies and routes are told, in the conditions of these objects.

mod ancestors;
mod attempts;
mod conditions;
mod routes;
mod verdict;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use orlop_model::gateway::{Attachments, NotAttached};
use orlop_model::http::{Resolved, TargetProblem, backend_problems, certificate_maps, credentials};
use orlop_model::world::gateway_api::{BackendTarget, RouteKind};
use orlop_model::{Finding, Hosts, NamespacedName, Settings, Snapshot, World, compile_after};
use serde_json::{Value, json};
use tokio::sync::watch as channel;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::waypoints::OwnGateways;
use super::{CertificateCopies, CustomKinds, Events};
use crate::cluster::{Head, Seen};
use crate::object::{Key, Kind, Kinds};
use ancestors::Policy;
use attempts::Attempts;
use conditions::{At, conditions, to_write};
use routes::Told;
pub(crate) use verdict::Verdict;

/// Between two looks, at the least, and as a multiple of what a look costs: a twentieth of one core at the most.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSES: u32 = 20;

/// How many routes are attached to the listeners of Gateways that become gateways, by the listeners' names.
pub type AttachedRoutes = BTreeMap<NamespacedName, BTreeMap<String, usize>>;

/// The Secrets that DestinationRules name by `credentialName`, by their namespace.
pub type NamedCredentials = BTreeMap<String, BTreeSet<String>>;

/// The ConfigMaps that BackendTLSPolicies name by `caCertificateRefs`, by their namespace; none where there are copies still.
pub(crate) type NamedConfigMaps = BTreeMap<String, BTreeSet<String>>;

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
    attached: channel::Sender<AttachedRoutes>,
    credentials: channel::Sender<Option<NamedCredentials>>,
    config_maps: channel::Sender<Option<NamedConfigMaps>>,
}

impl StatusWriter {
    /// With the settings that agents have, of no node. Tells of what is no longer accepted.
    pub fn new(client: Client, settings: Settings, kinds: CustomKinds, events: Events) -> Self {
        let (attached, credentials, config_maps) = Default::default();
        Self { client, settings, kinds, events, own: None, attached, credentials, config_maps }
    }

    /// Goes by what is known of Gateways, as well.
    pub fn with_own(self, own: channel::Receiver<OwnGateways>) -> Self {
        Self { own: Some(own), ..self }
    }

    /// Which routes are attached to Gateways of ours: now, and whenever it changes.
    pub fn attached(&self) -> channel::Receiver<AttachedRoutes> {
        self.attached.subscribe()
    }

    /// Which Secrets DestinationRules name, once that is known: now, and whenever it changes.
    pub fn credentials(&self) -> channel::Receiver<Option<NamedCredentials>> {
        self.credentials.subscribe()
    }

    /// Copies the certificates that BackendTLSPolicies name to where agents read them.
    pub fn copies(&self) -> CertificateCopies {
        CertificateCopies::new(self.client.clone(), self.config_maps.subscribe())
    }

    /// Writes what differs, for ever.
    pub async fn run(mut self) {
        let Ok(mut seen) = Seen::watch(&self.client, Kinds::OfWaypoints, &self.kinds.0).await else { return };
        let mut attempts = Attempts::new(self.client, self.events);
        let mut judgement = Judgement::default();
        loop {
            let now = Arc::clone(&seen.borrow_and_update());
            let start = Instant::now();
            let own = self.own.as_mut().map(|own| own.borrow_and_update().clone()).unwrap_or_default();
            if !judgement.is_of(&now, &own) {
                let settings = self.settings.clone();
                let seen = Arc::clone(&now);
                judgement = match spawn_blocking(move || judgement.after(&seen, own, &settings)).await {
                    Ok(judgement) => judgement,
                    Err(error) => {
                        return tracing::error!(%error, "no conditions are written by this replica any more");
                    }
                };
                let new = |told: &mut AttachedRoutes| {
                    std::mem::replace(told, judgement.attached.clone()) != judgement.attached
                };
                self.attached.send_if_modified(new);
                let named = Some(credentials(&now.world));
                self.credentials.send_if_modified(|told| std::mem::replace(told, named.clone()) != named);
                let named = Some(certificate_maps(&now.world));
                self.config_maps.send_if_modified(|told| std::mem::replace(told, named.clone()) != named);
            }
            let due = attempts.due(&now.heads, |key, head, at| judgement.status(&now.world, key, head, at));
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
pub(crate) struct Judgement {
    revision: Option<u64>,
    snapshot: Option<Snapshot>,
    findings: HashMap<Key, Vec<Finding>>,
    /// Which Gateways were ours.
    own: OwnGateways,
    attached: AttachedRoutes,
    /// Entries of `parentRefs` that are Gateways of ours and to which the route is not attached, counted among those that
    /// are Gateways.
    not_attached: HashMap<(Key, usize), NotAttached>,
    /// Of BackendTLSPolicies, the targets for which they are not in force.
    backends: HashMap<NamespacedName, HashMap<BackendTarget, TargetProblem>>,
    /// Of Services, the Gateways of ours that lead to them.
    gateways_to: HashMap<NamespacedName, Vec<NamespacedName>>,
}

impl Judgement {
    /// Of another state, which is found sooner the less it differs.
    pub(crate) fn after(&self, seen: &Seen, own: OwnGateways, settings: &Settings) -> Self {
        let (world, hosts) = (&seen.world, Hosts::new());
        let snapshot = compile_after(self.snapshot.as_ref(), world, &hosts, settings, seen.revision);
        let mut findings: HashMap<_, Vec<_>> = HashMap::new();
        let (mut attached, mut not_attached) = (AttachedRoutes::new(), HashMap::new());
        let mut gateways_to: HashMap<_, Vec<_>> = HashMap::new();
        for gateway in own.gateways.iter().filter_map(|name| world.gateways.get(name)) {
            let of = Attachments::new(world, gateway);
            let counts = of.listeners.iter().map(|at| (at.listener.name.clone(), at.count()));
            attached.insert(gateway.name.clone(), counts.collect());
            for service in of.services() {
                gateways_to.entry(service.clone()).or_default().push(gateway.name.clone());
            }
            let refused = of.all_refused();
            not_attached.extend(refused.map(|(kind, name, index, why)| {
                let kind = match kind {
                    RouteKind::Http => Kind::HttpRoute,
                    RouteKind::Grpc => Kind::GrpcRoute,
                    RouteKind::Tls => Kind::TlsRoute,
                    RouteKind::Tcp => Kind::TcpRoute,
                };
                ((Key::new(kind, &name.namespace, &name.name), index), why.clone())
            }));
        }
        let of_gateways = snapshot.findings_of_gateways(world, &own.gateways);
        for finding in snapshot.findings_of_all(world, settings).into_iter().chain(of_gateways) {
            if let Some(kind) = Kind::named(finding.kind) {
                let key = Key::new(kind, &finding.name.namespace, &finding.name.name);
                findings.entry(key).or_default().push(finding);
            }
        }
        let (revision, snapshot) = (Some(seen.revision), Some(snapshot));
        let backends = backend_problems(world);
        Self { revision, snapshot, findings, own, attached, not_attached, backends, gateways_to }
    }

    /// What a status must be made, `None` if it is that.
    fn status(&self, world: &World, key: &Key, head: &Head, at: At<'_>) -> Option<Value> {
        let findings: Vec<_> = self.findings.get(key).into_iter().flatten().collect();
        let kind = key.kind();
        if let Key::BackendTls(name) = key {
            let ancestors = self.policy(world, name, head, &findings).to_write(at);
            return ancestors.map(|ancestors| json!({ "ancestors": ancestors }));
        }
        if kind.route().is_none() {
            let wanted = conditions(kind, head.refused.as_ref(), &findings);
            let written = to_write(&head.conditions, &wanted, at.generation, !head.each_owned, at.now);
            return written.map(|conditions| json!({ "conditions": conditions }));
        }
        self.told(world, key, head, &findings, |told| told.to_write(at))?
            .map(|parents| json!({ "parents": parents }))
    }

    /// Nothing but which Gateways are ours.
    pub(crate) fn of(own: OwnGateways) -> Self {
        Self { own, ..Self::default() }
    }

    /// Whether it is of this state.
    pub(crate) fn is_of(&self, seen: &Seen, own: &OwnGateways) -> bool {
        self.revision == Some(seen.revision) && self.own == *own
    }

    /// What a BackendTLSPolicy says.
    fn policy<'a>(
        &'a self,
        world: &'a World,
        name: &'a NamespacedName,
        head: &'a Head,
        findings: &'a [&'a Finding],
    ) -> Policy<'a> {
        let resolved = world.backend_tls.get(name).map(|policy| Resolved::of(world, policy));
        Policy {
            namespace: &name.namespace,
            head,
            resolved,
            findings,
            problems: self.backends.get(name),
            gateways_to: &self.gateways_to,
        }
    }

    /// What a route says; of another kind nothing.
    fn told<T>(
        &self,
        world: &World,
        key: &Key,
        head: &Head,
        findings: &[&Finding],
        say: impl FnOnce(&Told<'_>) -> T,
    ) -> Option<T> {
        let (kind, name) = (key.kind(), key.namespaced()?);
        let route = world.route(kind.route()?, name).map(|route| &**route);
        Some(say(&Told {
            kind,
            namespace: &name.namespace,
            head,
            route,
            findings,
            snapshot: self.snapshot.as_ref(),
            own: &self.own,
            not_attached: &|index| self.not_attached.get(&(key.clone(), index)),
        }))
    }
}
