//! What a route says of each of its parents (`status.parents`). Nothing in here asks or tells anybody.

use orlop_model::gateway::NotAttached;
use orlop_model::world::gateway_api::{GROUP, Route};
use orlop_model::{Concern, Finding, FindingReason, Snapshot};
use serde_json::{Map, Value, json};

use super::conditions::{At, CONTROLLERS, Condition, condition, meanwhile, message, part, to_write};
use crate::cluster::Head;
use crate::controller::waypoints::OwnGateways;
use crate::controller::{CONTROLLER, GATEWAY_CONTROLLER};
use crate::gateway_api::ParentRef;
use crate::object::Kind;

/// A route, and what is known of what it names.
pub(super) struct Told<'a> {
    pub kind: Kind,
    pub namespace: &'a str,
    pub head: &'a Head,
    /// As it was understood last.
    pub route: Option<&'a Route>,
    pub findings: &'a [&'a Finding],
    pub snapshot: Option<&'a Snapshot>,
    /// The Gateways that are ours.
    pub own: &'a OwnGateways,
    /// Why it is not attached to one of its parents that is a gateway of ours, counted among those that are Gateways.
    pub not_attached: &'a dyn Fn(usize) -> Option<&'a NotAttached>,
}

impl Told<'_> {
    /// What `status.parents` has to be set to, or `None` where what is there says it already. What others say there
    /// is kept, since the list has one owner as a whole.
    pub fn to_write(&self, at: At<'_>) -> Option<Vec<Value>> {
        let list = List { told: &self.head.parents.told, field: "parentRef", room: usize::MAX };
        list.to_write(self.parents(), self.namespace, at)
    }

    /// The parents that are of our concern, each once, and what is to be said there.
    pub fn parents(&self) -> Vec<Said> {
        let mut found: Vec<(Value, _, _)> = Vec::new();
        let mut gateways = 0..;
        for entry in &self.head.parents.refs {
            let mut controller = CONTROLLER;
            // What a route names is looked for at its gateways, whether they take it or not.
            let mut is_known = false;
            let accepted = match ParentRef::read(entry, self.namespace) {
                ParentRef::Service(parent) => {
                    let known = self.snapshot.zip(self.kind.route());
                    let problem = known.and_then(|(snapshot, kind)| snapshot.parent_problem(kind, &parent));
                    problem.map(|problem| ("NoMatchingParent", format!("it {problem}")))
                }
                ParentRef::Gateway(parent) => {
                    let index = gateways.next().unwrap_or_default();
                    if self.own.waypoints.contains(&parent.gateway) {
                        let message =
                            "a waypoint has no routes of its own: name the Service in parentRefs instead";
                        Some(("NotAllowedByListeners", message.to_owned()))
                    } else if self.own.gateways.contains(&parent.gateway) {
                        controller = GATEWAY_CONTROLLER;
                        is_known = true;
                        let problem = (self.not_attached)(index);
                        problem.map(|problem| (problem.reason(), problem.message()))
                    } else {
                        continue;
                    }
                }
                ParentRef::Other => continue,
            };
            let parent = named(entry);
            if !found.iter().any(|(other, ..)| is_same(other, &parent, self.namespace)) {
                found.push((parent, controller, self.conditions(accepted, is_known)));
            }
        }
        found
    }

    /// Given why it is not attached to its parent, and whether what it names is known all the same.
    fn conditions(&self, problem: Option<(&str, String)>, is_known: bool) -> [Condition; 2] {
        let refused = self.head.refused.as_ref().map(|error| {
            ("UnsupportedValue", format!("{}; {}", part(&error.to_string()), meanwhile(self.kind)))
        });
        let is_read = refused.is_none();
        let problem = refused.or(problem).or_else(|| {
            let problem = self.route.and_then(unsupported)?;
            let message = format!("{}; requests that match it are answered with 500", part(problem));
            Some(("UnsupportedValue", message))
        });
        if let Some((reason, message)) = &problem
            && !(is_known && is_read)
        {
            let unknown = "the route is not accepted, so it was not looked for";
            return [
                condition("Accepted", "False", reason, message.clone()),
                condition("ResolvedRefs", "Unknown", "NotAccepted", unknown.to_owned()),
            ];
        }
        let of = |is_so: &dyn Fn(FindingReason) -> bool| {
            let mut of: Vec<_> = self.findings.iter().filter(|finding| is_so(finding.reason)).collect();
            of.sort_by_key(|finding| (finding.severity, finding.reason, &finding.message));
            (
                of.first().map(|finding| finding.reason),
                message(of.iter().map(|finding| finding.message.as_str())),
            )
        };
        let is_reference = |reason: FindingReason| {
            reason.concern() == Concern::References && reason != FindingReason::NoSuchTarget
        };
        let (_, remarks) = of(&|reason| reason.concern() != Concern::References);
        let (missing, references) = of(&is_reference);
        [
            match problem {
                None => condition("Accepted", "True", "Accepted", remarks),
                Some((reason, message)) => condition("Accepted", "False", reason, message),
            },
            match missing {
                None => condition("ResolvedRefs", "True", "ResolvedRefs", references),
                Some(reason) => condition("ResolvedRefs", "False", standard(reason), references),
            },
        ]
    }
}

/// Something that an object is for, by which controller of ours it is, and what is to be said there.
pub(super) type Said = (Value, &'static str, [Condition; 2]);

/// A list of what is said of an object for each of the things that it is for.
pub(super) struct List<'a> {
    /// As it is, by all controllers.
    pub told: &'a [Value],
    /// What names the thing in each.
    pub field: &'a str,
    /// How many there may be.
    pub room: usize,
}

impl List<'_> {
    /// What it has to be set to, or `None` where what is there says it already.
    pub fn to_write(&self, mut wanted: Vec<Said>, namespace: &str, at: At<'_>) -> Option<Vec<Value>> {
        let is_own = |entry: &&Value| CONTROLLERS.iter().any(|own| entry["controllerName"] == *own);
        let (own, others): (Vec<_>, Vec<_>) = self.told.iter().partition(is_own);
        wanted.truncate(self.room.saturating_sub(others.len()));
        let mut differs = own.len() != wanted.len();
        let entries: Vec<_> = wanted
            .into_iter()
            .map(|(of, controller, wanted)| {
                let before = own.iter().find(|entry| {
                    entry["controllerName"] == controller && is_same(&entry[self.field], &of, namespace)
                });
                let found =
                    before.and_then(|entry| entry["conditions"].as_array()).map_or(&[][..], Vec::as_slice);
                match (before, to_write(found, &wanted, at.generation, false, at.now)) {
                    (Some(before), None) => (*before).clone(),
                    (_, conditions) => {
                        differs = true;
                        json!({self.field: of, "controllerName": controller, "conditions": conditions})
                    }
                }
            })
            .collect();
        differs.then(|| others.into_iter().cloned().chain(entries).collect())
    }
}

/// As the Gateway API calls it.
fn standard(reason: FindingReason) -> &'static str {
    match reason {
        FindingReason::InvalidKind => "InvalidKind",
        FindingReason::RefNotPermitted => "RefNotPermitted",
        FindingReason::UnsupportedProtocol => "UnsupportedProtocol",
        _ => "BackendNotFound",
    }
}

/// A rule that can't be understood or a filter that can't be applied, so that nothing passes where it should be.
fn unsupported(route: &Route) -> Option<&str> {
    let unreadable = route.rules.iter().find_map(|rule| rule.unreadable.as_ref());
    if let Some(unreadable) = unreadable {
        return Some(&unreadable.problem);
    }
    let filters = route.rules.iter().flat_map(|rule| {
        [&rule.filters].into_iter().chain(rule.backends.iter().map(|backend| &backend.filters))
    });
    filters.filter_map(|filters| filters.unsupported.as_deref()).next()
}

const FIELDS: [&str; 6] = ["group", "kind", "namespace", "name", "sectionName", "port"];

/// An entry of `parentRefs`, as far as it names something.
fn named(entry: &Value) -> Value {
    let fields = FIELDS.iter().filter(|field| !entry[**field].is_null());
    Value::Object(fields.map(|field| ((*field).to_owned(), entry[*field].clone())).collect::<Map<_, _>>())
}

/// Whether they name the same, given what is meant where nothing is said.
pub(super) fn is_same(one: &Value, other: &Value, namespace: &str) -> bool {
    FIELDS.iter().all(|field| {
        let default = match *field {
            "group" => GROUP,
            "kind" => "Gateway",
            "namespace" => namespace,
            _ => "",
        };
        let of = |of: &Value| if of[*field].is_null() { Value::from(default) } else { of[*field].clone() };
        of(one) == of(other)
    })
}

#[cfg(test)]
mod tests;
