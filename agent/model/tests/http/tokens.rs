//! What is asked of tokens: RequestAuthentications, and AuthorizationPolicies that ask for what is in tokens.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use orlop_model::http::{
    Claim, Claims, Presented, Request, TokenRefused, TokenRules, Tokens, without_cookie, without_parameter,
};
use orlop_model::world::routing::{HttpMatch, StringMatch};
use orlop_model::world::security::{
    Action, AuthorizationPolicy, Condition, Match, Pattern, Rule, Source, Target,
};
use orlop_model::world::{JwtRule, KeyPlace, KeySource, RemoteKeys, RequestAuthentication, TokenLocation};
use orlop_model::{Behind, Identity, Judgement, NamespacedName, Reason, Refused, World};
use proptest::prelude::*;

use crate::support::{Map, add, compiled, get, routes, rule as http_rule, selected, settings, world};

/// A token that says this of its bearer, or none, or one that is refused; and which rules it was asked by.
pub struct Fake {
    pub claims: Option<Vec<(&'static str, Claim)>>,
    pub refused: bool,
    pub asked: RefCell<Vec<Vec<String>>>,
}

impl Tokens for Fake {
    fn verified(&self, rules: &Arc<TokenRules>) -> Result<Option<Arc<Claims>>, TokenRefused> {
        self.asked.borrow_mut().push(rules.rules.iter().map(|rule| rule.issuer.clone()).collect());
        if self.refused {
            return Err(TokenRefused { reason: Reason::InvalidToken, detail: "no".into() });
        }
        let claims = self.claims.as_ref().map(|claims| {
            let all: BTreeMap<_, _> =
                claims.iter().map(|(name, claim)| ((*name).to_owned(), claim.clone())).collect();
            Arc::new(Claims::new(all, &rules.rules[0], rules))
        });
        Ok(claims)
    }
}

pub fn none() -> Fake {
    Fake { claims: None, refused: false, asked: RefCell::default() }
}

pub fn with(claims: &[(&'static str, Claim)]) -> Fake {
    Fake { claims: Some(claims.to_vec()), ..none() }
}

pub fn text(text: &str) -> Claim {
    Claim::Text(text.to_owned())
}

fn texts(texts: &[&str]) -> Claim {
    Claim::List(texts.iter().map(|of| text(of)).collect())
}

pub fn rule(issuer: &str) -> JwtRule {
    JwtRule {
        issuer: issuer.to_owned(),
        audiences: Vec::new(),
        keys: KeySource::Inline("".into()),
        locations: vec![TokenLocation::Header { name: "authorization".into(), prefix: "Bearer ".into() }],
        forward: false,
        payload_header: None,
        claim_headers: Vec::new(),
        space_delimited: vec!["words".to_owned()],
    }
}

fn web() -> Target {
    Target::Service("web".to_owned())
}

pub fn authentication(name: &str, target: Target, issuers: &[&str]) -> RequestAuthentication {
    RequestAuthentication {
        name: NamespacedName::new("shop", name),
        targets: vec![target],
        rules: issuers.iter().map(|issuer| Arc::new(rule(issuer))).collect(),
        ..RequestAuthentication::default()
    }
}

fn policy(action: Action, rule: Rule) -> AuthorizationPolicy {
    let name = NamespacedName::new("shop", format!("{action:?}").to_lowercase());
    AuthorizationPolicy { name, targets: vec![web()], action, rules: vec![rule], ..Default::default() }
}

fn put(
    authentications: impl IntoIterator<Item = RequestAuthentication>,
    policies: impl IntoIterator<Item = AuthorizationPolicy>,
) -> World {
    let mut world = world();
    for of in authentications {
        world.request_authentications.insert(of.name.clone(), Arc::new(of));
    }
    for of in policies {
        world.authorization_policies.insert(of.name.clone(), Arc::new(of));
    }
    world
}

fn judge(world: &World, tokens: &dyn Tokens) -> Result<Judgement, Refused> {
    let snapshot = compiled(world);
    let service = snapshot.service(&NamespacedName::new("shop", "web")).unwrap().clone();
    let target = Behind::Service { service, port: 80, dialled: None };
    ask(&snapshot, &target, tokens)
}

fn ask(snapshot: &orlop_model::Snapshot, target: &Behind, tokens: &dyn Tokens) -> Result<Judgement, Refused> {
    let identity = Identity::new(&settings().trust_domain, "shop", "a");
    let request: Request<'_> = get("/");
    snapshot.routes().authorize(
        target,
        Some(&identity),
        "10.0.0.9".parse().unwrap(),
        Some(&request),
        tokens,
        &[],
    )
}

fn of(values: &[&str], not_values: &[&str]) -> Match<Pattern> {
    let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Match { values: list(values), not_values: list(not_values) }
}

fn principals(of: Match<Pattern>) -> Rule {
    Rule { from: vec![Source { request_principals: of, ..Source::default() }], ..Rule::default() }
}

fn when(condition: Condition) -> Rule {
    Rule { when: vec![condition], ..Rule::default() }
}

/// Whether the rule matches by an ALLOW and by a DENY policy; `None` where nothing is allowed and it is denied.
fn matches(rule: &Rule, tokens: &dyn Tokens) -> Option<bool> {
    let by = |action| {
        let world = put([authentication("a", web(), &["iss"])], [policy(action, rule.clone())]);
        judge(&world, tokens).is_ok()
    };
    let (allows, denies) = (by(Action::Allow), !by(Action::Deny));
    assert!(denies || !allows, "allowed, and not denied");
    (allows == denies).then_some(allows)
}

#[test]
fn a_request_without_a_token_passes_without_a_principal_and_a_bad_one_does_not() {
    let open = put([authentication("a", web(), &["iss"])], []);
    assert!(judge(&open, &none()).is_ok());
    let refused = judge(&open, &Fake { refused: true, ..none() }).unwrap_err();
    assert_eq!((refused.reason, refused.detail.as_str()), (Reason::InvalidToken, "no"));
    let anyone = principals(of(&["*"], &[]));
    assert_eq!(matches(&anyone, &none()), Some(false));
    assert_eq!(matches(&anyone, &with(&[("sub", text("ann"))])), Some(true));
    // Without a subject there is nobody.
    assert_eq!(matches(&anyone, &with(&[])), Some(false));
    assert_eq!(matches(&principals(of(&[], &["*"])), &none()), Some(true));
    for (pattern, want) in
        [("iss/ann", true), ("iss/*", true), ("*/ann", true), ("iss", false), ("x/*", false)]
    {
        let ann = with(&[("sub", text("ann"))]);
        assert_eq!(matches(&principals(of(&[pattern], &[])), &ann), Some(want), "{pattern}");
        let condition = Condition::RequestPrincipal(of(&[], &[pattern]));
        assert_eq!(matches(&when(condition), &ann), Some(!want), "{pattern}");
    }
}

#[test]
fn claims_are_texts_lists_of_them_or_within_others() {
    let claims = [
        ("group", text("admin")),
        ("groups", texts(&["a", "b"])),
        ("scope", text("read  write")),
        ("roles", text("x y")),
        ("words", text(" x y")),
        ("level", Claim::Number("7".into())),
        ("staff", Claim::Bool(true)),
        ("mixed", Claim::List(vec![text("a"), Claim::Number("1".into())])),
        ("nothing", Claim::Null),
        ("aud", texts(&["web", "api"])),
        ("azp", text("app")),
        ("a.b", text("dotted")),
        (
            "deep",
            Claim::Object([("er".to_owned(), Claim::Object([("x".to_owned(), text("y"))].into()))].into()),
        ),
    ];
    for (key, value, want) in [
        (&["group"][..], "admin", Some(true)),
        (&["group"], "adm*", Some(true)),
        (&["group"], "ad", Some(false)),
        (&["groups"], "b", Some(true)),
        (&["groups"], "c", Some(false)),
        (&["scope"], "write", Some(true)),
        (&["scope"], "read", Some(true)),
        (&["scope"], "read  write", Some(false)),
        (&["roles"], "x", Some(false)),
        (&["roles"], "x y", Some(true)),
        // As the rule of its issuer says.
        (&["words"], "x", Some(true)),
        (&["words"], "y", Some(true)),
        (&["words"], "x y", Some(false)),
        // Numbers, and what else is no text, are compared by nobody.
        (&["level"], "7", None),
        (&["staff"], "true", None),
        (&["staff"], "*", Some(true)),
        (&["mixed"], "a", None),
        (&["deep"], "y", None),
        (&["nothing"], "*", Some(false)),
        (&["absent"], "*", Some(false)),
        (&["a.b"], "dotted", Some(true)),
        (&["a", "b"], "dotted", Some(false)),
        (&["deep", "er", "x"], "y", Some(true)),
        (&["deep", "er"], "*", Some(true)),
        (&["deep", "no", "x"], "y", Some(false)),
    ] {
        let names: Vec<_> = key.iter().map(|&name| name.to_owned()).collect();
        let is = when(Condition::Claim(names.clone(), of(&[value], &[])));
        assert_eq!(matches(&is, &with(&claims)), want, "{key:?} {value}");
        let is_not = when(Condition::Claim(names, of(&[], &[value])));
        assert_eq!(matches(&is_not, &with(&claims)), want.map(|want| !want), "not {key:?} {value}");
        assert_eq!(matches(&is, &none()), Some(false));
    }
    let audience = |value| when(Condition::RequestAudience(of(&[value], &[])));
    assert_eq!(matches(&audience("api"), &with(&claims)), Some(true));
    assert_eq!(matches(&audience("other"), &with(&claims)), Some(false));
    assert_eq!(matches(&when(Condition::RequestPresenter(of(&["app"], &[]))), &with(&claims)), Some(true));
}

#[test]
fn a_subject_must_not_be_taken_for_another_issuers() {
    // `https://idp` names a subject so that it looks like one of `https://idp/staff`.
    let world = |action| {
        put(
            [authentication("a", web(), &["https://idp", "https://idp/staff"])],
            [policy(action, principals(of(&["https://idp/staff/*"], &[])))],
        )
    };
    let forged = with(&[("sub", text("staff/root"))]);
    assert!(judge(&world(Action::Allow), &forged).is_err());
    assert!(judge(&world(Action::Deny), &forged).is_err());
    let plain = with(&[("sub", text("ann"))]);
    assert!(judge(&world(Action::Deny), &plain).is_ok());
}

#[test]
fn rules_are_those_of_the_service_its_waypoint_and_all_waypoints() {
    let gate = Target::Gateway("gate".to_owned());
    let mut class = authentication("class", Target::GatewayClass("orlop-waypoint".to_owned()), &["class"]);
    let elsewhere = authentication("other", Target::Service("other".to_owned()), &["other"]);
    let asked = |world: &World| {
        let tokens = none();
        judge(world, &tokens).unwrap();
        tokens.asked.take().concat()
    };
    let own = authentication("own", web(), &["own", "own"]);
    let of_gate = authentication("gate", gate, &["gate"]);
    assert_eq!(asked(&put([class.clone(), elsewhere.clone()], [])), Vec::<String>::new());
    class.name.namespace = settings().root_namespace.into();
    let all = put([own, of_gate, class, elsewhere], []);
    assert_eq!(asked(&all), ["own", "class", "gate"]);
}

#[test]
fn a_pods_own_address_is_no_way_to_have_another_services_issuers() {
    // Whoever may make a service that leads to the pod must not say whose tokens count for the others.
    let mut world = put(
        [
            authentication("a", web(), &["good"]),
            authentication("b", Target::Service("other".to_owned()), &["evil"]),
        ],
        [],
    );
    let mut slice = (**world.endpoint_slices.values().next().unwrap()).clone();
    slice.name = NamespacedName::new("shop", "other-1");
    slice.service = Some("other".into());
    world.endpoint_slices.insert(slice.name.clone(), slice);
    let snapshot = compiled(&world);
    let workload = snapshot.workload(&NamespacedName::new("shop", "v1")).unwrap().clone();
    let target = Behind::Workload { workload, address: "10.0.0.1:8080".parse().unwrap() };
    let tokens = none();
    ask(&snapshot, &target, &tokens).unwrap();
    let mut asked = tokens.asked.take();
    asked.sort();
    assert_eq!(asked, [["evil"], ["good"]]);
    assert_eq!(snapshot.routes().token_rules(&target).len(), 2);
}

#[test]
fn one_that_can_not_be_understood_lets_nothing_pass() {
    let unreadable = |namespace: &str, targets: Vec<Target>| RequestAuthentication {
        name: NamespacedName::new(namespace, "a"),
        targets,
        unreadable: true,
        ..RequestAuthentication::default()
    };
    for (of, refuses) in [
        (unreadable("shop", vec![web()]), true),
        (unreadable("shop", vec![Target::Service("other".into())]), false),
        (unreadable("shop", vec![Target::Gateway("gate".into())]), true),
        (unreadable("shop", vec![]), true),
        (unreadable("far", vec![]), false),
        (unreadable("istio-system", vec![]), true),
    ] {
        let judged = judge(&put([of.clone()], []), &none());
        assert_eq!(judged.is_err(), refuses, "{of:?}");
        if let Err(refused) = judged {
            assert!(refused.detail.contains("can't be understood"), "{}", refused.detail);
        }
    }
}

#[test]
fn policies_that_nobody_can_decide_and_rules_without_effect_are_told() {
    let told = |world: &World| {
        let found = compiled(world).findings().to_vec();
        found
            .into_iter()
            .map(|of| format!("{} {}: {}", of.kind, of.name.name, of.message))
            .collect::<Vec<_>>()
    };
    let asks = || policy(Action::Deny, principals(of(&["x"], &[])));
    assert_eq!(
        told(&put([], [asks()])),
        [
            "AuthorizationPolicy deny: rules[0] asks for requestPrincipals, and no RequestAuthentication with jwtRules \
          is for Service/web, so they are left out there and the rule denies more than it says"
        ]
    );
    assert!(told(&put([authentication("a", web(), &["iss"])], [asks()])).is_empty());
    let gate = authentication("a", Target::Gateway("gate".to_owned()), &["iss"]);
    assert!(told(&put([gate], [asks()])).is_empty());
    let mut of_pods = authentication("a", web(), &["iss"]);
    of_pods.targets.clear();
    assert_eq!(
        told(&put([of_pods], [])),
        ["RequestAuthentication a: has no effect: waypoints go by targetRefs alone; give it some"]
    );
    let mut keyless = authentication("a", web(), &["iss"]);
    Arc::make_mut(&mut keyless.rules[0]).keys = KeySource::Unusable("it is no JSON".to_owned());
    let [said] = &told(&put([keyless], []))[..] else { panic!("one thing is wrong") };
    assert!(said.contains("spec.jwtRules[0].jwks is no key set that can be used: it is no JSON"), "{said}");
    assert!(said.ends_with("until then all tokens of iss are refused"), "{said}");
    let absent = authentication("a", Target::Service("absent".to_owned()), &["iss"]);
    assert!(told(&put([absent], []))[0].contains("is for Service/absent, where nobody enforces it"));
}

#[test]
fn keys_that_have_to_be_asked_for_are_told() {
    let mut of = rule("iss");
    let place = KeyPlace::Uri("https://a/keys".into());
    let remote = RemoteKeys { place, timeout: Duration::from_secs(5) };
    of.keys = KeySource::Remote(remote.clone());
    let mut authentication = authentication("a", web(), &["inline"]);
    authentication.rules.push(Arc::new(of));
    assert_eq!(compiled(&put([authentication], [])).routes().remote_keys(), [remote].into());
}

fn headers(pairs: &[(&str, &str)]) -> Map {
    let mut map = Map::default();
    for (name, value) in pairs {
        map.0.entry((*name).to_owned()).or_default().push((*value).to_owned());
    }
    map
}

fn at(locations: &[&[TokenLocation]]) -> TokenRules {
    let rules = locations.iter().enumerate().map(|(number, locations)| {
        Arc::new(JwtRule { locations: locations.to_vec(), ..rule(&format!("iss{number}")) })
    });
    TokenRules { rules: rules.collect(), unreadable: None }
}

fn header(name: &str, prefix: &str) -> TokenLocation {
    TokenLocation::Header { name: name.to_owned(), prefix: prefix.to_owned() }
}

#[test]
fn a_token_is_where_some_rule_looks_for_it() {
    let parameter = TokenLocation::Parameter("access_token".to_owned());
    let cookie = TokenLocation::Cookie("session".to_owned());
    let bearer = header("authorization", "Bearer ");
    let custom = header("x-token", "");
    let rules = at(&[&[bearer.clone(), parameter.clone()], &[cookie.clone(), custom.clone()]]);
    let found = |pairs: &[(&str, &str)], query: Option<&str>| {
        rules.presented(&headers(pairs), query).map_err(|refused| refused.detail)
    };
    let token = |token: &str, at: &[&TokenLocation]| {
        let at = at.iter().map(|&location| location.clone()).collect();
        Ok(Some(Presented { token: token.to_owned(), at }))
    };
    assert_eq!(found(&[], None), Ok(None));
    assert_eq!(found(&[("authorization", "Bearer a.b.c")], None), token("a.b.c", &[&bearer]));
    assert_eq!(found(&[("authorization", "bEARER  a.b.c ")], None), token("a.b.c", &[&bearer]));
    assert_eq!(found(&[("authorization", "Basic a.b.c")], None), Ok(None));
    assert_eq!(found(&[("authorization", "Bearer ")], None), Ok(None));
    assert_eq!(found(&[("x-token", "a.b.c")], None), token("a.b.c", &[&custom]));
    assert_eq!(found(&[], Some("x=1&access_token=a.b.c")), token("a.b.c", &[&parameter]));
    assert_eq!(found(&[], Some("access%5Ftoken=a%2Eb.c&y")), token("a.b.c", &[&parameter]));
    assert_eq!(found(&[("cookie", "x=1; session=a.b.c")], None), token("a.b.c", &[&cookie]));
    assert_eq!(found(&[("cookie", "session=\"a.b.c\"")], None), token("a.b.c", &[&cookie]));
    // The same in two places is one; others are nobody's.
    let twice = found(&[("authorization", "Bearer a"), ("x-token", "a")], None);
    assert_eq!(twice, token("a", &[&bearer, &custom]));
    for (pairs, query) in [
        (&[("authorization", "Bearer a"), ("x-token", "b")][..], None),
        (&[("authorization", "Bearer a"), ("authorization", "Bearer b")], None),
        (&[("authorization", "Bearer a")], Some("access_token=b")),
        (&[], Some("access_token=a&access_token=b")),
        (&[("cookie", "session=a; session=b")], None),
    ] {
        assert_eq!(found(pairs, query), Err("there are two tokens that differ".to_owned()), "{pairs:?}");
    }
    // Of two prefixes of a header the longer counts.
    let rules = at(&[&[header("x", "")], &[header("x", "JWT ")]]);
    let found = rules.presented(&headers(&[("x", "JWT a")]), None).unwrap().unwrap();
    assert_eq!((found.token.as_str(), &found.at[..]), ("a", &[header("x", "JWT ")][..]));
    assert_eq!(rules.at(&found.at).map(|rule| rule.issuer.as_str()).collect::<Vec<_>>(), ["iss1"]);
}

#[test]
fn a_token_can_be_taken_out_of_a_query_and_of_cookies() {
    for (query, left) in [
        ("t=1", None),
        ("a=1&t=1&b=2", Some("a=1&b=2")),
        ("%74=1&a", Some("a")),
        ("a=t&tt=1", Some("a=t&tt=1")),
        ("t&t=&t=2", None),
    ] {
        assert_eq!(without_parameter(query, "t").as_deref(), left, "{query}");
    }
    for (line, left) in [
        ("t=1", None),
        ("a=1; t=2;b=3", Some("a=1; b=3")),
        ("T=1", Some("T=1")),
        (" t = 1 ; a=b", Some("a=b")),
    ] {
        assert_eq!(without_cookie(line, "t").as_deref(), left, "{line}");
    }
}

proptest! {
    /// Wherever a token was found and is taken out, none is found there any more, and nothing else is lost.
    #[test]
    fn what_is_taken_out_is_gone(
        pairs in prop::collection::vec(("(t|%74|tt|a|%|%2|)", "[a-c.%+]{0,4}"), 0..6),
    ) {
        let location = TokenLocation::Parameter("t".to_owned());
        let rules = at(&[&[location]]);
        let query: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let query = query.join("&");
        let left = without_parameter(&query, "t");
        prop_assert_eq!(rules.presented(&headers(&[]), left.as_deref()), Ok(None));
        let others = pairs.iter().filter(|(name, _)| name != "t" && name != "%74");
        let others: Vec<_> = others.map(|(name, value)| format!("{name}={value}")).collect();
        prop_assert_eq!(left.unwrap_or_default(), others.join("&"));
    }
}

#[test]
fn rules_match_what_verified_tokens_say() {
    let rules = TokenRules { rules: vec![Arc::new(rule("a"))], unreadable: None };
    let claims = |all: &[(&str, Claim)]| {
        let all = all.iter().map(|(name, claim)| ((*name).to_owned(), claim.clone())).collect();
        [Arc::new(Claims::new(all, &rules.rules[0], &rules))]
    };
    let inner = Claim::Object([("given".to_owned(), text("ann"))].into());
    let all = claims(&[
        ("sub", text("ann")),
        ("name", inner),
        ("groups", texts(&["a", "b"])),
        ("scope", text("read write")),
        ("age", Claim::Number("3".into())),
    ]);
    let exact = |text: &str| StringMatch::Exact(text.to_owned());
    for (names, wanted, holds) in [
        (&["sub"][..], exact("ann"), true),
        (&["sub"], exact("an"), false),
        (&["sub"], StringMatch::Prefix("an".into()), true),
        (&["sub"], StringMatch::Regex("a.n".parse().unwrap()), true),
        (&["name", "given"], exact("ann"), true),
        (&["name.given"], exact("ann"), false),
        (&["name"], StringMatch::Present, true),
        (&["name"], exact("ann"), false),
        (&["groups"], exact("b"), true),
        (&["groups"], exact("a,b"), false),
        (&["scope"], exact("write"), true),
        (&["age"], exact("3"), false),
        (&["age"], StringMatch::Present, true),
        (&["none"], StringMatch::Present, false),
    ] {
        let of = vec![(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), wanted.clone())];
        for (matches, is_wanted) in [
            (HttpMatch { claims: of.clone(), ..HttpMatch::default() }, holds),
            (HttpMatch { without_claims: of.clone(), ..HttpMatch::default() }, !holds),
        ] {
            let mut world = world();
            add(&mut world, routes("r", [http_rule("r", [matches])]));
            let request = Request { claims: &all, ..get("/") };
            let found = selected(&compiled(&world), &request);
            assert_eq!(found.is_ok(), is_wanted, "{names:?} {wanted:?}");
        }
        // Without a token nothing is claimed.
        let mut world = world();
        let matches = HttpMatch { claims: of, ..HttpMatch::default() };
        add(&mut world, routes("r", [http_rule("r", [matches])]));
        assert_eq!(selected(&compiled(&world), &get("/")), Err(Reason::NoRoute), "{names:?}");
    }
}
