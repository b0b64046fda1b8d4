use orlop_model::http::Request;
use orlop_model::world::routing::{HttpMatch, HttpRule, StringMatch};
use proptest::prelude::*;

use crate::support::{Map, add, compiled, get, routes, rule, selected, world};

/// Rule after rule, match after match, field after field.
fn reference(rules: &[HttpRule], request: &Request<'_>) -> Option<String> {
    let text = |wanted: &StringMatch, text: Option<&str>, fold: bool| match (wanted, text) {
        (_, None) => false,
        (StringMatch::Exact(exact), Some(text)) if fold => exact.to_lowercase() == text.to_lowercase(),
        (StringMatch::Prefix(prefix), Some(text)) if fold => {
            text.to_lowercase().starts_with(&prefix.to_lowercase())
        }
        (StringMatch::Exact(exact), Some(text)) => exact == text,
        (StringMatch::Prefix(prefix), Some(text)) => text.starts_with(prefix.as_str()),
        (StringMatch::Segments(_), Some(_)) => unreachable!("no VirtualService has any"),
        (StringMatch::Regex(regex), Some(text)) => regex.matches(text),
        (StringMatch::Present, Some(_)) => true,
    };
    let matches = |of: &HttpMatch| {
        let header = |(name, wanted): &(String, StringMatch)| {
            text(wanted, request.headers.value(name).as_deref(), false)
        };
        of.uri.as_ref().is_none_or(|uri| text(uri, Some(request.path), of.ignore_uri_case))
            && of.method.as_ref().is_none_or(|method| text(method, Some(request.method), false))
            && of.headers.iter().all(header)
            && !of.without_headers.iter().any(header)
    };
    let found = rules.iter().find(|rule| rule.matches.is_empty() || rule.matches.iter().any(matches));
    found.map(|rule| rule.name.clone())
}

fn path() -> impl Strategy<Value = String> {
    "(/[abAB]{0,2}){1,3}"
}

fn uri() -> impl Strategy<Value = StringMatch> {
    let regex = prop_oneof![Just("/a.*"), Just("/[ab]+"), Just("(/a)+/b?"), Just(".*b")];
    prop_oneof![
        path().prop_map(StringMatch::Exact),
        path().prop_map(StringMatch::Prefix),
        regex.prop_map(|text| StringMatch::Regex(text.parse().unwrap())),
    ]
}

fn header() -> impl Strategy<Value = (String, StringMatch)> {
    let value = prop_oneof![
        "[12]".prop_map(StringMatch::Exact),
        Just(StringMatch::Present),
        Just(StringMatch::Prefix("1".to_owned()))
    ];
    ("[xy]", value)
}

fn http_match() -> impl Strategy<Value = HttpMatch> {
    let method = prop_oneof![Just("GET"), Just("PUT")];
    (
        proptest::option::of(uri()),
        any::<bool>(),
        proptest::option::weighted(0.2, method),
        proptest::collection::vec(header(), 0..2),
        proptest::collection::vec(header(), 0..2),
    )
        .prop_map(|(uri, fold, method, headers, without_headers)| HttpMatch {
            ignore_uri_case: fold && !matches!(uri, Some(StringMatch::Regex(_))),
            uri,
            method: method.map(|method| StringMatch::Exact(method.to_owned())),
            headers,
            without_headers,
            ..HttpMatch::default()
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_finds_what_a_search_in_order_finds(
        matches in proptest::collection::vec(proptest::collection::vec(http_match(), 0..3), 0..12),
        requests in proptest::collection::vec((path(), proptest::collection::btree_map("[xy]", "[123]", 0..3)), 1..16),
    ) {
        let rules: Vec<_> =
            matches.into_iter().enumerate().map(|(number, of)| rule(&number.to_string(), of)).collect();
        let mut world = world();
        add(&mut world, routes("r", rules.clone()));
        let snapshot = compiled(&world);
        for (path, headers) in requests {
            let headers = Map(headers.into_iter().map(|(name, value)| (name, vec![value])).collect());
            let request = Request { headers: &headers, ..get(&path) };
            let found = selected(&snapshot, &request).ok().flatten();
            prop_assert_eq!(found, reference(&rules, &request), "{} {:?}", path, headers);
        }
    }
}
