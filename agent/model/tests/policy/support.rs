//! A small world and short ways to say things about it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use orlop_model::world::security::{
    Action, AuthorizationPolicy, Condition, Match, Operation, Pattern, PeerAuthentication, Rule,
    ServiceAccount, Source,
};
use orlop_model::world::{Labels, Namespace, Pod};
use orlop_model::{
    Allowed, Connection, Denied, Identity, NamespacedName, Settings, Snapshot, World, compile,
};

pub const ROOT: &str = "istio-system";

/// Pods `shop/web` (10.0.0.1) and `shop/db` (10.0.0.2), labelled `app`, and `bank/web` (10.0.0.3).
pub fn world(policies: impl IntoIterator<Item = AuthorizationPolicy>) -> World {
    let pods =
        [pod("shop", "web", "10.0.0.1"), pod("shop", "db", "10.0.0.2"), pod("bank", "web", "10.0.0.3")];
    World {
        namespaces: ["shop", "bank"].map(|name| (name.into(), Namespace::default())).into(),
        pods: pods.into_iter().map(|pod| (pod.name.clone(), pod)).collect(),
        authorization_policies: policies
            .into_iter()
            .map(|policy| (policy.name.clone(), Arc::new(policy)))
            .collect(),
        ..World::default()
    }
}

pub fn pod(namespace: &str, name: &str, address: &str) -> Pod {
    Pod {
        name: id(namespace, name),
        labels: labels(&[("app", name)]),
        service_account: "default".into(),
        addresses: [ip(address)].into(),
        ..Pod::default()
    }
}

/// A policy in namespace `shop`.
pub fn policy(name: &str, action: Action, rules: impl Into<Vec<Rule>>) -> AuthorizationPolicy {
    AuthorizationPolicy {
        name: id("shop", name),
        action,
        rules: rules.into(),
        ..AuthorizationPolicy::default()
    }
}

pub fn from(source: Source) -> Rule {
    Rule { from: vec![source], ..Rule::default() }
}

pub fn to(operation: Operation) -> Rule {
    Rule { to: vec![operation], ..Rule::default() }
}

pub fn when(condition: Condition) -> Rule {
    Rule { when: vec![condition], ..Rule::default() }
}

/// What must be, then what must not be.
pub fn texts(values: &[&str], not_values: &[&str]) -> Match<Pattern> {
    let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Match { values: list(values), not_values: list(not_values) }
}

pub fn blocks(values: &[&str], not_values: &[&str]) -> Match<orlop_model::world::security::IpBlock> {
    let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Match { values: list(values), not_values: list(not_values) }
}

pub fn accounts(values: &[&str], not_values: &[&str]) -> Match<ServiceAccount> {
    let account = |text: &&str| {
        let (namespace, name) = text.split_once('/').unwrap();
        ServiceAccount { namespace: namespace.into(), name: name.into() }
    };
    Match {
        values: values.iter().map(account).collect(),
        not_values: not_values.iter().map(account).collect(),
    }
}

pub fn ports(values: &[u16], not_values: &[u16]) -> Match<u16> {
    Match { values: values.to_vec(), not_values: not_values.to_vec() }
}

pub fn principals(values: &[&str]) -> Rule {
    from(Source { principals: texts(values, &[]), ..Source::default() })
}

pub fn namespaces(values: &[&str]) -> Rule {
    from(Source { namespaces: texts(values, &[]), ..Source::default() })
}

pub fn on_ports(values: &[u16]) -> Rule {
    to(Operation { ports: ports(values, &[]), ..Operation::default() })
}

pub fn paths() -> Operation {
    let paths = Match { values: vec!["/a".parse().unwrap()], not_values: vec![] };
    Operation { paths, ..Operation::default() }
}

pub fn peer_authentication(namespace: &str, name: &str) -> PeerAuthentication {
    PeerAuthentication { name: id(namespace, name), ..PeerAuthentication::default() }
}

/// Own trust domain `td1`, formerly `td2`.
pub fn settings() -> Settings {
    Settings {
        node: "one".into(),
        trust_domain: "td1".parse().unwrap(),
        trust_domain_aliases: vec!["td2".parse().unwrap()],
        root_namespace: ROOT.into(),
        cluster: "Kubernetes".into(),
        cluster_domain: "cluster.local".into(),
        network: None,
    }
}

pub fn snapshot(world: &World) -> Snapshot {
    compile(world, &settings(), 1)
}

/// Who dials what: `TD/ns/NS/sa/SA` or empty, from 192.0.2.1 to a pod's first address.
pub struct Call<'a> {
    pub principal: &'a str,
    pub source: &'a str,
    pub to: NamespacedName,
    pub port: u16,
}

/// To port 80 of `shop/web`.
pub fn call(principal: &str) -> Call<'_> {
    Call { principal, source: "192.0.2.1", to: id("shop", "web"), port: 80 }
}

impl Call<'_> {
    pub fn judge(&self, world: &World) -> Result<Allowed, Denied> {
        let snapshot = snapshot(world);
        self.with(&snapshot, |connection| snapshot.authorize(connection))
    }

    /// By which policy, if any, and whether it may.
    pub fn verdict(&self, world: &World) -> (bool, Option<String>) {
        match self.judge(world) {
            Ok(allowed) => (true, allowed.policy.map(|policy| policy.name.to_string())),
            Err(denied) => (false, denied.policy.map(|policy| policy.name.to_string())),
        }
    }

    pub fn allowed(&self, world: &World) -> bool {
        self.verdict(world).0
    }

    pub fn explanation(&self, world: &World) -> String {
        let denied = self.judge(world).expect_err("denied");
        self.with(&snapshot(world), |connection| denied.explain(connection))
    }

    fn with<T>(&self, snapshot: &Snapshot, f: impl FnOnce(&Connection<'_>) -> T) -> T {
        let identity = identity(self.principal);
        let destination = snapshot.workload(&self.to).unwrap();
        f(&Connection {
            source_identity: identity.as_ref(),
            source: ip(self.source),
            destination,
            address: SocketAddr::new(destination.addresses[0], self.port),
        })
    }
}

pub fn identity(principal: &str) -> Option<Identity> {
    (!principal.is_empty()).then(|| format!("spiffe://{principal}").parse().unwrap())
}

pub fn id(namespace: &str, name: &str) -> NamespacedName {
    NamespacedName::new(namespace, name)
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}
