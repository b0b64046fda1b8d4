//! Asks whose request it is: verifies the token that it shows, by what the RequestAuthentications say.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, header::COOKIE, uri::PathAndQuery};
use orlop_identity::jwt::{self, KeySources, Verified};
use orlop_model::{
    Behind, Snapshot,
    http::{Claim, Claims, Presented, TokenRefused, TokenRules, Tokens, without_cookie, without_parameter},
    world::TokenLocation,
};

use super::{authorize::Seen, headers::remove, rewrite::Destined, session::Session};
use crate::refusal::Refusal;

/// What a client has shown, as it came, and what came of verifying it.
pub(super) struct Credentials {
    headers: HeaderMap,
    query: Option<String>,
    /// When it came: what was good then is so for as long as the request goes on.
    now: SystemTime,
    keys: KeySources,
    known: RefCell<Vec<(Arc<TokenRules>, Outcome)>>,
}

type Outcome = Result<Option<(Verified, Vec<TokenLocation>)>, TokenRefused>;

impl Credentials {
    /// None where nobody asks for any.
    pub(super) fn of(
        session: &Session,
        snapshot: &Snapshot,
        headers: &HeaderMap,
        destined: &Destined,
    ) -> Option<Rc<Self>> {
        snapshot.routes().has_token_rules().then(|| {
            Rc::new(Self {
                headers: headers.clone(),
                query: destined.path.query().map(str::to_owned),
                now: SystemTime::now(),
                keys: session.local.own.keys.clone(),
                known: RefCell::default(),
            })
        })
    }

    /// What the tokens say that are believed for this.
    pub(super) fn claims(&self, snapshot: &Snapshot, target: &Behind) -> Vec<Arc<Claims>> {
        let all = snapshot.routes().token_rules(target);
        all.iter().filter_map(|rules| Some(self.verify(rules).ok()??.0.claims)).collect()
    }

    /// By each set of rules it is verified once.
    fn verify(&self, rules: &Arc<TokenRules>) -> Outcome {
        let same = |(of, _): &&(Arc<TokenRules>, Outcome)| Arc::ptr_eq(of, rules) || of == rules;
        if let Some((_, outcome)) = self.known.borrow().iter().find(same) {
            return outcome.clone();
        }
        let presented = rules.presented(&Seen(&self.headers), self.query.as_deref());
        let outcome = presented.and_then(|presented| {
            let Some(presented) = presented else { return Ok(None) };
            let verified = jwt::verify(&presented, rules, &self.keys, self.now)?;
            let Presented { at, .. } = presented;
            Ok(Some((verified, at)))
        });
        self.known.borrow_mut().push((Arc::clone(rules), outcome.clone()));
        outcome
    }
}

impl Tokens for Credentials {
    fn verified(&self, rules: &Arc<TokenRules>) -> Result<Option<Arc<Claims>>, TokenRefused> {
        Ok(self.verify(rules)?.map(|(verified, _)| verified.claims))
    }
}

/// Verifies what the client has shown by what is asked of requests for this, and makes of the request what goes on:
/// without the token, unless that is to go on too, and with what the rules want in headers. Whatever the client has
/// written there itself is gone, also where there is no token.
pub(super) fn apply(
    credentials: Option<&Credentials>,
    snapshot: &Snapshot,
    target: &Behind,
    headers: &mut HeaderMap,
    destined: &mut Destined,
) -> Result<(), Refusal> {
    let Some(credentials) = credentials else { return Ok(()) };
    let all = snapshot.routes().token_rules(target);
    let outcomes: Vec<_> = all.iter().map(|rules| credentials.verify(rules)).collect::<Result<_, _>>()?;
    for name in all.iter().flat_map(|rules| rules.output_headers()) {
        remove(headers, name);
    }
    for (verified, at) in outcomes.iter().flatten() {
        if !verified.rule.forward {
            at.iter().try_for_each(|location| take_out(location, headers, destined))?;
        }
    }
    outcomes.iter().flatten().for_each(|(verified, _)| put(verified, headers));
    Ok(())
}

fn take_out(
    location: &TokenLocation,
    headers: &mut HeaderMap,
    destined: &mut Destined,
) -> Result<(), Refusal> {
    match location {
        TokenLocation::Header { name, .. } => drop(headers.remove(name)),
        TokenLocation::Parameter(name) => {
            let path = destined.path.path();
            let left = without_parameter(destined.path.query().unwrap_or_default(), name);
            let text = left.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
            destined.path = PathAndQuery::try_from(text).map_err(Refusal::internal)?;
        }
        TokenLocation::Cookie(name) => {
            let lines: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
            headers.remove(COOKIE);
            for line in lines {
                // One that is no text holds no token either: it was looked at as text.
                let left = match line.to_str() {
                    Ok(line) => without_cookie(line, name),
                    Err(_) => continue,
                };
                if let Some(left) = left {
                    headers.append(COOKIE, HeaderValue::try_from(left).map_err(Refusal::internal)?);
                }
            }
        }
    }
    Ok(())
}

fn put(verified: &Verified, headers: &mut HeaderMap) {
    let Verified { claims, rule, payload } = verified;
    let mut set = |name: &str, value: &str| {
        // What can't be a header is none.
        let pair = HeaderName::try_from(name).ok().zip(HeaderValue::from_bytes(value.as_bytes()).ok());
        if let Some((name, value)) = pair {
            headers.insert(name, value);
        }
    };
    if let Some(name) = &rule.payload_header {
        set(name, payload);
    }
    for of in &rule.claim_headers {
        match claims.at_dotted(&of.claim) {
            Some(Claim::Text(text) | Claim::Number(text)) => set(&of.header, text),
            Some(Claim::Bool(is)) => set(&of.header, if *is { "true" } else { "false" }),
            Some(Claim::List(_) | Claim::Object(_) | Claim::Null) | None => {}
        }
    }
}

impl From<TokenRefused> for Refusal {
    fn from(refused: TokenRefused) -> Self {
        Self::new(refused.reason, refused.detail)
    }
}
