use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use orlop_identity::ServedCertificate;
use orlop_kube::controller::{Resources, WaypointSettings};
use orlop_model::NamespacedName;

use super::{AccessLogArguments, LogArguments, NameArguments, TraceArguments, duration};

#[derive(Args, Debug)]
pub struct ControllerArguments {
    /// How to reach the API server [default: $KUBECONFIG, ~/.kube/config, or as a pod does].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The controller's own namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "orlop-system")]
    pub namespace: String,
    /// What this replica is called among the others.
    #[arg(long, env = "POD_NAME")]
    pub name: String,
    /// Istio's certificate service, over TLS.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15012")]
    pub listen: SocketAddr,
    /// Readiness: /healthz/ready, and /healthz/live.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15021")]
    pub ready: SocketAddr,
    /// A DNS name that nodes call the certificate service by; may be given several times [default: those of Service
    /// orlop-controller in the controller's namespace].
    #[arg(long = "dns-name", value_name = "NAME")]
    pub dns_names: Vec<String>,
    /// The audience that nodes' service-account tokens must be made for.
    #[arg(long, default_value = "istio-ca")]
    pub token_audience: String,
    /// A service account that node agents run as, which get the identities of their node's pods; may be given several
    /// times.
    #[arg(long = "node-account", value_name = "NAMESPACE/NAME", default_value = "orlop-system/orlop-node")]
    pub node_accounts: Vec<NamespacedName>,
    /// How long a workload's certificate is valid at most.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub certificate_lifetime: Duration,
    /// How long it may take until every node has a new bundle of roots: a new root signs nothing before.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub rotation_spread: Duration,
    /// The Secret that what signs is kept in; made on first use.
    #[arg(long, value_name = "NAME", default_value = "orlop-ca")]
    pub secret: String,
    /// A Secret in Istio's layout (ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem) or cert-manager's
    /// (tls.crt, tls.key, ca.crt) that is taken up into it, if it is there.
    #[arg(long, value_name = "NAME", default_value = "cacerts")]
    pub plugged_in: String,
    /// The image that waypoints and gateways are made with, such as the controller's own. Without it none are made.
    #[arg(long, value_name = "IMAGE")]
    pub waypoint_image: Option<String>,
    /// A Secret of each Gateway's own namespace that the image is pulled with; may be given several times.
    #[arg(long = "waypoint-pull-secret", value_name = "NAME")]
    pub waypoint_pull_secrets: Vec<String>,
    /// `resources` of waypoints' and gateways' containers, as JSON.
    #[arg(long, value_name = "JSON")]
    pub waypoint_resources: Option<Resources>,
    /// Look whether the Secrets that gateways' listeners name are certificates, and say so in Gateways. Needs the right
    /// to get every Secret.
    #[arg(long)]
    pub check_secrets: bool,
    #[command(flatten)]
    pub waypoint_traces: TraceArguments,
    #[command(flatten)]
    pub waypoint_access_log: AccessLogArguments,
    #[command(flatten)]
    pub names: NameArguments,
    #[command(flatten)]
    pub log: LogArguments,
}

/// Whether a gateway could show this certificate.
fn check(certificate: &[u8], key: &[u8]) -> bool {
    ServedCertificate::from_pem(certificate, key).is_ok()
}

impl ControllerArguments {
    /// What the certificate service is called.
    pub fn serving_names(&self) -> Vec<String> {
        if !self.dns_names.is_empty() {
            return self.dns_names.clone();
        }
        let service = format!("orlop-controller.{}", self.namespace);
        vec![format!("{service}.svc.{}", self.names.cluster_domain), format!("{service}.svc"), service]
    }
    /// What waypoints are made with, if they are to be made.
    pub fn waypoints(&self) -> Option<WaypointSettings> {
        let image = self.waypoint_image.clone()?;
        let authority = self.serving_names().into_iter().next()?;
        let mut args = vec![format!("--ca-address=https://{authority}:{}", self.listen.port())];
        args.extend(self.names.to_args());
        args.extend(self.waypoint_traces.to_args());
        args.extend(self.waypoint_access_log.to_args());
        Some(WaypointSettings {
            image,
            args,
            audience: self.token_audience.clone(),
            pull_secrets: self.waypoint_pull_secrets.clone(),
            resources: self.waypoint_resources.clone().unwrap_or_default(),
            check: self.check_secrets.then_some(check),
        })
    }
}
