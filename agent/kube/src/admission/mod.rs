//! What is said of policies and routes before they are stored: what their conditions would say afterwards.
//!
//! Whoever may write such an object may have it looked at. What is read is counted first, one object is read and judged at
//! a time, and what is made of one is gone with its answer.

mod endpoint;
mod review;
mod size;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use orlop_model::Settings;
use tokio::sync::{Mutex, watch as channel};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::cluster::{ClusterError, Seen};
use crate::controller::{CustomKinds, Judgement, OwnGateways, Verdict};
use crate::object::Kinds;
pub use endpoint::{Endpoint, EndpointKeeper, review_path};
use review::{Asked, Review};

/// How long somebody waits for its turn.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Answers the API server's reviews, on every replica alike.
pub struct Validator {
    settings: Settings,
    seen: channel::Receiver<Arc<Seen>>,
    /// What was found in the cluster as it was when last somebody asked: the next is found sooner from it. Whoever has it
    /// has its turn.
    stored: Arc<Mutex<Judgement>>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReviewed {
    /// It is no AdmissionReview of version 1.
    #[error("no AdmissionReview of admission.k8s.io/v1: {0}")]
    NotOne(String),
    /// Something went wrong that the log tells of.
    #[error("the review failed; the webhook's log says why")]
    Failed,
}

impl Validator {
    /// Waits until the whole cluster is known, and follows it from then on.
    pub async fn start(
        client: &Client,
        settings: Settings,
        kinds: &CustomKinds,
    ) -> Result<Self, ClusterError> {
        let seen = Seen::watch(client, Kinds::OfWaypoints, &kinds.0).await?;
        Ok(Self { settings, seen, stored: Arc::default() })
    }

    /// The answer to a review, both as JSON.
    pub async fn review(&self, body: Vec<u8>) -> Result<Vec<u8>, NotReviewed> {
        let stored = timeout(PATIENCE, Arc::clone(&self.stored).lock_owned()).await.ok();
        let (seen, settings) = (Arc::clone(&self.seen.borrow()), self.settings.clone());
        // The turn ends with the work, whether or not somebody still waits for it.
        let reviewed = spawn_blocking(move || {
            let text = Review::text(&body)?;
            let Some(mut stored) = stored else {
                let busy = "it was not looked at, as too many others are; its status will say";
                return Ok(review::answer(&Review::uid(text)?, &Verdict::warning(busy)));
            };
            let review = Review::read(text)?;
            let verdict = match review.asked {
                Asked::Nothing => Verdict::default(),
                Asked::Judged(verdict) => verdict,
                Asked::TooMuch => {
                    Verdict::warning("it is too large to be looked at here; its status will say")
                }
                Asked::Of(subject) => {
                    let own = OwnGateways::of_classes(&seen.world);
                    // What can't be understood refers to nothing yet.
                    if !subject.is_refused() && !stored.is_of(&seen, &own) {
                        *stored = stored.after(&seen, own.clone(), &settings);
                    }
                    subject.judged(&stored, &seen, &own, &settings)
                }
            };
            Ok(review::answer(&review.uid, &verdict))
        });
        reviewed.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a review was not made");
            Err(NotReviewed::Failed)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::review::is_reviewed;
    use crate::cluster::resource;
    use crate::object::Kinds;

    #[test]
    fn the_chart_has_all_asked_about_that_has_conditions() {
        let chart =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/helm/orlop/templates/webhook.yaml");
        let text = std::fs::read_to_string(chart).unwrap();
        for kind in Kinds::OfWaypoints.all().filter(|kind| is_reviewed(*kind)) {
            let all = kind.api_versions();
            let (group, _) = all[0].split_once('/').unwrap();
            let versions: Vec<_> =
                all.iter().filter_map(|version| Some(version.split_once('/')?.1)).collect();
            let plural = resource(kind, all[0]).plural;
            // Of others the API server makes one of these.
            let head = format!("apiGroups: [{group}]\n        apiVersions: [{}]\n", versions.join(", "));
            let mut rules = text
                .split(&head)
                .skip(1)
                .filter_map(|rest| rest.split("resources: [").nth(1)?.split(']').next());
            assert!(rules.any(|names| names.split(", ").any(|name| name == plural)), "{plural}: {head}");
        }
    }
}
