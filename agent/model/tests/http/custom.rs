//! Who is to be asked about requests: AuthorizationPolicies with action CUSTOM.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use orlop_model::http::{NoTokens, Request};
use orlop_model::world::security::{Action, AuthorizationPolicy, Match, Operation, Rule, Target};
use orlop_model::world::{Backend, BackendAddress, ExtensionProvider, ServiceEntry, ServicePort, Speaks};
use orlop_model::{Behind, FindingReason, Identity, NamespacedName, Reason, World};

use proptest::prelude::*;

use crate::support::{compiled, get, settings, world};

fn provider(namespace: &str, name: &str, port: u16) -> ExtensionProvider {
    ExtensionProvider {
        name: NamespacedName::new(namespace, name),
        host: "other.shop.svc.cluster.local".to_owned(),
        namespace: None,
        port,
        timeout: Duration::from_secs(1),
        fail_open: false,
        status_on_error: 403,
        body: None,
        speaks: Speaks::Grpc,
    }
}

/// Of this name, which has `asks` asked about this path.
fn policy(name: &str, asks: &str, path: &str) -> AuthorizationPolicy {
    let paths = Match { values: vec![path.parse().unwrap()], not_values: Vec::new() };
    AuthorizationPolicy {
        name: NamespacedName::new("shop", name),
        targets: vec![Target::Service("web".to_owned())],
        action: Action::Custom,
        provider: Some(asks.to_owned()),
        rules: vec![Rule { to: vec![Operation { paths, ..Operation::default() }], ..Rule::default() }],
        ..AuthorizationPolicy::default()
    }
}

fn with(
    policies: impl IntoIterator<Item = AuthorizationPolicy>,
    providers: impl IntoIterator<Item = ExtensionProvider>,
) -> World {
    let mut world = world();
    for policy in policies {
        world.authorization_policies.insert(policy.name.clone(), Arc::new(policy));
    }
    for provider in providers {
        world.extension_providers.insert(provider.name.clone(), Arc::new(provider));
    }
    world
}

fn target(world: &World) -> Behind {
    let service = compiled(world).service(&NamespacedName::new("shop", "web")).unwrap().clone();
    Behind::Service { service, port: 80, dialled: None }
}

/// Who is asked about a request, and by which policy.
fn asked(world: &World, path: &str) -> Vec<(String, String)> {
    let client = Identity::new(&settings().trust_domain, "shop", "a");
    let address = "10.0.0.9".parse().unwrap();
    let snapshot = compiled(world);
    let found =
        snapshot.routes().to_ask(&target(world), Some(&client), address, &get(path), &NoTokens).unwrap();
    found.iter().map(|of| (of.provider.name.to_string(), of.policy.to_string())).collect()
}

fn judged(world: &World, request: Option<&Request<'_>>, passed: &[ExtensionProvider]) -> Result<(), Reason> {
    let client = Identity::new(&settings().trust_domain, "shop", "a");
    let passed: Vec<_> = passed.iter().cloned().map(Arc::new).collect();
    let (snapshot, address) = (compiled(world), "10.0.0.9".parse().unwrap());
    let judged =
        snapshot.routes().authorize(&target(world), Some(&client), address, request, &NoTokens, &passed);
    judged.map(drop).map_err(|refused| refused.reason)
}

#[test]
fn what_a_policy_matches_passes_once_its_provider_has_let_it() {
    let authz = provider("shop", "authz", 80);
    let world = with([policy("a", "authz", "/a")], [authz.clone()]);
    assert!(compiled(&world).routes().has_providers());
    assert_eq!(asked(&world, "/a"), [("shop/authz".to_owned(), "shop/a".to_owned())]);
    assert!(asked(&world, "/b").is_empty());
    assert_eq!(judged(&world, Some(&get("/a")), &[]), Err(Reason::PolicyDenied));
    assert_eq!(judged(&world, Some(&get("/a")), std::slice::from_ref(&authz)), Ok(()));
    assert_eq!(judged(&world, Some(&get("/b")), &[]), Ok(()));
    // Of one that has changed meanwhile, nobody knows what it says.
    assert_eq!(judged(&world, Some(&get("/a")), &[provider("shop", "authz", 81)]), Err(Reason::PolicyDenied));
    // Where there is no request nobody can be asked about one.
    assert_eq!(judged(&world, None, &[]), Err(Reason::PolicyDenied));
}

#[test]
fn each_policy_has_its_provider_asked_and_all_must_let_it_pass() {
    let (one, two) = (provider("shop", "one", 80), provider("shop", "two", 80));
    let policies = [policy("b", "two", "/a"), policy("a", "one", "/a"), policy("c", "one", "/a")];
    let world = with(policies, [one.clone(), two.clone()]);
    let wanted = [("shop/one", "shop/a"), ("shop/two", "shop/b"), ("shop/one", "shop/c")];
    assert_eq!(asked(&world, "/a"), wanted.map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert_eq!(judged(&world, Some(&get("/a")), std::slice::from_ref(&one)), Err(Reason::PolicyDenied));
    assert_eq!(judged(&world, Some(&get("/a")), &[one, two]), Ok(()));
}

#[test]
fn others_keep_out_whom_a_provider_lets_pass() {
    let authz = provider("shop", "authz", 80);
    let deny = AuthorizationPolicy { action: Action::Deny, provider: None, ..policy("d", "", "/a") };
    let world = with([policy("a", "authz", "/a"), deny], [authz.clone()]);
    assert_eq!(judged(&world, Some(&get("/a")), &[authz]), Err(Reason::PolicyDenied));
}

#[test]
fn a_provider_is_looked_for_in_the_policys_namespace_and_in_the_roots() {
    let root = settings().root_namespace;
    let (mesh, own) = (provider(&root, "authz", 80), provider("shop", "authz", 80));
    let first = |providers: Vec<ExtensionProvider>| {
        let world = with([policy("a", "authz", "/a")], providers);
        asked(&world, "/a").first().map(|(provider, _)| provider.clone())
    };
    assert_eq!(first(vec![mesh.clone()]), Some(format!("{root}/authz")));
    assert_eq!(first(vec![mesh, own]), Some("shop/authz".to_owned()));
    assert_eq!(first(vec![provider("far", "authz", 80)]), None);
}

#[test]
fn what_asks_nobody_denies_and_is_told_of() {
    let world = with([policy("a", "nobody", "/a")], [provider("shop", "gone", 99)]);
    assert_eq!(judged(&world, Some(&get("/a")), &[]), Err(Reason::PolicyDenied));
    let findings = compiled(&world).findings().to_vec();
    let reason = |kind: &str| findings.iter().find(|of| of.kind == kind).map(|of| of.reason);
    assert_eq!(reason("AuthorizationPolicy"), Some(FindingReason::NoProvider));
    assert_eq!(reason("ExtensionProvider"), Some(FindingReason::NoSuchPort));
    let good = with([policy("a", "authz", "/a")], [provider("shop", "authz", 80)]);
    assert!(compiled(&good).findings().iter().all(|of| of.reason != FindingReason::NoProvider));
    // In dry run nobody is asked.
    let dry = AuthorizationPolicy { dry_run: true, ..policy("a", "authz", "/a") };
    let dry = with([dry], [provider("shop", "authz", 80)]);
    assert!(asked(&dry, "/a").is_empty());
    assert_eq!(judged(&dry, Some(&get("/a")), &[]), Ok(()));
}

/// Whoever may write a ServiceEntry has nobody on the waypoint's own node asked, nor what a cloud keeps there.
#[test]
fn no_provider_is_on_the_node_or_the_link() {
    let near = ["127.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1", "::ffff:127.0.0.1", "ff02::1"];
    let mut world = with([], []);
    let name = NamespacedName::new("shop", "near");
    let backend = |ip: &str| Backend {
        address: BackendAddress::Ip(ip.parse().unwrap()),
        service_account: "default".to_owned(),
        ..Backend::default()
    };
    let ports = vec![ServicePort { number: 80, ..ServicePort::default() }];
    let endpoints = near.into_iter().chain(["192.0.2.1"]).map(backend).collect();
    let hosts = vec!["near.example".to_owned()];
    let entry = ServiceEntry { name: name.clone(), hosts, ports, endpoints, ..ServiceEntry::default() };
    world.service_entries.insert(name, entry);
    let snapshot = compiled(&world);
    let port = snapshot.service_named("shop", "near.example").unwrap().port(80).unwrap();
    let found: Vec<_> = port.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    assert_eq!(found, ["192.0.2.1:80"]);
}

const PATHS: [&str; 3] = ["/a", "/b", "/c"];
const PROVIDERS: [&str; 3] = ["one", "two", "gone"];

#[derive(Clone, Debug)]
struct Drawn {
    action: Action,
    /// Of `PROVIDERS`, for CUSTOM; of the last there is none.
    asks: usize,
    /// Of `PATHS`.
    path: usize,
    dry_run: bool,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let action = prop::sample::select(vec![Action::Custom, Action::Custom, Action::Deny, Action::Allow]);
    (action, 0..PROVIDERS.len(), 0..PATHS.len(), prop::bool::weighted(0.2))
        .prop_map(|(action, asks, path, dry_run)| Drawn { action, asks, path, dry_run })
}

/// Istio's order, word by word: CUSTOM, DENY, ALLOW.
fn wanted(policies: &[Drawn], path: usize, passed: &[usize]) -> bool {
    let in_force = || policies.iter().filter(|of| !of.dry_run);
    let matching = |action| in_force().filter(move |of| of.action == action && of.path == path);
    let has_allow = in_force().any(|of| of.action == Action::Allow);
    matching(Action::Custom).all(|of| passed.contains(&of.asks) && PROVIDERS[of.asks] != "gone")
        && matching(Action::Deny).next().is_none()
        && (!has_allow || matching(Action::Allow).next().is_some())
}

proptest! {
    #[test]
    fn nothing_passes_that_somebody_refuses(
        policies in prop::collection::vec(drawn(), 0..6),
        path in 0..PATHS.len(),
        passed in prop::sample::subsequence(vec![0, 1], 0..=2),
    ) {
        let made = policies.iter().enumerate().map(|(number, of)| AuthorizationPolicy {
            action: of.action,
            provider: (of.action == Action::Custom).then(|| PROVIDERS[of.asks].to_owned()),
            dry_run: of.dry_run,
            ..policy(&format!("p{number}"), "", PATHS[of.path])
        });
        let providers = [provider("shop", PROVIDERS[0], 80), provider("shop", PROVIDERS[1], 80)];
        let world = with(made, providers.clone());
        let have: Vec<_> = passed.iter().map(|&which| providers[which].clone()).collect();
        let found = judged(&world, Some(&get(PATHS[path])), &have).is_ok();
        prop_assert_eq!(found, wanted(&policies, path, &passed));
        // Whoever asks all that are to be asked, and whom they let pass, is refused by no CUSTOM policy but those that
        // ask nobody.
        let asked: BTreeSet<_> = asked(&world, PATHS[path]).into_iter().map(|(provider, _)| provider).collect();
        let to_ask = policies.iter().filter(|of| {
            of.action == Action::Custom && !of.dry_run && of.path == path && PROVIDERS[of.asks] != "gone"
        });
        let to_ask: BTreeSet<_> = to_ask.map(|of| format!("shop/{}", PROVIDERS[of.asks])).collect();
        prop_assert_eq!(asked, to_ask);
    }
}
