//! What the authors of routes should know, whatever waypoint those are for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::compile::{MESH, full_host, meshed, missing, specificity};
use super::destination::{labels_of, most_specific};
use super::gateway_api::{Attaching, Grants, survey_routes};
use super::hidden::{hidden, hidden_tls};
use super::ingress::Ingress;
use super::traffic::{first_policy, secures};
use super::virtual_streams;
use crate::compile::Settings;
use crate::gateway::Attachments;
use crate::name::NamespacedName;
use crate::policy::{
    Finding, FindingReason, Severity, limit_findings, provider_findings, shown, telemetry_findings,
    token_findings,
};
use crate::service::Service;
use crate::snapshot::Snapshot;
use crate::text::Text;
use crate::world::routing::{
    Destination, DestinationRule, HttpRule, RuleAction, ServerTls, Subset, VirtualService,
};
use crate::world::stream::StreamRule;
use crate::world::{Labels, Protocol, ServiceEntry, World};

impl Snapshot {
    /// Its findings, and what can be told of all routes and ServiceEntries of the world that it is of, sorted.
    pub fn findings_of_all(&self, world: &World, settings: &Settings) -> Vec<Finding> {
        let mut survey = Survey::new(world, settings, self);
        world.virtual_services.values().for_each(|of| survey.virtual_service(of));
        survey.same_hosts();
        world.destination_rules.values().for_each(|of| survey.destination_rule(of));
        world.service_entries.values().for_each(|of| survey.service_entry(of));
        let mut found = survey.found;
        found.extend(unread(world));
        found.extend(hidden_tls(world, settings));
        found.extend(self.backend_findings(world));
        let services = || self.services().chain(self.service_entries());
        found.extend(survey_routes(world, self));
        found.extend(limit_findings(world, settings, services()));
        found.extend(telemetry_findings(world, settings, services()));
        found.extend(token_findings(world, settings, services()));
        found.extend(provider_findings(world, settings, self));
        found.extend(self.findings().iter().cloned());
        found.sort();
        found.dedup();
        found
    }
}

/// What is written and has no effect, or has that requests are refused.
pub(super) fn unread(world: &World) -> impl Iterator<Item = Finding> {
    let rules = world.destination_rules.values();
    let refusals = rules.flat_map(|rule| refusals(rule).map(|why| (&rule.name, why)));
    ignored(world).chain(unmatched(world)).chain(refusals.map(|(name, why)| Finding {
        kind: "DestinationRule",
        name: name.clone(),
        severity: Severity::Error,
        reason: FindingReason::FieldsNotEnforced,
        message: format!("{why}, so that what would go there is refused: 503"),
    }))
}

/// Matches by what can't be told.
fn unmatched(world: &World) -> impl Iterator<Item = Finding> {
    world.virtual_services.values().flat_map(|of| {
        let rules = of.tcp.iter().enumerate().filter(|(_, rule)| {
            let mut matches = virtual_streams::meshed(&of.gateways, rule).into_iter();
            matches.any(|of| of.source_namespace.as_deref() == Some(""))
        });
        rules.map(|(number, _)| Finding {
            kind: "VirtualService",
            name: of.name.clone(),
            severity: Severity::Error,
            reason: FindingReason::FieldsNotEnforced,
            message: format!(
                "tcp[{number}] has a match with sourceSubnet, which can't be told here, so that it matches nobody"
            ),
        })
    })
}

/// The TLS that a waypoint can't do.
fn refusals(rule: &DestinationRule) -> impl Iterator<Item = &str> {
    let policies = rule.subsets.iter().map(|subset| &subset.policy).chain([&rule.policy]);
    let all = policies.flat_map(|policy| policy.ports.iter().map(|(_, of_port)| of_port).chain([policy]));
    all.filter_map(|policy| match &policy.tls {
        Some(ServerTls::Unavailable(why)) => Some(why.as_str()),
        _ => None,
    })
}

fn ignored(world: &World) -> impl Iterator<Item = Finding> {
    let virtual_services = world.virtual_services.values().map(|of| ("VirtualService", &of.name, &of.unread));
    let rules = world.destination_rules.values().map(|of| ("DestinationRule", &of.name, &of.unread));
    let all = virtual_services.chain(rules).filter(|(.., unread)| !unread.is_empty());
    all.map(|(kind, name, unread)| Finding {
        kind,
        name: name.clone(),
        severity: Severity::Warning,
        reason: FindingReason::FieldsNotEnforced,
        message: format!("{} is not read yet and has no effect", unread.join(", ")),
    })
}

impl Snapshot {
    /// What can be told of the routes that name these Gateways, attached or not, as far as these are there.
    pub fn findings_of_gateways(&self, world: &World, gateways: &BTreeSet<NamespacedName>) -> Vec<Finding> {
        let mut found = Vec::new();
        let attaching = Attaching::new(world, self, None, Grants::Required);
        for gateway in gateways.iter().filter_map(|name| world.gateways.get(name)) {
            let attachments = Attachments::new(world, gateway);
            Ingress::after(None, &attaching, &attachments, &mut found);
            let refused = attachments.all_refused().filter(|(kind, ..)| !kind.is_stream());
            for route in refused.filter_map(|(kind, name, ..)| world.route(kind, name)) {
                found.extend_from_slice(&attaching.made_at_gateway(None, &[route]).findings);
            }
        }
        found.sort();
        found.dedup();
        found
    }
}

struct Survey<'a> {
    world: &'a World,
    settings: &'a Settings,
    snapshot: &'a Snapshot,
    /// DestinationRules by their host, in full.
    rules: HashMap<String, OfNamespaces<'a>>,
    /// Those of several hosts.
    wide: OfNamespaces<'a>,
    /// What is known already of services.
    known: HashMap<*const Service, OfService<'a>>,
    delegates: BTreeSet<&'a NamespacedName>,
    found: Vec<Finding>,
}

/// DestinationRules by their namespace.
type OfNamespaces<'a> = BTreeMap<&'a str, Vec<&'a DestinationRule>>;

/// What DestinationRules say of a service, which many of them may be for.
#[derive(Default)]
struct OfService<'a> {
    /// The subsets that clients of some namespace find.
    subsets: Option<BTreeSet<&'a str>>,
    /// The rule that clients go by who have none of their own namespace's, if it asks for TLS.
    secured: Option<Option<&'a DestinationRule>>,
    /// The rule that clients of a namespace go by.
    first: BTreeMap<&'a str, Option<&'a DestinationRule>>,
}

impl<'a> Survey<'a> {
    fn new(world: &'a World, settings: &'a Settings, snapshot: &'a Snapshot) -> Self {
        let mut rules: HashMap<_, OfNamespaces<'_>> = HashMap::new();
        let mut wide = OfNamespaces::new();
        for rule in world.destination_rules.values().map(|rule| &**rule) {
            let namespace = &*rule.name.namespace;
            let of_host = if rule.host.starts_with('*') {
                &mut wide
            } else {
                rules.entry(full_host(&rule.host, namespace, settings)).or_default()
            };
            of_host.entry(namespace).or_default().push(rule);
        }
        let delegates = world.virtual_services.values().flat_map(|of| &of.http).filter_map(|rule| {
            let RuleAction::Delegate(name) = &rule.action else { return None };
            Some(name)
        });
        let delegates = delegates.collect();
        let (known, found) = (HashMap::new(), Vec::new());
        Self { world, settings, snapshot, rules, wide, known, delegates, found }
    }

    fn tell(&mut self, of: (&'static str, &NamespacedName), reason: FindingReason, message: String) {
        let severity = match reason {
            FindingReason::NoSuchService
            | FindingReason::NoSuchPort
            | FindingReason::NoSuchSubset
            | FindingReason::NoSuchDelegate => Severity::Error,
            _ => Severity::Warning,
        };
        self.found.push(Finding { kind: of.0, name: of.1.clone(), severity, reason, message });
    }

    fn virtual_service(&mut self, of: &VirtualService) {
        let me = ("VirtualService", &of.name);
        let rules = of.http.iter().enumerate();
        let rules: Vec<_> = rules.filter(|(_, rule)| !meshed(&of.gateways, rule).is_empty()).collect();
        let streams = of.tls.iter().enumerate().map(|(number, rule)| ("tls", number, rule));
        let streams = streams.chain(of.tcp.iter().enumerate().map(|(number, rule)| ("tcp", number, rule)));
        let is_meshed = |rule: &StreamRule| !virtual_streams::meshed(&of.gateways, rule).is_empty();
        let streams: Vec<_> = streams.filter(|(.., rule)| is_meshed(rule)).collect();
        let has_any = !of.http.is_empty() || !of.tls.is_empty() || !of.tcp.is_empty();
        let is_meshed = !rules.is_empty() || !streams.is_empty();
        if of.hosts.is_empty() && !self.delegates.contains(&of.name) {
            let message = "has no hosts, and no VirtualService delegates to it, so it has no effect";
            self.tell(me, FindingReason::SelectsNothing, message.to_owned());
        } else if !is_meshed && has_any {
            let of_matches = of.http.iter().flat_map(|rule| &rule.matches).flat_map(|of| &of.gateways);
            let names: BTreeSet<_> = of.gateways.iter().chain(of_matches).map(String::as_str).collect();
            let names = names.into_iter().filter(|name| *name != MESH).collect::<Vec<_>>().join(", ");
            let message = format!(
                "is for Istio's Gateways alone ({names}), which are not read: attach an HTTPRoute to a Gateway of class \
                 orlop, or name mesh among them to have waypoints go by it"
            );
            self.tell(me, FindingReason::NoGateway, message);
        } else if is_meshed {
            for host in &of.hosts {
                if host == "*" {
                    let message = "the host * is for gateways alone, so it has no effect here: name hosts";
                    self.tell(me, FindingReason::NoSuchService, message.to_owned());
                    continue;
                }
                self.host(me, host, |waypoint| of.exports.include(waypoint));
            }
        }
        for (number, rule) in rules {
            self.rule(of, number, rule);
        }
        for (kind, number, rule) in streams {
            for (index, entry) in rule.route.iter().enumerate() {
                self.destination(of, &format!("{kind}[{number}].route[{index}]"), &entry.destination);
            }
        }
    }

    /// Whether there is such a host, and a waypoint before it.
    fn host(&mut self, me: (&'static str, &NamespacedName), host: &str, exported: impl Fn(&str) -> bool) {
        let services = self.services(host, &me.1.namespace);
        let mut waypoints = services.iter().filter_map(|service| service.waypoint.as_ref()).peekable();
        let (reason, message) = if services.is_empty() {
            let message = format!("{host} is no service here, so it has no effect on requests to it");
            (FindingReason::NoSuchService, message)
        } else if let Some(first) = waypoints.peek().copied() {
            if waypoints.any(|waypoint| exported(&waypoint.namespace)) {
                return;
            }
            let message = format!(
                "the waypoint of {host}, {first}, may not see it: name the namespace {} in exportTo",
                first.namespace
            );
            (FindingReason::NoWaypoint, message)
        } else {
            let message = format!(
                "no waypoint stands before {host}, so it is not in force; label the service or its namespace \
                 istio.io/use-waypoint"
            );
            (FindingReason::NoWaypoint, message)
        };
        self.tell(me, reason, message);
    }

    /// The services of a host as it is written in this namespace.
    fn services(&self, host: &str, namespace: &str) -> Vec<&'a Arc<Service>> {
        let host = full_host(host, namespace, self.settings);
        let snapshot = self.snapshot;
        if host.starts_with('*') {
            let all = snapshot.services().chain(snapshot.service_entries());
            return all.filter(|service| specificity(&host, &service.hostname).is_some()).collect();
        }
        snapshot.service_index.named(namespace, &host).into_iter().collect()
    }

    fn rule(&mut self, of: &VirtualService, number: usize, rule: &HttpRule) {
        match &rule.action {
            RuleAction::Route(route) => {
                for (index, entry) in route.iter().enumerate() {
                    self.destination(of, &format!("http[{number}].route[{index}]"), &entry.destination);
                }
            }
            RuleAction::Delegate(name) => self.delegate(of, number, name),
            RuleAction::Redirect(_) | RuleAction::Direct(_) => {}
        }
        for (index, mirror) in rule.mirrors.iter().enumerate() {
            self.destination(of, &format!("http[{number}].mirrors[{index}]"), &mirror.destination);
        }
    }

    fn destination(&mut self, of: &VirtualService, path: &str, to: &Destination) {
        let host = full_host(&to.host, &of.name.namespace, self.settings);
        let service = self.snapshot.service_index.named(&of.name.namespace, &host);
        let problem = missing(service.map(|service| &**service), &host, to.port).or_else(|| {
            let (service, subset) = (service?, to.subset.as_deref()?);
            if self.has_subset(service, subset) {
                return None;
            }
            let message = format!(
                "leads to subset {subset} of {host}, which no DestinationRule for that host defines: 503"
            );
            Some((FindingReason::NoSuchSubset, message))
        });
        if let Some((reason, problem)) = problem {
            self.tell(("VirtualService", &of.name), reason, format!("{path} {problem}"));
        }
    }

    /// Whether clients of some namespace find it.
    fn has_subset(&mut self, service: &Service, subset: &str) -> bool {
        if let Some(known) = self.known.get(&std::ptr::from_ref(service)).and_then(|of| of.subsets.as_ref()) {
            return known.contains(subset);
        }
        let of_host = self.rules.get(&service.hostname).into_iter().flat_map(BTreeMap::keys);
        let namespaces: BTreeSet<_> = of_host.chain(self.wide.keys()).copied().collect();
        // The root's own clients are not those that it is for.
        let levels = [service.name.namespace.as_str(), &self.settings.root_namespace];
        let others = namespaces.into_iter().filter(|of| !levels.contains(of));
        let rules = others.flat_map(|namespace| self.at(namespace, service)).chain(self.common(service));
        let subsets = rules.flat_map(|rule| &rule.subsets).map(|of| of.name.as_str()).collect();
        self.known.entry(service).or_default().subsets.insert(subsets).contains(subset)
    }

    /// The rules of a namespace that are for a service, the oldest first.
    fn at(&self, namespace: &str, service: &Service) -> Vec<&'a DestinationRule> {
        let of_host = self.rules.get(&service.hostname).and_then(|of| of.get(namespace));
        let rules = of_host.into_iter().chain(self.wide.get(namespace)).flatten().copied();
        let mut rules = most_specific(rules, service, self.settings);
        rules.sort_by_key(|rule| (rule.created, &rule.name));
        rules
    }

    /// Those for clients who have none of their own namespace's.
    fn common(&self, service: &Service) -> Vec<&'a DestinationRule> {
        let own = self.at(&service.name.namespace, service);
        if own.is_empty() { self.at(&self.settings.root_namespace, service) } else { own }
    }

    fn delegate(&mut self, of: &VirtualService, number: usize, name: &NamespacedName) {
        let me = ("VirtualService", &of.name);
        if of.hosts.is_empty() {
            let message = format!("http[{number}] delegates again, which a delegate must not");
            return self.tell(me, FindingReason::NoSuchDelegate, message);
        }
        let delegate = self.world.virtual_services.get(name);
        let problem = match delegate {
            None => "is not there",
            Some(delegate) if !delegate.exports.include(&of.name.namespace) => "is not exported to here",
            Some(delegate) if !delegate.hosts.is_empty() => "has hosts of its own",
            Some(_) => return,
        };
        let message = format!("http[{number}] delegates to {name}, which {problem}");
        self.tell(me, FindingReason::NoSuchDelegate, message);
    }

    /// Of several for one host the rules of the oldest come first.
    fn same_hosts(&mut self) {
        let mut by_host: HashMap<_, Vec<&VirtualService>> = HashMap::new();
        for of in self.world.virtual_services.values() {
            if of.http.iter().any(|rule| !meshed(&of.gateways, rule).is_empty()) {
                let hosts = of.hosts.iter();
                let hosts: BTreeSet<_> =
                    hosts.map(|host| full_host(host, &of.name.namespace, self.settings)).collect();
                hosts.into_iter().for_each(|host| by_host.entry(host).or_default().push(of));
            }
        }
        for mut several in by_host.into_values().filter(|several| several.len() > 1) {
            several.sort_by_key(|of| (of.created, &of.name));
            for other in &several[1..] {
                let message =
                    format!("is for the same host as the older {}, whose rules come first", several[0].name);
                self.tell(("VirtualService", &other.name), FindingReason::Merged, message);
            }
        }
    }

    fn destination_rule(&mut self, of: &'a DestinationRule) {
        let me = ("DestinationRule", &of.name);
        self.host(me, &of.host, |waypoint| of.exports.include(waypoint));
        let services = self.services(&of.host, &of.name.namespace);
        let empty = of.subsets.iter().filter(|subset| self.selects_nothing(subset, &services));
        for subset in empty.collect::<Vec<_>>() {
            let (name, labels) = (&subset.name, shown(&subset.labels));
            let message = format!("subset {name} ({labels}) has none of the endpoints of {}", of.host);
            self.tell(me, FindingReason::SelectsNothing, message);
        }
        self.hides_tls(of, &services);
    }

    /// Tells of a rule for its own namespace's clients alone that has them go without the TLS that all others have.
    fn hides_tls(&mut self, of: &'a DestinationRule, services: &[&Arc<Service>]) {
        let [service] = services else { return };
        let own = &of.name.namespace;
        if *own == service.name.namespace || *own == self.settings.root_namespace || of.policy.tls.is_some() {
            return;
        }
        let Some(common) = self.secured(service) else { return };
        if self.first(own, service).is_some_and(|first| std::ptr::eq(first, of)) {
            let message = format!(
                "clients of its namespace go by it alone, so that the tls of {} is not in force for them: write it \
                 here too",
                common.name
            );
            self.found.push(hidden(of, FindingReason::Merged, message));
        }
    }

    /// The rule that all go by who have none of their own namespace's, if it asks for TLS.
    fn secured(&mut self, service: &Service) -> Option<&'a DestinationRule> {
        if let Some(known) = self.known.get(&std::ptr::from_ref(service)).and_then(|of| of.secured) {
            return known;
        }
        let found = first_policy(&self.common(service)).filter(|common| secures(&common.policy));
        *self.known.entry(service).or_default().secured.insert(found)
    }

    /// The rule that clients of this namespace go by.
    fn first(&mut self, namespace: &'a str, service: &Service) -> Option<&'a DestinationRule> {
        let known = self.known.get(&std::ptr::from_ref(service));
        if let Some(known) = known.and_then(|of| of.first.get(namespace)) {
            return *known;
        }
        let mine = self.at(namespace, service);
        let found = first_policy(&mine).or(mine.first().copied());
        self.known.entry(service).or_default().first.insert(namespace, found);
        found
    }

    /// Whether there are endpoints, and none of the subset's.
    fn selects_nothing(&self, subset: &Subset, services: &[&Arc<Service>]) -> bool {
        let endpoints = services.iter().flat_map(|service| &service.ports).flat_map(|port| &port.endpoints);
        let selected = |labels: &Labels| has(labels, &subset.labels);
        !subset.labels.is_empty()
            && endpoints.clone().next().is_some()
            && !endpoints
                .filter_map(|endpoint| labels_of(self.world, endpoint.workload.as_deref()?))
                .any(selected)
    }

    fn service_entry(&mut self, of: &ServiceEntry) {
        let me = ("ServiceEntry", &of.name);
        let namespace = &of.name.namespace;
        let pods = self.world.pods.values().filter(|pod| !pod.phase.is_terminal());
        let pods = pods.map(|pod| (&pod.name.namespace, &pod.labels));
        let entries = self.world.workload_entries.values();
        let entries = entries.map(|entry| (&entry.name.namespace, &entry.backend.labels));
        let selected = |(place, labels): (&Text, &Labels)| place == namespace && has(labels, &of.selector);
        if !of.selector.is_empty() && !pods.chain(entries).any(selected) {
            let labels = shown(&of.selector);
            let message = format!(
                "its workloadSelector ({labels}) selects no pod and no WorkloadEntry of its namespace"
            );
            self.tell(me, FindingReason::SelectsNothing, message);
        }
        for port in of.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
            let message =
                format!("port {} is UDP, which passes as it was dialled: no endpoint is chosen", port.number);
            self.tell(me, FindingReason::UdpNotEnforced, message);
        }
    }
}

fn has(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
