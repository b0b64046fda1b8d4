use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use super::{LogArguments, NameArguments};

#[derive(Args, Debug)]
pub struct WebhookArguments {
    /// How to reach the API server [default: $KUBECONFIG, ~/.kube/config, or as a pod does].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The webhook's own namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "orlop-system")]
    pub namespace: String,
    /// Where an API server asks for reviews, over TLS.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15017")]
    pub listen: SocketAddr,
    /// Readiness: /healthz/ready, and /healthz/live.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15021")]
    pub ready: SocketAddr,
    /// A DNS name that API servers call it by; may be given several times [default: those of Service orlop-webhook in the
    /// webhook's namespace].
    #[arg(long = "dns-name", value_name = "NAME")]
    pub dns_names: Vec<String>,
    /// The Secret with the authority that API servers are to trust, made on first use; it is for nothing else.
    #[arg(long, value_name = "NAME", default_value = "orlop-webhook")]
    pub secret: String,
    /// The ValidatingWebhookConfiguration that is told where reviews are asked for and whom to trust.
    #[arg(long, value_name = "NAME", default_value = "orlop-validation")]
    pub configuration: String,
    #[command(flatten)]
    pub names: NameArguments,
    #[command(flatten)]
    pub log: LogArguments,
}

impl WebhookArguments {
    /// What API servers call it by.
    pub fn serving_names(&self) -> Vec<String> {
        if !self.dns_names.is_empty() {
            return self.dns_names.clone();
        }
        let service = format!("orlop-webhook.{}", self.namespace);
        vec![format!("{service}.svc"), format!("{service}.svc.{}", self.names.cluster_domain)]
    }
}
