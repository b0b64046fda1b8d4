//! What a rule does to heads: paths, hosts, headers, and answers of its own.

use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{HOST, LOCATION},
    uri::{Authority, PathAndQuery},
};
use orlop_model::{
    Reason,
    http::normalised,
    world::{
        header_text::{HeaderOperator, HeaderText},
        routing::{HeaderChange, HeaderChanges, PathChange, Redirect, RedirectPort, Rewrite},
    },
};

use super::headers::is_unfit;
use crate::refusal::Refusal;

const AUTHORITY: &str = ":authority";

/// The path of a request and the host it is for, as the server gets them.
#[derive(Clone)]
pub(super) struct Destined {
    pub(super) authority: Authority,
    pub(super) path: PathAndQuery,
}

/// Rewrites what the rule wants otherwise.
pub(super) fn rewritten(
    rewrite: Option<&Rewrite>,
    prefix: Option<&str>,
    mut destined: Destined,
) -> Result<Destined, Refusal> {
    let Some(rewrite) = rewrite else { return Ok(destined) };
    let path = destined.path.path();
    let path = match (&rewrite.path, &rewrite.uri, &rewrite.regex) {
        (Some(change), ..) => Some(changed(change, path, prefix)),
        // It has matched, though perhaps in another case.
        (None, Some(uri), _) => Some(match prefix.and_then(|prefix| path.get(prefix.len()..)) {
            Some(rest) => joined(uri, rest),
            None => uri.clone(),
        }),
        (None, None, Some((regex, replacement))) => Some(regex.replaced(path, replacement)),
        (None, None, None) => None,
    };
    if let Some(path) = path {
        // A rule may write a query; what would be a fragment is none of a request's.
        let end = path.find(['?', '#']).unwrap_or(path.len());
        let own = path[end..].strip_prefix('?').and_then(|query| query.split('#').next());
        let query = match (own, destined.path.query()) {
            (Some(own), Some(query)) => Some(format!("{own}&{query}")),
            (own, query) => own.or(query).map(str::to_owned),
        };
        let path = path[..end].to_owned();
        // What the client wrote was normal; that it isn't any more must not lead elsewhere than policies were asked.
        if path.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(Refusal::new(Reason::BadRequest, format!("a rule makes of it {path:?}")));
        }
        let path = if path.starts_with('/') || path == "*" { path } else { format!("/{path}") };
        let normal = normalised(&path).map_err(|error| unfit(&path, error))?;
        destined.path = with_query(&normal, query.as_deref())?;
    }
    if let Some(authority) = &rewrite.authority {
        destined.authority = authority.parse().map_err(|error| unfit(authority, error))?;
    }
    Ok(destined)
}

/// A prefix and the rest of a path; where both have a slash between them, one is enough.
fn joined(prefix: &str, rest: &str) -> String {
    match (prefix.ends_with('/'), rest.starts_with('/')) {
        (true, true) => format!("{prefix}{}", rest.trim_start_matches('/')),
        _ => format!("{prefix}{rest}"),
    }
}

fn with_query(path: &str, query: Option<&str>) -> Result<PathAndQuery, Refusal> {
    let text = match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    PathAndQuery::try_from(text.as_str()).map_err(|error| unfit(&text, error))
}

fn unfit(text: &str, error: impl std::fmt::Display) -> Refusal {
    Refusal::new(Reason::BadRequest, format!("{text:?} of a rule: {error}"))
}

/// What an operator in a header stands for.
pub(super) type Told<'a> = &'a dyn Fn(&HeaderOperator) -> Option<Vec<u8>>;

/// What was asked before rules changed it, for headers that tell of that.
pub(super) struct Before {
    pub(super) headers: HeaderMap,
    pub(super) destined: Destined,
}

/// Does to a request's head what the rule and then its destination want. To set or add the host is to rewrite it.
pub(super) fn change_request(
    changes: &[&HeaderChanges],
    headers: &mut HeaderMap,
    destined: &mut Destined,
    told: Told<'_>,
) -> Result<(), Refusal> {
    for change in changes {
        let change = &change.request;
        for (name, value) in change.set.iter().chain(&change.add) {
            if name == AUTHORITY || name == HOST.as_str() {
                let value = value.literal().ok_or_else(|| unfit(name, "a host that is made of operators"))?;
                destined.authority = value.parse().map_err(|error| unfit(value, error))?;
            }
        }
        apply(change, headers, told);
    }
    Ok(())
}

/// Does to an answer's head what the rule and then its destination want.
pub(super) fn change_response(changes: &[&HeaderChanges], headers: &mut HeaderMap, told: Told<'_>) {
    changes.iter().for_each(|change| apply(&change.response, headers, told));
}

fn apply(change: &HeaderChange, headers: &mut HeaderMap, told: Told<'_>) {
    if change.is_empty() {
        return;
    }
    // Kubernetes objects are checked when they are read: what is no header there would be skipped here. So is what says
    // where a message ends, and all else that is this hop's alone.
    let pair = |(name, value): &(String, HeaderText)| {
        let name = HeaderName::try_from(name).ok().filter(|name| !is_unfit(name))?;
        let value = match value.literal() {
            Some(text) => Some(HeaderValue::from_str(text).ok()?),
            None => {
                let filled = value.filled(told);
                HeaderValue::from_bytes(&filled).ok().filter(|_| !filled.is_empty())
            }
        };
        Some((name, value))
    };
    // Envoy's order: what is taken out may come back otherwise.
    for name in change.remove.iter().filter_map(|name| HeaderName::try_from(name).ok()) {
        if !is_unfit(&name) {
            headers.remove(name);
        }
    }
    for (name, value) in change.set.iter().filter_map(pair) {
        match value {
            Some(value) => drop(headers.insert(name, value)),
            // What nobody knows is not what the client says it is.
            None => drop(headers.remove(name)),
        }
    }
    for (name, value) in change.add.iter().filter_map(pair) {
        if let Some(value) = value {
            headers.append(name, value);
        }
    }
}

/// Where a redirect leads. `prefix` is that of the path which the rule has matched; `asked`, scheme and port that the
/// request came by.
pub(super) fn redirect(
    redirect: &Redirect,
    destined: &Destined,
    prefix: Option<&str>,
    (asked, port): (&str, u16),
) -> Result<Response<()>, Refusal> {
    let Destined { authority, path } = destined;
    let scheme = redirect.scheme.as_deref().unwrap_or(asked);
    let host = match &redirect.authority {
        Some(host) => host.clone(),
        None => authority.to_string(),
    };
    let of_scheme = if scheme == "https" { 443 } else { 80 };
    let bare = match host.rsplit_once(':') {
        Some((bare, digits)) if digits.bytes().all(|b| b.is_ascii_digit()) => bare,
        _ => &host,
    };
    let host = match redirect.port {
        // The port of another scheme means nothing in this one.
        RedirectPort::FromAuthority if redirect.scheme.is_some() && redirect.authority.is_none() => {
            bare.to_owned()
        }
        RedirectPort::FromAuthority => host.clone(),
        RedirectPort::Number(number) if number == of_scheme => bare.to_owned(),
        RedirectPort::Number(number) => format!("{bare}:{number}"),
        RedirectPort::OfScheme => bare.to_owned(),
        RedirectPort::OfRequest if port == of_scheme => bare.to_owned(),
        RedirectPort::OfRequest => format!("{bare}:{port}"),
    };
    let path = match (&redirect.uri, &redirect.path) {
        // As Envoy has it: the query stays, unless the rule has one.
        (Some(uri), _) if !uri.contains('?') => with_its_query(uri.clone(), path),
        (Some(uri), _) => uri.clone(),
        (None, Some(change)) => with_its_query(changed(change, path.path(), prefix), path),
        (None, None) => path.to_string(),
    };
    let location = format!("{scheme}://{host}{path}");
    let location = HeaderValue::from_str(&location).map_err(|error| unfit(&location, error))?;
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(redirect.code).unwrap_or(StatusCode::MOVED_PERMANENTLY);
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

fn with_its_query(new: String, old: &PathAndQuery) -> String {
    match old.query() {
        Some(query) => format!("{new}?{query}"),
        None => new,
    }
}

/// What becomes of a path: it begins with a slash. The prefix ends without one.
fn changed(change: &PathChange, path: &str, prefix: Option<&str>) -> String {
    let new = match change {
        PathChange::Full(new) => new.clone(),
        PathChange::Prefix(new) => {
            let rest = prefix.and_then(|prefix| path.strip_prefix(prefix)).unwrap_or(path);
            format!("{}{rest}", new.trim_end_matches('/'))
        }
    };
    if new.starts_with('/') { new } else { format!("/{new}") }
}

/// What becomes of a request's host and path, and of its headers, by a rule and the first of its destinations; `None` if
/// it is refused.
#[cfg(fuzzing)]
pub fn exercise(
    selected: orlop_model::http::Selected<'_>,
    (host, path): (&str, &str),
    headers: &mut HeaderMap,
) -> Option<(String, String)> {
    let rule = selected.rule;
    let destined = Destined { authority: host.parse().ok()?, path: path.parse().ok()? };
    let mut destined = rewritten(rule.rewrite.as_ref(), selected.prefix, destined).ok()?;
    let choice = match &rule.action {
        orlop_model::http::Action::Route(split) => split.pick(0),
        _ => None,
    };
    let changes: Vec<_> =
        std::iter::once(&rule.headers).chain(choice.map(|choice| &choice.headers)).collect();
    change_request(&changes, headers, &mut destined, &|_| None).ok()?;
    Some((destined.authority.to_string(), destined.path.to_string()))
}

#[cfg(test)]
mod tests {
    use http::header::CONTENT_LENGTH;

    use super::*;

    fn destined(path: &str) -> Destined {
        Destined { authority: Authority::from_static("web:80"), path: path.parse().unwrap() }
    }

    #[test]
    fn a_prefix_or_the_whole_path_is_rewritten() {
        let rewrite = |uri: &str| Rewrite { uri: Some(uri.to_owned()), ..Rewrite::default() };
        for (path, prefix, uri, wanted) in [
            ("/old/x?q=1", Some("/old"), "/new", "/new/x?q=1"),
            ("/old/x", Some("/old/"), "/", "/x"),
            ("/old", Some("/old"), "/", "/"),
            ("/foobar", Some("/foo"), "/x", "/xbar"),
            ("/OLD/x", Some("/old"), "/new", "/new/x"),
            ("/exact?q", None, "/other", "/other?q"),
        ] {
            let found = rewritten(Some(&rewrite(uri)), prefix, destined(path)).map(|of| of.path.to_string());
            assert_eq!(found.ok().as_deref(), Some(wanted), "{path}");
        }
        // Nothing that a rule writes leads above.
        for uri in ["/a/..?x", "/..#x", "/../y"] {
            assert!(rewritten(Some(&rewrite(uri)), None, destined("/a?q")).is_err(), "{uri}");
        }
        let found = rewritten(Some(&rewrite("/new?a=1")), None, destined("/old?b=2")).ok();
        assert_eq!(found.map(|of| of.path.to_string()).as_deref(), Some("/new?a=1&b=2"));
        let regex = Some(("/v(\\d+)/(.*)".parse().unwrap(), r"/\2/v\1".to_owned()));
        let rewrite = Rewrite { regex, authority: Some("other".to_owned()), ..Rewrite::default() };
        let found = rewritten(Some(&rewrite), None, destined("/v2/users?a=b")).ok().unwrap();
        assert_eq!((found.path.as_str(), found.authority.as_str()), ("/users/v2?a=b", "other"));
    }

    /// The table of the Gateway API's `replacePrefixMatch`; a prefix that matched has no slash at its end.
    #[test]
    fn a_prefix_of_segments_is_replaced() {
        for (path, prefix, replacement, wanted) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo/bar", "", "/xyz", "/xyz/foo/bar"),
            ("/foo?a=b", "/foo", "/xyz", "/xyz?a=b"),
        ] {
            let path_change = Some(PathChange::Prefix(replacement.to_owned()));
            let rewrite = Rewrite { path: path_change, ..Rewrite::default() };
            let found = rewritten(Some(&rewrite), Some(prefix), destined(path)).ok().unwrap();
            assert_eq!(found.path.as_str(), wanted, "{path} {prefix} {replacement}");
        }
        let rewrite = Rewrite { path: Some(PathChange::Full("/one".to_owned())), ..Rewrite::default() };
        let found = rewritten(Some(&rewrite), Some("/foo"), destined("/foo/bar?q")).ok().unwrap();
        assert_eq!(found.path.as_str(), "/one?q");
    }

    #[test]
    fn headers_are_set_added_and_removed_and_a_host_is_rewritten() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.parse().unwrap());
        let request = HeaderChange {
            set: vec![
                pair("a", "1"),
                pair(":authority", "new"),
                pair("d", "<%PROTOCOL%>"),
                pair("e", "%HOSTNAME%"),
            ],
            add: vec![pair("b", "2"), pair("f", "%HOSTNAME%")],
            remove: vec!["c".to_owned()],
        };
        let changes = HeaderChanges { request, ..HeaderChanges::default() };
        let mut headers = HeaderMap::new();
        for (name, value) in [("a", "0"), ("b", "0"), ("c", "0"), ("e", "0")] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let mut destined = destined("/");
        let told = |of: &HeaderOperator| (*of == HeaderOperator::Protocol).then(|| b"HTTP/2".to_vec());
        assert!(change_request(&[&changes], &mut headers, &mut destined, &told).is_ok());
        assert_eq!((headers["a"].to_str().unwrap(), headers.get_all("b").iter().count()), ("1", 2));
        assert!(!headers.contains_key("c"));
        assert_eq!(headers["d"], "<HTTP/2>");
        // Of what nobody knows nothing is said, least of all by the client.
        assert!(!headers.contains_key("e") && !headers.contains_key("f"));
        assert_eq!(destined.authority.as_str(), "new");
    }

    #[test]
    fn no_rule_says_where_a_message_ends() {
        let of = |name: &str| (name.to_owned(), HeaderText::verbatim("5"));
        let unfit = ["content-length", "Transfer-Encoding", "connection", "content_length", "host"];
        let change = HeaderChange {
            set: [&unfit[..], &["x-set"]].concat().into_iter().map(of).collect(),
            add: unfit.map(of).into(),
            remove: vec!["content-length".to_owned(), "x-set".to_owned()],
        };
        let changes = HeaderChanges { request: HeaderChange::default(), response: change };
        let mut headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static("11"))]);
        change_response(&[&changes], &mut headers, &|_| None);
        assert_eq!(
            (headers.len(), &headers[CONTENT_LENGTH], &headers["x-set"]),
            (2, &"11".parse().unwrap(), &"5".parse().unwrap())
        );
    }

    #[test]
    fn a_redirect_leads_there() {
        let seen = Destined { authority: Authority::from_static("web:8080"), ..destined("/x?y=1") };
        for (redirect, wanted) in [
            (Redirect { code: 301, ..Redirect::default() }, "http://web:8080/x?y=1"),
            (Redirect { uri: Some("/z".into()), ..Redirect::default() }, "http://web:8080/z?y=1"),
            (Redirect { uri: Some("/z?a".into()), ..Redirect::default() }, "http://web:8080/z?a"),
            (Redirect { scheme: Some("https".into()), ..Redirect::default() }, "https://web/x?y=1"),
            (
                Redirect {
                    authority: Some("a".into()),
                    port: RedirectPort::Number(81),
                    ..Redirect::default()
                },
                "http://a:81/x?y=1",
            ),
            (Redirect { port: RedirectPort::OfRequest, ..Redirect::default() }, "http://web:9000/x?y=1"),
            (Redirect { port: RedirectPort::OfScheme, ..Redirect::default() }, "http://web/x?y=1"),
            (
                Redirect { path: Some(PathChange::Full("/z".into())), ..Redirect::default() },
                "http://web:8080/z?y=1",
            ),
            (
                Redirect { path: Some(PathChange::Prefix("/z/".into())), ..Redirect::default() },
                "http://web:8080/z?y=1",
            ),
        ] {
            let answer = super::redirect(&redirect, &seen, Some("/x"), ("http", 9000));
            assert_eq!(answer.ok().unwrap().headers()[LOCATION], wanted);
        }
    }
}
