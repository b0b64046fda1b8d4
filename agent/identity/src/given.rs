use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use orlop_model::Identity;
use rustls::ServerConfig;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::tls::ALPN_H2;
use crate::{CertificateAuthority, IdentityError, Issuing, Signer, Trust, provider};

/// An authority in this process, whose root somebody else keeps and replaces.
pub struct GivenCa {
    signer: RwLock<Arc<Signer>>,
    trust: watch::Sender<Arc<Trust>>,
}

impl GivenCa {
    /// Signs with `signer`, for peers with `trust`. That the one leads to the other is tried.
    pub fn new(signer: Signer, trust: Trust) -> Result<Self, IdentityError> {
        signer.leads_to(&trust)?;
        Ok(Self { signer: RwLock::new(Arc::new(signer)), trust: watch::Sender::new(Arc::new(trust)) })
    }

    /// Signs with another one from now on. After an error, everything stays as it was.
    pub fn replace(&self, signer: Signer, trust: Trust) -> Result<(), IdentityError> {
        signer.leads_to(&trust)?;
        *self.signer.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(signer);
        self.trust.send_replace(Arc::new(trust));
        Ok(())
    }

    /// Until when the certificate is valid that signs.
    pub fn not_after(&self) -> SystemTime {
        self.signer().not_after
    }

    fn signer(&self) -> Arc<Signer> {
        self.signer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl CertificateAuthority for GivenCa {
    fn issue(&self, identity: &Identity, csr_der: &[u8], lifetime: Duration, now: SystemTime) -> Issuing {
        Issuing::Done(self.signer().sign(identity, csr_der, lifetime, now))
    }

    fn trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.subscribe()
    }
}

impl fmt::Debug for GivenCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GivenCa").field("signer", &self.signer()).finish_non_exhaustive()
    }
}

/// What a [`crate::CertificateService`] shows to its clients: a certificate of its own authority's, renewed in time.
pub struct ServingTls {
    ca: Arc<GivenCa>,
    names: Vec<String>,
    config: RwLock<Arc<ServerConfig>>,
}

impl ServingTls {
    /// For a server that is called by these DNS names.
    pub fn new(ca: Arc<GivenCa>, names: Vec<String>) -> Result<Self, IdentityError> {
        let config = serving(&ca, &names)?;
        Ok(Self { ca, names, config: RwLock::new(config) })
    }

    /// For the next handshake.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Renews it at half its life, and when another root signs; for ever.
    pub async fn run(&self) {
        let mut trust = self.ca.trust();
        loop {
            // Without its authority nothing changes any more.
            if let Ok(Err(_)) = timeout(LIFETIME / 2, trust.changed()).await {
                return;
            }
            match serving(&self.ca, &self.names) {
                Ok(config) => *self.config.write().unwrap_or_else(PoisonError::into_inner) = config,
                Err(error) => {
                    tracing::error!(%error, "the serving certificate could not be renewed");
                    sleep(RETRY).await;
                    trust.mark_changed();
                }
            }
        }
    }
}

impl fmt::Debug for ServingTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServingTls").field("names", &self.names).finish_non_exhaustive()
    }
}

fn serving(ca: &GivenCa, names: &[String]) -> Result<Arc<ServerConfig>, IdentityError> {
    let key = ca.signer().serving(names, LIFETIME, SystemTime::now())?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Ok(Arc::new(config))
}

const LIFETIME: Duration = Duration::from_secs(24 * 3600);
const RETRY: Duration = Duration::from_secs(5);
