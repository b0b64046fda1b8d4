//! `orlop explain --replay`: what a changed world would do to connections that were made.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::Context as _;
use orlop_model::{
    Caller, Connection, Hosts, Identity, NamespacedName, Reason, Snapshot, Text, Workload, World,
    compile_after,
};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    cli::NameArguments,
    explain::{Fate, fate, is_tunnelled, needs_dns, routes},
};

/// A flow as far as it matters here; see `orlop_proxy::Flow`.
#[derive(Debug, Deserialize)]
struct Recorded {
    src: Option<SocketAddr>,
    #[serde(default, deserialize_with = "parsed")]
    src_workload: Option<NamespacedName>,
    #[serde(default, deserialize_with = "parsed")]
    src_identity: Option<Identity>,
    #[serde(default, deserialize_with = "parsed")]
    caller_identity: Option<Identity>,
    dialled: Option<SocketAddr>,
    dst: Option<SocketAddr>,
    #[serde(default, deserialize_with = "parsed")]
    dst_workload: Option<NamespacedName>,
    dst_service: Option<String>,
    tunnel: Option<SocketAddr>,
    #[serde(default, deserialize_with = "parsed")]
    reason: Option<Reason>,
}

/// How a connection fares, as far as a change of it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Tunnelled,
    InClear,
    Refused,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tunnelled => "let in by HBONE",
            Self::InClear => "let in in clear",
            Self::Refused => "refused",
        })
    }
}

/// Judges the flows of a file and prints those that fare differently in this world. True if none does.
pub fn run(world: &World, names: &NameArguments, path: &Path) -> anyhow::Result<bool> {
    let reader: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?))
    };
    let mut views = Views { world, names, by_node: BTreeMap::new() };
    let (mut judged, mut skipped) = (0, 0);
    let mut changes: BTreeMap<String, usize> = BTreeMap::new();
    for (line, number) in reader.lines().zip(1..) {
        let place = || format!("{}:{number}", path.display());
        let line = line.with_context(place)?;
        if line.trim().is_empty() {
            continue;
        }
        let flow: Recorded = serde_json::from_str(&line).with_context(place)?;
        let snapshot = views.of_node_of(flow.src_workload.as_ref());
        let (Some(before), Some((after, why))) = (flow.outcome(), flow.judge(snapshot)) else {
            skipped += 1;
            continue;
        };
        judged += 1;
        if before != after {
            let change = format!("{}: was {before}, would be {why}", flow.title());
            *changes.entry(change).or_default() += 1;
        }
    }
    for (change, count) in &changes {
        println!("{count:>6} × {change}");
    }
    let changed: usize = changes.values().sum();
    println!("{judged} flows judged, {changed} would fare differently");
    if skipped > 0 {
        println!(
            "{skipped} flows not judged: no policy was asked about them, their pods are gone, or DNS decides"
        );
    }
    Ok(changed == 0)
}

/// The world as nodes see it, which differs where services care for locality.
struct Views<'a> {
    world: &'a World,
    names: &'a NameArguments,
    by_node: BTreeMap<Text, Snapshot>,
}

impl Views<'_> {
    /// As the node of this pod sees it.
    fn of_node_of(&mut self, pod: Option<&NamespacedName>) -> &Snapshot {
        let node = pod.and_then(|name| self.world.pods.get(name)?.node.clone()).unwrap_or_default();
        if !self.by_node.contains_key(&node) {
            let other = self.by_node.values().next();
            let settings = self.names.settings(&node);
            let snapshot = compile_after(other, self.world, &Hosts::new(), &settings, 1);
            self.by_node.insert(node.clone(), snapshot);
        }
        &self.by_node[&node]
    }
}

impl Recorded {
    /// How it fared; `None` where it ended before anything that the world decides.
    fn outcome(&self) -> Option<Outcome> {
        match self.reason {
            Some(
                Reason::PolicyDenied
                | Reason::PlaintextRefused
                | Reason::PeerRefused
                | Reason::NoServicePort
                | Reason::NoHealthyEndpoint
                | Reason::NoReadyWaypoint
                | Reason::NotThroughWaypoint,
            ) => Some(Outcome::Refused),
            None
            | Some(
                Reason::Reset
                | Reason::TunnelClosed
                | Reason::IdleTimeout
                | Reason::MaxDuration
                | Reason::ConnectFailed
                | Reason::ConnectTimeout,
            ) => Some(if self.tunnel.is_some() { Outcome::Tunnelled } else { Outcome::InClear }),
            Some(_) => None,
        }
    }

    /// How it would fare now, and why; `None` where a pod of it is gone.
    fn judge(&self, snapshot: &Snapshot) -> Option<(Outcome, String)> {
        let (tunnelled, fate) = match &self.src_workload {
            // A waypoint is who it showed to be, whoever it spoke for.
            Some(name) if self.caller_identity.is_none() => {
                self.of_pod(snapshot, snapshot.workload(name)?)?
            }
            _ => (self.tunnel.is_some(), self.of_outsider(snapshot)?),
        };
        let outcome = match fate {
            Fate::Refused { .. } => Outcome::Refused,
            _ if tunnelled => Outcome::Tunnelled,
            _ => Outcome::InClear,
        };
        let why = if outcome == Outcome::Refused { fate.to_string() } else { format!("{outcome}: {fate}") };
        Some((outcome, why))
    }

    /// Whether it would be tunnelled, and what would become of it.
    fn of_pod(&self, snapshot: &Snapshot, source: &Workload) -> Option<(bool, Fate)> {
        let dialled = self.dialled_now(snapshot)?;
        if needs_dns(snapshot, source, dialled) {
            return None;
        }
        let routes = match routes(snapshot, source, dialled) {
            Ok(routes) => routes,
            Err(reason) => return Some((false, Fate::Refused { reason, detail: String::new() })),
        };
        // Of a service's endpoints that which it had, if there still is that one.
        let same = |route: &&orlop_model::Route| {
            route.workload.as_ref().is_some_and(|workload| Some(&workload.name) == self.dst_workload.as_ref())
        };
        let route = routes.iter().find(same).or(routes.first())?;
        Some((is_tunnelled(source, route), fate(snapshot, source, route)))
    }

    /// A client that is no pod shows what it showed.
    fn of_outsider(&self, snapshot: &Snapshot) -> Option<Fate> {
        let address = self.dialled_now(snapshot)?;
        let destination = snapshot.workload_at(address.ip())?;
        if !destination.enrolled {
            return Some(Fate::PassedOn);
        }
        let connection = Connection {
            source_identity: self.src_identity.as_ref(),
            source: self.src?.ip(),
            destination,
            address,
        };
        let caller = self.caller_identity.as_ref();
        let caller = caller.map(|identity| Caller { identity, address: connection.source });
        Some(match snapshot.admit_for(&connection, caller) {
            Ok(judgement) => Fate::LetIn(judgement),
            Err(refused) => Fate::Refused { reason: refused.reason, detail: refused.detail },
        })
    }

    /// What would be dialled now: services and pods are found by their names, since addresses change.
    fn dialled_now(&self, snapshot: &Snapshot) -> Option<SocketAddr> {
        let was = self.dialled.or(self.dst)?;
        let current = |addresses: &[IpAddr]| {
            let same = addresses.iter().find(|&&ip| ip == was.ip());
            let family = addresses.iter().find(|ip| ip.is_ipv4() == was.is_ipv4());
            Some(SocketAddr::new(*same.or(family)?, was.port()))
        };
        if let Some(hostname) = &self.dst_service {
            let service =
                snapshot.services().chain(snapshot.service_entries()).find(|of| of.hostname == *hostname)?;
            return current(&service.vips);
        }
        match &self.dst_workload {
            Some(name) => current(&snapshot.workload(name)?.addresses),
            None => Some(was),
        }
    }

    fn title(&self) -> String {
        let from = match (&self.src_workload, self.src) {
            (Some(name), _) => name.to_string(),
            (None, Some(address)) => address.ip().to_string(),
            (None, None) => "somebody".to_owned(),
        };
        let port = self.dialled.or(self.dst).map_or(0, |address| address.port());
        let to = match (&self.dst_service, &self.dst_workload, self.dst) {
            (Some(host), ..) => host.clone(),
            (None, Some(name), _) => name.to_string(),
            (None, None, Some(address)) => address.ip().to_string(),
            (None, None, None) => "somewhere".to_owned(),
        };
        format!("{from} → {to}:{port}")
    }
}

fn parsed<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err: fmt::Display>,
{
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
}
