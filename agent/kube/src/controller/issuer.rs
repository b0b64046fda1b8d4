use std::time::Duration;

use kube::Client;
use kube::api::GetParams;
use kube::core::Request;
use serde::Deserialize;
use tokio::sync::watch;

use crate::controller::{Backoff, CallError};

/// Who signs service accounts' tokens, as the API server last said: OpenID Connect discovery, which the chart's role
/// lets the controller read, whatever has become of the default binding `system:service-account-issuer-discovery`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIssuer {
    /// `--service-account-issuer`, a token's `iss`.
    pub name: String,
    /// Its keys, a JSON Web Key Set (RFC 7517).
    pub keys: String,
}

/// Keeps `known` in step with it, for ever. What was known stays so while nothing can be read.
pub async fn follow_token_issuer(client: Client, known: watch::Sender<Option<TokenIssuer>>) {
    let mut backoff = Backoff::new(Duration::from_secs(1), PERIOD);
    let mut failing = false;
    loop {
        match read(&client).await {
            Ok(issuer) => {
                failing = false;
                backoff.reset();
                known.send_if_modified(|known| {
                    let changed = known.as_ref() != Some(&issuer);
                    *known = Some(issuer);
                    changed
                });
                tokio::time::sleep(PERIOD).await;
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "while the API server is away, tokens are judged by keys of before, if any");
                }
                backoff.wait().await;
            }
        }
    }
}

async fn read(client: &Client) -> Result<TokenIssuer, CallError> {
    #[derive(Deserialize)]
    struct Configuration {
        issuer: String,
    }
    let text = async |path: &str, name: &str| {
        let request = Request::new(path).get(name, &GetParams::default());
        let request = request.map_err(kube::Error::BuildRequest)?;
        client.request_text(request).await
    };
    let action = "read who signs service accounts' tokens";
    let configuration = text("/.well-known", "openid-configuration").await;
    let configuration = configuration.map_err(CallError::new(action))?;
    let Configuration { issuer } = serde_json::from_str(&configuration)
        .map_err(kube::Error::SerdeError)
        .map_err(CallError::new(action))?;
    let keys = text("/openid/v1", "jwks").await.map_err(CallError::new(action))?;
    Ok(TokenIssuer { name: issuer, keys })
}

/// An issuer that gets a new key has it a while before it signs with it.
const PERIOD: Duration = Duration::from_secs(60);
