//! Routes of the Gateway API that have Services as parents, made into the same tables as VirtualServices (GEP-1294).

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Tables;
use super::app_protocol::Takes;
use super::attached::{Attached, Ports};
use super::by_service::ByService;
use super::made::{Lookup, Made};
use super::rule::{Action, Choice, Cluster, MirrorTo, Own, Rule, Split};
use super::stream::{Named, StreamRule, StreamTable, takes_tls};
use super::table::Table;
use super::virtual_streams::past_waypoint;
use crate::name::NamespacedName;
use crate::policy::{Finding, FindingReason, Severity};
use crate::reason::Reason;
use crate::service::{Service, ServicePort};
use crate::snapshot::Snapshot;
use crate::text::Text;
use crate::world::World;
use crate::world::gateway_api::{
    BackendRef, GROUP, Parent, Route, RouteFilters, RouteKind, RouteMatch, RouteMirror, RouteRule, RpcName,
};
use crate::world::routing::{Fault, HeaderChanges, HttpMatch, Rewrite, StringMatch, VirtualService};

/// Whether a route needs a ReferenceGrant to lead to another namespace's Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grants {
    /// No: in a mesh a client could ask that Service itself, and policies judge it as if it did (GEP-1294).
    #[default]
    Optional,
    /// Yes, as from a gateway.
    Required,
}

/// Attaches routes to the Services behind a waypoint.
pub(super) struct Attaching<'a> {
    world: &'a World,
    snapshot: &'a Snapshot,
    lookup: Lookup<'a>,
    /// `None` for any.
    waypoint: Option<&'a NamespacedName>,
    grants: Grants,
}

/// Why a backend is none.
type Problem = (FindingReason, String);

impl<'a> Attaching<'a> {
    pub fn new(
        world: &'a World,
        snapshot: &'a Snapshot,
        waypoint: Option<&'a NamespacedName>,
        grants: Grants,
    ) -> Self {
        Self { world, snapshot, lookup: Lookup::new(world, snapshot), waypoint, grants }
    }

    /// `tables` are those of VirtualServices, and `before` is what this made of the state before.
    pub fn all(
        &self,
        before: &HashMap<NamespacedName, Attached>,
        tables: &ByService<Arc<Made<VirtualService, Tables>>>,
        findings: &mut Vec<Finding>,
    ) -> HashMap<NamespacedName, Attached> {
        // By Service, then by the namespace of the routes.
        let mut by_service: BTreeMap<&NamespacedName, BTreeMap<&str, Vec<&Arc<Route>>>> = BTreeMap::new();
        for route in self.routes() {
            let mut ours = false;
            for (number, parent) in route.parents.iter().enumerate() {
                match parent_of(self.snapshot, route.kind, parent) {
                    Ok(service) if self.waypoint.is_none_or(|own| service.waypoint.as_ref() == Some(own)) => {
                        ours = true;
                        let routes = by_service.entry(&parent.service).or_default();
                        let routes = routes.entry(&route.name.namespace).or_default();
                        if routes.last().is_none_or(|last| !Arc::ptr_eq(last, route)) {
                            routes.push(route);
                        }
                    }
                    Ok(_) => {}
                    Err(problem) => {
                        let message = format!("parentRefs[{number}] {problem}");
                        tell(findings, route, FindingReason::NoSuchTarget, message);
                    }
                }
            }
            if ours && !route.unread.is_empty() {
                let message = format!("{} means nothing here", route.unread.join(", "));
                tell(findings, route, FindingReason::FieldsNotEnforced, message);
            }
        }
        let mut found = HashMap::new();
        for (name, by_namespace) in by_service {
            let Some(service) = self.snapshot.service(name) else { continue };
            let before = before.get(name);
            let mut attached = Attached::default();
            for (namespace, routes) in by_namespace {
                let before = before.and_then(|of| of.of(namespace, &name.namespace));
                let ports = Made::after(before, Some(service), &routes, &self.lookup, |findings| {
                    let routes: Vec<&Route> = routes.iter().map(|route| &***route).collect();
                    self.ports(service, &routes, findings)
                });
                findings.extend_from_slice(&ports.findings);
                let table = tables.get(service).and_then(|of| of.made.requests.as_ref());
                if let (Some(table), Some(route)) = (table, routes.first())
                    && !ports.made.is_empty()
                {
                    let scope = if namespace == name.namespace { "all clients" } else { namespace };
                    overruled(table, route, service, scope, findings);
                }
                if namespace == name.namespace {
                    attached.producer = Some(ports);
                } else {
                    attached.consumers.insert(namespace.to_owned(), ports);
                }
            }
            found.insert(name.clone(), attached);
        }
        found
    }

    fn routes(&self) -> impl Iterator<Item = &'a Arc<Route>> {
        let (http, grpc) = (self.world.http_routes.values(), self.world.grpc_routes.values());
        let (tls, tcp) = (self.world.tls_routes.values(), self.world.tcp_routes.values());
        http.chain(grpc).chain(tls).chain(tcp)
    }

    /// The rules for each port, of routes of one namespace. Of several kinds of routes one counts.
    fn ports(&self, service: &Arc<Service>, routes: &[&Route], findings: &mut Vec<Finding>) -> Ports {
        let mut ports = Ports::default();
        // Most often all ports have the same routes.
        let mut made: Vec<(Vec<&Route>, Arc<Table>)> = Vec::new();
        let mut overruled: Vec<&Route> = Vec::new();
        for port in &service.ports {
            let here = |route: &&Route| {
                let mut parents = route.parents.iter().filter(|parent| parent.service == service.name);
                parents
                    .any(|parent| is_for(parent, service, port) && takes(route.kind, parent, service, port))
            };
            let mut here: Vec<&Route> = routes.iter().copied().filter(here).collect();
            if let Some(best) = here.iter().copied().max_by_key(|route| rank_of(route.kind)) {
                here.retain(|route| {
                    let counts = rank_of(route.kind) == rank_of(best.kind);
                    if !counts {
                        let message = format!(
                            "{} {} is for port {} of {} as well, and counts instead",
                            best.kind.name(),
                            best.name,
                            port.number,
                            service.name
                        );
                        tell(findings, route, FindingReason::Overruled, message);
                        overruled.push(route);
                    }
                    counts
                });
            }
            if here.is_empty() {
                continue;
            }
            if here[0].kind.is_stream() {
                ports.streams.insert(port.number, Arc::new(self.stream_table(&here, findings)));
                continue;
            }
            let same = |(routes, _): &&(Vec<&Route>, _)| {
                routes.len() == here.len() && routes.iter().zip(&here).all(|(a, b)| std::ptr::eq(*a, *b))
            };
            let table = match made.iter().find(same) {
                Some((_, table)) => Arc::clone(table),
                None => {
                    let table = Arc::new(self.table(&here, findings));
                    made.push((here, Arc::clone(&table)));
                    table
                }
            };
            ports.requests.insert(port.number, table);
        }
        // What is wrong with those is told all the same: it counts once the other is gone.
        overruled.sort_by_key(|route| (rank_of(route.kind), &route.name));
        overruled.dedup_by_key(|route| (rank_of(route.kind), &route.name));
        for route in overruled {
            if route.kind.is_stream() {
                self.stream_table(&[route], findings);
            } else {
                self.table(&[route], findings);
            }
        }
        ports
    }

    /// The rules of all routes of one host at a gateway.
    pub fn made_at_gateway(
        &self,
        before: Option<&Arc<Made<Route, Arc<Table>>>>,
        routes: &[&Arc<Route>],
    ) -> Arc<Made<Route, Arc<Table>>> {
        Made::after(before, None, routes, &self.lookup, |findings| {
            let routes: Vec<&Route> = routes.iter().map(|route| &***route).collect();
            Arc::new(self.table(&routes, findings))
        })
    }

    /// All matches of the routes, those first that have precedence.
    fn table(&self, routes: &[&Route], findings: &mut Vec<Finding>) -> Table {
        let mut rules = Vec::new();
        let mut entries = Vec::new();
        let unknown = unknown_matches(routes);
        for route in routes {
            for (number, rule) in route.rules.iter().enumerate() {
                let any = [RouteMatch::default()];
                let matches = if rule.matches.is_empty() { &any[..] } else { &rule.matches };
                for of in matches {
                    let rank = rank(route.kind, of);
                    let order = (Reverse(rank), route.created.is_none(), route.created, &route.name);
                    entries.push((order, rules.len(), http_match(route.kind, of)));
                }
                let mut made = self.rule(route, rule, number, findings);
                if rule.unreadable.is_none()
                    && let Some((other, at)) = unknown.get(&route.name.namespace)
                {
                    let (kind, name) = (other.kind.name(), &other.name);
                    let why = format!("may not count, as rules[{at}] of {kind} {name} may match anything");
                    tell(findings, route, FindingReason::NeverMatches, format!("rules[{number}] {why}: 500"));
                    made.action = Action::Invalid(why);
                }
                rules.push(made);
            }
        }
        // The order in the route decides what else is equal.
        entries.sort_by_key(|(order, ..)| *order);
        let entries = entries.into_iter().map(|(_, rule, of)| (rule, vec![of])).collect();
        Table::of_entries(rules, entries)
    }

    /// All rules of TLSRoutes, or of TCPRoutes, which have no matches.
    fn stream_table(&self, routes: &[&Route], findings: &mut Vec<Finding>) -> StreamTable {
        let mut rules = Vec::new();
        for route in routes {
            for (number, rule) in route.rules.iter().enumerate() {
                let split = if rule.backends.iter().all(|of| of.weight == 0) {
                    let message = "has no backend that gets any";
                    let told = format!("rules[{number}] {message}: refused");
                    tell(findings, route, FindingReason::NeverMatches, told);
                    Err(message.to_owned())
                } else {
                    let choices = rule.backends.iter().map(|of| {
                        let cluster = self.cluster(route, &of.backend, &of.filters, number, findings);
                        (of.weight, Choice { cluster, headers: HeaderChanges::default(), own: None })
                    });
                    Ok(Split::new(choices.collect::<Vec<_>>()))
                };
                let resource = Arc::new(route.name.clone());
                let age = (route.created, route.name.name.as_str());
                let rule = StreamRule { kind: route.kind.name(), resource, split };
                rules.push(Named { rule, names: &route.hostnames, age });
            }
        }
        StreamTable::by_name(rules)
    }

    fn rule(&self, route: &Route, rule: &RouteRule, number: usize, findings: &mut Vec<Finding>) -> Rule {
        let filters = &rule.filters;
        let mirrors = self.mirrors(route, &filters.mirrors, number, findings);
        let mut invalid = |message: &str| {
            let told = format!("rules[{number}] {message}: 500");
            tell(findings, route, FindingReason::NeverMatches, told);
            Action::Invalid(message.to_owned())
        };
        let unreadable = rule.unreadable.as_ref().map(|of| &of.problem);
        let action = match (unreadable.or(filters.unsupported.as_ref()), &filters.redirect) {
            (Some(problem), _) => invalid(problem),
            (None, Some(redirect)) => Action::Redirect(redirect.clone()),
            (None, None) if rule.backends.iter().all(|of| of.weight == 0) => {
                invalid("has no backend that gets any")
            }
            (None, None) => Action::Route(Split::new(rule.backends.iter().map(|of| {
                let cluster = self.cluster(route, &of.backend, &of.filters, number, findings);
                let own = self.own(route, (filters, &mirrors), &of.filters, number, findings);
                (of.weight, Choice { cluster, headers: of.filters.headers.clone(), own })
            }))),
        };
        Rule {
            name: rule.name.clone(),
            kind: route.kind.name(),
            resource: Arc::new(route.name.clone()),
            root: None,
            action,
            rewrite: filters.rewrite.clone(),
            timeout: rule.timeout,
            retries: rule.retries.clone().unwrap_or_default(),
            fault: Fault::default(),
            mirrors,
            cors: filters.cors.clone(),
            headers: filters.headers.clone(),
        }
    }

    /// A backend, or why requests for it are refused.
    fn cluster(
        &self,
        route: &Route,
        backend: &BackendRef,
        filters: &RouteFilters,
        number: usize,
        findings: &mut Vec<Finding>,
    ) -> Cluster {
        let found = match &filters.unsupported {
            Some(problem) => Err((FindingReason::NeverMatches, format!("has a backend that {problem}"))),
            None => self.backend(route, backend),
        };
        found.unwrap_or_else(|(reason, problem)| {
            let refused = if route.kind.is_stream() { "refused" } else { "500" };
            tell(findings, route, reason, format!("rules[{number}] {problem}: {refused}"));
            Cluster {
                host: backend.to_string(),
                service: Err(Reason::InvalidRoute),
                port: backend.port,
                subset: None,
                needs_tls: false,
            }
        })
    }

    fn backend(&self, route: &Route, backend: &BackendRef) -> Result<Cluster, Problem> {
        let problem = |reason, why: &str| (reason, format!("leads to {backend}{why}"));
        if !backend.group.is_empty() || backend.kind != "Service" {
            return Err(problem(FindingReason::InvalidKind, ": only a Service is a backend here"));
        }
        let name = &backend.name;
        // Before anything is told of it.
        if self.grants == Grants::Required && !self.granted(route, name) {
            let why = ", which no ReferenceGrant of its namespace lets it";
            return Err(problem(FindingReason::RefNotPermitted, why));
        }
        let service = self.lookup.service(name);
        let service = service.ok_or_else(|| problem(FindingReason::NoSuchService, ", which is not there"))?;
        if service.external_name.is_some() {
            let why = ", which is only another name (ExternalName)";
            return Err(problem(FindingReason::NoSuchService, why));
        }
        let unsaid = || problem(FindingReason::NoSuchPort, ", and does not say to which port");
        let number = backend.port.ok_or_else(unsaid)?;
        let missing = || problem(FindingReason::NoSuchPort, ", which has no such port");
        let port = service.port(number).ok_or_else(missing)?;
        let protocol = port.app_protocol.as_deref().unwrap_or_default();
        let takes = Takes::of(route.kind, protocol);
        let unsecured = if takes == Takes::Tls { ", and nothing has it asked by TLS" } else { "" };
        if takes == Takes::Nothing || takes == Takes::Tls && !self.lookup.is_secured(service, port) {
            let why = format!(", which speaks {protocol}{unsecured}");
            return Err(problem(FindingReason::UnsupportedProtocol, &why));
        }
        if let Some(waypoint) = self.waypoint.filter(|_| route.kind.is_stream())
            && let Some(why) = past_waypoint(service, waypoint)
        {
            return Err((FindingReason::RefNotPermitted, why));
        }
        Ok(Cluster {
            host: service.hostname.clone(),
            service: Ok(service.clone()),
            port: backend.port,
            subset: None,
            needs_tls: takes == Takes::Tls,
        })
    }

    fn granted(&self, route: &Route, name: &NamespacedName) -> bool {
        let own = &route.name.namespace;
        if *own == name.namespace {
            return true;
        }
        let mut there = self.lookup.grants().values().filter(|grant| grant.name.namespace == name.namespace);
        there.any(|grant| grant.grants((GROUP, route.kind.name(), &**own), ("", "Service"), &name.name))
    }

    fn mirrors(
        &self,
        route: &Route,
        mirrors: &[RouteMirror],
        number: usize,
        findings: &mut Vec<Finding>,
    ) -> Vec<MirrorTo> {
        let mirrors = mirrors.iter().filter_map(|mirror| match self.backend(route, &mirror.backend) {
            Ok(cluster) => Some(MirrorTo { cluster, percent: mirror.percent }),
            Err((reason, problem)) => {
                tell(
                    findings,
                    route,
                    reason,
                    format!("rules[{number}] mirrors, but {problem}: no copy is made"),
                );
                None
            }
        });
        mirrors.collect()
    }

    /// What a backend's own filters say, with what the rule's say beside them.
    fn own(
        &self,
        route: &Route,
        (outer, mirrors): (&RouteFilters, &[MirrorTo]),
        own: &RouteFilters,
        number: usize,
        findings: &mut Vec<Finding>,
    ) -> Option<Box<Own>> {
        if own.redirect.is_none() && own.rewrite.is_none() && own.mirrors.is_empty() && own.cors.is_none() {
            return None;
        }
        let rewrite = own.rewrite.as_ref().map(|own| {
            let outer = outer.rewrite.clone().unwrap_or_default();
            Rewrite {
                authority: own.authority.clone().or(outer.authority),
                path: own.path.clone().or(outer.path),
                ..Rewrite::default()
            }
        });
        let mut all = mirrors.to_vec();
        all.extend(self.mirrors(route, &own.mirrors, number, findings));
        let rewrite = rewrite.or_else(|| outer.rewrite.clone());
        let (redirect, cors) = (own.redirect.clone(), own.cors.clone());
        Some(Box::new(Own { redirect, rewrite, mirrors: all, cors }))
    }
}

/// The Service that a route is for, or why it is not.
fn parent_of<'s>(
    snapshot: &'s Snapshot,
    kind: RouteKind,
    parent: &Parent,
) -> Result<&'s Arc<Service>, String> {
    let name = &parent.service;
    let service = snapshot.service(name);
    let service = service.ok_or_else(|| format!("names Service {name}, which is not there"))?;
    if service.waypoint.is_none() {
        return Err(format!("names Service {name}, which has no waypoint: nobody reads what it is asked"));
    }
    let mut ports = service.ports.iter().filter(|port| is_for(parent, service, port)).peekable();
    if ports.peek().is_none() {
        let section = parent.section.as_ref().map(|section| format!(" of the name {section}"));
        let number = parent.port.map(|number| format!(" of the number {number}"));
        let which = section.into_iter().chain(number).collect::<String>();
        return Err(format!("names no port of Service {name}: it has none{which}"));
    }
    if !ports.any(|port| takes(kind, parent, service, port)) {
        let why = match kind {
            RouteKind::Tls => {
                "says that it speaks TLS (appProtocol), or is named in parentRefs and does not say HTTP"
            }
            _ => "does not say that it speaks HTTP, which is read",
        };
        return Err(format!("names no port of Service {name} that {why}"));
    }
    Ok(service)
}

impl Snapshot {
    /// Why a route of this kind that names this parent is not attached to it.
    pub fn parent_problem(&self, kind: RouteKind, parent: &Parent) -> Option<String> {
        parent_of(self, kind, parent).err()
    }
}

/// What can be told of all routes, whatever waypoint they are for.
pub(super) fn survey_routes(world: &World, snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings = Vec::new();
    let attaching = Attaching::new(world, snapshot, None, Grants::Optional);
    attaching.all(&HashMap::new(), &ByService::default(), &mut findings);
    findings
}

/// By namespace, one of the rules of which nobody knows what they match. It may be what any rule of its namespace matches;
/// another namespace's are no worse off for it.
fn unknown_matches<'r>(routes: &[&'r Route]) -> HashMap<&'r Text, (&'r Route, usize)> {
    let mut found = HashMap::new();
    for route in routes.iter().copied() {
        let unknown = |rule: &RouteRule| rule.unreadable.as_ref().is_some_and(|of| of.may_match_anything);
        if let Some(number) = route.rules.iter().position(unknown) {
            found.entry(&route.name.namespace).or_insert((route, number));
        }
    }
    found
}

fn is_for(parent: &Parent, service: &Service, port: &ServicePort) -> bool {
    parent.service == service.name
        && parent.section.as_ref().is_none_or(|section| *section == port.name)
        && parent.port.is_none_or(|number| number == port.number)
}

/// Whether a port that the parent names takes routes of this kind.
fn takes(kind: RouteKind, parent: &Parent, service: &Service, port: &ServicePort) -> bool {
    match kind {
        RouteKind::Http | RouteKind::Grpc => true,
        RouteKind::Tls => {
            let is_named = parent.section.is_some() || parent.port.is_some() || service.ports.len() == 1;
            takes_tls(port, is_named)
        }
        RouteKind::Tcp => !port.declared().is_http(),
    }
}

/// Of several kinds for one port that counts which knows most of what it routes.
fn rank_of(kind: RouteKind) -> u8 {
    match kind {
        RouteKind::Grpc => 3,
        RouteKind::Http => 2,
        RouteKind::Tls => 1,
        RouteKind::Tcp => 0,
    }
}

fn tell(findings: &mut Vec<Finding>, route: &Route, reason: FindingReason, message: String) {
    let severity = match reason {
        FindingReason::FieldsNotEnforced => Severity::Warning,
        _ => Severity::Error,
    };
    findings.push(Finding { kind: route.kind.name(), name: route.name.clone(), severity, reason, message });
}

/// Tells the authors of VirtualServices that their rules do not count.
fn overruled(table: &Table, route: &Route, service: &Service, scope: &str, findings: &mut Vec<Finding>) {
    for name in table.resources() {
        let message = format!(
            "is for {}, as is {} {}, which counts instead for {scope}",
            service.hostname,
            route.kind.name(),
            route.name
        );
        findings.push(Finding {
            kind: "VirtualService",
            name: name.clone(),
            severity: Severity::Warning,
            reason: FindingReason::Overruled,
            message,
        });
    }
}

/// How much a match says: the one with more has precedence.
///
/// Of an HTTPRoute: an exact path, then the characters of a prefix, a method, the number of headers, of query
/// parameters; regular expressions, of which the specification says nothing, come before all prefixes. Of a GRPCRoute:
/// the characters of the service, of the method, the number of headers; exact ones come before expressions.
fn rank(kind: RouteKind, of: &RouteMatch) -> [usize; 5] {
    let http = &of.http;
    match kind {
        RouteKind::Http => {
            let (kind, length) = match &http.uri {
                Some(StringMatch::Exact(_)) => (2, 0),
                Some(StringMatch::Regex(regex)) => (1, regex.to_string().len()),
                Some(StringMatch::Prefix(prefix) | StringMatch::Segments(prefix)) => (0, prefix.len()),
                Some(StringMatch::Present) | None => (0, 0),
            };
            let method = usize::from(http.method.is_some());
            [kind, length, method, http.headers.len(), http.query.len()]
        }
        RouteKind::Grpc => {
            let length = |name: Option<&RpcName>| match name {
                Some(RpcName::Exact(name)) => [name.len(), 0],
                Some(RpcName::Regex(text)) => [0, text.len()],
                None => [0, 0],
            };
            let rpc = of.rpc.as_ref();
            let service = length(rpc.and_then(|rpc| rpc.service.as_ref()));
            let method = length(rpc.and_then(|rpc| rpc.method.as_ref()));
            [service[0], service[1], method[0], method[1], http.headers.len()]
        }
        // They have no matches.
        RouteKind::Tls | RouteKind::Tcp => [0; 5],
    }
}

/// What the request must be. Only gRPC follows a GRPCRoute.
fn http_match(kind: RouteKind, of: &RouteMatch) -> HttpMatch {
    let mut http = of.http.clone();
    if kind == RouteKind::Grpc {
        http.headers.push(("content-type".to_owned(), StringMatch::Prefix("application/grpc".to_owned())));
    }
    http
}
