//! An AdmissionReview of `admission.k8s.io/v1`, and what is to be said of its object.

use std::fmt;

use orlop_model::{Settings, World};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::NotReviewed;
use super::size::is_small;
use crate::cluster::{Head, Seen};
use crate::controller::{Judgement, OwnGateways, Verdict, judge_gateway};
use crate::field::FieldError;
use crate::object::{Key, Kind, Kinds, Object, Source};

const VERSION: &str = "admission.k8s.io/v1";
/// What a client is shown of warnings, each of which is a header: so many, of so many bytes.
const MAX_WARNINGS: usize = 8;
const MAX_WARNING: usize = 250;

/// What is asked, and under which name it is answered.
#[derive(Debug)]
pub(super) struct Review {
    pub uid: String,
    pub asked: Asked,
}

#[derive(Debug)]
pub(super) enum Asked {
    /// It is about nothing that has a verdict: it passes.
    Nothing,
    /// The object has more values than is looked at.
    TooMuch,
    /// It says all by itself, whatever else there is.
    Judged(Verdict),
    Of(Box<Subject>),
}

/// An object that is to be stored.
#[derive(Debug)]
pub(super) struct Subject {
    key: Key,
    new: Stored,
    /// What it is in place of.
    old: Option<Stored>,
}

/// An object as it would be read.
struct Stored {
    object: Result<Object, FieldError>,
    head: Head,
}

impl Review {
    pub fn text(body: &[u8]) -> Result<&str, NotReviewed> {
        std::str::from_utf8(body).map_err(not_one)
    }

    /// The name alone, whatever it is about.
    pub fn uid(text: &str) -> Result<String, NotReviewed> {
        Ok(written(text)?.uid)
    }

    pub fn read(text: &str) -> Result<Self, NotReviewed> {
        let small = is_small(text).map_err(not_one)?;
        let request = written(text)?;
        let uid = request.uid.clone();
        let asked = if small { request.asked() } else { Asked::TooMuch };
        Ok(Self { uid, asked })
    }
}

/// Whether something is said of objects of this kind.
pub(super) fn is_reviewed(kind: Kind) -> bool {
    kind.has_conditions() || kind == Kind::Gateway
}

fn written(text: &str) -> Result<Request<'_>, NotReviewed> {
    let Written { api_version, kind, request } = serde_json::from_str(text).map_err(not_one)?;
    if api_version != VERSION || kind != "AdmissionReview" {
        return Err(not_one(format_args!("it is {kind} of {api_version}")));
    }
    Ok(request)
}

fn not_one(error: impl fmt::Display) -> NotReviewed {
    NotReviewed::NotOne(error.to_string())
}

#[derive(Deserialize)]
struct Written<'a> {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    #[serde(borrow)]
    request: Request<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    uid: String,
    kind: GroupVersionKind,
    #[serde(default)]
    sub_resource: Option<String>,
    operation: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(borrow, default)]
    object: Option<&'a RawValue>,
    #[serde(borrow, default)]
    old_object: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct GroupVersionKind {
    group: String,
    version: String,
    kind: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: Option<String>,
    deletion_timestamp: Option<String>,
}

impl Request<'_> {
    /// Never of what is deleted, of a status, or of what is on its way out: nothing is to hold that up.
    fn asked(&self) -> Asked {
        let is_status = self.sub_resource.as_ref().is_some_and(|of| !of.is_empty());
        let (Some(object), false) = (self.object, is_status) else { return Asked::Nothing };
        if !matches!(self.operation.as_str(), "CREATE" | "UPDATE") {
            return Asked::Nothing;
        }
        let GroupVersionKind { group, version, kind } = &self.kind;
        let version = format!("{group}/{version}");
        let mut known = Kinds::OfWaypoints.all().filter(|known| known.name() == kind && is_reviewed(*known));
        let read = known.find_map(|known| {
            let version = known.api_versions().iter().find(|read| **read == version)?;
            Some((known, *version))
        });
        let Some((kind, version)) = read else { return Asked::Nothing };
        let Named { metadata } = serde_json::from_str(object.get()).unwrap_or_default();
        if metadata.deletion_timestamp.is_some() {
            return Asked::Nothing;
        }
        if kind == Kind::Gateway {
            let judge = |of: &RawValue| judge_gateway(of.get());
            return Asked::Judged(after(judge(object), || self.old_object.map(judge)));
        }
        // One whose name is still to be made has none.
        let name = metadata.name.or_else(|| self.name.clone()).unwrap_or_default();
        let key = Key::new(kind, self.namespace.as_deref().unwrap_or_default(), &name);
        let stored = |text: &RawValue| Stored::read(kind, version, text.get());
        let old = self.old_object.map(stored);
        Asked::Of(Box::new(Subject { key, new: stored(object), old }))
    }
}

impl Stored {
    /// As watches read it.
    fn read(kind: Kind, version: &'static str, text: &str) -> Self {
        let object = kind.convert(&mut serde_json::Deserializer::from_str(text), Source::Cluster);
        let head = Head::read(text, version, object.as_ref().err().cloned());
        Self { object, head }
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored").field("object", &self.object).finish_non_exhaustive()
    }
}

impl Subject {
    /// Whether it can't be understood.
    pub fn is_refused(&self) -> bool {
        self.new.object.is_err()
    }

    /// What is to be said of it in the cluster as it is, in which this was found.
    pub fn judged(self, stored: &Judgement, seen: &Seen, own: &OwnGateways, settings: &Settings) -> Verdict {
        if self.is_refused() {
            let verdict = Judgement::of(own.clone()).verdict(&World::default(), &self.key, &self.new.head);
            // Whoever mends it does so bit by bit, and only the first thing that is wrong is known.
            let before = self.old.as_ref().is_some_and(|old| old.object.is_err());
            return if before { verdict.into_warnings() } else { verdict };
        }
        let look = |object: Stored| {
            let mut with = Seen { world: seen.world.clone(), ..Seen::default() };
            if let Ok(object) = object.object {
                object.put(&mut with.world);
            }
            let judged = stored.after(&with, own.clone(), settings);
            judged.verdict(&with.world, &self.key, &object.head)
        };
        let verdict = look(self.new);
        let old = self.old;
        after(verdict, || match old? {
            old if old.object.is_err() => Some(Verdict::error("it could not be understood")),
            old => Some(look(old)),
        })
    }
}

/// Of an object that is in place of another, whose verdict is looked for where it counts: what was wrong before keeps
/// nobody from changing it.
fn after(verdict: Verdict, old: impl FnOnce() -> Option<Verdict>) -> Verdict {
    if !verdict.errors.is_empty() && old().is_some_and(|old| !old.errors.is_empty()) {
        return verdict.into_warnings();
    }
    verdict
}

/// The answer, as JSON.
pub(super) fn answer(uid: &str, verdict: &Verdict) -> Vec<u8> {
    let mut response = json!({"uid": uid, "allowed": verdict.errors.is_empty()});
    if !verdict.errors.is_empty() {
        let message = verdict.errors.join("; ");
        response["status"] =
            json!({"status": "Failure", "reason": "Invalid", "code": 422, "message": message});
    }
    if !verdict.warnings.is_empty() {
        let warnings = verdict.warnings.iter().take(MAX_WARNINGS).map(|text| shortened(text));
        response["warnings"] = warnings.collect();
    }
    json!({"apiVersion": VERSION, "kind": "AdmissionReview", "response": response}).to_string().into_bytes()
}

fn shortened(text: &str) -> String {
    if text.len() <= MAX_WARNING {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(MAX_WARNING - '…'.len_utf8());
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests;
