use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::timeout;

/// Who has shown a service-account token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// Of the service account, and of the pod.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// The pod that the token is bound to: its name and UID.
    pub pod: Option<(String, String)>,
    /// The node of that pod, as the token says (Kubernetes 1.32, `ServiceAccountTokenPodNodeInfo`).
    pub node: Option<String>,
}

/// Why a token is not believed.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The API server says that it is not good.
    #[error(
        "the API server does not accept the token: {0}; it must be a service account's, for audience {1}"
    )]
    Refused(String, String),
    /// The API server says nothing.
    #[error("the API server can't be asked about the token: {0}")]
    Unavailable(#[from] kube::Error),
    /// The API server says nothing in time.
    #[error("the API server has not answered about the token within {PATIENCE:?}")]
    Late,
}

impl ReviewError {
    /// Whether the API server can't be reached, or not what it needs to answer: it has said neither yes nor no.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Refused(..) => false,
            Self::Late => true,
            Self::Unavailable(kube::Error::Api(status)) => status.code >= 500,
            Self::Unavailable(error) => {
                matches!(error, kube::Error::Service(_) | kube::Error::HyperError(_))
            }
        }
    }
}

/// Who asks waits for longer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks the API server whose a token is (TokenReview, `authentication.k8s.io/v1`).
pub struct Reviewer {
    reviews: Api<TokenReview>,
    audience: String,
}

impl Reviewer {
    /// Believes tokens made for `audience` alone: those made for the API server itself are not to be shown to others.
    pub fn new(client: Client, audience: &str) -> Self {
        Self { reviews: Api::all(client), audience: audience.to_owned() }
    }

    /// Whose `token` is.
    pub async fn review(&self, token: &str) -> Result<Bearer, ReviewError> {
        let spec =
            TokenReviewSpec { audiences: Some(vec![self.audience.clone()]), token: Some(token.to_owned()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let params = PostParams::default();
        let reviewed = timeout(PATIENCE, self.reviews.create(&params, &review)).await;
        let reviewed = reviewed.map_err(|_| ReviewError::Late)??;
        let status = reviewed.status.unwrap_or_default();
        let refused = |why: &str| ReviewError::Refused(why.to_owned(), self.audience.clone());
        if status.authenticated != Some(true) {
            return Err(refused(status.error.as_deref().unwrap_or("not authenticated")));
        }
        // A server that knows no audiences answers without them, and would believe any token.
        if !status.audiences.unwrap_or_default().contains(&self.audience) {
            return Err(refused("it was made for another audience"));
        }
        bearer(&status.user.unwrap_or_default()).ok_or_else(|| refused("it is no service account's"))
    }
}

fn bearer(user: &UserInfo) -> Option<Bearer> {
    let account = user.username.as_deref()?.strip_prefix("system:serviceaccount:")?;
    let (namespace, service_account) = account.split_once(':')?;
    let none = BTreeMap::new();
    let extra = user.extra.as_ref().unwrap_or(&none);
    let one = |key: &str| match extra.get(key)?.as_slice() {
        [value] => Some(value.clone()),
        _ => None,
    };
    let pod = one("authentication.kubernetes.io/pod-name").zip(one("authentication.kubernetes.io/pod-uid"));
    Some(Bearer {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod,
        node: one("authentication.kubernetes.io/node-name"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, extra: &[(&str, &[&str])]) -> UserInfo {
        let extra = extra.iter().map(|(key, values)| {
            ((*key).to_owned(), values.iter().map(|value| (*value).to_owned()).collect())
        });
        UserInfo { username: Some(name.to_owned()), extra: Some(extra.collect()), ..UserInfo::default() }
    }

    #[test]
    fn a_bound_token_says_its_pod_and_node() {
        let found = bearer(&user(
            "system:serviceaccount:orlop-system:orlop-node",
            &[
                ("authentication.kubernetes.io/pod-name", &["orlop-node-x"]),
                ("authentication.kubernetes.io/pod-uid", &["u1"]),
                ("authentication.kubernetes.io/node-name", &["n1"]),
            ],
        ));
        let expected = Bearer {
            namespace: "orlop-system".to_owned(),
            service_account: "orlop-node".to_owned(),
            pod: Some(("orlop-node-x".to_owned(), "u1".to_owned())),
            node: Some("n1".to_owned()),
        };
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn people_are_no_service_accounts() {
        assert_eq!(bearer(&user("alice", &[])), None);
        assert_eq!(bearer(&user("system:node:n1", &[])), None);
    }

    #[test]
    fn a_claim_that_is_there_twice_is_none() {
        let twice = &[("authentication.kubernetes.io/node-name", ["n1", "n2"].as_slice())];
        assert_eq!(bearer(&user("system:serviceaccount:a:b", twice)).unwrap().node, None);
    }
}
