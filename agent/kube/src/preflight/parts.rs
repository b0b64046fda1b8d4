//! What runs of Orlop beside its agents.

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use tokio::io::DuplexStream;

use super::{CONTROLLER, Preflight, Unknown, answered};
use crate::pod::has_ended;

/// What the controller labels the pods of waypoints and gateways with.
const PROXIES: &str = "app.kubernetes.io/managed-by=orlop-controller,gateway.networking.k8s.io/gateway-name";
const CLASS: &str = "gateway.networking.k8s.io/gateway-class-name";
const WAYPOINT: &str = "orlop-waypoint";

/// A pod of Orlop's that is no agent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it does.
    pub role: Role,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The condition `Ready`.
    pub ready: bool,
}

/// What a pod of Orlop's does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `orlop controller`
    Controller,
    /// `orlop waypoint`
    Waypoint,
    /// `orlop gateway`
    Gateway,
}

impl Preflight {
    /// The controllers', and those of all namespaces' waypoints and gateways.
    pub async fn parts(&self) -> Result<Vec<Part>, Unknown> {
        let controllers = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let of_controllers = ListParams::default().labels(&format!("app.kubernetes.io/name={CONTROLLER}"));
        let mut found = answered(controllers.list(&of_controllers)).await?.items;
        let proxies = Api::<Pod>::all(self.client.clone());
        found.extend(answered(proxies.list(&ListParams::default().labels(PROXIES))).await?);
        let is_left = |pod: &&Pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            pod.metadata.deletion_timestamp.is_none() && !has_ended(phase)
        };
        Ok(found.iter().filter(is_left).map(part).collect())
    }

    /// A connection to a port of a pod's loopback.
    pub async fn dial(&self, part: &Part, port: u16) -> Result<DuplexStream, Unknown> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &part.namespace);
        let mut forwarder = answered(pods.portforward(&part.name, &[port])).await?;
        // It was asked for this port alone.
        forwarder.take_stream(port).ok_or_else(|| Unknown::Failed(format!("port {port} is not forwarded")))
    }
}

fn part(pod: &Pod) -> Part {
    let role = match pod.labels().get(CLASS) {
        None => Role::Controller,
        Some(class) if class == WAYPOINT => Role::Waypoint,
        Some(_) => Role::Gateway,
    };
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    Part { role, namespace, name, ready: crate::agents::is_ready(pod) }
}
