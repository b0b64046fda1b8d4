//! What Secrets hold for connections to servers outside of the mesh: whose signatures are believed, and what is shown.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use orlop_model::NamespacedName;

use crate::ServedCertificate;

/// What one Secret holds.
#[derive(Clone, Debug)]
pub struct ClientCredential {
    /// `ca.crt` or `cacert`, as PEM.
    pub roots: Option<Arc<str>>,
    /// `tls.crt` with its `tls.key`.
    pub shown: Option<ServedCertificate>,
}

/// Those of all Secrets. A new one counts from the next connection on.
#[derive(Debug, Default)]
pub struct ClientCredentials(RwLock<HashMap<NamespacedName, ClientCredential>>);

impl ClientCredentials {
    /// Puts these in place of all that there were.
    pub fn replace(&self, with: HashMap<NamespacedName, ClientCredential>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = with;
    }

    /// That of this Secret.
    pub fn get(&self, secret: &NamespacedName) -> Option<ClientCredential> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(secret).cloned()
    }
}
