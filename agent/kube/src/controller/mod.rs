//! What the controller asks of and writes to the API server. Who decides what is signed is not in here.

mod bearer;
mod bundle;
mod copies;
mod events;
mod issuer;
mod leader;
mod placed;
mod root_rotation;
mod root_secret;
mod root_store;
mod status;
mod waypoints;

pub use bearer::{Bearer, ReviewError, Reviewer};
pub use bundle::{BUNDLE, BundlePublisher, ISTIO_BUNDLE};
pub use copies::CertificateCopies;
pub use events::{EventWriter, Events};
pub use issuer::{TokenIssuer, follow_token_issuer};
pub use leader::Election;
pub use placed::PlacedPods;
pub use root_rotation::{RootStep, RotationTiming};
pub use root_secret::{RootJudge, RootPair, RootSecret};
pub use root_store::{RootFound, RootStore};
use status::NamedConfigMaps;
pub use status::{AttachedRoutes, NamedCredentials, StatusWriter};
pub(crate) use status::{Judgement, Verdict};
pub(crate) use waypoints::judge_gateway;
pub use waypoints::{CertificateCheck, OwnGateways, Resources, WaypointProvisioner, WaypointSettings};

use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::watch;

pub use kube::Client;

use crate::cluster::{Definitions, watch_definitions};

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A kubeconfig was named and can't be used.
    #[error("the kubeconfig can't be used: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// Neither a kubeconfig nor a pod's service account.
    #[error("{0}; give --kubeconfig, or run as a pod with a service account")]
    Nothing(#[from] kube::config::InferConfigError),
    /// What they say can't be used.
    #[error("the API server can't be reached so: {0}")]
    Client(#[from] kube::Error),
}

/// A client by the kubeconfig of this path, or by what is usual: `$KUBECONFIG`, `~/.kube/config`, a pod's own account.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let config = match kubeconfig {
        Some(path) => {
            let read = Kubeconfig::read_from(path)?;
            kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?
        }
        None => kube::Config::infer().await?,
    };
    Ok(Client::try_from(config)?)
}

/// A call of the API that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}: {source}")]
pub struct CallError {
    /// What was tried, such as `read Secret orlop-system/orlop-ca`.
    pub action: String,
    /// What the client or the server said.
    pub source: kube::Error,
}

impl CallError {
    fn new(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let action = action.into();
        move |source| Self { action, source }
    }
}

/// Which custom kinds the API server knows, asked once for all who go by it.
#[derive(Clone, Debug)]
pub struct CustomKinds(pub(crate) watch::Receiver<Definitions>);

impl CustomKinds {
    /// What is known, and what keeps it so for as long as it runs.
    pub fn watch(client: Client) -> (Self, impl Future<Output = ()>) {
        let (definitions, known) = watch::channel(None);
        (Self(known), watch_definitions(client, definitions))
    }
}

/// By what classes of Gateways that become waypoints, and what is said of routes of services, are ours:
/// `controllerName`.
const CONTROLLER: &str = "orlop.dev/waypoint-controller";
/// The same of those that become gateways, and of their routes.
const GATEWAY_CONTROLLER: &str = "orlop.dev/gateway-controller";

/// Under which name the controller applies fields.
pub const FIELD_MANAGER: &str = "orlop-controller";

/// Between attempts: `least` doubled each time up to `most`, half of it by chance.
struct Backoff {
    least: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, failures: 0 }
    }

    fn reset(&mut self) {
        self.failures = 0;
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }

    fn next(&mut self) -> Duration {
        let full = self.least.saturating_mul(1 << self.failures.min(16)).min(self.most);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(0.5 + 0.5 * fastrand::f64())
    }
}
