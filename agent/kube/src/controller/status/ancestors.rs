//! What a BackendTLSPolicy says of each Service that it is for, and of each Gateway that leads to one
//! (`status.ancestors`). Nothing in here asks or tells anybody.

use std::collections::HashMap;

use orlop_model::http::{Resolved, TargetProblem, Unresolved};
use orlop_model::world::gateway_api::{BackendProblem, BackendTarget, GROUP};
use orlop_model::{Concern, Finding, NamespacedName};
use serde_json::{Value, json};

use super::conditions::{At, Condition, condition, meanwhile, message, part};
use super::routes::{List, Said, is_same};
use crate::cluster::Head;
use crate::controller::{CONTROLLER, GATEWAY_CONTROLLER};
use crate::gateway_api::backend_tls;
use crate::object::Kind;

/// How many there may be, as the Gateway API defines it.
const MAX_ANCESTORS: usize = 16;

/// A BackendTLSPolicy, and what is known of what it names.
pub(super) struct Policy<'a> {
    pub namespace: &'a str,
    pub head: &'a Head,
    /// As it was understood last, with what it names.
    pub resolved: Option<Resolved>,
    pub findings: &'a [&'a Finding],
    /// The targets for which it is not in force.
    pub problems: Option<&'a HashMap<BackendTarget, TargetProblem>>,
    /// The Gateways of ours that lead to a Service.
    pub gateways_to: &'a HashMap<NamespacedName, Vec<NamespacedName>>,
}

impl Policy<'_> {
    /// What `status.ancestors` has to be set to, or `None` where what is there says it already. What others say there
    /// is kept, since the list has one owner as a whole.
    pub fn to_write(&self, at: At<'_>) -> Option<Vec<Value>> {
        let list = List { told: &self.head.parents.told, field: "ancestorRef", room: MAX_ANCESTORS };
        list.to_write(self.ancestors(), self.namespace, at)
    }

    /// The Services that it is for, then the Gateways that lead there, each once, and what is to be said there.
    pub fn ancestors(&self) -> Vec<Said> {
        let mut found: Vec<Said> = self.services();
        for target in self.head.parents.refs.iter().filter_map(backend_tls::target) {
            let service = NamespacedName::new(self.namespace, &*target.service);
            for gateway in self.gateways_to.get(&service).into_iter().flatten() {
                let ancestor = json!({
                    "group": GROUP, "kind": "Gateway", "namespace": &*gateway.namespace, "name": &*gateway.name,
                });
                if !found.iter().any(|(other, ..)| is_same(other, &ancestor, self.namespace)) {
                    found.push((ancestor, GATEWAY_CONTROLLER, self.conditions(&target)));
                }
            }
        }
        found.truncate(MAX_ANCESTORS);
        found
    }

    /// The Services that it is for, each once.
    pub fn services(&self) -> Vec<Said> {
        let mut found: Vec<Said> = Vec::new();
        for target in self.head.parents.refs.iter().filter_map(backend_tls::target) {
            let mut ancestor = json!({"group": "", "kind": "Service", "name": target.service});
            if let Some(port) = &target.port {
                ancestor["sectionName"] = port.as_str().into();
            }
            if found.len() == MAX_ANCESTORS {
                break;
            }
            if !found.iter().any(|(other, ..)| is_same(other, &ancestor, self.namespace)) {
                found.push((ancestor, CONTROLLER, self.conditions(&target)));
            }
        }
        found
    }

    fn conditions(&self, target: &BackendTarget) -> [Condition; 2] {
        if let Some(error) = &self.head.refused {
            let message = format!("{}; {}", part(&error.to_string()), meanwhile(Kind::BackendTls));
            let unknown = "what it says could not be read".to_owned();
            return [
                condition("Accepted", "False", "Invalid", message),
                condition("ResolvedRefs", "Unknown", "NotAccepted", unknown),
            ];
        }
        let problem = self.resolved.as_ref().and_then(|of| of.check.as_ref().err());
        let unresolved = self.resolved.as_ref().map_or(&[][..], |of| &of.unresolved);
        let refused = |why: &str| format!("{}; what would go there is refused with 503", part(why));
        let resolved = match unresolved.first() {
            None => condition("ResolvedRefs", "True", "ResolvedRefs", String::new()),
            Some(first) => {
                let reason = match first {
                    Unresolved::Kind(_) => "InvalidKind",
                    Unresolved::Missing(_) => "InvalidCACertificateRef",
                };
                let all = message(unresolved.iter().map(Unresolved::message));
                condition("ResolvedRefs", "False", reason, all)
            }
        };
        let (reason, message) = match (self.problems.and_then(|of| of.get(target)), problem) {
            (Some(TargetProblem::NotFound(why)), _) => ("TargetNotFound", part(why)),
            (Some(TargetProblem::Conflicted(oldest)), _) => {
                ("Conflicted", format!("{oldest} is for the same, and counts since it is older"))
            }
            (None, Some(BackendProblem::NoCertificates(why))) => ("NoValidCACertificate", refused(why)),
            (None, Some(BackendProblem::Invalid(why))) => ("Invalid", refused(why)),
            (None, None) => {
                let remarks = self.findings.iter().filter(|of| of.reason.concern() != Concern::References);
                let remarks: Vec<_> = remarks.map(|finding| finding.message.as_str()).collect();
                return [condition("Accepted", "True", "Accepted", message(remarks.into_iter())), resolved];
            }
        };
        [condition("Accepted", "False", reason, message), resolved]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Parents;

    #[test]
    fn gateways_that_lead_to_a_service_are_told_after_it() {
        let (gate, other) = (NamespacedName::new("edge", "gate"), NamespacedName::new("edge", "other"));
        let service = |name: &str| NamespacedName::new("shop", name);
        let gateways_to = HashMap::from([
            (service("a"), vec![gate.clone()]),
            (service("b"), vec![gate, other]),
            (NamespacedName::new("else", "a"), vec![NamespacedName::new("else", "gate")]),
        ]);
        let refs = ["a", "b"].map(|name| json!({"group": "", "kind": "Service", "name": name}));
        let parents = Parents { refs: refs.to_vec(), told: Vec::new() };
        let head = Head { generation: Some(3), parents, ..Head::default() };
        let (resolved, problems) = (None, None);
        let policy = Policy {
            namespace: "shop",
            head: &head,
            resolved,
            findings: &[],
            problems,
            gateways_to: &gateways_to,
        };
        let told: Vec<_> = policy.ancestors().iter().map(|(of, by, _)| (of["name"].clone(), *by)).collect();
        let wanted = [
            ("a", CONTROLLER),
            ("b", CONTROLLER),
            ("gate", GATEWAY_CONTROLLER),
            ("other", GATEWAY_CONTROLLER),
        ];
        assert_eq!(told, wanted.map(|(name, by)| (json!(name), by)));
    }

    #[test]
    fn there_are_no_more_than_there_is_room_for_and_what_others_say_stays() {
        let service = |name: usize| json!({"group": "", "kind": "Service", "name": format!("s{name}")});
        let others: Vec<_> =
            (0..14).map(|n| json!({"controllerName": "example.com/other", "n": n})).collect();
        let mut parents = Parents { refs: (0..4).map(service).collect(), told: others.clone() };
        let at = At { generation: Some(3), now: "2026-01-02T03:04:05Z" };
        let write = |parents: &Parents| {
            let head = Head { generation: Some(3), parents: parents.clone(), ..Head::default() };
            let (resolved, problems, gateways_to) = (None, None, &HashMap::new());
            let policy =
                Policy { namespace: "shop", head: &head, resolved, findings: &[], problems, gateways_to };
            policy.to_write(at)
        };
        let written = write(&parents).unwrap();
        assert_eq!((written.len(), &written[..14]), (MAX_ANCESTORS, &others[..]));
        assert_eq!(written[14]["ancestorRef"], service(0));
        parents.told = written;
        assert_eq!(write(&parents), None);
    }
}
