//! Whose a token is while the API server is away.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use orlop_identity::{
    Refusal,
    jwt::{KeySet, verify_with},
};
use orlop_kube::controller::{Bearer, PlacedPods, TokenIssuer};
use serde::Deserialize;
use tokio::sync::watch;

/// Goes by what the API server said before it went: with which keys it signs tokens, and which pods there are. A token
/// is believed if it is bound to one of these. What it would have withdrawn meanwhile it withdraws once it is back, or
/// the token's own end does: whoever has one made chooses how long it is good, so that none is believed that is so for
/// longer than [`LONGEST`].
pub struct OfflineReviewer {
    pub issuer: watch::Receiver<Option<TokenIssuer>>,
    /// That tokens must be made for.
    pub audience: String,
    pub pods: Arc<PlacedPods>,
}

/// For how long a token may have been made.
const LONGEST: Duration = Duration::from_hours(24);

/// What a token says that the API server has made (`BoundServiceAccountTokenVolume`).
#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// From when and until when it is good, in seconds since 1970.
    iat: u64,
    exp: u64,
    #[serde(rename = "kubernetes.io")]
    bound: Bound,
}

#[derive(Deserialize)]
struct Bound {
    namespace: String,
    #[serde(rename = "serviceaccount")]
    service_account: Named,
    pod: Option<Named>,
    /// Since Kubernetes 1.32.
    node: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    uid: String,
}

impl OfflineReviewer {
    /// Whose `token` is.
    pub fn review(&self, token: &str, now: SystemTime) -> Result<Bearer, Refusal> {
        let Some(issuer) = self.issuer.borrow().clone() else {
            let reason = "the API server can't be asked about the token, nor was it about its keys before";
            return Err(Refusal::Unavailable(reason.to_owned()));
        };
        let bound = read(token, &issuer, &self.audience, now)?;
        let Bound { namespace, service_account, pod, node } = bound;
        let account = service_account.name;
        let refused = |why: String| Refusal::Unauthenticated(format!("{AWAY} {why}"));
        let pod = pod.ok_or_else(|| refused(format!("of {namespace}/{account} that is bound to no pod")))?;
        let known = self.pods.node_of_account(&namespace, &pod.name, &pod.uid, &account);
        let known =
            known.ok_or_else(|| refused(format!("of {namespace}/{}, which it did not know", pod.name)))?;
        if node.is_some_and(|node| node.name != known) {
            return Err(refused(format!("that has {namespace}/{} on another node than {known}", pod.name)));
        }
        let pod = Some((pod.name, pod.uid));
        Ok(Bearer { namespace, service_account: account, pod, node: Some(known) })
    }
}

/// What a token is bound to, if it is one of the API server's.
fn read(token: &str, issuer: &TokenIssuer, audience: &str, now: SystemTime) -> Result<Bound, Refusal> {
    let refused = |why: String| Refusal::Unauthenticated(format!("{AWAY} like this: {why}"));
    let keys = KeySet::read(issuer.keys.as_bytes())
        .map_err(|error| Refusal::Unavailable(format!("the API server's keys can't be used: {error}")))?;
    let claims = verify_with(token, &issuer.name, audience, &keys, now);
    let claims = claims.map_err(|error| refused(error.to_string()))?;
    let Claims { sub, iat, exp, bound } = serde_json::from_slice(&claims)
        .map_err(|error| refused(format!("it is no service account's: {error}")))?;
    let account = format!("system:serviceaccount:{}:{}", bound.namespace, bound.service_account.name);
    if sub != account {
        return Err(refused(format!("its sub is not {account}")));
    }
    if Duration::from_secs(exp.saturating_sub(iat)) > LONGEST {
        let reason = format!("{AWAY} that is good for more than {}", humantime::format_duration(LONGEST));
        return Err(Refusal::Unavailable(reason));
    }
    Ok(bound)
}

const AWAY: &str = "the API server is away, and without it nobody takes a token";
