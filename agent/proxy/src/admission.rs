//! Whether a pod may be reached: asked when a connection arrives, and again whenever the world changes.

use std::{future::Future, net::SocketAddr};

use orlop_model::{Connection, Identity, Judgement, NamespacedName, Reason, Snapshot};

use crate::{refusal::Refusal, shared::Shared};

/// A connection to a pod of this node.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// As the tunnel's certificate has shown; `None` for plaintext.
    pub(crate) identity: Option<Identity>,
    pub(crate) client: SocketAddr,
    /// The pod's address and port that is reached.
    pub(crate) address: SocketAddr,
}

/// Decides on an arrival.
pub(crate) fn admit(
    snapshot: &Snapshot,
    pod: &NamespacedName,
    arrival: &Arrival,
) -> Result<Judgement, Refusal> {
    let destination = snapshot.workload(pod).ok_or(Reason::NotEnrolled)?;
    let connection = Connection {
        source_identity: arrival.identity.as_ref(),
        source: arrival.client.ip(),
        destination,
        address: arrival.address,
    };
    snapshot.admit(&connection).map_err(Refusal::from)
}

/// Runs `carry` for as long as the arrival is admitted.
pub(crate) async fn while_admitted(
    shared: &Shared,
    pod: &NamespacedName,
    arrival: &Arrival,
    carry: impl Future<Output = Result<(), Reason>>,
) -> Result<(), Refusal> {
    let mut changes = shared.generation.subscribe();
    let revoked = async {
        loop {
            // The first look is for a change between the arrival and now.
            if let Err(refusal) = admit(&shared.snapshot.load(), pod, arrival) {
                return refusal;
            }
            if changes.changed().await.is_err() {
                return Reason::Draining.into();
            }
        }
    };
    tokio::select! {
        biased;
        refusal = revoked => Err(refusal),
        result = carry => result.map_err(Refusal::from),
    }
}
