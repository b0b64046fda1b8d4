use std::sync::Arc;

use orlop_model::http::Told;
use orlop_model::world::routing::Percent;
use orlop_model::world::security::Target;
use orlop_model::world::{AccessLogging, Metric, MetricOverride, SpanTag, TagOverride, Telemetry, Tracing};
use orlop_model::{Behind, FindingReason, NamespacedName, World, compile};

use crate::support::{compiled, settings, world};

fn telemetry(namespace: &str, name: &str, targets: Vec<Target>) -> Telemetry {
    Telemetry { name: NamespacedName::new(namespace, name), targets, ..Telemetry::default() }
}

fn sampled(of: Telemetry, percent: u32) -> Telemetry {
    let sampling = Some(Percent(percent * 10_000));
    Telemetry { tracing: Tracing { sampling, ..of.tracing.clone() }, ..of }
}

fn add(world: &mut World, of: Telemetry) {
    world.telemetries.insert(of.name.clone(), of);
}

/// What is told of requests for `shop/NAME`.
fn told(world: &World, name: &str) -> Option<Arc<Told>> {
    let snapshot = compiled(world);
    let service = Arc::clone(snapshot.service(&NamespacedName::new("shop", name)).unwrap());
    snapshot.routes().told(&Behind::Service { service, port: 80, dialled: None }).cloned()
}

fn sampling(world: &World, name: &str) -> Option<u32> {
    told(world, name)?.sampling.map(|percent| percent.0 / 10_000)
}

#[test]
fn the_service_counts_before_the_waypoint_that_before_the_namespace_and_that_before_the_mesh() {
    let mut world = world();
    assert!(told(&world, "web").is_none());
    for (percent, of, other) in [
        (1, telemetry("istio-system", "mesh", Vec::new()), 1),
        (2, telemetry("shop", "all", Vec::new()), 2),
        (3, telemetry("shop", "gate", vec![Target::Gateway("gate".into())]), 3),
        (4, telemetry("shop", "web", vec![Target::Service("web".into())]), 3),
    ] {
        add(&mut world, sampled(of, percent));
        assert_eq!((sampling(&world, "web"), sampling(&world, "other")), (Some(percent), Some(other)));
    }
    for namespace in ["far", "street"] {
        add(&mut world, sampled(telemetry(namespace, "all", Vec::new()), 9));
        add(&mut world, sampled(telemetry(namespace, "web", vec![Target::Service("web".into())]), 9));
    }
    assert_eq!((sampling(&world, "web"), sampling(&world, "other")), (Some(4), Some(3)));
}

#[test]
fn what_a_narrower_one_does_not_say_the_wider_one_does() {
    let mut world = world();
    let disabled = |metric, disabled| MetricOverride { metric, disabled: Some(disabled), tags: Vec::new() };
    let tag = |name: &str, tag| MetricOverride {
        metric: Some(Metric::Requests),
        disabled: None,
        tags: vec![(name.to_owned(), tag)],
    };
    let path = TagOverride::Set("request.headers['X-A']".parse().unwrap());
    add(
        &mut world,
        Telemetry {
            metrics: vec![
                disabled(None, true),
                disabled(Some(Metric::Requests), false),
                tag("a", path.clone()),
            ],
            logging: Some(AccessLogging { disabled: true, filter: None }),
            ..sampled(telemetry("istio-system", "mesh", Vec::new()), 7)
        },
    );
    let header = SpanTag::Header { name: "x-b".into(), default: None };
    add(
        &mut world,
        Telemetry {
            metrics: vec![tag("b", TagOverride::Remove)],
            tracing: Tracing { disabled: Some(true), tags: Some(vec![("b".into(), header)]), sampling: None },
            ..telemetry("shop", "all", Vec::new())
        },
    );
    let told = told(&world, "web").unwrap();
    assert!(told.metric(Metric::Duration).unwrap().disabled && told.metric(Metric::Sent).unwrap().disabled);
    let requests = told.metric(Metric::Requests).unwrap();
    assert!(!requests.disabled);
    assert_eq!(requests.tags, [("a".to_owned(), path), ("b".to_owned(), TagOverride::Remove)]);
    assert!(told.untraced && told.logging.disabled && told.sampling == Some(Percent(70_000)));
    assert_eq!(told.headers, ["x-a", "x-b"]);
}

#[test]
fn what_the_mesh_says_itself_only_its_root_namespace_has_said_otherwise() {
    let set = |name: &str| (name.to_owned(), TagOverride::Set("'x'".parse().unwrap()));
    let tags = || vec![set("z"), set("destination_service"), ("source_app".to_owned(), TagOverride::Remove)];
    let of = |namespace: &str| Telemetry {
        metrics: vec![MetricOverride { metric: Some(Metric::Requests), disabled: None, tags: tags() }],
        ..telemetry(namespace, "all", Vec::new())
    };
    let names = |world: &World| -> Vec<String> {
        let told = told(world, "web").unwrap();
        told.metric(Metric::Requests).unwrap().tags.iter().map(|(name, _)| name.clone()).collect()
    };
    let mut world = world();
    add(&mut world, of("shop"));
    assert_eq!(names(&world), ["source_app", "z"]);
    let found = compile(&world, &settings(), 1).findings_of_all(&world, &settings());
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].message.contains("destination_service"), "{found:?}");
    world.telemetries = Default::default();
    add(&mut world, of("istio-system"));
    assert_eq!(names(&world), ["destination_service", "source_app", "z"]);
    assert!(compile(&world, &settings(), 1).findings_of_all(&world, &settings()).is_empty());
}

#[test]
fn what_has_no_effect_is_told() {
    let mut world = world();
    let of = |name: &str, created, of: Telemetry| Telemetry {
        name: NamespacedName::new("shop", name),
        created: Some(created),
        ..of
    };
    let gate = || telemetry("", "", vec![Target::Gateway("gate".into())]);
    add(&mut world, of("a", 2, sampled(gate(), 1)));
    add(&mut world, of("b", 1, sampled(gate(), 2)));
    let selector = [("app".to_owned(), "x".to_owned())].into();
    add(&mut world, of("c", 3, Telemetry { selector, ..Telemetry::default() }));
    add(&mut world, of("d", 4, telemetry("", "", vec![Target::Service("nobody".into())])));
    add(&mut world, of("e", 5, Telemetry { unread: vec!["x".into()], ..Telemetry::default() }));
    let found = compile(&world, &settings(), 1).findings_of_all(&world, &settings());
    let found: Vec<_> = found.iter().map(|of| (of.name.name.as_str(), of.reason)).collect();
    let wanted = [
        ("a", FindingReason::Merged),
        ("c", FindingReason::NoWaypoint),
        ("d", FindingReason::NoSuchTarget),
        ("e", FindingReason::FieldsNotEnforced),
    ];
    assert_eq!(found, wanted);
    assert_eq!(sampling(&world, "web"), Some(2));
}
