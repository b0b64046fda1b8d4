//! Who may ask for what: AuthorizationPolicies with `targetRefs`.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use orlop_model::http::{Headers, NoTokens, Request, normalised};
use orlop_model::world::PathPattern;
use orlop_model::world::security::{
    Action, AuthorizationPolicy, Condition, Match, Operation, Rule, Source, Target,
};
use orlop_model::{Behind, Identity, Judgement, NamespacedName, Outcome, Refused, World};
use proptest::prelude::*;

use crate::support::{Map, compiled, get, settings, world};

fn values<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: &[&str]) -> Match<T> {
    Match { values: texts.iter().map(|text| text.parse().unwrap()).collect(), not_values: Vec::new() }
}

fn but<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: &[&str]) -> Match<T> {
    Match { values: Vec::new(), not_values: values(texts).values }
}

fn paths(texts: &[&str]) -> Operation {
    Operation { paths: values(texts), ..Operation::default() }
}

fn to(operation: Operation) -> Vec<Rule> {
    vec![Rule { to: vec![operation], ..Rule::default() }]
}

fn when(condition: Condition) -> Vec<Rule> {
    vec![Rule { when: vec![condition], ..Rule::default() }]
}

fn policy(target: Target, action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    let name = NamespacedName::new("shop", format!("{action:?}-{target}").to_lowercase());
    AuthorizationPolicy { name, targets: vec![target], action, rules, ..AuthorizationPolicy::default() }
}

fn of_web(action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    policy(Target::Service("web".to_owned()), action, rules)
}

fn with(policies: impl IntoIterator<Item = AuthorizationPolicy>) -> World {
    let mut world = world();
    for policy in policies {
        world.authorization_policies.insert(policy.name.clone(), Arc::new(policy));
    }
    world
}

/// How a client dials.
#[derive(Clone, Copy, Debug)]
enum Dialled {
    /// The service `shop/web`, by its name.
    Name,
    /// The service, by an address.
    Service,
    /// Its pod `v1`.
    Pod,
    /// That pod by an address of the other family, which the service does not know.
    Otherwise,
}

fn judge(world: &World, dialled: Dialled, request: Option<&Request<'_>>) -> Result<Judgement, Refused> {
    let snapshot = compiled(world);
    let identity = Identity::new(&settings().trust_domain, "shop", "a");
    let target = match dialled {
        Dialled::Pod | Dialled::Otherwise => {
            let workload = snapshot.workload(&NamespacedName::new("shop", "v1")).unwrap().clone();
            let address = if matches!(dialled, Dialled::Pod) { "10.0.0.1:8080" } else { "[fd00::1]:8080" };
            Behind::Workload { workload, address: address.parse().unwrap() }
        }
        by => {
            let service = snapshot.service(&NamespacedName::new("shop", "web")).unwrap().clone();
            let address: SocketAddr = "10.96.0.1:80".parse().unwrap();
            Behind::Service { service, port: 80, dialled: matches!(by, Dialled::Service).then_some(address) }
        }
    };
    snapshot.routes().authorize(
        &target,
        Some(&identity),
        "10.0.0.9".parse().unwrap(),
        request,
        &NoTokens,
        &[],
    )
}

fn allowed(world: &World, request: &Request<'_>) -> bool {
    judge(world, Dialled::Service, Some(request)).is_ok()
}

/// Whether a rule matches, by an ALLOW policy and by a DENY policy: both say the same of what is plain to see, and else
/// nothing is allowed and it is denied.
fn matches(rules: &[Rule], request: &Request<'_>) -> Option<bool> {
    let allows = allowed(&with([of_web(Action::Allow, rules.to_vec())]), request);
    let denies = !allowed(&with([of_web(Action::Deny, rules.to_vec())]), request);
    assert!(denies || !allows, "allowed, and not denied");
    (allows == denies).then_some(allows)
}

#[test]
fn without_policies_everything_is_allowed_and_an_empty_one_denies_all() {
    assert!(allowed(&world(), &get("/")));
    assert!(!allowed(&with([of_web(Action::Allow, Vec::new())]), &get("/")));
    assert!(allowed(&with([of_web(Action::Allow, vec![Rule::default()])]), &get("/")));
}

#[test]
fn a_policy_is_for_its_service_its_waypoint_or_all_waypoints() {
    let gateway = |name: &str| Target::Gateway(name.to_owned());
    let service = |name: &str| Target::Service(name.to_owned());
    let class = || Target::GatewayClass("orlop-waypoint".to_owned());
    let in_root = |mut policy: AuthorizationPolicy| {
        policy.name.namespace = settings().root_namespace.into();
        policy
    };
    let deny = |target| policy(target, Action::Deny, vec![Rule::default()]);
    for (policy, applies) in [
        (deny(service("web")), true),
        (deny(service("other")), false),
        (deny(Target::ServiceEntry("web".to_owned())), false),
        (deny(gateway("gate")), true),
        (deny(gateway("else")), false),
        (deny(class()), false),
        (in_root(deny(class())), true),
        (in_root(deny(service("web"))), false),
        (in_root(deny(Target::GatewayClass("else".to_owned()))), false),
    ] {
        let target = policy.targets[0].clone();
        let world = with([policy]);
        // The pod's own address is no way around it.
        for dialled in [Dialled::Name, Dialled::Service, Dialled::Pod, Dialled::Otherwise] {
            let allowed = judge(&world, dialled, Some(&get("/"))).is_ok();
            assert_eq!(allowed, !applies, "{target} {dialled:?}");
        }
    }
}

#[test]
fn a_policy_for_a_class_is_for_the_waypoints_that_are_of_it() {
    let of_class = |class: &str| {
        let mut policy = policy(Target::GatewayClass(class.to_owned()), Action::Deny, vec![Rule::default()]);
        policy.name.namespace = settings().root_namespace.into();
        policy
    };
    let gate = NamespacedName::new("shop", "gate");
    for (class, own, applies) in [
        ("mine", Some("mine"), true),
        ("mine", Some("else"), false),
        ("mine", None, false),
        ("orlop-waypoint", Some("mine"), true),
        ("istio-waypoint", Some("mine"), true),
    ] {
        let mut world = with([of_class(class)]);
        let service = world.services.get(&gate).map(|service| (**service).clone());
        let mut service = service.unwrap_or_default();
        service.name = gate.clone();
        let label =
            own.map(|own| ("gateway.networking.k8s.io/gateway-class-name".to_owned(), own.to_owned()));
        service.labels.extend(label);
        world.services.insert(gate.clone(), service);
        assert_eq!(judge(&world, Dialled::Service, Some(&get("/"))).is_err(), applies, "{class} {own:?}");
        let snapshot = compiled(&world);
        let mut findings = snapshot.findings().iter();
        let told = findings.any(|finding| finding.message.contains("no waypoint is of this class"));
        assert_eq!(told, !applies, "{class} {own:?}");
    }
}

#[test]
fn a_pods_address_takes_what_each_of_its_services_allows() {
    let mut world = with([
        of_web(Action::Allow, to(paths(&["/web*", "/both"]))),
        policy(Target::Service("other".to_owned()), Action::Allow, to(paths(&["/other*", "/both"]))),
    ]);
    let mut slice = (**world.endpoint_slices.values().next().unwrap()).clone();
    slice.name = NamespacedName::new("shop", "other-1");
    slice.service = Some("other".into());
    world.endpoint_slices.insert(slice.name.clone(), slice);
    for (path, by_service, by_pod) in [("/web", true, false), ("/other", false, false), ("/both", true, true)]
    {
        assert_eq!(judge(&world, Dialled::Service, Some(&get(path))).is_ok(), by_service, "{path}");
        assert_eq!(judge(&world, Dialled::Pod, Some(&get(path))).is_ok(), by_pod, "{path}");
    }
}

#[test]
fn deny_comes_before_allow_and_says_why() {
    let world = with([
        of_web(Action::Allow, to(paths(&["/api/*"]))),
        of_web(Action::Deny, to(paths(&["/api/admin*"]))),
    ]);
    assert!(allowed(&world, &get("/api/x")));
    let denied = judge(&world, Dialled::Service, Some(&get("/api/admin/x"))).unwrap_err();
    assert_eq!(
        denied.detail,
        "AuthorizationPolicy shop/deny-service/web denies it: DENY rules[0] matches, since the path is \
         /api/admin/x, which is in paths (/api/admin*)"
    );
    assert_eq!(denied.judgement.policy.unwrap().name, "deny-service/web");
    let denied = judge(&world, Dialled::Service, Some(&get("/other"))).unwrap_err();
    assert_eq!(
        denied.detail,
        "no ALLOW policy matches: shop/allow-service/web; nearest is shop/allow-service/web rules[0]: the path is \
         /other, which is not in paths (/api/*)"
    );
}

#[test]
fn methods_hosts_and_addresses() {
    let request = Request { authority: "Web.Shop.:80", ..get("/") };
    let hosts = |hosts| to(Operation { hosts, ..Operation::default() });
    for (pattern, want) in [("web.shop", true), ("web.shop:80", true), ("*.shop", true), ("web", false)] {
        assert_eq!(matches(&hosts(values(&[pattern])), &request), Some(want), "{pattern}");
        assert_eq!(matches(&hosts(but(&[pattern])), &request), Some(!want), "not {pattern}");
        assert_eq!(matches(&when(Condition::Host(values(&[pattern]))), &request), Some(want), "{pattern}");
    }
    // Whoever decodes this reads another host.
    assert_eq!(matches(&hosts(values(&["web"])), &Request { authority: "%77eb", ..get("/") }), None);
    let methods = |methods| to(Operation { methods, ..Operation::default() });
    // Some servers take "get" for GET.
    for (method, want) in [("GET", Some(true)), ("get", None), ("PUT", Some(false))] {
        let request = Request { method, ..get("/") };
        assert_eq!(matches(&methods(values(&["GET"])), &request), want, "{method}");
        assert_eq!(
            matches(&when(Condition::Method(but(&["GET"]))), &request),
            want.map(|is| !is),
            "{method}"
        );
    }
    let remote = |blocks| {
        let from = vec![Source { remote_ip_blocks: values(blocks), ..Source::default() }];
        vec![Rule { from, ..Rule::default() }]
    };
    assert_eq!(matches(&remote(&["10.0.0.0/24"]), &get("/")), Some(true));
    assert_eq!(matches(&remote(&["10.1.0.0/24"]), &get("/")), Some(false));
    assert_eq!(matches(&when(Condition::RemoteIp(values(&["10.0.0.9"]))), &get("/")), Some(true));
}

fn of(pairs: &[(&str, &str)]) -> Map {
    let mut map = Map::default();
    for (name, value) in pairs {
        map.0.entry((*name).to_owned()).or_default().push((*value).to_owned());
    }
    map
}

#[test]
fn headers() {
    let is = |values| when(Condition::Header("x-team".to_owned(), values));
    for (sent, wanted, want) in [
        (of(&[]), values(&["blue"]), Some(false)),
        (of(&[]), values(&["*"]), Some(false)),
        (of(&[]), but(&["blue"]), Some(true)),
        (of(&[("x-team", "blue")]), values(&["blue"]), Some(true)),
        (of(&[("x-team", "blue")]), values(&["red", "b*"]), Some(true)),
        (of(&[("x-team", "blue")]), but(&["blue"]), Some(false)),
        (of(&[("x-team", "red")]), values(&["blue"]), Some(false)),
        (of(&[("x-team", "")]), values(&["*"]), Some(true)),
        // One server takes the first, one the last, one both.
        (of(&[("x-team", "red"), ("x-team", "blue")]), values(&["blue"]), None),
        (of(&[("x-team", "red"), ("x-team", "blue")]), but(&["blue"]), None),
        (of(&[("x-team", "red"), ("x-team", "blue")]), values(&["*"]), Some(true)),
        (of(&[("x-team", "red"), ("x-team", "red")]), values(&["blue"]), Some(false)),
    ] {
        let request = Request { headers: &sent, ..get("/") };
        assert_eq!(matches(&is(wanted.clone()), &request), want, "{sent:?} {wanted:?}");
    }
}

/// What is no UTF-8: a node of this model sees `.0`, and a server may see `.1`.
struct Odd(Vec<&'static str>, Vec<&'static str>);

impl Headers for Odd {
    fn values(&self, name: &str) -> Vec<Cow<'_, str>> {
        let values = self.0.iter().filter(|_| name == "x-team");
        values.map(|value| Cow::Borrowed(*value)).collect()
    }

    fn otherwise(&self, name: &str) -> Vec<Cow<'_, str>> {
        let values = self.1.iter().filter(|_| name == "x-team");
        values.map(|value| Cow::Borrowed(*value)).collect()
    }

    fn alike(&self, _: &str) -> Vec<Cow<'_, str>> {
        Vec::new()
    }
}

#[test]
fn a_header_that_servers_may_take_for_another_keeps_out_and_lets_nobody_in() {
    let is = |values| when(Condition::Header("x-team".to_owned(), values));
    for (sent, wanted, want) in [
        (of(&[("x_team", "red")]), values(&["red"]), None),
        (of(&[("x.team", "red")]), but(&["red"]), None),
        (of(&[("x_team", "red")]), values(&["*"]), None),
        (of(&[("x_team", "red")]), values(&["blue"]), Some(false)),
        (of(&[("x-team", "red"), ("x_team", "red")]), values(&["red", "red,red", "red, red"]), Some(true)),
        (of(&[("x-team", "red"), ("x_team", "blue")]), values(&["red"]), None),
        (of(&[("x-team", "blue"), ("x_team", "red")]), values(&["red"]), None),
        (of(&[("x-team", "red"), ("x_team", "blue")]), but(&["blue"]), None),
        (of(&[("x-team", "red"), ("x-team", "red"), ("x_team", "green")]), values(&["red,red"]), None),
        (of(&[("x-team", "red"), ("xteam", "blue")]), values(&["red"]), Some(true)),
    ] {
        let request = Request { headers: &sent, ..get("/") };
        assert_eq!(matches(&is(wanted.clone()), &request), want, "{sent:?} {wanted:?}");
    }
}

#[test]
fn a_header_that_is_no_utf8_matches_only_where_all_that_it_may_be_does() {
    let is = |values| when(Condition::Header("x-team".to_owned(), values));
    let one = Odd(vec!["caf\u{fffd}"], vec!["caf\u{e9}"]);
    let two = Odd(vec!["red", "caf\u{fffd}"], vec!["red", "caf\u{e9}"]);
    for (sent, wanted, want) in [
        (&one, values(&["caf\u{e9}"]), None),
        (&one, but(&["caf\u{e9}"]), None),
        (&one, values(&["caf\u{fffd}"]), None),
        (&one, values(&["caf*"]), Some(true)),
        (&one, values(&["*"]), Some(true)),
        (&one, values(&["blue"]), Some(false)),
        (&two, values(&["red,caf\u{e9}"]), None),
        (&two, values(&["blue"]), Some(false)),
    ] {
        let request = Request { headers: sent, ..get("/") };
        assert_eq!(matches(&is(wanted.clone()), &request), want, "{:?} {wanted:?}", sent.0);
    }
}

#[test]
fn an_encoded_slash_is_one_for_some_servers_and_part_of_a_segment_for_others() {
    let of = |pattern| to(paths(&[pattern]));
    for (pattern, path, want) in [
        ("/users/{*}/keys", "/users/a%2Fb/keys", None),
        ("/users/{**}", "/users/a%2Fb", Some(true)),
        ("/users/{*}", "/users/a%2Fb", None),
        ("/users/*", "/users/a%2Fb", Some(true)),
        ("/other", "/users/a%2Fb", Some(false)),
    ] {
        assert_eq!(matches(&of(pattern), &get(path)), want, "{pattern} {path}");
    }
}

#[test]
fn callers_and_where_they_go() {
    let from = |source| vec![Rule { from: vec![source], ..Rule::default() }];
    let principal = |text: &str| from(Source { principals: values(&[text]), ..Source::default() });
    assert_eq!(matches(&principal("cluster.local/ns/shop/sa/a"), &get("/")), Some(true));
    assert_eq!(matches(&principal("*/sa/b"), &get("/")), Some(false));
    let ports = |port| {
        to(Operation { ports: Match { values: vec![port], not_values: vec![] }, ..Operation::default() })
    };
    assert_eq!(matches(&ports(80), &get("/")), Some(true));
    assert_eq!(matches(&ports(81), &get("/")), Some(false));
    // The port is the service's, however it is reached.
    let denied = with([of_web(Action::Deny, ports(80))]);
    for dialled in [Dialled::Name, Dialled::Service, Dialled::Pod, Dialled::Otherwise] {
        assert!(judge(&denied, dialled, Some(&get("/"))).is_err(), "{dialled:?}");
    }
    let world = |action| with([of_web(action, when(Condition::DestinationIp(values(&["10.96.0.1"]))))]);
    for (dialled, allows, denies) in
        [(Dialled::Service, true, true), (Dialled::Name, false, true), (Dialled::Pod, false, false)]
    {
        assert_eq!(judge(&world(Action::Allow), dialled, Some(&get("/"))).is_ok(), allows, "{dialled:?}");
        assert_eq!(judge(&world(Action::Deny), dialled, Some(&get("/"))).is_err(), denies, "{dialled:?}");
    }
}

#[test]
fn what_can_not_be_seen_allows_nothing_and_denies() {
    // Without a RequestAuthentication nobody looks at tokens.
    let token = Source { request_principals: but(&["x"]), ..Source::default() };
    for rules in [
        when(Condition::Unread("connection.sni".into())),
        when(Condition::Claim(vec!["x".into()], but(&["y"]))),
        vec![Rule { from: vec![token], ..Rule::default() }],
    ] {
        assert_eq!(matches(&rules, &get("/")), None);
        assert!(!allowed(&with([of_web(Action::Custom, rules)]), &get("/")));
    }
    // Of what is not HTTP no request is seen.
    let methods = || Operation { methods: but(&["GET"]), ..Operation::default() };
    for operation in [paths(&["/x"]), methods()] {
        for action in [Action::Allow, Action::Deny] {
            let world = with([of_web(action, to(operation.clone()))]);
            let refused = judge(&world, Dialled::Service, None).unwrap_err();
            assert!(
                refused.detail.contains("no request was seen, which may be or not be in"),
                "{}",
                refused.detail
            );
        }
    }
}

#[test]
fn dry_run_and_audit_change_nothing_and_are_told() {
    let dry = |action, rules| AuthorizationPolicy { dry_run: true, ..of_web(action, rules) };
    let world = with([
        dry(Action::Deny, to(paths(&["/x"]))),
        dry(Action::Allow, to(paths(&["/y"]))),
        of_web(Action::Audit, to(paths(&["/x"]))),
    ]);
    let said = |path| {
        let judgement = judge(&world, Dialled::Service, Some(&get(path))).unwrap();
        let said = judgement.dry_run.iter().map(|said| (said.policy.name.to_string(), said.outcome));
        (said.collect::<Vec<_>>(), judgement.audit)
    };
    let dry_allow = "allow-service/web".to_owned();
    let dry_deny = "deny-service/web".to_owned();
    let none_allows = (dry_allow.clone(), Outcome::Deny);
    assert_eq!(said("/x"), (vec![none_allows.clone(), (dry_deny, Outcome::Deny)], true));
    assert_eq!(said("/y"), (vec![(dry_allow, Outcome::Allow)], false));
    assert_eq!(said("/z"), (vec![none_allows], false));
}

/// How servers may read a path, each in its own words.
fn servers(path: &str) -> Vec<String> {
    fn decode(text: &str) -> String {
        let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
        while let [first, after @ ..] = rest {
            let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
            match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| *first == b'%') {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &after[2..];
                }
                None => {
                    bytes.push(*first);
                    rest = after;
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
    fn without_parameters(text: &str) -> String {
        text.split('/').map(|segment| segment.split(';').next().unwrap()).collect::<Vec<_>>().join("/")
    }
    /// Each segment by itself; patterns know no name for the slash in it but none of theirs is like it.
    fn by_segment(text: &str) -> String {
        text.split('/').map(|segment| decode(segment).replace('/', "\u{1}")).collect::<Vec<_>>().join("/")
    }
    fn without_query(text: &str) -> String {
        text.split(['?', '#']).next().unwrap().to_owned()
    }
    /// As a file system would.
    fn resolve(text: &str) -> String {
        let text = text.replace('\\', "/");
        let mut stack: Vec<&str> = Vec::new();
        for segment in text.split('/') {
            match segment {
                "" | "." => {}
                ".." => drop(stack.pop()),
                segment => stack.push(segment),
            }
        }
        let is_directory = ["/", "/.", "/.."].iter().any(|end| text.ends_with(end)) && !stack.is_empty();
        format!("/{}{}", stack.join("/"), if is_directory { "/" } else { "" })
    }
    let once = decode(path);
    let twice = decode(&once);
    let bare = without_parameters;
    vec![
        resolve(&once),
        resolve(&bare(&once)),
        resolve(&decode(&bare(path))),
        resolve(&twice),
        resolve(&bare(&twice)),
        resolve(&decode(&bare(&once))),
        decode(&bare(path)),
        by_segment(path),
        by_segment(&bare(path)),
        resolve(&without_query(&once)),
        resolve(&bare(&without_query(&once))),
        resolve(&without_query(&twice)),
        resolve(&decode(&resolve(&once))),
        resolve(&decode(&bare(&resolve(&once)))),
        once,
        twice,
    ]
}

fn any_path() -> impl Strategy<Value = String> {
    const PARTS: [&str; 25] = [
        "/", "/", "/", "a", "b", "..", ".", ";", "%2F", "%2f", "%5C", "\\", "%3B", "%2E", "%61", "%2561",
        "%252F", "%252e", "%25", "%C3%A9", "%20", "a/b", "%3F", "%23", "%253F",
    ];
    prop::collection::vec(prop::sample::select(&PARTS[..]), 1..9)
        .prop_map(|parts| format!("/{}", parts.concat()))
}

fn any_pattern() -> impl Strategy<Value = PathPattern> {
    const PATTERNS: [&str; 14] = [
        "/a", "/a*", "/b*", "*b", "*/", "/", "/a/b", "/a/{*}", "/b/{**}", "/{**}/b", "/{*}/b", "/a/",
        "/a;b*", "/é*",
    ];
    prop::sample::select(&PATTERNS[..]).prop_map(|pattern| pattern.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever any server takes for a path that is denied is denied; what is allowed is allowed whoever reads it.
    #[test]
    fn no_reading_of_a_path_gets_around_a_policy(
        path in any_path(),
        values in prop::collection::vec(any_pattern(), 1..3),
        negated in any::<bool>(),
    ) {
        let Ok(path) = normalised(&path) else { return Ok(()) };
        let is = |path: &String| values.iter().any(|pattern| pattern.matches(path)) != negated;
        let of = match negated {
            false => Match { values: values.clone(), not_values: Vec::new() },
            true => Match { values: Vec::new(), not_values: values.clone() },
        };
        let rules = to(Operation { paths: of, ..Operation::default() });
        let answer = matches(&rules, &get_path(&path));
        let read: Vec<_> = servers(&path).iter().map(is).collect();
        if let Some(matched) = answer {
            prop_assert!(read.iter().all(|&read| read == matched), "{path} {:?}", servers(&path));
        }
    }
}

/// A `?` is no part of a path, and none of the generated ones has one.
fn get_path(path: &str) -> Request<'_> {
    Request { path, query: None, ..get("/") }
}
