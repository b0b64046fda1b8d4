//! How many requests there may be: RateLimits.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use orlop_model::http::{Bucket, Counted, NoTokens, Request, Tokens};
use orlop_model::world::security::{Match, Operation, Rule, Target};
use orlop_model::world::{Counting, KeyPart, Limit, Rate, RateLimit, Unit};
use orlop_model::{Behind, FindingReason, NamespacedName, Reason, Refused, World};
use proptest::prelude::*;

use crate::support::{Map, compiled, get, world};
use crate::tokens::{Fake, authentication, none, text, with as token};

fn rate(requests: u32, unit: Unit) -> Rate {
    let requests = NonZeroU32::new(requests).unwrap();
    Rate::new(requests, unit, requests).unwrap()
}

fn limit(name: &str, by: Vec<KeyPart>, matches: Vec<Rule>) -> Arc<Limit> {
    let counting = Counting::Local(rate(5, Unit::Minute));
    Arc::new(Limit { name: name.to_owned(), counting, by, matches })
}

fn posts() -> Vec<Rule> {
    let methods = Match { values: vec!["POST".parse().unwrap()], not_values: Vec::new() };
    vec![Rule { to: vec![Operation { methods, ..Operation::default() }], ..Rule::default() }]
}

fn of(name: &str, targets: Vec<Target>, limits: Vec<Arc<Limit>>) -> RateLimit {
    RateLimit { name: NamespacedName::new("shop", name), targets, limits, unreadable: false }
}

fn service(name: &str) -> Target {
    Target::Service(name.to_owned())
}

fn with(limits: impl IntoIterator<Item = RateLimit>) -> World {
    let mut world = world();
    for of in limits {
        world.rate_limits.insert(of.name.clone(), Arc::new(of));
    }
    world
}

/// What a request for a service of `shop` on port 80 counts for.
fn counted(world: &World, name: &str, request: &Request<'_>) -> Result<Vec<Counted>, Refused> {
    let snapshot = compiled(world);
    let service = snapshot.service(&NamespacedName::new("shop", name)).unwrap().clone();
    let target = Behind::Service { service, port: 80, dialled: None };
    ask(world, &target, request)
}

fn ask(world: &World, target: &Behind, request: &Request<'_>) -> Result<Vec<Counted>, Refused> {
    let client = "spiffe://cluster.local/ns/shop/sa/client".parse().unwrap();
    let address = "10.1.2.3".parse().unwrap();
    compiled(world).routes().limits(target, Some(&client), address, request, &NoTokens)
}

fn names(counted: &[Counted]) -> Vec<&str> {
    counted.iter().map(|of| of.limit.of.name.as_str()).collect()
}

#[test]
fn a_request_counts_for_what_is_for_its_service_and_for_the_waypoint() {
    let world = with([
        of("a", vec![service("web")], vec![limit("web", vec![], vec![]), limit("posts", vec![], posts())]),
        of("b", vec![service("other")], vec![limit("other", vec![], vec![])]),
        of("c", vec![Target::Gateway("gate".into()), service("web")], vec![limit("gate", vec![], vec![])]),
        of("d", vec![Target::Gateway("another".into())], vec![limit("another", vec![], vec![])]),
    ]);
    assert_eq!(names(&counted(&world, "web", &get("/")).unwrap()), ["web", "gate"]);
    let post = Request { method: "post", ..get("/") };
    // Some servers take it for POST.
    assert_eq!(names(&counted(&world, "web", &post).unwrap()), ["web", "posts", "gate"]);
    assert_eq!(names(&counted(&world, "other", &get("/")).unwrap()), ["other", "gate"]);
    assert!(compiled(&world).routes().has_limits());
    assert!(!compiled(&with([])).routes().has_limits());
}

#[test]
fn a_pod_that_is_dialled_by_its_address_counts_for_its_services() {
    let world = with([of("a", vec![service("web")], vec![limit("web", vec![KeyPart::Service], vec![])])]);
    let snapshot = compiled(&world);
    let pod = snapshot.workload(&NamespacedName::new("shop", "v1")).unwrap().clone();
    let address = SocketAddr::new(pod.addresses[0], 8080);
    let found = ask(&world, &Behind::Workload { workload: pod, address }, &get("/")).unwrap();
    assert_eq!(names(&found), ["web"]);
    assert_eq!(found[0].key, [Some("shop/web".to_owned())]);
}

#[test]
fn requests_are_counted_apart_by_what_they_have() {
    let by = vec![
        KeyPart::Principal,
        KeyPart::Namespace,
        KeyPart::ServiceAccount,
        KeyPart::Address,
        KeyPart::Service,
        KeyPart::Host,
        KeyPart::Method,
        KeyPart::Path,
        KeyPart::Header("x-tenant".into()),
        KeyPart::Header("x-absent".into()),
        KeyPart::RequestPrincipal,
        KeyPart::Claim(vec!["team".into()]),
    ];
    let world = with([of("a", vec![service("web")], vec![limit("web", by, vec![])])]);
    let headers = Map([("x-tenant".to_owned(), vec!["a".to_owned(), "b".to_owned()])].into());
    let request = Request { authority: "WEB.:80", method: "get", headers: &headers, ..get("/x?y") };
    let found = counted(&world, "web", &request).unwrap();
    let key: Vec<_> = found[0].key.iter().map(|part| part.as_deref()).collect();
    let wanted = [
        Some("cluster.local/ns/shop/sa/client"),
        Some("shop"),
        Some("ns/shop/sa/client"),
        Some("10.1.2.3"),
        Some("shop/web"),
        Some("web"),
        Some("GET"),
        Some("/x"),
        Some("a,b"),
        None,
        None,
        None,
    ];
    assert_eq!(key, wanted);
    let findings = compiled(&world).findings().to_vec();
    assert!(
        findings.iter().any(|of| of.kind == "RateLimit" && of.reason == FindingReason::FieldsNotEnforced),
        "{findings:?}"
    );
}

#[test]
fn whom_a_token_is_of_counts_and_what_it_says() {
    let by = vec![KeyPart::RequestPrincipal, KeyPart::Claim(vec!["team".into()])];
    let mut world = with([of("a", vec![service("web")], vec![limit("web", by, vec![])])]);
    let key = |world: &World, tokens: &dyn Tokens| {
        let snapshot = compiled(world);
        let service = snapshot.service(&NamespacedName::new("shop", "web")).unwrap().clone();
        let target = Behind::Service { service, port: 80, dialled: None };
        let address = "10.1.2.3".parse().unwrap();
        let counted = snapshot.routes().limits(&target, None, address, &get("/"), tokens);
        counted.map(|counted| counted[0].key.clone()).map_err(|refused| refused.reason)
    };
    let ann = [("iss", text("iss")), ("sub", text("ann")), ("team", text("blue"))];
    // Nobody asks for tokens, so none is believed.
    assert_eq!(key(&world, &token(&ann)).unwrap(), [None, None]);
    let asked = authentication("a", service("web"), &["iss"]);
    world.request_authentications.insert(asked.name.clone(), Arc::new(asked));
    let of_ann = [Some("iss/ann".to_owned()), Some("blue".to_owned())];
    assert_eq!(key(&world, &token(&ann)).unwrap(), of_ann);
    assert_eq!(key(&world, &token(&ann[..2])).unwrap(), [of_ann[0].clone(), None]);
    assert_eq!(key(&world, &none()).unwrap(), [None, None]);
    let bad = Fake { refused: true, ..none() };
    assert_eq!(key(&world, &bad).unwrap_err(), Reason::InvalidToken);
}

#[test]
fn where_one_can_not_be_read_nothing_passes() {
    let unreadable = |targets| RateLimit { unreadable: true, ..of("a", targets, vec![]) };
    let refused = |world: &World, name| counted(world, name, &get("/")).map_err(|refused| refused.reason);
    let named = with([unreadable(vec![service("web")])]);
    assert_eq!(refused(&named, "web").unwrap_err(), Reason::RateLimitUnavailable);
    assert!(refused(&named, "other").is_ok());
    // Whom it is for is not known either.
    let all = with([unreadable(vec![])]);
    assert_eq!(refused(&all, "other").unwrap_err(), Reason::RateLimitUnavailable);
    let gate = with([unreadable(vec![Target::Gateway("gate".into())])]);
    assert_eq!(refused(&gate, "other").unwrap_err(), Reason::RateLimitUnavailable);
}

#[test]
fn what_nobody_enforces_is_told() {
    let world = with([
        of("a", vec![service("nobody")], vec![limit("a", vec![], vec![])]),
        of("b", vec![service("web")], vec![limit("b", vec![], vec![])]),
    ]);
    let found: Vec<_> =
        compiled(&world).findings().iter().map(|of| (of.name.to_string(), of.reason)).collect();
    assert_eq!(found, [("shop/a".to_owned(), FindingReason::NoSuchTarget)]);
}

#[test]
fn rates_are_never_more_than_is_asked_for() {
    assert_eq!(rate(3, Unit::Second).interval(), Duration::from_nanos(333_333_334));
    assert_eq!(rate(1, Unit::Day).interval(), Duration::from_secs(86_400));
    assert_eq!(rate(100, Unit::Minute).to_string(), "100 per minute");
    let of = |requests, unit, burst| {
        Rate::new(NonZeroU32::new(requests).unwrap(), unit, NonZeroU32::new(burst).unwrap())
    };
    assert!(of(1_000_000, Unit::Second, 1_000_000).is_ok());
    assert!(of(1_000_001, Unit::Second, 1).is_err());
    assert!(of(1, Unit::Day, 366).is_ok());
    assert!(of(1, Unit::Day, 367).is_err());
    assert!(of(u32::MAX, Unit::Hour, u32::MAX).is_err());
}

/// A bucket that somebody watches all the time.
struct Watched {
    interval: u64,
    burst: u32,
    tokens: u32,
    /// How long the next token has been on its way.
    since: u64,
}

impl Watched {
    fn tick(&mut self) {
        if self.tokens < self.burst {
            self.since += 1;
            if self.since == self.interval {
                (self.tokens, self.since) = (self.tokens + 1, 0);
            }
        }
    }

    fn take(&mut self) -> bool {
        let is_there = self.tokens > 0;
        self.tokens -= u32::from(is_there);
        is_there
    }
}

proptest! {
    #[test]
    fn a_bucket_gives_what_one_gives_that_is_watched(
        interval in 1_u64..20,
        burst in 1_u32..5,
        pauses in prop::collection::vec(0_u64..40, 1..60),
    ) {
        let bucket = Bucket::new(Duration::from_nanos(interval), burst);
        let mut watched = Watched { interval, burst, tokens: burst, since: 0 };
        let (mut kept, mut now) = (0, 0);
        for pause in pauses {
            (0..pause).for_each(|_| watched.tick());
            now += pause;
            match bucket.take(kept, now) {
                Ok(then) => {
                    prop_assert!(watched.take());
                    kept = then;
                    // What is given back is there again.
                    prop_assert_eq!(bucket.take(bucket.give_back(kept), now), Ok(kept));
                }
                Err(wait) => {
                    prop_assert!(!watched.take());
                    prop_assert_eq!(u128::from(interval - watched.since), wait.as_nanos());
                }
            }
        }
    }

    #[test]
    fn no_time_and_no_state_is_too_much(kept in any::<u64>(), now in any::<u64>(), nanos in any::<u64>(), burst in 1_u32..) {
        let bucket = Bucket::new(Duration::from_nanos(nanos), burst);
        let _ = bucket.take(kept, now);
        let _ = bucket.give_back(kept);
    }
}
