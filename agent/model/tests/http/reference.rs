use std::collections::BTreeMap;
use std::sync::Arc;

use orlop_model::NamespacedName;
use orlop_model::http::{Claim, Claims, Request, TokenRules};
use orlop_model::world::routing::{HttpMatch, HttpRule, RuleAction, StringMatch, VirtualService};
use proptest::prelude::*;

use crate::support::{Map, add, compiled, get, routes, rule, selected, world};
use crate::tokens;

/// Rule after rule, match after match, field after field. The name of a pod is its label `version`. A rule that delegates
/// leads to the first of the delegate's that matches, too.
fn reference(
    gateways: &[String],
    rules: &[HttpRule],
    delegate: &[HttpRule],
    request: &Request<'_>,
    tokens: &[Token],
) -> Option<String> {
    let is_mesh = |names: &[String]| names.is_empty() || names.iter().any(|name| name == "mesh");
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
    // In lower case, with the port and without.
    let authority = |wanted: &StringMatch| {
        let whole = request.authority.to_lowercase();
        let host = whole.split(':').next().unwrap();
        [&*whole, host].into_iter().any(|form| text(wanted, Some(form), true))
    };
    let parameter = |(name, wanted): &(String, StringMatch)| {
        let pairs = request.query.into_iter().flat_map(|query| query.split('&'));
        let mut values = pairs.filter_map(|pair| match pair.split_once('=') {
            Some((key, value)) => (key == name).then_some(value),
            None => (pair == name).then_some(""),
        });
        text(wanted, values.next(), false)
    };
    // Any of its texts, of a claim of the token itself (`x`) or one of its `in`.
    let claim = |token: &Token, (names, wanted): &(Vec<String>, StringMatch)| {
        let (of, name) = match &names[..] {
            [name] => (&token.0, name),
            [_, name] => (&token.1, name),
            _ => unreachable!("none is deeper"),
        };
        of.get(name).is_some_and(|texts| texts.iter().any(|one| text(wanted, Some(one), false)))
    };
    let matches = |of: &HttpMatch, gateways: &[String]| {
        let header = |(name, wanted): &(String, StringMatch)| {
            text(wanted, request.headers.value(name).as_deref(), false)
        };
        of.uri.as_ref().is_none_or(|uri| text(uri, Some(request.path), of.ignore_uri_case))
            && of.method.as_ref().is_none_or(|method| text(method, Some(request.method), false))
            && of.headers.iter().all(header)
            && !of.without_headers.iter().any(header)
            && (of.claims.is_empty()
                || tokens.iter().any(|token| of.claims.iter().all(|of| claim(token, of))))
            && !of.without_claims.iter().any(|of| tokens.iter().any(|token| claim(token, of)))
            && of.query.iter().all(parameter)
            && of.authority.as_ref().is_none_or(authority)
            && of.scheme.as_ref().is_none_or(|scheme| text(scheme, Some(request.scheme), false))
            && of.port.is_none_or(|port| port == request.port)
            && of.source_namespace.as_ref().is_none_or(|namespace| namespace == request.source_namespace)
            && of.source_labels.iter().all(|(key, value)| {
                key == "version" && request.source.is_some_and(|pod| pod.name.as_str() == value.as_str())
            })
            && is_mesh(if of.gateways.is_empty() { gateways } else { &of.gateways })
    };
    let holds = |rule: &HttpRule, gateways: &[String]| match &rule.matches[..] {
        [] => is_mesh(gateways),
        all => all.iter().any(|of| matches(of, gateways)),
    };
    rules.iter().filter(|rule| holds(rule, gateways)).find_map(|rule| match rule.action {
        RuleAction::Delegate(_) => {
            delegate.iter().find(|rule| holds(rule, &[])).map(|rule| rule.name.clone())
        }
        _ => Some(rule.name.clone()),
    })
}

/// Claims of a token, and those within its claim `in`, each with its texts.
type Token = (BTreeMap<String, Vec<String>>, BTreeMap<String, Vec<String>>);

fn token() -> impl Strategy<Value = Token> {
    let claims = || proptest::collection::btree_map("[xy]", proptest::collection::vec("[12]", 1..3), 0..3);
    (claims(), claims())
}

/// A claim of one text is that text, and not a list of it.
fn claims((of, within): &Token) -> Arc<Claims> {
    let claim = |texts: &Vec<String>| match &texts[..] {
        [text] => Claim::Text(text.clone()),
        texts => Claim::List(texts.iter().cloned().map(Claim::Text).collect()),
    };
    let object = |of: &BTreeMap<String, Vec<String>>| -> BTreeMap<String, Claim> {
        of.iter().map(|(name, texts)| (name.clone(), claim(texts))).collect()
    };
    let mut all = object(of);
    all.insert("in".to_owned(), Claim::Object(object(within)));
    Arc::new(Claims::new(all, &tokens::rule("a"), &TokenRules::default()))
}

fn wanted_claim() -> impl Strategy<Value = (Vec<String>, StringMatch)> {
    let names = |(name, within): (String, bool)| match within {
        true => vec!["in".to_owned(), name],
        false => vec![name],
    };
    (("[xy]", any::<bool>()).prop_map(names), header().prop_map(|(_, value)| value))
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
    let regex = prop_oneof![Just("[12]"), Just("3?"), Just(".*")];
    let value = prop_oneof![
        "[12]".prop_map(StringMatch::Exact),
        Just(StringMatch::Present),
        Just(StringMatch::Prefix("1".to_owned())),
        regex.prop_map(|text| StringMatch::Regex(text.parse().unwrap())),
    ];
    ("[xy]", value)
}

fn host() -> impl Strategy<Value = StringMatch> {
    let regex = prop_oneof![Just("web|a"), Just("web:8.")];
    prop_oneof![
        authority().prop_map(StringMatch::Exact),
        prop_oneof![Just("we"), Just("WEB:8")].prop_map(|text| StringMatch::Prefix(text.to_owned())),
        regex.prop_map(|text| StringMatch::Regex(text.parse().unwrap())),
    ]
}

fn authority() -> impl Strategy<Value = String> {
    "(web|Web|a)(:8[01])?"
}

fn gateways() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec(prop_oneof![Just("mesh"), Just("in")].prop_map(str::to_owned), 0..3)
}

/// Of a request: path with query, headers, authority, scheme, port, pod, namespace and tokens.
fn asked() -> impl Strategy<Value = Asked> {
    (
        (path(), "(\\?([xy](=[123]?)?&){0,2}z)?").prop_map(|(path, query)| path + &query),
        proptest::collection::btree_map("[xy]", "[123]", 0..3),
        authority(),
        prop_oneof![Just("http"), Just("https")],
        80..82_u16,
        proptest::option::of(prop_oneof![Just("v1"), Just("v2")]),
        prop_oneof![Just("shop"), Just("far")],
        proptest::collection::vec(token(), 0..3),
    )
}

type Asked = (
    String,
    BTreeMap<String, String>,
    String,
    &'static str,
    u16,
    Option<&'static str>,
    &'static str,
    Vec<Token>,
);

fn http_match() -> impl Strategy<Value = HttpMatch> {
    let method = prop_oneof![Just("GET"), Just("PUT")];
    let scheme = prop_oneof![Just("http"), Just("https")];
    let namespace = prop_oneof![Just("shop"), Just("far")];
    let version = prop_oneof![Just("v1"), Just("v2")];
    (
        proptest::option::of(uri()),
        any::<bool>(),
        proptest::option::weighted(0.2, method),
        proptest::collection::vec(header(), 0..2),
        proptest::collection::vec(header(), 0..2),
        (
            proptest::option::weighted(0.2, header()),
            proptest::collection::vec(wanted_claim(), 0..2),
            proptest::option::weighted(0.1, wanted_claim()),
        ),
        proptest::option::weighted(0.2, host()),
        proptest::option::weighted(0.1, scheme),
        proptest::option::weighted(0.1, 80..82_u16),
        proptest::option::weighted(0.1, namespace),
        proptest::option::weighted(0.1, version),
        prop_oneof![4 => Just(Vec::new()), 1 => gateways()],
    )
        .prop_map(|of| {
            let (
                uri,
                fold,
                method,
                headers,
                without_headers,
                (query, claims, without_claims),
                authority,
                scheme,
                port,
                ..,
            ) = of;
            let (.., namespace, version, gateways) = of;
            HttpMatch {
                ignore_uri_case: fold && !matches!(uri, Some(StringMatch::Regex(_))),
                uri,
                method: method.map(|method| StringMatch::Exact(method.to_owned())),
                headers,
                without_headers,
                query: query.into_iter().collect(),
                claims,
                without_claims: without_claims.into_iter().collect(),
                authority,
                scheme: scheme.map(|scheme| StringMatch::Exact(scheme.to_owned())),
                port,
                source_namespace: namespace.map(str::to_owned),
                source_labels: version.map(|version| ("version", version)).into_iter().collect(),
                gateways,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_finds_what_a_search_in_order_finds(
        matches in proptest::collection::vec(
            (proptest::collection::vec(http_match(), 0..3), proptest::bool::weighted(0.2)),
            0..12,
        ),
        delegate in proptest::collection::vec(proptest::collection::vec(http_match(), 0..3), 0..4),
        gateways in prop_oneof![3 => Just(Vec::new()), 1 => gateways()],
        requests in proptest::collection::vec(asked(), 1..16),
    ) {
        let rules = matches.into_iter().enumerate().map(|(number, (of, delegates))| {
            let rule = rule(&number.to_string(), of);
            let action = RuleAction::Delegate(NamespacedName::new("shop", "delegate"));
            if delegates { HttpRule { action, ..rule } } else { rule }
        });
        let rules: Vec<_> = rules.collect();
        let delegate = delegate.into_iter().enumerate().map(|(number, of)| rule(&format!("of-{number}"), of));
        let delegate: Vec<_> = delegate.collect();
        let mut world = world();
        add(&mut world, VirtualService { hosts: Vec::new(), ..routes("delegate", delegate.clone()) });
        add(&mut world, VirtualService { gateways: gateways.clone(), ..routes("r", rules.clone()) });
        let snapshot = compiled(&world);
        for (path, headers, authority, scheme, port, pod, source_namespace, tokens) in requests {
            let headers = Map(headers.into_iter().map(|(name, value)| (name, vec![value])).collect());
            let pod = pod.map(|pod| NamespacedName::new("shop", pod));
            let verified: Vec<_> = tokens.iter().map(claims).collect();
            let request = Request {
                claims: &verified,
                headers: &headers,
                authority: &authority,
                scheme,
                port,
                source: pod.as_ref(),
                source_namespace,
                ..get(&path)
            };
            let found = selected(&snapshot, &request).ok().flatten();
            let wanted = reference(&gateways, &rules, &delegate, &request, &tokens);
            prop_assert_eq!(found, wanted, "{} {} {:?}", path, authority, headers);
        }
    }
}
