//! What a person can see of a cluster that matters before Orlop is installed there, and after.

mod parts;
mod sidecars;

use std::path::Path;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::ClusterError;
use crate::cluster::client;
pub use parts::{Part, Role};
pub use sidecars::Sidecar;

/// For one answer of the API server.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What makes up Istio, by the label of its pods.
const ISTIO: &str = "app in (istiod, ztunnel)";
/// The label of a namespace that the admission of pods goes by.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";
const ISTIO_CNI: &str = "k8s-app=istio-cni-node";
const NODE: &str = "orlop-node";
const CONTROLLER: &str = "orlop-controller";

/// A cluster, by a person's kubeconfig.
pub struct Preflight {
    client: Client,
    namespace: String,
}

/// Why something of a cluster is not known.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// The API server does not let this person see it.
    #[error("{0}")]
    Forbidden(String),
    /// It was not reached, or said something else.
    #[error("{0}; is the cluster of this kubeconfig there?")]
    Failed(String),
}

/// Something of Istio's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IstioPod {
    /// `istiod`, `ztunnel` or `istio-cni`.
    pub app: String,
    /// Where it runs.
    pub namespace: String,
}

/// What a namespace's labels ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asks {
    /// The namespace.
    pub namespace: String,
    /// Istio's sidecars (`istio-injection: enabled` or `istio.io/rev`).
    pub sidecars: bool,
    /// Istio's ambient mode, which is Orlop's as well.
    pub ambient: bool,
    /// `orlop.dev/mesh: enabled`
    pub orlop: bool,
}

/// Of a workload of Orlop's: so many pods there should be, and so many are ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pods {
    /// By its specification.
    pub wanted: i32,
    /// By its status.
    pub ready: i32,
}

impl Preflight {
    /// Of the cluster of a kubeconfig, or else of `$KUBECONFIG` or `~/.kube/config`, or that this pod runs in. Orlop is in
    /// this namespace, or will be. A context names another cluster than the kubeconfig's current one.
    pub async fn of(
        kubeconfig: Option<&Path>,
        context: Option<&str>,
        namespace: &str,
    ) -> Result<Self, ClusterError> {
        Ok(Self { client: client(kubeconfig, context).await?, namespace: namespace.to_owned() })
    }

    /// The API server's version, such as `v1.34.1`, with its minor number.
    pub async fn version(&self) -> Result<(String, Option<u32>), Unknown> {
        let version = answered(self.client.apiserver_version()).await?;
        let minor = version.minor.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok();
        Ok((version.git_version, minor))
    }

    /// Whether this person may do that with all such objects, in Orlop's namespace if they are in one.
    pub async fn may(
        &self,
        verb: &str,
        group: &str,
        resource: &str,
        namespaced: bool,
    ) -> Result<bool, Unknown> {
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            namespace: namespaced.then(|| self.namespace.clone()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let reviews = Api::all(self.client.clone());
        let answer = answered(reviews.create(&PostParams::default(), &review)).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    /// The level of Pod Security that Orlop's namespace says is enforced; `None` where it says none, or is not there.
    pub async fn pod_security(&self) -> Result<Option<String>, Unknown> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let found = answered(namespaces.get_metadata_opt(&self.namespace)).await?;
        Ok(found.and_then(|namespace| namespace.labels().get(POD_SECURITY).cloned()))
    }

    /// Which parts of Istio run, each namespace's once.
    pub async fn istio(&self) -> Result<Vec<IstioPod>, Unknown> {
        let pods = Api::<Pod>::all(self.client.clone());
        let found = answered(pods.list_metadata(&ListParams::default().labels(ISTIO))).await?;
        let mut parts: Vec<_> = found
            .iter()
            .filter_map(|pod| Some((pod.labels().get("app")?.clone(), pod.namespace()?)))
            .map(|(app, namespace)| IstioPod { app, namespace })
            .collect();
        let plugins = answered(pods.list_metadata(&ListParams::default().labels(ISTIO_CNI))).await?;
        let namespaces = plugins.iter().filter_map(|pod| pod.namespace());
        parts.extend(namespaces.map(|namespace| IstioPod { app: "istio-cni".to_owned(), namespace }));
        parts.sort_by(|a, b| (&a.app, &a.namespace).cmp(&(&b.app, &b.namespace)));
        parts.dedup();
        Ok(parts)
    }

    /// The namespaces that ask for a mesh.
    pub async fn namespaces(&self) -> Result<Vec<Asks>, Unknown> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let found = answered(namespaces.list_metadata(&ListParams::default())).await?;
        let asks = found.iter().map(|namespace| {
            let is = |key: &str, value: &str| namespace.labels().get(key).is_some_and(|found| found == value);
            Asks {
                namespace: namespace.name_any(),
                sidecars: is("istio-injection", "enabled")
                    || namespace.labels().contains_key("istio.io/rev")
                        && !is("istio.io/dataplane-mode", "ambient"),
                ambient: is("istio.io/dataplane-mode", "ambient"),
                orlop: is("orlop.dev/mesh", "enabled"),
            }
        });
        Ok(asks.filter(|asks| asks.sidecars || asks.ambient || asks.orlop).collect())
    }

    /// The nodes that run Linux.
    pub async fn nodes(&self) -> Result<Vec<String>, Unknown> {
        let nodes = Api::<Node>::all(self.client.clone());
        let found = answered(nodes.list_metadata(&ListParams::default())).await?;
        let is_linux = |labels: &std::collections::BTreeMap<String, String>| {
            labels.get("kubernetes.io/os").is_none_or(|os| os == "linux")
        };
        Ok(found.iter().filter(|node| is_linux(node.labels())).map(|node| node.name_any()).collect())
    }

    /// The agents' DaemonSet; `None` where Orlop is not installed.
    pub async fn agents(&self) -> Result<Option<Pods>, Unknown> {
        let found = self.get::<DaemonSet>(NODE).await?;
        Ok(found.map(|found| {
            let status = found.status.unwrap_or_default();
            Pods { wanted: status.desired_number_scheduled, ready: status.number_ready }
        }))
    }

    /// The controller's Deployment; `None` where there is none, as with a certificate authority of one's own.
    pub async fn controllers(&self) -> Result<Option<Pods>, Unknown> {
        let found = self.get::<Deployment>(CONTROLLER).await?;
        Ok(found.map(|found| Pods {
            wanted: found.spec.and_then(|spec| spec.replicas).unwrap_or(1),
            ready: found.status.and_then(|status| status.ready_replicas).unwrap_or(0),
        }))
    }

    async fn get<K>(&self, name: &str) -> Result<Option<K>, Unknown>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        answered(Api::<K>::namespaced(self.client.clone(), &self.namespace).get_opt(name)).await
    }
}

async fn answered<T>(answer: impl Future<Output = kube::Result<T>>) -> Result<T, Unknown> {
    match timeout(TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(Unknown::Forbidden(status.message)),
        Ok(Err(kube::Error::Api(status))) => Err(Unknown::Failed(status.message)),
        Ok(Err(error)) => Err(Unknown::Failed(error.to_string())),
        Err(_) => Err(Unknown::Failed(format!("the Kubernetes API has not answered within {TIMEOUT:?}"))),
    }
}
