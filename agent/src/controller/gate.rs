//! Who gets which certificate.

use std::{sync::Arc, time::SystemTime};

use orlop_identity::{Admission, Gate, Refusal};
use orlop_kube::controller::{Bearer, PlacedPods, ReviewError, Reviewer};
use orlop_model::{Identity, NamespacedName, TrustDomain};
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::controller::offline::OfflineReviewer;

/// A pod gets its own identity. A node's agent gets those of the service accounts that have a pod on its own node, and
/// no other: whoever takes over a node has no more than what runs there.
pub struct NodeGate {
    pub reviewer: Reviewer,
    pub offline: OfflineReviewer,
    pub pods: Arc<PlacedPods>,
    pub trust_domain: TrustDomain,
    /// The service accounts that agents run as.
    pub node_accounts: Vec<NamespacedName>,
    pub asked: Asked,
}

/// Counts who asked for a certificate, by what came of it.
#[derive(Clone, Debug, Default)]
pub struct Asked(Family<[(&'static str, &'static str); 1], Counter>);

impl Asked {
    pub fn register(registry: &mut Registry) -> Self {
        let asked = Self::default();
        let help = "Certificates that were asked for, by what came of it";
        registry.register("orlop_certificate_requests", help, asked.0.clone());
        asked
    }

    fn count(&self, outcome: &Result<Identity, Refusal>) {
        let result = match outcome {
            Ok(_) => "admitted",
            Err(Refusal::Unauthenticated(_)) => "unauthenticated",
            Err(Refusal::Denied(_)) => "denied",
            Err(Refusal::Unavailable(_)) => "unavailable",
        };
        self.0.get_or_create_owned(&[("result", result)]).inc();
    }
}

impl Gate for NodeGate {
    fn admit<'a>(&'a self, token: Option<&'a str>, wanted: Option<Identity>) -> Admission<'a> {
        Box::pin(async move {
            let outcome = self.judge(token, wanted).await;
            self.asked.count(&outcome);
            outcome
        })
    }
}

impl NodeGate {
    async fn judge(&self, token: Option<&str>, wanted: Option<Identity>) -> Result<Identity, Refusal> {
        let token = token.ok_or_else(|| {
            Refusal::Unauthenticated("no token: want `authorization: Bearer TOKEN`".to_owned())
        })?;
        let bearer = match self.reviewer.review(token).await {
            Ok(bearer) => bearer,
            Err(error) if error.is_away() => {
                tracing::warn!(%error, "going by what it said before");
                self.offline.review(token, SystemTime::now())?
            }
            Err(error @ ReviewError::Refused(..)) => {
                return Err(Refusal::Unauthenticated(error.to_string()));
            }
            Err(error) => {
                tracing::warn!(%error, "no certificates meanwhile");
                let reason = "the API server can't be asked about the token";
                return Err(Refusal::Unavailable(reason.to_owned()));
            }
        };
        self.decide(&bearer, wanted).await
    }

    async fn decide(&self, bearer: &Bearer, wanted: Option<Identity>) -> Result<Identity, Refusal> {
        let denied = |reason: String| Refusal::Denied(reason);
        let Bearer { namespace, service_account, .. } = bearer;
        let (pod, uid) = bearer.pod.as_ref().ok_or_else(|| {
            denied(format!("the token of {namespace}/{service_account} is not bound to a pod"))
        })?;
        let own = Identity::new(&self.trust_domain, namespace, service_account);
        let Some(wanted) = wanted.filter(|wanted| *wanted != own) else { return Ok(own) };
        let is_node =
            |account: &NamespacedName| account.namespace == *namespace && account.name == *service_account;
        if !self.node_accounts.iter().any(is_node) {
            return Err(denied(format!("{own} may not ask for {wanted}: it is no node agent's identity")));
        }
        if wanted.trust_domain() != self.trust_domain.as_str() {
            return Err(denied(format!("{wanted} is not of trust domain {}", self.trust_domain)));
        }
        // An API server before 1.32 does not say on which node the pod is.
        let node = bearer.node.clone().or_else(|| self.pods.node_of(namespace, pod, uid));
        let node =
            node.ok_or_else(|| denied(format!("nothing says on which node {namespace}/{pod} runs")))?;
        let (of, account) = (wanted.namespace(), wanted.service_account());
        match self.pods.has(&node, of, account).await {
            Ok(true) => Ok(wanted),
            Ok(false) => Err(denied(format!("no pod of service account {of}/{account} runs on node {node}"))),
            Err(error) => {
                tracing::warn!(%error, "no certificates meanwhile");
                Err(Refusal::Unavailable("the API server can't be asked about the node's pods".to_owned()))
            }
        }
    }
}
