//! Resolves the names that the world leaves to DNS, and keeps them fresh.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
};
use orlop_identity::jwt::Resolve;
use orlop_model::Hosts;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

/// A name is asked for again once its time to live is over, within these bounds.
const MIN_TTL: Duration = Duration::from_secs(1);
const MAX_TTL: Duration = Duration::from_secs(300);
/// How long a start waits for addresses.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two attempts for a name that can't be resolved.
const RETRY: Duration = Duration::from_secs(2);

/// The names that the world wants resolved, and what DNS has for them.
pub struct Names {
    wanted: watch::Sender<BTreeSet<String>>,
    hosts: watch::Receiver<Arc<Hosts>>,
}

impl Names {
    /// Starts to resolve, at `server` or else at those of the node's `/etc/resolv.conf`. Must be called within a
    /// runtime.
    pub fn start(server: Option<SocketAddr>) -> Self {
        let (wanted, names) = watch::channel(BTreeSet::new());
        let (sender, hosts) = watch::channel(Arc::default());
        match resolver(server) {
            Ok(resolver) => drop(tokio::spawn(run(resolver, names, sender))),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(
                    error,
                    "hosts of the world stay unresolved; name a server with --host-resolver"
                );
            }
        }
        Self { wanted, hosts }
    }

    /// From now on, these are wanted.
    pub fn want(&self, names: BTreeSet<String>) {
        self.wanted.send_if_modified(|wanted| {
            let differs = *wanted != names;
            *wanted = names;
            differs
        });
    }

    /// What is known now.
    pub fn known(&mut self) -> Arc<Hosts> {
        Arc::clone(&self.hosts.borrow_and_update())
    }

    /// Until every wanted name has an address, or for [`PATIENCE`].
    pub async fn resolved(&mut self) {
        let wanted = self.wanted.borrow().clone();
        let all = |hosts: &Arc<Hosts>| wanted.iter().all(|name| hosts.contains_key(name));
        // Whichever it is: what is known then counts.
        let _ = timeout(PATIENCE, self.hosts.wait_for(all)).await;
    }

    /// Until [`Self::known`] would say something else than last time.
    pub async fn changed(&mut self) {
        if self.hosts.changed().await.is_err() {
            // Nobody resolves.
            std::future::pending().await
        }
    }
}

/// Looks up one name at a time, at `server` or else at those of `/etc/resolv.conf`.
pub fn resolve(server: Option<SocketAddr>) -> Resolve {
    let resolver = resolver(server).map_err(|error| format!("{error:#}"));
    Arc::new(move |host| {
        let resolver = resolver.clone();
        Box::pin(async move {
            let resolver = resolver.map_err(io::Error::other)?;
            let found = match resolver.lookup_ip(format!("{host}.")).await {
                // A name of the cluster may be short.
                Err(error) if error.is_no_records_found() => resolver.lookup_ip(host).await,
                found => found,
            };
            Ok(found.map_err(io::Error::other)?.iter().collect())
        })
    })
}

fn resolver(server: Option<SocketAddr>) -> anyhow::Result<TokioResolver> {
    let mut builder = match server {
        Some(server) => {
            let mut config = NameServerConfig::udp_and_tcp(server.ip());
            for connection in &mut config.connections {
                connection.port = server.port();
            }
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![config]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
        None => TokioResolver::builder_tokio().context("cannot read /etc/resolv.conf")?,
    };
    let options = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.positive_min_ttl = Some(MIN_TTL);
    options.positive_max_ttl = Some(MAX_TTL);
    // What is not there may come to be at any time: another answer is worth a question every other second.
    options.negative_max_ttl = Some(RETRY);
    builder.build().context("cannot make a resolver")
}

/// Keeps `hosts` in step with what DNS has for the `wanted` names, until nobody wants any more.
///
/// A name whose server does not answer keeps the addresses that it had.
async fn run(
    resolver: TokioResolver,
    mut wanted: watch::Receiver<BTreeSet<String>>,
    hosts: watch::Sender<Arc<Hosts>>,
) {
    let mut due: BTreeMap<String, Instant> = BTreeMap::new();
    let mut lookups = JoinSet::new();
    loop {
        let now = Instant::now();
        let names = wanted.borrow_and_update().clone();
        due.retain(|name, _| names.contains(name));
        for name in &names {
            let next = due.entry(name.clone()).or_insert(now);
            if *next <= now {
                // Until the answer is there.
                *next = now + MAX_TTL;
                lookups.spawn(lookup(resolver.clone(), name.clone()));
            }
        }
        forget(&hosts, &names);
        let next = due.values().min().copied().unwrap_or(now + MAX_TTL);
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            Some(Ok(found)) = lookups.join_next() => {
                // Else nobody wants it any more.
                if let Some(next) = due.get_mut(&found.name) {
                    *next = found.until;
                    found.publish(&hosts);
                }
            }
            () = sleep_until(next) => {}
        }
    }
}

/// Drops what is not among the names any more.
fn forget(hosts: &watch::Sender<Arc<Hosts>>, names: &BTreeSet<String>) {
    hosts.send_if_modified(|hosts| {
        let stale = hosts.keys().any(|name| !names.contains(name));
        if stale {
            Arc::make_mut(hosts).retain(|name, _| names.contains(name));
        }
        stale
    });
}

/// What a lookup came to.
struct Found {
    name: String,
    /// `None` if DNS did not answer.
    addresses: Option<Vec<IpAddr>>,
    until: Instant,
}

async fn lookup(resolver: TokioResolver, name: String) -> Found {
    // With a dot at its end it is looked up as it is, without the node's search path.
    match resolver.lookup_ip(format!("{name}.")).await {
        Ok(found) => {
            let until = Instant::from_std(found.valid_until()).max(Instant::now() + MIN_TTL);
            Found { name, addresses: Some(found.iter().collect()), until }
        }
        Err(error) => {
            tracing::warn!(name, %error, "cannot resolve a host of the world");
            // That there is no such name or address is an answer too.
            let addresses = error.is_no_records_found().then(Vec::new);
            Found { name, addresses, until: Instant::now() + RETRY }
        }
    }
}

impl Found {
    fn publish(self, hosts: &watch::Sender<Arc<Hosts>>) {
        let Some(addresses) = self.addresses else { return };
        hosts.send_if_modified(|hosts| {
            let known = hosts.get(&self.name).map(Vec::as_slice).unwrap_or_default();
            // Servers like to shuffle: that is no change.
            let same = |address: &IpAddr| known.contains(address);
            let differs = known.len() != addresses.len() || !addresses.iter().all(same);
            if differs {
                tracing::info!(name = self.name, ?addresses, "resolved a host of the world");
                Arc::make_mut(hosts).insert(self.name, addresses);
            }
            differs
        });
    }
}
