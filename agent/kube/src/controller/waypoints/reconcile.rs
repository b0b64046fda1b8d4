use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::controller::Action;
use kube::{Api, Client, Error, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use super::class::Role;
use super::gateway::{Fault, GatewaySpec};
use super::ingress::Ingress;
use super::objects::{Entrances, Objects, Owner, WaypointSettings, credentials_of};
use super::secrets::{Looks, Secrets};
use super::status::{Outcome, observe};
use super::{Known, gateways, name_of, retry};
use crate::controller::events::Regarding;
use crate::controller::{AttachedRoutes, CallError, Events, FIELD_MANAGER, NamedCredentials};

/// Until a waypoint that could not be made is tried again: what is in its way may be of somebody else.
const AGAIN: Duration = Duration::from_secs(30);
/// How long a Gateway waits until it is known which Secrets are named.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a Gateway is looked at with.
pub(super) struct Context {
    pub client: Client,
    pub known: Known,
    pub settings: WaypointSettings,
    /// Which routes are attached, of gateways.
    pub attached: watch::Receiver<AttachedRoutes>,
    /// Which Secrets are named, once that is known.
    pub credentials: watch::Receiver<Option<NamedCredentials>>,
    pub events: Events,
    pub failures: Failures,
    pub looks: Looks,
}

/// How often in a row each Gateway could not be looked after.
#[derive(Default)]
pub(super) struct Failures(Mutex<HashMap<String, u32>>);

impl Failures {
    /// After another one.
    pub fn again(&self, gateway: &DynamicObject) -> Action {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = failures.entry(gateway.metadata.uid.clone().unwrap_or_default()).or_default();
        *failures += 1;
        Action::requeue(retry(*failures))
    }

    fn none(&self, gateway: &DynamicObject) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(gateway.metadata.uid.as_deref().unwrap_or_default());
    }
}

/// Makes a Gateway of ours into a waypoint or a gateway, and says in its status what has become of it.
pub(super) async fn reconcile(
    gateway: Arc<DynamicObject>,
    context: Arc<Context>,
) -> Result<Action, CallError> {
    let is_going = gateway.metadata.deletion_timestamp.is_some();
    // Whose it is is known once all classes are.
    if is_going || !context.known.listed().await || is_outdated(&gateway) {
        context.failures.none(&gateway);
        return Ok(Action::await_change());
    }
    // Mostly it is a moment; what is not known then, whoever finds it tells of.
    let _ = timeout(PATIENCE, context.credentials.clone().wait_for(Option::is_some)).await;
    let Some(role) = context.known.role(&gateway) else {
        if is_told_by_us(&gateway) {
            context.withdraw(&gateway).await?;
        }
        context.failures.none(&gateway);
        return Ok(Action::await_change());
    };
    let spec = GatewaySpec::of(&gateway);
    let (judged, ingress) = match role {
        Role::Waypoint => {
            let judged = spec.as_ref().map_err(Fault::clone);
            (judged.and_then(|spec| spec.judge(&gateway.name_any())), None)
        }
        Role::Gateway => match context.ingress(&gateway) {
            Ok(ingress) => {
                let judged = spec
                    .as_ref()
                    .map_err(Fault::clone)
                    .and_then(|spec| ingress.judge(spec, &gateway.name_any()));
                (judged, Some(ingress))
            }
            Err(fault) => (Err(fault), None),
        },
    };
    let mut outcome = Outcome {
        role,
        ingress,
        spec: spec.unwrap_or_default(),
        programmed: judged.as_ref().copied().map_err(|fault| Fault::new("Invalid", &*fault.message)),
        accepted: judged,
        addresses: Vec::new(),
    };
    let mut action = Action::await_change();
    if outcome.accepted.is_ok() {
        let entrances = outcome.ingress.as_ref().map(Ingress::entrances);
        match context.provision(&gateway, &outcome.spec, entrances.as_ref()).await {
            Ok((addresses, programmed)) => (outcome.addresses, outcome.programmed) = (addresses, programmed),
            Err(Failure::Call(error)) => return Err(error),
            Err(Failure::Refused(fault)) => {
                outcome.programmed = Err(fault);
                action = Action::requeue(AGAIN);
            }
        }
    }
    if let Some(ingress) = &mut outcome.ingress {
        ingress.secrets = context.secrets(&gateway, ingress).await;
    }
    context.write_status(&gateway, &outcome).await?;
    context.failures.none(&gateway);
    Ok(action)
}

/// Whether something in the status is ours.
fn is_told_by_us(gateway: &DynamicObject) -> bool {
    gateway.managed_fields().iter().any(|fields| {
        fields.manager.as_deref() == Some(FIELD_MANAGER) && fields.subresource.as_deref() == Some("status")
    })
}

/// Whether the status is of a later generation than what was seen of it.
fn is_outdated(gateway: &DynamicObject) -> bool {
    let generation = gateway.metadata.generation.unwrap_or_default();
    let conditions = gateway.data["status"]["conditions"].as_array().into_iter().flatten();
    conditions.filter_map(|condition| condition["observedGeneration"].as_i64()).any(|seen| seen > generation)
}

/// Why a waypoint is not there.
enum Failure {
    /// The API server does not answer as it should.
    Call(CallError),
    /// It can't be made like this.
    Refused(Fault),
}

impl Context {
    /// Makes what is missing and puts right what differs. Gives the addresses, and whether a pod is ready.
    async fn provision(
        &self,
        gateway: &DynamicObject,
        spec: &GatewaySpec,
        entrances: Option<&Entrances>,
    ) -> Result<(Vec<Value>, Result<(), Fault>), Failure> {
        let (namespace, name) = (gateway.namespace().unwrap_or_default(), gateway.name_any());
        let known = self.credentials.borrow().clone();
        let credentials = match known {
            Some(all) => all.get(&namespace).cloned().unwrap_or_default(),
            // Without them pods would lose what they have.
            None => self.mounted(&namespace, &name).await?,
        };
        let owner = Owner {
            namespace: &namespace,
            name: &name,
            uid: gateway.metadata.uid.as_deref().unwrap_or_default(),
            class: &spec.gateway_class_name,
            infrastructure: &spec.infrastructure,
            entrances,
            credentials: &credentials,
        };
        let objects = Objects::of(owner, &self.settings);
        self.apply::<ServiceAccount>(owner, &objects.service_account).await?;
        let service = self.apply::<Service>(owner, &objects.service).await?;
        let deployment = self.apply::<Deployment>(owner, &objects.deployment).await?;
        self.apply::<PodDisruptionBudget>(owner, &objects.disruption_budget).await?;
        self.apply::<HorizontalPodAutoscaler>(owner, &objects.autoscaler).await?;
        Ok(observe(&name, &service.data, &deployment.data, entrances.is_some()))
    }

    /// The Secrets that pods have so far.
    async fn mounted(&self, namespace: &str, name: &str) -> Result<BTreeSet<String>, Failure> {
        let api = Api::<Deployment>::namespaced(self.client.clone(), namespace);
        let read = api.get_opt(name).await;
        let read = read.map_err(CallError::new(format!("read Deployment {namespace}/{name}")));
        Ok(read.map_err(Failure::Call)?.as_ref().map(credentials_of).unwrap_or_default())
    }

    fn ingress(&self, gateway: &DynamicObject) -> Result<Ingress, Fault> {
        let attached = self.attached.borrow().get(&name_of(gateway)).cloned();
        Ingress::of(gateway, attached)
    }

    /// How it is with the Secrets that a gateway names.
    async fn secrets(&self, gateway: &DynamicObject, ingress: &Ingress) -> Secrets {
        let Some(check) = self.settings.check else { return Secrets::Unread };
        let Entrances { certificates, .. } = ingress.entrances();
        let read = Secrets::read(&self.client, ingress.namespace(), &certificates, check).await;
        self.looks.found(name_of(gateway), certificates, read.clone());
        read
    }

    /// Applies an object, unless there is one of its name that is somebody else's. Gives what it is then.
    async fn apply<K: kube::Resource<DynamicType = ()>>(
        &self,
        owner: Owner<'_>,
        object: &Value,
    ) -> Result<DynamicObject, Failure> {
        let resource = ApiResource::erase::<K>(&());
        let Owner { namespace, name, uid, .. } = owner;
        let what = format!("{} {namespace}/{name}", resource.kind);
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, &resource);
        let there = api.get_metadata_opt(name).await.map_err(CallError::new(format!("read {what}")));
        let there = there.map_err(Failure::Call)?;
        let is_own = |there: &kube::core::PartialObjectMeta<DynamicObject>| {
            there.owner_references().iter().any(|owner| owner.uid == uid)
        };
        if there.is_some_and(|there| !is_own(&there)) {
            let message = format!(
                "there is a {} {name} that is not this Gateway's: give the Gateway another name, or remove it",
                resource.kind
            );
            return Err(Failure::Refused(Fault::new("Invalid", message)));
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        api.patch(name, &params, &Patch::Apply(object)).await.map_err(|error| match error {
            Error::Api(status)
                if (400..500).contains(&status.code) && !matches!(status.code, 401 | 408 | 409 | 429) =>
            {
                let message =
                    format!("the API server does not take the {} {name}: {}", resource.kind, status.message);
                Failure::Refused(Fault::new("Invalid", message))
            }
            error => Failure::Call(CallError::new(format!("apply {what}"))(error)),
        })
    }

    /// Takes back what the status says in our name: the Gateway is no longer ours, and what was made for it has no
    /// rights any more.
    async fn withdraw(&self, gateway: &DynamicObject) -> Result<(), CallError> {
        let (namespace, name) = (gateway.namespace().unwrap_or_default(), gateway.name_any());
        let ApiResource { api_version, kind, .. } = gateways();
        let nothing = json!({
            "apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": namespace},
        });
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), &namespace, &gateways());
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match api.patch_status(&name, &params, &Patch::Apply(&nothing)).await {
            Err(Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => {
                Err(CallError::new(format!("take back the status of Gateway {namespace}/{name}"))(error))
            }
            Ok(_) => {
                tracing::info!(
                    gateway = format!("{namespace}/{name}"),
                    "no longer a waypoint or gateway of this controller"
                );
                Ok(())
            }
        }
    }

    async fn write_status(&self, gateway: &DynamicObject, outcome: &Outcome) -> Result<(), CallError> {
        let (namespace, name) = (gateway.namespace().unwrap_or_default(), gateway.name_any());
        let generation = gateway.metadata.generation.unwrap_or_default();
        let before = &gateway.data["status"];
        let status = outcome.status(before, generation, &Timestamp::now().to_string());
        if status["conditions"] != before["conditions"] {
            let message = outcome.accepted.as_ref().and(outcome.programmed.as_ref()).err();
            let message = message.map_or("it is there", |fault| &fault.message);
            tracing::info!(gateway = format!("{namespace}/{name}"), message, "{}", outcome.role.name());
        }
        let ApiResource { api_version, kind, .. } = gateways();
        let metadata = json!({"name": name, "namespace": namespace});
        let patch = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "status": status});
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), &namespace, &gateways());
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match api.patch_status(&name, &params, &Patch::Apply(&patch)).await {
            // Gone meanwhile.
            Err(Error::Api(status)) if status.is_not_found() => return Ok(()),
            written => written
                .map(drop)
                .map_err(CallError::new(format!("write the status of Gateway {namespace}/{name}")))?,
        }
        if let Some(fault) = outcome.worth_telling(before) {
            let uid = gateway.metadata.uid.clone().unwrap_or_default();
            let regarding = Regarding { api_version, kind: "Gateway", namespace, name, uid };
            self.events.warn(regarding, "Provision", fault.reason, &fault.message);
        }
        Ok(())
    }
}
