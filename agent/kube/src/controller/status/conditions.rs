//! What the conditions of an object say. Nothing in here asks or tells anybody.

use std::fmt::Write as _;

use orlop_model::{Concern, Finding};
use serde_json::{Value, json};

use crate::controller::{CONTROLLER, GATEWAY_CONTROLLER};
use crate::field::FieldError;
use crate::object::Kind;

/// A condition as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// Of our own domain: another controller's conditions of the same object are its own.
    pub kind: &'static str,
    pub status: &'static str,
    pub reason: String,
    pub message: String,
}

/// Whether the object could be read and means something.
pub(super) const ACCEPTED: &str = "orlop.dev/Accepted";
/// Whether what it refers to is there.
pub(super) const RESOLVED_REFS: &str = "orlop.dev/ResolvedRefs";
/// Whether it is enforced as it says.
pub(super) const PROGRAMMED: &str = "orlop.dev/Programmed";

#[cfg(test)]
const KINDS: [&str; 3] = [ACCEPTED, RESOLVED_REFS, PROGRAMMED];

/// Under which names statuses are written that several controllers write.
pub(super) const CONTROLLERS: [&str; 2] = [CONTROLLER, GATEWAY_CONTROLLER];

/// The longest message, and the longest part of one that comes from a single finding, in bytes.
const MAX_MESSAGE: usize = 4096;
const MAX_PART: usize = 1024;

/// What is to be said of an object: that it was refused, or else what was found in it.
pub(super) fn conditions(kind: Kind, refused: Option<&FieldError>, findings: &[&Finding]) -> [Condition; 3] {
    if let Some(error) = refused {
        let message = format!("{}; {}", part(&error.to_string()), meanwhile(kind));
        let unknown = "what it says could not be read";
        return [
            condition(ACCEPTED, "False", "Invalid", message),
            condition(RESOLVED_REFS, "Unknown", "NotAccepted", unknown.to_owned()),
            condition(PROGRAMMED, "False", "NotAccepted", unknown.to_owned()),
        ];
    }
    let about = |concern: Concern| {
        let mut of: Vec<_> = findings.iter().filter(|of| of.reason.concern() == concern).collect();
        of.sort_by_key(|finding| (finding.severity, finding.reason, &finding.message));
        let reason = of.first().map(|finding| format!("{:?}", finding.reason));
        (reason, message(of.iter().map(|finding| finding.message.as_str())))
    };
    let verdict = |kind, good: &str, (reason, message): (Option<String>, String)| match reason {
        Some(reason) => Condition { kind, status: "False", reason, message },
        None => condition(kind, "True", good, String::new()),
    };
    let (_, meaning) = about(Concern::Meaning);
    let accepted = match about(Concern::Validity) {
        (None, _) => condition(ACCEPTED, "True", "Accepted", meaning),
        (Some(reason), message) => condition(ACCEPTED, "False", &reason, message),
    };
    [
        accepted,
        verdict(RESOLVED_REFS, "ResolvedRefs", about(Concern::References)),
        verdict(PROGRAMMED, "Programmed", about(Concern::Enforcement)),
    ]
}

pub(super) fn condition(
    kind: &'static str,
    status: &'static str,
    reason: &str,
    message: String,
) -> Condition {
    Condition { kind, status, reason: reason.to_owned(), message }
}

/// What holds for as long as an object can't be understood.
pub(super) fn meanwhile(kind: Kind) -> &'static str {
    match kind {
        Kind::AuthorizationPolicy | Kind::RequestAuthentication | Kind::RateLimit => {
            "until it is mended, agents that had read it before go on with what it said then, and to all others it \
             denies everything where it applies"
        }
        Kind::BackendTls => {
            "until it is mended, those that had read it before go on with what it said then, and all others send \
             nothing where it applies"
        }
        Kind::PeerAuthentication => {
            "until it is mended, agents that had read it before go on with what it said then, and to all others it \
             is STRICT where it applies"
        }
        _ => {
            "until it is mended, agents that had read it before go on with what it said then, and to all others it \
             is not there"
        }
    }
}

/// Puts findings together, as many as there is room for.
pub(super) fn message<'m>(findings: impl ExactSizeIterator<Item = &'m str>) -> String {
    let mut text = String::new();
    let mut left = findings.len();
    for finding in findings {
        let part = part(finding);
        if text.len() + part.len() > MAX_MESSAGE {
            break;
        }
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(&part);
        left -= 1;
    }
    if left > 0 {
        let _ = write!(text, "; and {left} more");
    }
    text
}

/// Of bounded length and without control characters, whatever somebody wrote into a field that it quotes.
pub(super) fn part(text: &str) -> String {
    let mut found = String::new();
    for c in text.chars() {
        if found.len() >= MAX_PART {
            found.push('…');
            break;
        }
        if c.is_control() { found.extend(c.escape_default()) } else { found.push(c) }
    }
    found
}

/// What conditions are written with.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    /// That of the object that they are about, or `None` to leave it out.
    pub generation: Option<i64>,
    /// RFC 3339.
    pub now: &'a str,
}

/// What `status.conditions` has to be set to, or `None` where what is there says it already.
///
/// `generation` and `now` are those of [`At`]. Where the list has one owner as a whole (`whole`), the other
/// controllers' conditions are kept in it.
pub(super) fn to_write(
    found: &[Value],
    wanted: &[Condition],
    generation: Option<i64>,
    whole: bool,
    now: &str,
) -> Option<Vec<Value>> {
    let is_there = |wanted: &Condition| {
        let mut of_kind = found.iter().filter(|found| found["type"] == *wanted.kind);
        let (Some(first), None) = (of_kind.next(), of_kind.next()) else { return false };
        let observed = &first["observedGeneration"];
        // A definition that lacks the field drops it.
        let same_generation = observed.is_null()
            || generation.is_none_or(|wanted| {
                *observed == wanted || observed.as_str().is_some_and(|text| *text == wanted.to_string())
            });
        says(first, wanted) && same_generation
    };
    if wanted.iter().all(is_there) {
        return None;
    }
    let is_own = |found: &&Value| wanted.iter().any(|wanted| found["type"] == *wanted.kind);
    let others = found.iter().filter(|found| whole && !is_own(found));
    let own = wanted.iter().map(|wanted| {
        let before = found.iter().find(|found| found["type"] == *wanted.kind);
        let since = before.filter(|before| before["status"] == *wanted.status);
        let since = since.and_then(|before| before["lastTransitionTime"].as_str()).unwrap_or(now);
        let mut condition = json!({
            "type": wanted.kind, "status": wanted.status, "lastTransitionTime": since,
            "reason": wanted.reason, "message": wanted.message,
        });
        if let Some(generation) = generation {
            condition["observedGeneration"] = generation.into();
        }
        condition
    });
    Some(others.cloned().chain(own).collect())
}

/// Reason and message of what `status` says is not accepted, as far as that was not said before, in conditions of the
/// object or of its parents.
pub(super) fn refusals<'s>(
    before: &[Value],
    parents: &[Value],
    status: &'s Value,
) -> Vec<(&'s str, &'s str)> {
    let of = |entry: &'s Value| entry["conditions"].as_array().into_iter().flatten();
    let refuses = |condition: &Value| {
        let is_ours = [ACCEPTED, "Accepted"].iter().any(|kind| condition["type"] == **kind);
        is_ours && condition["status"] == "False"
    };
    let parts = |condition: &'s Value| Some((condition["reason"].as_str()?, condition["message"].as_str()?));
    let is_same = |one: &Value, other: &Value| {
        ["type", "status", "reason", "message"].iter().all(|field| one[*field] == other[*field])
    };
    let was_said = |condition: &Value| {
        let of_parents = parents.iter().filter_map(|parent| parent["conditions"].as_array()).flatten();
        before.iter().chain(of_parents).any(|before| is_same(before, condition))
    };
    let lists = ["parents", "ancestors"].into_iter().filter_map(|list| status[list].as_array());
    let entries = lists.flatten();
    let is_own = |entry: &&Value| CONTROLLERS.iter().any(|own| entry["controllerName"] == **own);
    let own = entries.filter(is_own).flat_map(of);
    let mut found: Vec<_> =
        of(status).chain(own).filter(|of| refuses(of) && !was_said(of)).filter_map(parts).collect();
    found.dedup();
    found
}

fn says(found: &Value, wanted: &Condition) -> bool {
    let text = |key: &str| found[key].as_str().unwrap_or_default();
    text("status") == wanted.status && text("reason") == wanted.reason && text("message") == wanted.message
}

#[cfg(test)]
mod tests;
