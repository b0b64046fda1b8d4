//! Whether a pod may be reached: asked when a connection arrives, and again whenever the world changes.

use std::{
    future::{Future, pending},
    net::SocketAddr,
    rc::Rc,
};

use orlop_model::{Caller, Connection, Identity, Judgement, NamespacedName, Reason, Snapshot};
use rustls::pki_types::CertificateDer;

use crate::{refusal::Refusal, shared::Shared};

/// A connection to a pod of this node.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// As the tunnel's certificate has shown; `None` for plaintext.
    pub(crate) identity: Option<Identity>,
    /// That certificate.
    pub(crate) certificate: Option<Rc<CertificateDer<'static>>>,
    pub(crate) client: SocketAddr,
    /// The pod's address and port that is reached.
    pub(crate) address: SocketAddr,
    /// Whom the tunnel's other end says it speaks for, and from where that one came.
    pub(crate) caller: Option<(Identity, SocketAddr)>,
}

/// Decides on an arrival.
pub(crate) fn admit(
    shared: &Shared,
    snapshot: &Snapshot,
    pod: &NamespacedName,
    arrival: &Arrival,
) -> Result<Judgement, Refusal> {
    if arrival.certificate.as_ref().is_some_and(|certificate| shared.identities.is_revoked(certificate)) {
        return Err(Reason::RevokedCertificate.into());
    }
    let destination = snapshot.workload(pod).ok_or(Reason::NotEnrolled)?;
    let connection = Connection {
        source_identity: arrival.identity.as_ref(),
        source: arrival.client.ip(),
        destination,
        address: arrival.address,
    };
    let caller = arrival.caller.as_ref();
    let caller = caller.map(|(identity, address)| Caller { identity, address: address.ip() });
    snapshot.admit_for(&connection, caller).map_err(Refusal::from)
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
            if let Err(refusal) = admit(shared, &shared.snapshot.load(), pod, arrival) {
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
        // The tunnel may have been told first, and have ended under the connection.
        result = carry => result.map_err(|reason| {
            admit(shared, &shared.snapshot.load(), pod, arrival).err().unwrap_or_else(|| reason.into())
        }),
    }
}

/// Runs `carry`, through a tunnel, for as long as the certificate of the tunnel's other end is not revoked.
pub(crate) async fn while_trusted(
    shared: &Shared,
    certificate: &CertificateDer<'static>,
    carry: impl Future<Output = Result<(), Reason>>,
) -> Result<(), Refusal> {
    tokio::select! {
        biased;
        () = revoked(shared, certificate) => Err(Reason::RevokedCertificate.into()),
        // As above.
        result = carry => result.map_err(|reason| {
            if shared.identities.is_revoked(certificate) { Reason::RevokedCertificate } else { reason }.into()
        }),
    }
}

/// Until the certificate is revoked.
pub(crate) async fn revoked(shared: &Shared, certificate: &CertificateDer<'static>) {
    let mut changes = shared.generation.subscribe();
    while !shared.identities.is_revoked(certificate) {
        if changes.changed().await.is_err() {
            return pending().await;
        }
    }
}
