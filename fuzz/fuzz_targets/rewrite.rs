//! What a rule makes of a request's head: what goes on is a head that means one thing.
#![no_main]

#[path = "../shared/rules.rs"]
mod rules;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use orlop_model::NamespacedName;
use orlop_model::http::normalised;
use rules::Asked;

fuzz_target!(|input: &str| {
    let Some(asked) = Asked::read(input) else { return };
    let Some(service) = asked.snapshot.service(&NamespacedName::new("shop", "web")) else { return };
    let request = asked.request();
    let Ok(Some(selected)) = asked.snapshot.routes().select(service, &request) else { return };
    assert!(asked.rules.iter().any(|rule| rule.name == selected.rule.name));
    let mut headers = HeaderMap::new();
    for (name, value) in &asked.headers.0 {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name.as_str()), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    let (host, path) = (asked.host, asked.path.to_string());
    let path = asked.query.map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
    // As it is read from a request: without a fragment.
    let Ok(read) = path.parse::<PathAndQuery>() else { return };
    let made = orlop_proxy::fuzzing::rewrite(selected, (host, &path), &mut headers);
    let Some((host, path)) = made else { return };
    assert!(
        !host.is_empty() && !host.contains(['/', '@', ' ', '\\']) || asked.host.contains('@'),
        "{host:?}"
    );
    let (bare, query) = path.split_once('?').map_or((&*path, None), |(bare, query)| (bare, Some(query)));
    assert_eq!(normalised(bare).as_deref(), Ok(bare), "policies were asked about another");
    let (query, asked) = (query.unwrap_or_default(), read.query().unwrap_or_default());
    assert!(query.ends_with(asked), "rules only put something before it: {query:?} of {asked:?}");
    assert!(!headers.contains_key("host"), "it is in the path's place");
});
