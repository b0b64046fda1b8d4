//! `orlop explain --request`: what a waypoint would say of a request.

use std::{
    borrow::Cow,
    collections::{BTreeMap, btree_map::Entry},
    net::SocketAddr,
    sync::Arc,
    time::SystemTime,
};

use anyhow::Context as _;
use orlop_identity::jwt::{self, KeySet, Keys};
use orlop_model::{
    Behind, Hop, Judgement, NamespacedName, Reason, Refused, Service, Snapshot, Workload,
    http::{
        Claim, Claims, Counted, Headers, Request, ToAsk, TokenRefused, TokenRules, Tokens, is_alike,
        normalised,
    },
    world::{JwtRule, KeySource},
};

use crate::cli::{ConnectionArguments, GivenClaim, Header, RequestLine};

/// The port of a waypoint's Service.
const HBONE_PORT: u16 = 15008;

/// Prints what becomes of the request that is asked about, if one is. True if it is let in.
pub fn explain(
    snapshot: &Snapshot,
    source: &Workload,
    hop: &Hop,
    dialled: SocketAddr,
    connection: &ConnectionArguments,
    seen_by: &impl Fn(&NamespacedName) -> Snapshot,
) -> anyhow::Result<bool> {
    let Some(line) = &connection.request else {
        println!("            ask about a request in it with --request \"GET /\"");
        return Ok(true);
    };
    let is_hop = |service: &&Arc<Service>| {
        let port = service.port(HBONE_PORT);
        port.is_some_and(|port| port.endpoints.iter().any(|endpoint| endpoint.address == hop.address))
    };
    let waypoint = snapshot.services().find(is_hop).context("the waypoint has no Service any more")?;
    let snapshot = seen_by(&waypoint.name);
    println!("  request   {} {}", line.method, line.path);
    match judge(&snapshot, &waypoint.name, source, dialled, connection, line) {
        Ok(Judged { judgement, rule, counted }) => {
            match judgement.policy {
                Some(policy) => println!("  allowed by AuthorizationPolicy {policy}"),
                None => println!("  allowed, as no ALLOW policy applies to it"),
            }
            for Counted { limit, .. } in counted {
                let (resource, name, rate) = (&limit.resource, &limit.of.name, limit.of.shown());
                println!("  counted by RateLimit {resource}, limit {name}: {rate}");
            }
            if let Some(rule) = rule {
                println!("  follows   {rule}");
            }
            Ok(true)
        }
        Err((reason, detail)) if detail.is_empty() => {
            println!("  refused ({reason})");
            Ok(false)
        }
        Err((reason, detail)) => {
            println!("  refused ({reason}): {detail}");
            Ok(false)
        }
    }
}

/// What becomes of a request that is let in.
struct Judged {
    /// What the policies say.
    judgement: Judgement,
    /// The rule that it follows.
    rule: Option<String>,
    /// The limits that it counts for.
    counted: Vec<Counted>,
}

fn judge(
    snapshot: &Snapshot,
    waypoint: &NamespacedName,
    source: &Workload,
    dialled: SocketAddr,
    connection: &ConnectionArguments,
    line: &RequestLine,
) -> Result<Judged, (Reason, String)> {
    let namespace = source.identity.namespace();
    let refused = |reason| (reason, String::new());
    let target = snapshot.behind(waypoint, namespace, &dialled.to_string()).map_err(refused)?;
    let (path, query) =
        line.path.split_once('?').map_or((&*line.path, None), |(path, query)| (path, Some(query)));
    let path = normalised(path).map_err(|error| (Reason::BadRequest, error.to_string()))?;
    let host = connection.host.clone().unwrap_or_else(|| connection.to.name.to_string());
    let request = Request {
        method: &line.method,
        scheme: "http",
        authority: &host,
        path: &path,
        query,
        headers: &Given(&connection.header),
        port: dialled.port(),
        source: Some(&source.name),
        source_namespace: namespace,
        claims: &[],
    };
    let address = source.addresses.iter().find(|ip| ip.is_ipv4() == dialled.is_ipv4());
    let address =
        *address.or_else(|| source.addresses.first()).ok_or_else(|| refused(Reason::ConnectFailed))?;
    let routes = snapshot.routes();
    let told = |refused: Refused| (refused.reason, refused.detail);
    let shown = Shown { request: &request, claims: &connection.claims };
    let to_ask = routes.to_ask(&target, Some(&source.identity), address, &request, &shown).map_err(told)?;
    for ToAsk { provider, policy } in &to_ask {
        println!("  asks      ExtensionProvider {}, as {policy} wants; if that lets it pass:", provider.name);
    }
    let passed: Vec<_> = to_ask.into_iter().map(|of| of.provider).collect();
    let judgement = routes
        .authorize(&target, Some(&source.identity), address, Some(&request), &shown, &passed)
        .map_err(told)?;
    let counted = routes.limits(&target, Some(&source.identity), address, &request, &shown).map_err(told)?;
    let verified = routes.token_rules(&target).into_iter().filter_map(|rules| shown.verified(&rules).ok()?);
    let request = Request { claims: &verified.collect::<Vec<_>>(), ..request };
    let selected = match &target {
        Behind::Service { service, .. } => routes.select(service, &request).map_err(refused)?,
        Behind::Workload { .. } | Behind::Gateway { .. } => None,
    };
    let rule = selected.map(|selected| {
        let name = Some(&selected.rule.name).filter(|name| !name.is_empty());
        let name = name.map_or_else(String::new, |name| format!(", rule {name}"));
        format!("{} {}{name}", selected.rule.kind, selected.rule.resource)
    });
    Ok(Judged { judgement, rule, counted })
}

/// The request's own token, if it shows one, or what one is to be taken to say.
struct Shown<'a> {
    request: &'a Request<'a>,
    claims: &'a [GivenClaim],
}

impl Tokens for Shown<'_> {
    fn verified(&self, rules: &Arc<TokenRules>) -> Result<Option<Arc<Claims>>, TokenRefused> {
        if !self.claims.is_empty() {
            return given(self.claims, rules).map(Some);
        }
        let Some(presented) = rules.presented(self.request.headers, self.request.query)? else {
            return Ok(None);
        };
        Ok(Some(jwt::verify(&presented, rules, &Inline, SystemTime::now())?.claims))
    }
}

/// What a token says that was verified, and is there in name alone.
fn given(claims: &[GivenClaim], rules: &TokenRules) -> Result<Arc<Claims>, TokenRefused> {
    let mut all = BTreeMap::new();
    for GivenClaim { name, value } in claims {
        let value = Claim::Text(value.clone());
        match all.entry(name.clone()) {
            Entry::Vacant(entry) => drop(entry.insert(value)),
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Claim::List(list) => list.push(value),
                first => *first = Claim::List(vec![first.clone(), value]),
            },
        }
    }
    let issuer = all.get("iss").cloned();
    let is_of =
        |rule: &&Arc<JwtRule>| issuer.as_ref().is_none_or(|of| *of == Claim::Text(rule.issuer.clone()));
    let rule = rules.rules.iter().find(is_of).ok_or_else(|| TokenRefused {
        reason: Reason::InvalidToken,
        detail: "no RequestAuthentication takes tokens of this issuer".to_owned(),
    })?;
    Ok(Arc::new(Claims::new(all, rule, rules)))
}

/// Keys that are in the world itself: nobody else is asked.
struct Inline;

impl Keys for Inline {
    fn of(&self, source: &KeySource) -> Result<Arc<KeySet>, String> {
        match source {
            KeySource::Inline(text) => {
                KeySet::read(text.as_bytes()).map(Arc::new).map_err(|error| error.to_string())
            }
            KeySource::Unusable(why) => Err(format!("jwks can't be used: {why}")),
            KeySource::Remote(_) => Err("waypoints fetch them, and nobody else does".to_owned()),
        }
    }

    fn unknown(&self, _: &KeySource) {}
}

struct Given<'a>(&'a [Header]);

impl Headers for Given<'_> {
    fn values(&self, name: &str) -> Vec<Cow<'_, str>> {
        self.0
            .iter()
            .filter(|header| header.name == name)
            .map(|header| Cow::Borrowed(&*header.value))
            .collect()
    }

    fn alike(&self, name: &str) -> Vec<Cow<'_, str>> {
        let others = self.0.iter().filter(|header| header.name != name && is_alike(&header.name, name));
        others.map(|header| Cow::Borrowed(&*header.value)).collect()
    }
}
