use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use super::authorize::RequestPolicies;
use super::by_host::ByHost;
use super::by_service::ByService;
use super::callee::Callees;
use super::destination::Destinations;
use super::findings::unread;
use super::gateway_api::{Attaching, Grants};
use super::hidden::hidden_tls;
use super::ingress::Ingress;
use super::made::{Lookup, Made};
use super::own::{Own, OwnGateway};
use super::rule::{Action, Choice, Cluster, MirrorTo, Rule, Split};
use super::table::Table;
use super::told::Telling;
use super::traffic::credentials;
use super::{Routes, Tables};
use crate::compile::Settings;
use crate::gateway::Attachments;
use crate::locality::of_node;
use crate::name::NamespacedName;
use crate::policy::{
    Finding, FindingReason, Severity, limit_findings, provider_findings, telemetry_findings, token_findings,
};
use crate::reason::Reason;
use crate::service::Service;
use crate::snapshot::Snapshot;
use crate::world::World;
use crate::world::routing::{Destination, HttpMatch, HttpRule, RuleAction, VirtualService};

const VIRTUAL_SERVICE: &str = "VirtualService";
/// What stands for all sidecars and waypoints among gateways.
pub(super) const MESH: &str = "mesh";

fn own_credentials(world: &World, namespace: &str) -> BTreeSet<NamespacedName> {
    let own = credentials(world).remove(namespace).unwrap_or_default();
    own.iter().map(|name| NamespacedName::new(namespace, name)).collect()
}

impl Tables {
    /// Where the rules lead.
    fn clusters(&self) -> impl Iterator<Item = &Cluster> {
        let streams = self.streams.values().flat_map(|table| table.clusters());
        self.requests.iter().flat_map(|table| table.clusters()).chain(streams)
    }
}

impl Snapshot {
    /// Makes ready the routes of the services behind this waypoint, as the world has them.
    pub fn with_routes(
        self,
        waypoint: &NamespacedName,
        world: &World,
        settings: &Settings,
        grants: Grants,
    ) -> Self {
        self.with_routes_after(None, waypoint, world, settings, grants)
    }

    /// The same, and what is made of things that have not changed since the snapshot of an earlier state is kept from
    /// that. Waypoint, settings and grants must be the same.
    pub fn with_routes_after(
        mut self,
        before: Option<&Snapshot>,
        waypoint: &NamespacedName,
        world: &World,
        settings: &Settings,
        grants: Grants,
    ) -> Self {
        let none = Routes::default();
        let before = before.map_or(&none, |snapshot| &snapshot.routes);
        let behind = |service: &&Arc<Service>| service.waypoint.as_ref() == Some(waypoint);
        let all = self.services.values().chain(self.service_entries.iter());
        let compiler = Compiler::new(world, settings, &self, waypoint);
        let mut findings = Vec::new();
        let mut tables = ByService::default();
        for service in all.clone().filter(behind) {
            let rules = compiler.most_specific(service);
            if rules.is_empty() {
                continue;
            }
            let made = Made::after(
                before.tables.get(service),
                Some(service),
                &rules,
                &compiler.lookup,
                |findings| {
                    let requests = compiler.table(&rules, findings).map(Arc::new);
                    Tables { requests, streams: compiler.streams(service, &rules, findings) }
                },
            );
            findings.extend_from_slice(&made.findings);
            tables.insert(service, made);
        }
        findings.extend(unread(world));
        findings.extend(hidden_tls(world, settings));
        findings.extend(self.backend_findings(world));
        let attaching = Attaching::new(world, &self, Some(waypoint), grants);
        let attached = attaching.all(&before.attached, &tables, &mut findings);
        let clusters = tables.values().flat_map(|of| of.made.clusters());
        let destinations =
            Destinations::after(&before.destinations, world, settings, &waypoint.namespace, clusters);
        let own = Own::waypoint(world, settings, waypoint);
        let policies = RequestPolicies::new(world, settings, &own, all.clone());
        findings.extend(policies.findings(world, &own));
        findings.extend(limit_findings(world, settings, all.clone()));
        findings.extend(telemetry_findings(world, settings, all.clone()));
        findings.extend(token_findings(world, settings, all));
        findings.extend(provider_findings(world, settings, &self));
        let node = world.nodes.get(settings.node.as_str());
        self.routes = Arc::new(Routes {
            tables,
            attached,
            ingress: None,
            destinations,
            credentials: own_credentials(world, &waypoint.namespace),
            policies,
            callees: Callees::new(world, settings),
            telling: Telling::new(world, &own),
            pods: world.pods.clone(),
            node_addresses: node.map(|node| node.addresses.clone()).unwrap_or_default(),
            node: settings.node.clone(),
            locality: of_node(world, &settings.node),
        });
        self.route_findings = findings;
        self.findings = OnceLock::new();
        self
    }

    /// Makes ready the routes that are attached to this gateway, as the world has them. To lead to another namespace they
    /// need a ReferenceGrant of that.
    pub fn with_gateway(self, gateway: &OwnGateway, world: &World, settings: &Settings) -> Self {
        self.with_gateway_after(None, gateway, world, settings)
    }

    /// The same, as [`with_routes_after`](Self::with_routes_after) is of routes.
    pub fn with_gateway_after(
        mut self,
        before: Option<&Snapshot>,
        gateway: &OwnGateway,
        world: &World,
        settings: &Settings,
    ) -> Self {
        let none = Routes::default();
        let before = before.map_or(&none, |snapshot| &snapshot.routes);
        let mut findings = Vec::new();
        let ingress = world.gateways.get(&gateway.name).map(|of| {
            let attachments = Attachments::new(world, of);
            let attaching = Attaching::new(world, &self, None, Grants::Required);
            Ingress::after(before.ingress.as_ref(), &attaching, &attachments, &mut findings)
        });
        findings.extend(hidden_tls(world, settings));
        findings.extend(self.backend_findings(world));
        let own = Own::gateway(world, settings, gateway);
        let policies = RequestPolicies::new(world, settings, &own, std::iter::empty());
        let clusters = ingress.iter().flat_map(Ingress::clusters);
        let destinations =
            Destinations::after(&before.destinations, world, settings, &gateway.name.namespace, clusters);
        findings.extend(policies.findings(world, &own));
        let node = world.nodes.get(settings.node.as_str());
        self.routes = Arc::new(Routes {
            ingress,
            destinations,
            credentials: own_credentials(world, &gateway.name.namespace),
            policies,
            pods: world.pods.clone(),
            callees: Callees::new(world, settings),
            telling: Telling::new(world, &own),
            node_addresses: node.map(|node| node.addresses.clone()).unwrap_or_default(),
            node: settings.node.clone(),
            locality: of_node(world, &settings.node),
            ..Routes::default()
        });
        self.route_findings = findings;
        self.findings = OnceLock::new();
        self
    }

    /// The routes of the services behind the waypoint, or of the gateway, that this is the snapshot of; none for a node.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }
}

pub(super) struct Compiler<'a> {
    settings: &'a Settings,
    lookup: Lookup<'a>,
    pub waypoint: &'a NamespacedName,
    /// Those that the waypoint's namespace may see, the oldest first.
    virtual_services: ByHost<Vec<&'a Arc<VirtualService>>>,
}

impl<'a> Compiler<'a> {
    fn new(
        world: &'a World,
        settings: &'a Settings,
        snapshot: &'a Snapshot,
        waypoint: &'a NamespacedName,
    ) -> Self {
        let all = world.virtual_services.values();
        let mut all: Vec<_> = all.filter(|of| of.exports.include(&waypoint.namespace)).collect();
        all.sort_by_key(|of| (of.created, &of.name));
        let mut virtual_services: ByHost<Vec<&Arc<VirtualService>>> = ByHost::default();
        for of in all {
            // In Istio, too, * is for gateways alone: whoever wrote it would have what all others say to each other.
            for host in of.hosts.iter().filter(|host| *host != "*") {
                let same = virtual_services.entry(&full_host(host, &of.name.namespace, settings));
                if same.last().is_none_or(|last| !Arc::ptr_eq(last, of)) {
                    same.push(of);
                }
            }
        }
        Self { settings, lookup: Lookup::new(world, snapshot), waypoint, virtual_services }
    }

    /// The rules for a service, of all VirtualServices of its most specific host, the oldest first.
    fn table(&self, of_host: &[&Arc<VirtualService>], findings: &mut Vec<Finding>) -> Option<Table> {
        let mut found = of_host.to_vec();
        found.retain(|of| of.http.iter().any(|rule| !meshed(&of.gateways, rule).is_empty()));
        if let [first, others @ ..] = &found[..]
            && !others.is_empty()
        {
            for other in others {
                let message =
                    format!("is for the same host as the older {}, whose rules come first", first.name);
                tell(findings, &other.name, FindingReason::Merged, message);
            }
        }
        let rules: Vec<_> = found.iter().flat_map(|of| self.rules(of, findings)).collect();
        // A VirtualService without HTTP rules says nothing of HTTP.
        (!rules.is_empty()).then(|| Table::new(rules))
    }

    /// The VirtualServices of a service's most specific host, the oldest first.
    fn most_specific(&self, service: &Service) -> Vec<&'a Arc<VirtualService>> {
        self.virtual_services.of(&service.hostname).next().cloned().unwrap_or_default()
    }

    fn rules(&self, of: &VirtualService, findings: &mut Vec<Finding>) -> Vec<(Rule, Vec<Vec<HttpMatch>>)> {
        let mut found = Vec::new();
        for (number, rule) in of.http.iter().enumerate() {
            let alternatives = meshed(&of.gateways, rule);
            if alternatives.is_empty() {
                continue;
            }
            let RuleAction::Delegate(name) = &rule.action else {
                let alternatives = alternatives.into_iter().map(|of| vec![of]).collect();
                found.push((self.rule(Written { of, number, rule }, None, findings), alternatives));
                continue;
            };
            let delegate = self.lookup.virtual_service(name);
            let Some(delegate) = delegate.filter(|delegate| delegate.exports.include(&of.name.namespace))
            else {
                let message = format!("http[{number}] delegates to {name}, which is not there");
                tell(findings, &of.name, FindingReason::NoSuchDelegate, message);
                continue;
            };
            if !delegate.hosts.is_empty() {
                let message = format!("http[{number}] delegates to {name}, which has hosts of its own");
                tell(findings, &of.name, FindingReason::NoSuchDelegate, message);
                continue;
            }
            for (inner, sub) in delegate.http.iter().enumerate() {
                if let RuleAction::Delegate(_) = sub.action {
                    let message = format!("http[{inner}] delegates again, which a delegate must not");
                    tell(findings, &delegate.name, FindingReason::NoSuchDelegate, message);
                    continue;
                }
                let own = meshed(&delegate.gateways, sub);
                if own.is_empty() {
                    continue;
                }
                let pairs = alternatives
                    .iter()
                    .flat_map(|outer| own.iter().map(|own| vec![outer.clone(), own.clone()]));
                let pairs = pairs.collect();
                let sub = Written { of: delegate, number: inner, rule: sub };
                found.push((self.rule(sub, Some(Written { of, number, rule }), findings), pairs));
            }
        }
        found
    }

    /// A rule; what a delegate's does not say, the one that delegates does.
    fn rule(&self, own: Written<'_>, root: Option<Written<'_>>, findings: &mut Vec<Finding>) -> Rule {
        let mut cluster = |at: Written<'_>, destination: &Destination, field: &str| {
            let (cluster, problem) = self.cluster(destination, &at.of.name.namespace);
            if let Some((reason, problem)) = problem {
                tell(findings, &at.of.name, reason, format!("http[{}].{field} {problem}", at.number));
            }
            cluster
        };
        let (rule, outer) = (own.rule, root.map(|root| root.rule));
        let action = match &rule.action {
            RuleAction::Redirect(redirect) => Action::Redirect(redirect.clone()),
            RuleAction::Direct(answer) => Action::Direct(answer.clone()),
            RuleAction::Route(route) => Action::Route(Split::new(route.iter().map(|of| {
                let cluster = cluster(own, &of.destination, "route");
                (of.weight, Choice { cluster, headers: of.headers.clone(), own: None })
            }))),
            RuleAction::Delegate(_) => Action::Route(Split::new([])),
        };
        let mirroring = root.filter(|_| rule.mirrors.is_empty()).unwrap_or(own);
        let mirrors = mirroring.rule.mirrors.iter().map(|mirror| MirrorTo {
            cluster: cluster(mirroring, &mirror.destination, "mirror"),
            percent: mirror.percent,
        });
        let mirrors = mirrors.collect();
        Rule {
            name: rule.name.clone(),
            kind: VIRTUAL_SERVICE,
            resource: Arc::new(own.of.name.clone()),
            root: root.map(|root| Arc::new(root.of.name.clone())),
            action,
            rewrite: said(rule, outer, |rule| &rule.rewrite),
            timeout: said(rule, outer, |rule| &rule.timeout).filter(|timeout| !timeout.is_zero()),
            retries: said(rule, outer, |rule| &rule.retries).unwrap_or_default(),
            fault: said(rule, outer, |rule| &rule.fault).unwrap_or_default(),
            mirrors,
            cors: said(rule, outer, |rule| &rule.cors),
            headers: said(rule, outer, |rule| &rule.headers).unwrap_or_default(),
        }
    }

    pub fn cluster(
        &self,
        destination: &Destination,
        namespace: &str,
    ) -> (Cluster, Option<(FindingReason, String)>) {
        let host = full_host(&destination.host, namespace, self.settings);
        let service = self.lookup.service_named(namespace, &host).cloned();
        let problem = missing(service.as_deref(), &host, destination.port);
        let subset = destination.subset.clone();
        let service = service.ok_or(Reason::NoSuchDestination);
        (Cluster { host, service, port: destination.port, subset, needs_tls: false }, problem)
    }
}

/// A rule, and where it is written: there short names are at home.
#[derive(Clone, Copy)]
struct Written<'a> {
    of: &'a VirtualService,
    number: usize,
    rule: &'a HttpRule,
}

/// A finding of a VirtualService.
pub(super) fn tell(
    findings: &mut Vec<Finding>,
    name: &NamespacedName,
    reason: FindingReason,
    message: String,
) {
    let severity = if reason == FindingReason::Merged { Severity::Warning } else { Severity::Error };
    findings.push(Finding { kind: VIRTUAL_SERVICE, name: name.clone(), severity, reason, message });
}

/// The alternatives of a rule that count for waypoints: a match's own gateways count before the VirtualService's.
pub(super) fn meshed(gateways: &[String], rule: &HttpRule) -> Vec<HttpMatch> {
    let of = |of: &&HttpMatch| is_mesh(if of.gateways.is_empty() { gateways } else { &of.gateways });
    match &rule.matches[..] {
        [] if is_mesh(gateways) => vec![HttpMatch::default()],
        [] => Vec::new(),
        matches => matches.iter().filter(of).cloned().collect(),
    }
}

/// Whether gateways that are named so mean waypoints as well.
pub(super) fn is_mesh(gateways: &[String]) -> bool {
    gateways.is_empty() || gateways.iter().any(|name| name == MESH)
}

/// What a destination leads to that is not there.
pub(super) fn missing(
    service: Option<&Service>,
    host: &str,
    port: Option<u16>,
) -> Option<(FindingReason, String)> {
    match (service, port) {
        (None, _) => {
            Some((FindingReason::NoSuchService, format!("leads to {host}, which is no service: 503")))
        }
        (Some(service), Some(port)) if service.port(port).is_none() => {
            let message = format!("leads to port {port} of {host}, which has none: 503");
            Some((FindingReason::NoSuchPort, message))
        }
        _ => None,
    }
}

/// What a rule says itself, as a whole, or else the one that delegates to it: so Istio merges them.
fn said<T: Clone>(
    rule: &HttpRule,
    outer: Option<&HttpRule>,
    field: impl Fn(&HttpRule) -> &Option<T>,
) -> Option<T> {
    field(rule).as_ref().or_else(|| field(outer?).as_ref()).cloned()
}

/// How closely a host names another: itself before wildcards, the longer of those first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Specificity(usize);

/// Whether `host`, which may be `*` or begin with `*.`, names this one, and how closely.
pub(super) fn specificity(host: &str, named: &str) -> Option<Specificity> {
    match host.strip_prefix('*') {
        None => (host == named).then_some(Specificity(usize::MAX)),
        Some(suffix) => {
            let longer = named.len() > suffix.len();
            (longer && named.ends_with(suffix)).then_some(Specificity(suffix.len()))
        }
    }
}

/// A name without dots is that of a service of the namespace.
pub(super) fn full_host(host: &str, namespace: &str, settings: &Settings) -> String {
    if host.contains('.') || host.starts_with('*') {
        return host.to_owned();
    }
    format!("{host}.{namespace}.svc.{}", settings.cluster_domain)
}
