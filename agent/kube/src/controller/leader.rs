use std::future;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Error};
use tokio::sync::watch;
use tokio::time::timeout;

/// Has one of several replicas lead: the one that holds a Lease (`coordination.k8s.io/v1`).
///
/// Whether a Lease has run out is told by how long this replica has seen it unchanged, so that clocks that differ do
/// no harm. The holder gives up before anybody else may take over.
pub struct Election {
    leases: Api<Lease>,
    name: String,
    me: String,
    leads: watch::Sender<bool>,
}

impl Election {
    /// Among the replicas that name the same Lease of `namespace`, by a name of its own.
    pub fn new(client: Client, namespace: &str, name: &str, me: &str) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            name: name.to_owned(),
            me: me.to_owned(),
            leads: watch::Sender::new(false),
        }
    }

    /// Whether this replica leads: now, and whenever it changes.
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    /// Runs what `lead` gives as long as this replica leads, and drops it when it no longer does; for ever.
    pub async fn run<F: Future<Output = ()>>(&self, mut lead: impl FnMut() -> F) {
        loop {
            let held = self.acquire().await;
            tracing::info!(lease = self.name, me = self.me, "leading");
            self.leads.send_replace(true);
            let never = async {
                lead().await;
                future::pending::<()>().await;
            };
            tokio::select! {
                () = self.keep(held) => {}
                () = never => {}
            }
            self.leads.send_replace(false);
            tracing::warn!(lease = self.name, me = self.me, "leading no more");
        }
    }

    /// Lets another replica take over at once, if this one leads.
    pub async fn resign(&self) {
        if !self.leads.send_replace(false) {
            return;
        }
        let resigned = async {
            let mut lease = self.leases.get(&self.name).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(self.me.as_str()) {
                spec.holder_identity = None;
                self.leases.replace(&self.name, &PostParams::default(), &lease).await?;
            }
            Ok::<_, Error>(())
        };
        // Whoever waits for the end does not wait for an API server that gives no answer.
        match timeout(PATIENCE, resigned).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(lease = self.name, %error, "the lease is not given back; it runs out")
            }
            Err(_) => tracing::warn!(lease = self.name, "the lease is not given back in time; it runs out"),
        }
    }

    /// Waits until this replica holds the Lease.
    async fn acquire(&self) -> Lease {
        // What was seen last, and since when.
        let mut seen: Option<(String, Instant)> = None;
        loop {
            match timeout(GIVE_UP, self.attempt(&mut seen)).await {
                Ok(Ok(Some(lease))) => return lease,
                Ok(Ok(None)) => {}
                Err(_) => tracing::warn!(lease = self.name, "no answer about the election"),
                Ok(Err(error)) => {
                    tracing::warn!(lease = self.name, %error, "cannot take part in the election")
                }
            }
            tokio::time::sleep(RETRY.mul_f64(0.75 + 0.5 * fastrand::f64())).await;
        }
    }

    async fn attempt(&self, seen: &mut Option<(String, Instant)>) -> Result<Option<Lease>, Error> {
        let Some(mut lease) = self.leases.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let mut lease = Lease { metadata, spec: Some(LeaseSpec::default()) };
            self.take(&mut lease);
            return unless_beaten(self.leases.create(&PostParams::default(), &lease).await);
        };
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
        if !holder.is_empty() && holder != self.me {
            let version = lease.metadata.resource_version.clone().unwrap_or_default();
            match seen {
                Some((known, since)) if *known == version => {
                    if since.elapsed() < DURATION {
                        return Ok(None);
                    }
                }
                _ => {
                    *seen = Some((version, Instant::now()));
                    return Ok(None);
                }
            }
        }
        self.take(&mut lease);
        unless_beaten(self.leases.replace(&self.name, &PostParams::default(), &lease).await)
    }

    /// Renews the Lease until that has failed for too long, or somebody else has it.
    async fn keep(&self, mut lease: Lease) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RETRY).await;
            let left = GIVE_UP.saturating_sub(renewed.elapsed());
            let mut next = lease.clone();
            if let Some(spec) = &mut next.spec {
                spec.renew_time = Some(MicroTime(Timestamp::now()));
            }
            let begun = Instant::now();
            let parameters = PostParams::default();
            let replaced = self.leases.replace(&self.name, &parameters, &next);
            match timeout(left, replaced).await {
                Ok(Ok(kept)) => (lease, renewed) = (kept, begun),
                Ok(Err(Error::Api(status))) if status.is_conflict() => {
                    let left = GIVE_UP.saturating_sub(renewed.elapsed());
                    match timeout(left, self.leases.get(&self.name)).await {
                        // An answer was lost, or somebody put a label on it.
                        Ok(Ok(found)) if self.holds(&found) => lease = found,
                        Ok(Ok(_)) => return,
                        Ok(Err(error)) => tracing::warn!(lease = self.name, %error, "cannot read the lease"),
                        Err(_) => tracing::warn!(lease = self.name, "the lease could not be read in time"),
                    }
                }
                Ok(Err(error)) => tracing::warn!(lease = self.name, %error, "cannot renew the lease"),
                Err(_) => tracing::warn!(lease = self.name, "the lease could not be renewed in time"),
            }
            if renewed.elapsed() >= GIVE_UP {
                return;
            }
        }
    }

    fn holds(&self, lease: &Lease) -> bool {
        lease.spec.as_ref().is_some_and(|spec| spec.holder_identity.as_deref() == Some(self.me.as_str()))
    }

    fn take(&self, lease: &mut Lease) {
        let now = MicroTime(Timestamp::now());
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(self.me.clone());
        spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default().saturating_add(1));
        spec.acquire_time = Some(now.clone());
        spec.renew_time = Some(now);
    }
}

/// `None` if another replica was faster.
fn unless_beaten(written: Result<Lease, Error>) -> Result<Option<Lease>, Error> {
    match written {
        Ok(lease) => Ok(Some(lease)),
        Err(Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(None),
        Err(error) => Err(error),
    }
}

/// A Lease unchanged for so long is free.
const DURATION: Duration = Duration::from_secs(15);
/// The holder stops, if it could not renew the Lease for so long.
const GIVE_UP: Duration = Duration::from_secs(10);
/// How long giving it back may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks, and two renewals.
const RETRY: Duration = Duration::from_secs(2);
