use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::ListenerProblem;
use super::hostname::{ANY, intersection};
use crate::name::NamespacedName;
use crate::text::Text;
use crate::world::gateway::{FromNamespaces, Gateway, Listener};
use crate::world::gateway_api::{GatewayParent, Route, RouteKind};
use crate::world::{Labels, World};

/// Why a route is attached to none of a Gateway's listeners by an entry of its `parentRefs`. The later comes closer to
/// being attached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotAttached {
    /// No listener has the name or port that it asks for.
    NoMatchingParent,
    /// Those that have do not take such routes of such namespaces.
    NotAllowed,
    /// Those that do are for other hosts.
    NoMatchingHostname,
    /// A route of the other kind, which is older, has all of its hosts.
    Taken(NamespacedName),
}

impl NotAttached {
    /// The condition's reason, as the Gateway API has it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoMatchingParent => "NoMatchingParent",
            Self::NotAllowed => "NotAllowedByListeners",
            Self::NoMatchingHostname => "NoMatchingListenerHostname",
            Self::Taken(_) => "HostnameConflict",
        }
    }

    /// What to change.
    pub fn message(&self) -> String {
        match self {
            Self::NoMatchingParent => "the Gateway has no listener of that sectionName and port".to_owned(),
            Self::NotAllowed => {
                "the Gateway's listeners take no such routes of this namespace: see their allowedRoutes"
                    .to_owned()
            }
            Self::NoMatchingHostname => "none of its hostnames is one of the Gateway's listeners".to_owned(),
            Self::Taken(by) => {
                format!(
                    "the older route {by} of another kind has the same hostnames: give one of them others"
                )
            }
        }
    }
}

/// Which routes are attached to a Gateway.
#[derive(Clone, Debug)]
pub struct Attachments<'w> {
    /// In the order of the Gateway.
    pub listeners: Vec<AtListener<'w>>,
    refused: HashMap<RefKey<'w>, NotAttached>,
}

/// A route, and which of its `parentRefs` that are Gateways.
type RefKey<'w> = (RouteKind, &'w NamespacedName, usize);

/// Which routes are attached to a listener.
#[derive(Clone, Debug)]
pub struct AtListener<'w> {
    /// The listener.
    pub listener: &'w Listener,
    /// Why it is not opened.
    pub problem: Option<ListenerProblem>,
    /// By what the hostnames of listener and route have in common.
    pub(crate) hosts: BTreeMap<&'w str, Vec<Attached<'w>>>,
}

/// A route at one of its hosts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attached<'w> {
    pub route: &'w Arc<Route>,
    parent: usize,
}

impl Attached<'_> {
    fn is_same(&self, route: &Arc<Route>) -> bool {
        Arc::ptr_eq(self.route, route)
    }

    fn age(&self) -> (bool, Option<i64>, &NamespacedName) {
        (self.route.created.is_none(), self.route.created, &self.route.name)
    }
}

impl AtListener<'_> {
    /// How many routes are attached to it.
    pub fn count(&self) -> usize {
        let routes = self.hosts.values().flatten();
        let mut routes: Vec<_> = routes.map(|of| (of.route.kind, &of.route.name)).collect();
        routes.sort_unstable();
        routes.dedup();
        routes.len()
    }
}

impl<'w> Attachments<'w> {
    /// Attaches the routes of the world.
    pub fn new(world: &'w World, gateway: &'w Gateway) -> Self {
        let judged = gateway.listeners.iter().zip(gateway.judge_listeners());
        let listeners = judged.map(|(listener, judged)| AtListener {
            listener,
            problem: judged.err(),
            hosts: BTreeMap::new(),
        });
        let mut found = Self { listeners: listeners.collect(), refused: HashMap::new() };
        for route in world.routes() {
            for (index, parent) in route.gateways.iter().enumerate() {
                if parent.gateway == gateway.name {
                    found.attach(world, gateway, route, index, parent);
                }
            }
        }
        found.settle();
        found
    }

    /// Why this entry of the route's `parentRefs`, counted among those that are Gateways, has attached it to nothing.
    pub fn refused<'a>(&'a self, route: &'a Route, parent: usize) -> Option<&'a NotAttached> {
        self.refused.get(&(route.kind, &route.name, parent))
    }

    /// All such.
    pub fn all_refused(&self) -> impl Iterator<Item = (RouteKind, &'w NamespacedName, usize, &NotAttached)> {
        self.refused.iter().map(|(&(kind, name, index), why)| (kind, name, index, why))
    }

    /// The Services that attached routes lead to.
    pub fn services(&self) -> BTreeSet<&'w NamespacedName> {
        let routes = self.listeners.iter().flat_map(|at| at.hosts.values().flatten()).map(|of| of.route);
        let backends = routes.flat_map(|route| route.rules.iter().flat_map(|rule| &rule.backends));
        let backends = backends.map(|of| &of.backend);
        backends.filter(|of| of.group.is_empty() && of.kind == "Service").map(|of| &of.name).collect()
    }

    fn attach(
        &mut self,
        world: &'w World,
        gateway: &Gateway,
        route: &'w Arc<Route>,
        index: usize,
        parent: &GatewayParent,
    ) {
        let mut problem = Some(NotAttached::NoMatchingParent);
        let mut closer = |next: NotAttached| problem = problem.take().map(|known| known.max(next));
        let mut is_attached = false;
        let namespace = world.namespaces.get(&route.name.namespace).map(|namespace| &namespace.labels);
        for at in &mut self.listeners {
            let Listener { name, port, .. } = at.listener;
            let other = |wanted: &Option<String>| wanted.as_ref().is_some_and(|wanted| wanted != name);
            if other(&parent.section) || parent.port.is_some_and(|wanted| wanted != *port) {
                continue;
            }
            if !at.listener.supported_kinds().0.contains(&route.kind)
                || !is_from(&at.listener.namespaces, gateway, &route.name.namespace, namespace)
            {
                closer(NotAttached::NotAllowed);
                continue;
            }
            let own = at.listener.hostname.as_deref().unwrap_or(ANY);
            let wanted = route.hostnames.iter().map(|host| host.0.as_str());
            let any = route.hostnames.is_empty().then_some(ANY);
            let hosts = wanted.chain(any).filter_map(|wanted| intersection(own, wanted));
            let before = is_attached;
            for host in hosts {
                is_attached = true;
                let routes = at.hosts.entry(host).or_default();
                // Each route has its turn once.
                if !routes.last().is_some_and(|of| of.is_same(route)) {
                    routes.push(Attached { route, parent: index });
                }
            }
            if is_attached == before {
                closer(NotAttached::NoMatchingHostname);
            }
        }
        if let Some(problem) = problem.filter(|_| !is_attached) {
            self.refused.insert((route.kind, &route.name, index), problem);
        }
    }

    /// Of two kinds of routes for one host at a listener the one counts that is the older's.
    fn settle(&mut self) {
        let mut losers: HashMap<RefKey<'w>, NamespacedName> = HashMap::new();
        for at in &mut self.listeners {
            for routes in at.hosts.values_mut() {
                let Some(first) = routes.iter().min_by_key(|of| of.age()).copied() else { continue };
                routes.retain(|of| {
                    let stays = of.route.kind == first.route.kind;
                    if !stays {
                        let key = (of.route.kind, &of.route.name, of.parent);
                        losers.insert(key, first.route.name.clone());
                    }
                    stays
                });
            }
            at.hosts.retain(|_, routes| !routes.is_empty());
        }
        if losers.is_empty() {
            return;
        }
        for at in &self.listeners {
            for of in at.hosts.values().flatten() {
                losers.remove(&(of.route.kind, &of.route.name, of.parent));
            }
        }
        self.refused.extend(losers.into_iter().map(|(key, by)| (key, NotAttached::Taken(by))));
    }
}

fn is_from(from: &FromNamespaces, gateway: &Gateway, namespace: &Text, labels: Option<&Labels>) -> bool {
    match from {
        FromNamespaces::Same => gateway.name.namespace == *namespace,
        FromNamespaces::All => true,
        // Nobody knows the labels of a namespace that is not there.
        FromNamespaces::Selector(wanted) => {
            labels.is_some_and(|labels| wanted.iter().all(|requirement| requirement.met_by(labels)))
        }
        FromNamespaces::None => false,
    }
}
