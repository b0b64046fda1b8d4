//! `tls` and `tcp` of VirtualServices, made into tables.

use std::sync::Arc;

use super::compile::{Compiler, is_mesh, tell};
use super::rule::{Choice, Cluster, Split};
use super::stream::{StreamPorts, StreamRule, StreamTable, takes_tls};
use crate::name::NamespacedName;
use crate::policy::{Finding, FindingReason};
use crate::reason::Reason;
use crate::service::{Service, ServicePort};
use crate::world::routing::{HeaderChanges, VirtualService};
use crate::world::stream;
use crate::world::stream::StreamMatch;

impl Compiler<'_> {
    /// The rules for each port of a service that does not say that it speaks HTTP: those of `tls`, of all VirtualServices
    /// of its most specific host, then those of `tcp`.
    pub fn streams(
        &self,
        service: &Service,
        all: &[&Arc<VirtualService>],
        findings: &mut Vec<Finding>,
    ) -> StreamPorts {
        let mut ports = StreamPorts::new();
        if all.iter().all(|of| of.tls.is_empty() && of.tcp.is_empty()) {
            return ports;
        }
        for of in all {
            for (number, rule) in of.tls.iter().enumerate() {
                let is_for = |one: &StreamMatch| {
                    let mut ports =
                        service.ports.iter().filter(|port| one.port.is_none_or(|of| of == port.number));
                    ports.any(|port| takes_tls(port, one.port.is_some()))
                };
                let alternatives = meshed(&of.gateways, rule);
                if !alternatives.is_empty() && !alternatives.iter().any(is_for) {
                    let message = format!(
                        "tls[{number}] is for no port of {}: have the port say that it speaks tls (appProtocol), or name \
                         its number in match",
                        service.hostname
                    );
                    tell(findings, &of.name, FindingReason::NeverMatches, message);
                }
            }
        }
        for port in service.ports.iter().filter(|port| !port.declared().is_http()) {
            let mut rules = Vec::new();
            for of in all {
                rules.extend(self.of_kind(of, "tls", &of.tls, port, findings));
            }
            for of in all {
                rules.extend(self.of_kind(of, "tcp", &of.tcp, port, findings));
            }
            if !rules.is_empty() {
                ports.insert(port.number, Arc::new(StreamTable::new(rules)));
            }
        }
        ports
    }

    fn of_kind(
        &self,
        of: &VirtualService,
        kind: &str,
        rules: &[stream::StreamRule],
        port: &ServicePort,
        findings: &mut Vec<Finding>,
    ) -> Vec<(StreamRule, Vec<StreamMatch>)> {
        let takes = |one: &StreamMatch| {
            one.port.is_none_or(|number| number == port.number)
                && (kind == "tcp" || takes_tls(port, one.port.is_some()))
        };
        let mut found = Vec::new();
        for (number, rule) in rules.iter().enumerate() {
            let alternatives: Vec<_> =
                meshed(&of.gateways, rule).into_iter().filter(|one| takes(one)).collect();
            if alternatives.is_empty() {
                continue;
            }
            let choices = rule.route.iter().map(|entry| {
                let (cluster, problem) = self.cluster(&entry.destination, &of.name.namespace);
                if let Some((reason, problem)) = problem {
                    tell(findings, &of.name, reason, format!("{kind}[{number}].route {problem}"));
                }
                let problem = format!("{kind}[{number}].route");
                let cluster = self.own(cluster, |reason, why| {
                    tell(findings, &of.name, reason, format!("{problem} {why}"));
                });
                (entry.weight, Choice { cluster, headers: HeaderChanges::default(), own: None })
            });
            let split = Ok(Split::new(choices.collect::<Vec<_>>()));
            let resource = Arc::new(of.name.clone());
            found.push((StreamRule { kind: "VirtualService", resource, split }, alternatives));
        }
        found
    }

    fn own(&self, cluster: Cluster, tell: impl FnOnce(FindingReason, String)) -> Cluster {
        match cluster.service.as_deref().ok().and_then(|service| past_waypoint(service, self.waypoint)) {
            None => cluster,
            Some(why) => {
                tell(FindingReason::RefNotPermitted, why);
                Cluster { service: Err(Reason::NotThroughWaypoint), ..cluster }
            }
        }
    }
}

/// The alternatives of a rule that count for waypoints; see [`super::compile::meshed`].
pub(super) fn meshed(gateways: &[String], rule: &stream::StreamRule) -> Vec<StreamMatch> {
    let of = |of: &&StreamMatch| is_mesh(if of.gateways.is_empty() { gateways } else { &of.gateways });
    match &rule.matches[..] {
        [] if is_mesh(gateways) => vec![StreamMatch::default()],
        [] => Vec::new(),
        matches => matches.iter().filter(of).cloned().collect(),
    }
}

/// Why a connection that comes through this waypoint can't be led to a service: it has one of its own, which would not
/// see it.
pub(super) fn past_waypoint(service: &Service, waypoint: &NamespacedName) -> Option<String> {
    let own = service.waypoint.as_ref().filter(|own| *own != waypoint)?;
    Some(format!(
        "leads to {}, which is reached through its own waypoint {own} alone: refused",
        service.hostname
    ))
}
