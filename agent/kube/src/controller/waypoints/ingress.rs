use std::collections::BTreeMap;

use kube::ResourceExt as _;
use kube::core::DynamicObject;
use orlop_model::gateway::ListenerProblem;
use orlop_model::world::gateway::Gateway;
use orlop_model::world::gateway_api::GROUP;
use serde_json::{Value, json};

use super::gateway::{Fault, GatewaySpec};
use super::objects::Entrances;
use super::secrets::Secrets;
use super::status::Conditions;
use crate::gateway_api::gateway::convert;
use crate::object::typed;

/// Of a listener that asks for routes that there are not.
const KINDS: &str = "leave HTTPRoute and GRPCRoute in allowedRoutes.kinds: it takes no others";

/// A Gateway that clients from outside the mesh come to.
#[derive(Debug)]
pub(super) struct Ingress {
    gateway: Gateway,
    listeners: Vec<Result<(), ListenerProblem>>,
    /// How many routes are attached to each listener, by its name; `None` while nobody knows.
    attached: Option<BTreeMap<String, usize>>,
    /// The Secrets with its certificates.
    pub secrets: Secrets,
}

impl Ingress {
    /// Of an object of which nothing but its metadata is certain.
    pub fn of(gateway: &DynamicObject, attached: Option<BTreeMap<String, usize>>) -> Result<Self, Fault> {
        let metadata = json!({"name": gateway.name_any(), "namespace": gateway.namespace()});
        let object = json!({"metadata": metadata, "spec": gateway.data["spec"]});
        let gateway = typed(object).and_then(convert);
        let gateway = gateway.map_err(|error| Fault::new("Invalid", error.to_string()))?;
        let listeners = gateway.judge_listeners();
        Ok(Self { gateway, listeners, attached, secrets: Secrets::Unread })
    }

    /// Whether a gateway can be made of it: some listener can be opened.
    pub fn judge(&self, spec: &GatewaySpec, name: &str) -> Result<(), Fault> {
        spec.judge_common("gateway", name)?;
        spec.infrastructure.traffic_policy()?;
        if self.entrances().ports.is_empty() {
            return Err(Fault::new("ListenersNotValid", self.problems()));
        }
        Ok(())
    }

    /// What else its author should know of a gateway that can be made, whatever its Secrets are.
    pub fn warnings(&self) -> Vec<String> {
        let kinds = self.gateway.listeners.iter().filter(|of| of.supported_kinds().1);
        let kinds = kinds.map(|of| format!("listener {}: {KINDS}", of.name));
        Some(self.problems()).filter(|problems| !problems.is_empty()).into_iter().chain(kinds).collect()
    }

    /// Those of the listeners that can be opened, and all Secrets that pods have to have.
    pub fn entrances(&self) -> Entrances {
        let certificates = self.gateway.certificates().into_iter().map(|name| name.name.to_string());
        let mut found = Entrances { certificates: certificates.collect(), ..Entrances::default() };
        let good = self.gateway.listeners.iter().zip(&self.listeners).filter(|(_, judged)| judged.is_ok());
        for (listener, _) in good {
            found.ports.insert(listener.port, if listener.is_tls() { "https" } else { "http" });
        }
        found
    }

    /// Where it is, and its Secrets.
    pub fn namespace(&self) -> &str {
        &self.gateway.name.namespace
    }

    /// The condition `Accepted` of one that is.
    pub fn accepted(&self, conditions: Conditions<'_>) -> Value {
        match self.problems() {
            problems if problems.is_empty() => conditions.holds("Accepted", "Accepted", "it is a gateway"),
            problems => conditions.holds("Accepted", "ListenersNotValid", &problems),
        }
    }

    /// `status.listeners`, given those that are there.
    pub fn status(
        &self,
        programmed: &Result<(), Fault>,
        before: &Value,
        conditions: Conditions<'_>,
    ) -> Vec<Value> {
        let listeners = self.gateway.listeners.iter().zip(&self.listeners);
        let listeners = listeners.map(|(listener, judged)| {
            let same = |before: &&Value| before["name"] == listener.name.as_str();
            let before = before.as_array().and_then(|before| before.iter().find(same));
            let none = Value::Null;
            let said = before.and_then(|before| before["attachedRoutes"].as_u64()).unwrap_or_default();
            let attached = match &self.attached {
                Some(attached) => json!(attached.get(&listener.name).copied().unwrap_or_default()),
                None => json!(said),
            };
            let before = before.map_or(&none, |before| &before["conditions"]);
            let conditions = Conditions { before, ..conditions };
            let (kinds, others) = listener.supported_kinds();
            let problem = judged.as_ref().err();
            // Of a protocol that nobody speaks here there are none.
            let is_spoken = !matches!(problem, Some(ListenerProblem::UnsupportedProtocol(_)));
            let kinds = kinds.iter().filter(|_| is_spoken);
            let known: Vec<_> = kinds.map(|kind| json!({"group": GROUP, "kind": kind.name()})).collect();
            let fault = |of: &ListenerProblem| Err(Fault::new(of.reason(), of.message()));
            let own = problem.filter(|of| !of.is_reference()).map_or(Ok(()), fault);
            let reference = problem.filter(|of| of.is_reference()).map_or(Ok(()), fault);
            let secrets = self.secrets.of(listener);
            let refers = *secrets.as_ref().unwrap_or(&"");
            let unshown = secrets.as_ref().err().filter(|of| !of.is_open).map(|of| of.fault.message.clone());
            let invalid = problem.map(ListenerProblem::message).or(unshown);
            let invalid = invalid.map(|message| Fault::new("Invalid", message));
            let programmed = invalid.map_or_else(|| programmed.clone(), Err);
            let conflict = problem.filter(|problem| problem.is_conflict());
            let resolved = if others {
                Err(Fault::new("InvalidRouteKinds", KINDS))
            } else {
                reference.and(secrets.map(drop).map_err(|of| of.fault))
            };
            json!({
                "name": listener.name,
                "supportedKinds": known,
                "attachedRoutes": attached,
                "conditions": [
                    conditions.of("Accepted", &own, "clients can come to it"),
                    conditions.of("Programmed", &programmed, "a pod takes clients"),
                    match conflict {
                        Some(problem) => {
                            conditions.holds("Conflicted", problem.reason(), &problem.message())
                        }
                        None => {
                            let none = Fault::new("NoConflicts", "it can be told from the others");
                            conditions.fails("Conflicted", &none)
                        }
                    },
                    conditions.of("ResolvedRefs", &resolved, refers),
                ],
            })
        });
        listeners.collect()
    }

    fn problems(&self) -> String {
        if self.gateway.listeners.is_empty() {
            return "give it a listener of protocol HTTP or HTTPS".to_owned();
        }
        let judged = self.gateway.listeners.iter().zip(&self.listeners);
        let problems = judged.filter_map(|(listener, judged)| {
            let problem = match judged {
                Err(problem) => problem.message(),
                Ok(()) => self.secrets.of(listener).err()?.fault.message,
            };
            Some(format!("listener {}: {problem}", listener.name))
        });
        problems.collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::super::gateway::TRAFFIC_POLICY;
    use super::*;

    fn ingress(listeners: &Value) -> Ingress {
        let object = json!({
            "metadata": {"name": "gate", "namespace": "edge"},
            "spec": {"gatewayClassName": "orlop", "listeners": listeners},
        });
        Ingress::of(&serde_json::from_value(object).unwrap(), Some([("web".to_owned(), 3)].into())).unwrap()
    }

    fn listener(name: &str, port: u16, more: &Value) -> Value {
        let mut listener = json!({"name": name, "port": port, "protocol": "HTTP"});
        listener.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        listener
    }

    fn conditions(before: &Value) -> Conditions<'_> {
        Conditions { before, generation: 1, now: "2026-01-01T00:00:00Z" }
    }

    #[test]
    fn each_listener_is_told_of_by_itself() {
        let host = json!({"hostname": "a.example"});
        let of = ingress(&json!([
            listener("web", 80, &json!({})),
            listener("one", 81, &host),
            listener("two", 81, &host),
            listener("own", 15008, &json!({})),
            listener(
                "odd",
                82,
                &json!({"allowedRoutes": {"kinds": [{"kind": "TCPRoute"}, {"kind": "GRPCRoute"}]}})
            ),
        ]));
        assert_eq!(of.entrances().ports, [(80, "http"), (82, "http")].into());
        let none = Value::Null;
        let listeners = of.status(&Ok(()), &none, conditions(&none));
        let short = |listener: &Value| {
            let conditions = listener["conditions"].as_array().unwrap().iter();
            let of = conditions
                .map(|of| format!("{}={}", of["type"].as_str().unwrap(), of["reason"].as_str().unwrap()));
            of.collect::<Vec<_>>().join(" ")
        };
        let found: Vec<_> = listeners.iter().map(short).collect();
        let conflict = "Accepted=HostnameConflict Programmed=Invalid Conflicted=HostnameConflict ResolvedRefs=ResolvedRefs";
        assert_eq!(
            found,
            [
                "Accepted=Accepted Programmed=Programmed Conflicted=NoConflicts ResolvedRefs=ResolvedRefs",
                conflict,
                conflict,
                "Accepted=PortUnavailable Programmed=Invalid Conflicted=NoConflicts ResolvedRefs=ResolvedRefs",
                "Accepted=Accepted Programmed=Programmed Conflicted=NoConflicts ResolvedRefs=InvalidRouteKinds",
            ]
        );
        assert_eq!(
            (&listeners[0]["attachedRoutes"], &listeners[1]["attachedRoutes"]),
            (&json!(3), &json!(0))
        );
        assert_eq!(listeners[4]["supportedKinds"], json!([{"group": GROUP, "kind": "GRPCRoute"}]));
        let accepted = of.accepted(conditions(&none));
        assert_eq!((&accepted["status"], &accepted["reason"]), (&json!("True"), &json!("ListenersNotValid")));
    }

    #[test]
    fn a_certificate_that_can_not_be_had_is_told_where_references_are() {
        let tls = |name: &str, port, refs: &Value| json!({"name": name, "port": port, "protocol": "HTTPS", "tls": {"certificateRefs": refs}});
        let of = ingress(&json!([
            tls("good", 443, &json!([{"name": "cert"}])),
            tls("theirs", 444, &json!([{"name": "cert", "namespace": "other"}])),
            {"name": "mutual", "port": 445, "protocol": "HTTPS", "tls": {
                "certificateRefs": [{"name": "other"}], "frontendValidation": {"caCertificateRefs": []},
            }},
        ]));
        let entrances = of.entrances();
        assert_eq!(entrances.ports, [(443, "https")].into());
        assert_eq!(entrances.certificates, ["cert".to_owned()].into());
        let none = Value::Null;
        let listeners = of.status(&Ok(()), &none, conditions(&none));
        let reason = |at: usize, condition: usize| listeners[at]["conditions"][condition]["reason"].clone();
        assert_eq!([reason(0, 0), reason(0, 1), reason(0, 3)], ["Accepted", "Programmed", "ResolvedRefs"]);
        assert_eq!([reason(1, 0), reason(1, 1), reason(1, 3)], ["Accepted", "Invalid", "RefNotPermitted"]);
        assert_eq!([reason(2, 0), reason(2, 1)], ["UnsupportedValue", "Invalid"]);
    }

    #[test]
    fn a_secret_that_is_missing_is_told_of_its_listener_alone() {
        let tls = |name: &str, port, secret: &str| json!({"name": name, "port": port, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": secret}]}});
        let mut of = ingress(&json!([tls("good", 443, "good"), tls("bad", 444, "bad")]));
        of.secrets = Secrets::Read([("bad".to_owned(), "there is none".to_owned())].into());
        assert_eq!(of.entrances().ports.len(), 2, "it is opened all the same, as the Secret may come");
        let none = Value::Null;
        let listeners = of.status(&Ok(()), &none, conditions(&none));
        let reasons = |at: usize| [0, 1, 3].map(|of| listeners[at]["conditions"][of]["reason"].clone());
        assert_eq!(reasons(0), ["Accepted", "Programmed", "ResolvedRefs"]);
        assert_eq!(reasons(1), ["Accepted", "Invalid", "InvalidCertificateRef"]);
        let accepted = of.accepted(conditions(&none));
        assert_eq!((&accepted["status"], &accepted["reason"]), (&json!("True"), &json!("ListenersNotValid")));
        assert_eq!(accepted["message"], "listener bad: Secret bad: there is none");
    }

    #[test]
    fn one_without_a_listener_that_can_be_opened_is_none() {
        let spec = GatewaySpec::default();
        for listeners in [json!([]), json!([listener("own", 15021, &json!({}))])] {
            assert_eq!(ingress(&listeners).judge(&spec, "gate").unwrap_err().reason, "ListenersNotValid");
        }
        let of = ingress(&json!([listener("web", 80, &json!({}))]));
        assert_eq!(of.judge(&spec, "gate"), Ok(()));
        let mut spec = spec;
        for (policy, wanted) in [("Local", Ok(())), ("Cluster", Ok(())), ("local", Err("Invalid"))] {
            spec.infrastructure.annotations = [(TRAFFIC_POLICY.to_owned(), policy.to_owned())].into();
            assert_eq!(of.judge(&spec, "gate").map_err(|fault| fault.reason), wanted, "{policy}");
        }
    }
}
