use std::fmt::Write as _;
use std::time::Duration;

use aws_lc_rs::hmac;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{ValidatingWebhook, ValidatingWebhookConfiguration};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Error};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;

/// Under which name the fields are applied, and nothing else is.
const FIELD_MANAGER: &str = "orlop-webhook";
/// How often it is looked at, in case somebody has written something else.
const INTERVAL: Duration = Duration::from_secs(10);

/// How an API server reaches the webhook, beside its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// `clientConfig.service.path`. Only API servers know it, since they show no certificate of their own.
    pub path: String,
    /// `clientConfig.caBundle`, PEM.
    pub roots: String,
}

/// Where reviews are asked for: a path that nobody guesses who does not have the key (PEM) of the webhook's authority.
pub fn review_path(key: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let mut path = "/validate/".to_owned();
    for byte in hmac::sign(&key, b"orlop webhook path").as_ref() {
        let _ = write!(path, "{byte:02x}");
    }
    path
}

/// Keeps the endpoint in the webhook's configuration. Each replica writes the same.
pub struct EndpointKeeper {
    client: Client,
    name: String,
    endpoint: watch::Receiver<Endpoint>,
}

impl EndpointKeeper {
    /// Of the ValidatingWebhookConfiguration of this name, which somebody else makes.
    pub fn new(client: Client, name: &str, endpoint: watch::Receiver<Endpoint>) -> Self {
        Self { client, name: name.to_owned(), endpoint }
    }

    /// Writes what differs, for as long as the endpoint may change.
    pub async fn run(mut self) {
        loop {
            let endpoint = self.endpoint.borrow_and_update().clone();
            if let Err(error) = self.keep(&endpoint).await {
                let name = &self.name;
                tracing::warn!(%error, name, "cannot tell API servers where the webhook is and whom to trust");
            }
            if let Ok(Err(_)) = timeout(INTERVAL, self.endpoint.changed()).await {
                return;
            }
        }
    }

    async fn keep(&self, endpoint: &Endpoint) -> Result<(), Error> {
        let configurations = Api::<ValidatingWebhookConfiguration>::all(self.client.clone());
        let Some(found) = configurations.get_opt(&self.name).await? else {
            tracing::warn!(
                name = self.name,
                "no such ValidatingWebhookConfiguration: nobody asks for reviews"
            );
            return Ok(());
        };
        let webhooks = found.webhooks.unwrap_or_default();
        if webhooks.iter().all(|webhook| endpoint.is_of(webhook)) {
            return Ok(());
        }
        let named = webhooks
            .iter()
            .filter_map(|webhook| Some((&webhook.name, webhook.client_config.service.as_ref()?)));
        let webhooks: Vec<_> = named
            .map(|(name, service)| {
                let service =
                    json!({"name": service.name, "namespace": service.namespace, "path": endpoint.path});
                json!({"name": name, "clientConfig": {"caBundle": endpoint.bundle(), "service": service}})
            })
            .collect();
        let patch = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": self.name}, "webhooks": webhooks,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        configurations.patch(&self.name, &params, &Patch::Apply(&patch)).await?;
        tracing::info!(name = self.name, "API servers know where the webhook is and whom to trust");
        Ok(())
    }
}

impl Endpoint {
    fn bundle(&self) -> ByteString {
        ByteString(self.roots.as_bytes().to_vec())
    }

    fn is_of(&self, webhook: &ValidatingWebhook) -> bool {
        let config = &webhook.client_config;
        let path = config.service.as_ref().and_then(|service| service.path.as_deref());
        path == Some(&self.path) && config.ca_bundle == Some(self.bundle())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_of_its_key_alone() {
        let path = review_path(b"key");
        assert_eq!(path, review_path(b"key"));
        assert_ne!(path, review_path(b"other"));
        assert_eq!(path.len(), "/validate/".len() + 64);
    }
}
