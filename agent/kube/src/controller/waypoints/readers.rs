use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{Patch, PatchParams};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::runtime::reflector::Store;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;

use super::Known;
use crate::controller::{Backoff, FIELD_MANAGER};

/// The ClusterRole with what a waypoint reads, and the ClusterRoleBinding of those that may. Both are installed with
/// the controller, which can make neither.
const READERS: &str = "orlop-waypoint";

/// The service accounts of waypoints.
pub(super) type Accounts = Store<PartialObjectMeta<ServiceAccount>>;

/// Keeps the service accounts of all waypoints, and nobody else, in the ClusterRoleBinding; for ever.
pub(super) async fn keep(client: Client, known: Known, accounts: Accounts, mut changed: watch::Receiver<()>) {
    // From half of them the others would lose what they read.
    let ready = async { tokio::join!(known.listed(), accounts.wait_until_ready()) };
    if let (false, _) | (_, Err(_)) = ready.await {
        return;
    }
    let bindings = Api::<ClusterRoleBinding>::all(client);
    let only = watcher::Config::default().fields(&format!("metadata.name={READERS}"));
    let mut events = pin!(watcher(bindings.clone(), only));
    // Once listed: who may, if there is a binding.
    let mut bound: Option<Option<Subjects>> = None;
    let mut listed = None;
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    let mut retry = false;
    loop {
        tokio::select! {
            Some(event) = events.next() => match event {
                Ok(Event::Init) => listed = None,
                Ok(Event::InitApply(binding)) => listed = Some(subjects(&binding)),
                Ok(Event::InitDone) => bound = Some(listed.take()),
                Ok(Event::Apply(binding)) => bound = Some(Some(subjects(&binding))),
                Ok(Event::Delete(_)) => bound = Some(None),
                Err(error) => {
                    tracing::warn!(%error, "cannot follow who may read what waypoints read");
                    backoff.wait().await;
                }
            },
            told = changed.changed() => if told.is_err() { return },
            () = backoff.wait(), if retry => {}
        }
        let wanted = wanted(&known.ours(), &accounts.state());
        retry = match &mut bound {
            Some(Some(bound)) if *bound != wanted => match apply(&bindings, &wanted).await {
                Ok(()) => {
                    tracing::info!(accounts = wanted.len(), "waypoints may read the cluster");
                    *bound = wanted;
                    backoff.reset();
                    false
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot let waypoints read the cluster");
                    true
                }
            },
            Some(None) if !wanted.is_empty() => {
                tracing::error!(
                    "no ClusterRoleBinding {READERS}: waypoints can read nothing; install it again"
                );
                false
            }
            _ => false,
        };
    }
}

/// Kind, namespace and name of each that may.
type Subjects = BTreeSet<(String, String, String)>;

const ACCOUNT: &str = "ServiceAccount";

/// The service accounts that were made for one of the Gateways: of its name, and owned by it.
fn wanted(gateways: &[Arc<DynamicObject>], accounts: &[Arc<PartialObjectMeta<ServiceAccount>>]) -> Subjects {
    let owners: HashMap<_, _> = gateways
        .iter()
        .filter_map(|gateway| {
            let metadata = &gateway.metadata;
            Some(((metadata.namespace.as_deref()?, metadata.name.as_deref()?), metadata.uid.as_deref()?))
        })
        .collect();
    let named = accounts.iter().filter_map(|account| {
        let (namespace, name) = (account.metadata.namespace.as_deref()?, account.metadata.name.as_deref()?);
        let uid = *owners.get(&(namespace, name))?;
        let is_owned = account.owner_references().iter().any(|owner| owner.uid == uid);
        is_owned.then(|| (ACCOUNT.to_owned(), namespace.to_owned(), name.to_owned()))
    });
    named.collect()
}

fn subjects(binding: &ClusterRoleBinding) -> Subjects {
    let subjects = binding.subjects.iter().flatten();
    let named = subjects.map(|subject| {
        (subject.kind.clone(), subject.namespace.clone().unwrap_or_default(), subject.name.clone())
    });
    named.collect()
}

async fn apply(bindings: &Api<ClusterRoleBinding>, accounts: &Subjects) -> Result<(), kube::Error> {
    let subjects: Vec<_> = accounts
        .iter()
        .map(|(kind, namespace, name)| json!({"kind": kind, "namespace": namespace, "name": name}))
        .collect();
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": READERS},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": READERS},
        "subjects": subjects,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    bindings.patch(READERS, &params, &Patch::Apply(&binding)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_of_a_gateway_is_the_one_that_it_owns() {
        let gateway: DynamicObject =
            serde_json::from_value(json!({"metadata": {"name": "gate", "namespace": "shop", "uid": "u1"}}))
                .unwrap();
        let account = |name: &str, namespace: &str, owner: &str| {
            let owners = json!([{"apiVersion": "v1", "kind": "Gateway", "name": "gate", "uid": owner}]);
            let metadata = json!({"name": name, "namespace": namespace, "ownerReferences": owners});
            Arc::new(serde_json::from_value(json!({"metadata": metadata})).unwrap())
        };
        let accounts = [
            account("gate", "shop", "u1"),
            account("default", "shop", "u1"),
            account("gate", "else", "u1"),
            account("gate", "shop", "u2"),
        ];
        let own = ("ServiceAccount".to_owned(), "shop".to_owned(), "gate".to_owned());
        assert_eq!(wanted(&[Arc::new(gateway)], &accounts), Subjects::from([own]));
        assert_eq!(wanted(&[], &accounts), Subjects::new());
    }

    #[test]
    fn a_user_who_is_called_as_an_account_is_another() {
        let subject = |kind: &str| {
            let binding = json!({
                "metadata": {}, "roleRef": {"apiGroup": "", "kind": "ClusterRole", "name": READERS},
                "subjects": [{"kind": kind, "name": "gate", "namespace": "shop"}],
            });
            subjects(&serde_json::from_value(binding).unwrap())
        };
        assert_ne!(subject("User"), subject("ServiceAccount"));
    }
}
