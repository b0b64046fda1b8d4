//! Pods that a sidecar of Istio's and Orlop would both have.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Namespace, Pod as Whole};
use kube::api::ListParams;
use kube::core::{ApiResource, Object};
use kube::{Api, ResourceExt as _};
use orlop_model::opted_in;
use orlop_model::world::Labels;
use serde::Deserialize;

use super::{Preflight, Unknown, answered};
use crate::pod::has_ended;

/// What Istio calls its container.
const PROXY: &str = "istio-proxy";
/// Annotation of a pod: what Istio makes of it.
const TEMPLATES: &str = "inject.istio.io/templates";
/// Label of the pods that were made for a Gateway.
const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";
/// Label, or annotation, of pods that ask for it.
const INJECT: &str = "sidecar.istio.io/inject";
/// How many pods are asked for at once.
const PAGE: u32 = 500;

/// A pod that is to be in Orlop's mesh, and in Istio's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it has the sidecar, and not only asks for it.
    pub runs: bool,
}

/// What is read of a pod.
type Pod = Object<Spec, Status>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    host_network: bool,
    containers: Vec<Named>,
    /// Where native sidecars are.
    init_containers: Vec<Named>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: Option<String>,
}

impl Preflight {
    /// The pods that are to be in Orlop's mesh and have, or ask for, a sidecar of Istio's, in the order of their names.
    pub async fn sidecars(&self) -> Result<Vec<Sidecar>, Unknown> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let namespaces = answered(namespaces.list_metadata(&ListParams::default())).await?;
        let labels: HashMap<_, _> =
            namespaces.iter().map(|of| (of.name_any(), mesh_labels(of.labels()))).collect();
        let pods: Api<Pod> = Api::all_with(self.client.clone(), &ApiResource::erase::<Whole>(&()));
        let mut found = Vec::new();
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = answered(pods.list(&page)).await?;
            let of_namespace = |pod: &Pod| labels.get(&pod.namespace()?);
            found.extend(list.items.iter().filter_map(|pod| sidecar(of_namespace(pod)?, pod)));
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => break,
            }
        }
        found.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Ok(found)
    }
}

fn mesh_labels(labels: &BTreeMap<String, String>) -> Labels {
    labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn sidecar(namespace: &Labels, pod: &Pod) -> Option<Sidecar> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if has_ended(phase) || pod.spec.host_network || !opted_in(namespace, &mesh_labels(pod.labels())) {
        return None;
    }
    // Istio's own gateways redirect nothing.
    let templates = pod.annotations().get(TEMPLATES).map_or("", String::as_str);
    if pod.labels().contains_key(GATEWAY) || templates.split(',').any(|template| template.trim() == "gateway")
    {
        return None;
    }
    let runs = pod.spec.containers.iter().chain(&pod.spec.init_containers).any(|one| one.name == PROXY);
    // The label has the last word.
    let asked = pod.labels().get(INJECT).or_else(|| pod.annotations().get(INJECT));
    let asks = asked.is_some_and(|asked| asked == "true");
    (runs || asks).then(|| Sidecar {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        runs,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_of_both_meshes_is_found_whatever_its_sidecar_is() {
        let labelled = |value: &str| -> Labels {
            [("orlop.dev/mesh".to_owned(), value.to_owned())].into_iter().collect()
        };
        let found = |namespace: &str, labels: Value, annotations: Value, spec: Value| {
            let pod: Pod = serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "Pod", "spec": spec,
                "metadata": {"name": "web", "namespace": "shop", "labels": labels, "annotations": annotations},
            }))
            .unwrap();
            sidecar(&labelled(namespace), &pod).map(|found| found.runs)
        };
        let none = || json!({});
        let (app, proxy) = (json!([{"name": "app"}]), json!([{"name": "app"}, {"name": "istio-proxy"}]));
        let plain = || json!({"containers": app});
        assert_eq!(found("enabled", none(), none(), json!({"containers": proxy})), Some(true));
        let native = json!({"containers": app, "initContainers": proxy});
        assert_eq!(found("enabled", none(), none(), native), Some(true));
        let gateway = || json!({"inject.istio.io/templates": "gateway"});
        assert_eq!(found("enabled", none(), gateway(), json!({"containers": proxy})), None);
        let gateway = json!({"gateway.networking.k8s.io/gateway-name": "gate"});
        assert_eq!(found("enabled", gateway, none(), json!({"containers": proxy})), None);
        let inject = |value: &str| json!({"sidecar.istio.io/inject": value});
        assert_eq!(found("enabled", inject("true"), none(), plain()), Some(false));
        assert_eq!(found("enabled", none(), inject("true"), plain()), Some(false));
        assert_eq!(found("enabled", inject("false"), inject("true"), plain()), None);
        assert_eq!(found("enabled", none(), none(), plain()), None);
        assert_eq!(found("disabled", none(), none(), json!({"containers": proxy})), None);
        let on_node = json!({"containers": proxy, "hostNetwork": true});
        assert_eq!(found("enabled", none(), none(), on_node), None);
    }
}
