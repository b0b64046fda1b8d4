//! Rules that anybody may write, and a request.

use std::borrow::Cow;

use orlop_model::http::{Grants, Headers, Request, is_alike, normalised};
use orlop_model::world::routing::{HttpRule, RuleAction};
use orlop_model::{NamespacedName, Settings, Snapshot, World, compile};

/// A service of the namespace `shop` and the waypoint before it, and of a VirtualService all but its rules.
const WORLD: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: gate}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web], http: [";

/// Of an input, which is a line with method, path and host, one for each header, an empty one, and rules as JSON.
pub struct Asked<'a> {
    pub method: &'a str,
    pub path: Cow<'a, str>,
    pub query: Option<&'a str>,
    pub host: &'a str,
    pub headers: Pairs<'a>,
    pub snapshot: Snapshot,
    /// As they were understood, with their number as their name.
    pub rules: Vec<HttpRule>,
}

pub struct Pairs<'a>(pub Vec<(String, &'a str)>);

impl Headers for Pairs<'_> {
    fn values(&self, name: &str) -> Vec<Cow<'_, str>> {
        self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| Cow::Borrowed(*value)).collect()
    }

    fn alike(&self, name: &str) -> Vec<Cow<'_, str>> {
        self.0
            .iter()
            .filter(|(known, _)| is_alike(known, name))
            .map(|(_, value)| Cow::Borrowed(*value))
            .collect()
    }
}

impl<'a> Asked<'a> {
    pub fn read(input: &'a str) -> Option<Self> {
        let (head, rules) = input.split_once("\n\n")?;
        let mut lines = head.lines();
        let mut words = lines.next()?.split(' ');
        let (method, path, host) = (words.next()?, words.next()?, words.next()?);
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path, None),
        };
        let pairs = lines.filter_map(|line| line.split_once(": "));
        let headers = Pairs(pairs.map(|(name, value)| (name.to_ascii_lowercase(), value)).collect());
        // No more objects than one.
        let rules = rules.replace('\n', " ");
        let mut world: World = orlop_kube::fuzzing::world(&format!("{WORLD}{rules}]}}\n")).ok()?;
        let name = NamespacedName::new("shop", "web");
        let routes = world.virtual_services.get_mut(&name)?;
        let delegates = |rule: &HttpRule| matches!(rule.action, RuleAction::Delegate(_));
        if world.services.is_empty() || routes.http.iter().any(delegates) {
            return None;
        }
        for (number, rule) in routes.http.iter_mut().enumerate() {
            rule.name = number.to_string();
        }
        let rules = routes.http.clone();
        let settings = settings();
        let gate = NamespacedName::new("shop", "gate");
        let snapshot = compile(&world, &settings, 1).with_routes(&gate, &world, &settings, Grants::Optional);
        Some(Self { method, path: normalised(path).ok()?, query, host, headers, snapshot, rules })
    }

    pub fn request(&self) -> Request<'_> {
        Request {
            method: self.method,
            scheme: "http",
            authority: self.host,
            path: &self.path,
            query: self.query,
            headers: &self.headers,
            port: 80,
            source: None,
            source_namespace: "shop",
            claims: &[],
        }
    }
}

fn settings() -> Settings {
    Settings {
        node: String::new(),
        trust_domain: "cluster.local".parse().expect("it is one"),
        trust_domain_aliases: Vec::new(),
        root_namespace: "istio-system".to_owned(),
        cluster: "Kubernetes".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        network: None,
    }
}
