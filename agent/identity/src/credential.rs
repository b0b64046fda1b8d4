//! What Secrets hold for connections to servers outside of the mesh: whose signatures are believed, and what is shown.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use orlop_model::NamespacedName;

use crate::{Authorities, ServedCertificate};

/// What one Secret holds. Each that is read is another one, even if it says the same: what was agreed on by one counts for
/// no other.
#[derive(Debug)]
pub struct ClientCredential {
    version: u64,
    authorities: Option<Arc<Authorities>>,
    shown: Option<ServedCertificate>,
}

impl ClientCredential {
    /// Of `ca.crt` and `ca.crl`, and of `tls.crt` with its `tls.key`.
    pub fn new(authorities: Option<Arc<Authorities>>, shown: Option<ServedCertificate>) -> Self {
        static VERSION: AtomicU64 = AtomicU64::new(0);
        Self { version: VERSION.fetch_add(1, Ordering::Relaxed), authorities, shown }
    }

    /// Whose signatures are believed.
    pub fn authorities(&self) -> Option<&Arc<Authorities>> {
        self.authorities.as_ref()
    }

    /// What is shown.
    pub fn shown(&self) -> Option<&ServedCertificate> {
        self.shown.as_ref()
    }
}

impl PartialEq for ClientCredential {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version
    }
}

impl Eq for ClientCredential {}

impl Hash for ClientCredential {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.version.hash(state);
    }
}

/// Those of all Secrets. A new one counts from the next request on.
#[derive(Debug, Default)]
pub struct ClientCredentials(RwLock<HashMap<NamespacedName, Arc<ClientCredential>>>);

impl ClientCredentials {
    /// Puts these in place of all that there were.
    pub fn replace(&self, with: HashMap<NamespacedName, Arc<ClientCredential>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = with;
    }

    /// That of this Secret.
    pub fn get(&self, secret: &NamespacedName) -> Option<Arc<ClientCredential>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(secret).cloned()
    }
}
