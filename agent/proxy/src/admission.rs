//! Whether a pod may be reached: asked when a connection arrives, and again whenever the world changes.

use std::{future::Future, net::SocketAddr, sync::Arc};

use orlop_model::{Connection, Identity, Mode, NamespacedName, Reason, Snapshot, Workload};

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

/// Decides on an arrival. The answer is the pod as the snapshot has it.
pub(crate) fn admit<'a>(
    snapshot: &'a Snapshot,
    pod: &NamespacedName,
    arrival: &Arrival,
) -> Result<&'a Arc<Workload>, Refusal> {
    let workload = snapshot.workload(pod).ok_or(Reason::NotEnrolled)?;
    let port = arrival.address.port();
    if arrival.identity.is_none() && snapshot.mutual_tls(workload, port) == Mode::Strict {
        let detail = format!("PeerAuthentication asks for mutual TLS on port {port} of {}", workload.name);
        return Err(Refusal::new(Reason::PlaintextRefused, detail));
    }
    let connection = Connection {
        source_identity: arrival.identity.as_ref(),
        source: arrival.client.ip(),
        destination: workload,
        address: arrival.address,
    };
    match snapshot.authorize(&connection) {
        Ok(_) => Ok(workload),
        Err(denied) => Err(Refusal::new(denied.reason(), denied.explain(&connection))),
    }
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
