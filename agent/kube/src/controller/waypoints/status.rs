use serde_json::{Value, json};

use super::class::Role;
use super::gateway::{Fault, GatewaySpec};
use super::ingress::Ingress;

/// Conditions of one object (`metav1.Condition`), at one time.
#[derive(Clone, Copy)]
pub(super) struct Conditions<'a> {
    /// Those that are there: as long as a status stays, so does the time of its last change.
    pub before: &'a Value,
    /// That of the object which they are about.
    pub generation: i64,
    /// RFC 3339.
    pub now: &'a str,
}

impl Conditions<'_> {
    pub fn holds(self, kind: &str, reason: &str, message: &str) -> Value {
        self.condition(kind, "True", reason, message)
    }

    pub fn fails(self, kind: &str, fault: &Fault) -> Value {
        self.condition(kind, "False", fault.reason, &fault.message)
    }

    /// Holds, with the condition's own name as the reason.
    pub fn of(self, kind: &str, outcome: &Result<(), Fault>, message: &str) -> Value {
        match outcome {
            Ok(()) => self.holds(kind, kind, message),
            Err(fault) => self.fails(kind, fault),
        }
    }

    fn condition(self, kind: &str, status: &str, reason: &str, message: &str) -> Value {
        let same = |before: &&Value| before["type"] == kind && before["status"] == status;
        let since = self.before.as_array().and_then(|before| before.iter().find(same));
        let since = since.and_then(|before| before["lastTransitionTime"].as_str()).unwrap_or(self.now);
        // As long as the API server takes it.
        let message: String = message.chars().take(8192).collect();
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "observedGeneration": self.generation, "lastTransitionTime": since,
        })
    }
}

/// What becomes of a Gateway.
#[derive(Debug)]
pub(super) struct Outcome {
    pub role: Role,
    /// Of one that becomes a gateway, as far as that can be read.
    pub ingress: Option<Ingress>,
    /// What it asks for, as far as that can be read.
    pub spec: GatewaySpec,
    /// Whether that can be made of it.
    pub accepted: Result<(), Fault>,
    /// Whether it is there, with these addresses.
    pub programmed: Result<(), Fault>,
    pub addresses: Vec<Value>,
}

impl Outcome {
    /// The status of a Gateway, given the one that it has.
    pub fn status(&self, before: &Value, generation: i64, now: &str) -> Value {
        let Self { role, ingress, spec, accepted, programmed, addresses } = self;
        let conditions = Conditions { before: &before["conditions"], generation, now };
        if *role == Role::Gateway {
            let listeners =
                ingress.as_ref().map(|ingress| ingress.status(programmed, &before["listeners"], conditions));
            let accepted = match (accepted, ingress) {
                (Ok(()), Some(ingress)) => ingress.accepted(conditions),
                _ => conditions.of("Accepted", accepted, "it is a gateway"),
            };
            return json!({
                "addresses": addresses,
                "conditions": [accepted, conditions.of("Programmed", programmed, "a pod takes clients")],
                "listeners": listeners.unwrap_or_default(),
            });
        }
        let listeners: Vec<_> = spec
            .listeners
            .iter()
            .map(|listener| {
                let same = |before: &&Value| before["name"] == listener.name.as_str();
                let before = before["listeners"].as_array().and_then(|before| before.iter().find(same));
                let none = Value::Null;
                let before = before.map_or(&none, |before| &before["conditions"]);
                let conditions = Conditions { before, generation, now };
                let (own, kinds) = (listener.judge(), listener.judge_kinds());
                let invalid = own.as_ref().map_err(|fault| Fault::new("Invalid", &*fault.message));
                let programmed = invalid.and_then(|()| programmed.clone());
                json!({
                    "name": listener.name,
                    // Routes have services as their parents.
                    "supportedKinds": [],
                    "attachedRoutes": 0,
                    "conditions": [
                        conditions.of("Accepted", &own, "nodes send tunnels to it"),
                        conditions.of("Programmed", &programmed, "a pod takes tunnels"),
                        conditions.of("ResolvedRefs", &kinds, "it refers to nothing"),
                    ],
                })
            })
            .collect();
        json!({
            "addresses": addresses,
            "conditions": [
                conditions.of("Accepted", accepted, "it is a waypoint"),
                conditions.of("Programmed", programmed, "a pod takes tunnels"),
            ],
            "listeners": listeners,
        })
    }
}

impl Outcome {
    /// Why there is no waypoint, if that is not told in this status already and will not pass by itself.
    pub fn worth_telling(&self, before: &Value) -> Option<&Fault> {
        let fault = self.accepted.as_ref().and(self.programmed.as_ref()).err()?;
        let kind = if self.accepted.is_err() { "Accepted" } else { "Programmed" };
        let passes = matches!(fault.reason, "Pending" | "AddressNotAssigned");
        let told = before["conditions"].as_array().into_iter().flatten().any(|condition| {
            condition["type"] == kind
                && condition["status"] == "False"
                && condition["reason"] == fault.reason
                && condition["message"] == *fault.message
        });
        (!passes && !told).then_some(fault)
    }
}

/// Whether the waypoint or gateway runs: from its Service's and its Deployment's status. With the addresses of the
/// Service: those of the cluster, or `balanced`, which are for those outside.
pub(super) fn observe(
    name: &str,
    service: &Value,
    deployment: &Value,
    balanced: bool,
) -> (Vec<Value>, Result<(), Fault>) {
    let addresses: Vec<Value> = if balanced {
        let all = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
        let of =
            |kind: &str, value: &Value| value.as_str().map(|value| json!({"type": kind, "value": value}));
        all.filter_map(|one| of("IPAddress", &one["ip"]).or_else(|| of("Hostname", &one["hostname"])))
            .collect()
    } else {
        let all = service["spec"]["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let all = all.filter(|address| !address.is_empty() && *address != "None");
        all.map(|value| json!({"type": "IPAddress", "value": value})).collect()
    };
    if addresses.is_empty() {
        let message = if balanced {
            format!(
                "no load balancer has given the Service {name} an address yet: if none does, see whether the cluster \
                 has one, and what `kubectl describe service {name}` says"
            )
        } else {
            format!("the Service {name} has no address yet")
        };
        return (addresses, Err(Fault::new("AddressNotAssigned", message)));
    }
    if deployment["status"]["availableReplicas"].as_u64().unwrap_or(0) > 0 {
        return (addresses, Ok(()));
    }
    let fails = |condition: &&Value| condition["type"] == "ReplicaFailure" && condition["status"] == "True";
    let failure = deployment["status"]["conditions"].as_array().and_then(|all| all.iter().find(fails));
    let fault = match failure.and_then(|failure| failure["message"].as_str()) {
        Some(message) => {
            Fault::new("NoResources", format!("no pod of the Deployment {name} can be made: {message}"))
        }
        None => {
            let message = format!(
                "no pod of the Deployment {name} is ready: if none gets so, see what `kubectl describe pods` and \
                 `kubectl logs` say of them"
            );
            Fault::new("Pending", message)
        }
    };
    (addresses, Err(fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_stays_keeps_its_time() {
        let outcome = |programmed: Result<(), Fault>| Outcome {
            role: Role::Waypoint,
            ingress: None,
            spec: serde_json::from_value(
                json!({"listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]}),
            )
            .unwrap(),
            accepted: Ok(()),
            programmed,
            addresses: vec![json!({"type": "IPAddress", "value": "10.96.0.7"})],
        };
        let pending = Fault::new("Pending", "no pod is ready");
        let first = outcome(Err(pending)).status(&Value::Null, 1, "2026-01-01T00:00:00Z");
        let then = outcome(Ok(())).status(&first, 2, "2026-01-02T00:00:00Z");
        let condition = |of: &Value, kind: &str| {
            let mut conditions = of["conditions"].as_array().unwrap().iter();
            conditions.find(|condition| condition["type"] == kind).unwrap().clone()
        };
        for (of, first) in [(&then, &first), (&then["listeners"][0], &first["listeners"][0])] {
            let [accepted, programmed] = ["Accepted", "Programmed"].map(|kind| condition(of, kind));
            assert_eq!(accepted["lastTransitionTime"], "2026-01-01T00:00:00Z");
            assert_eq!(programmed["lastTransitionTime"], "2026-01-02T00:00:00Z");
            assert_eq!((&accepted["observedGeneration"], &programmed["status"]), (&json!(2), &json!("True")));
            assert_eq!(condition(first, "Programmed")["status"], "False");
        }
    }

    #[test]
    fn what_is_in_the_way_is_told_once_and_what_passes_is_not() {
        let outcome = |accepted, programmed| Outcome {
            role: Role::Waypoint,
            ingress: None,
            spec: GatewaySpec::default(),
            accepted,
            programmed,
            addresses: Vec::new(),
        };
        let fault = |reason, message: &str| Err(Fault::new(reason, message));
        let taken = outcome(Ok(()), fault("Invalid", "there is one"));
        let told = |outcome: &Outcome, before: &Value| {
            outcome.worth_telling(before).map(|fault| fault.message.clone())
        };
        assert_eq!(told(&taken, &Value::Null).as_deref(), Some("there is one"));
        let before = taken.status(&Value::Null, 1, "2026-01-01T00:00:00Z");
        assert_eq!(told(&taken, &before), None);
        let other = outcome(Ok(()), fault("Invalid", "there is another"));
        assert_eq!(told(&other, &before).as_deref(), Some("there is another"));
        let refused = outcome(fault("ListenersNotValid", "no"), fault("Invalid", "no"));
        assert_eq!(told(&refused, &before).as_deref(), Some("no"));
        assert_eq!(told(&outcome(Ok(()), fault("Pending", "no pod")), &before), None);
        assert_eq!(told(&outcome(Ok(()), Ok(())), &before), None);
    }

    #[test]
    fn it_is_programmed_once_a_pod_is_available() {
        let service = json!({"spec": {"clusterIPs": ["10.96.0.7", "fd00::7"]}});
        let reason = |service: &Value, deployment: &Value| {
            observe("gate", service, deployment, false).1.map_err(|fault| fault.reason)
        };
        let deployment = json!({"status": {"availableReplicas": 1}});
        let addresses = observe("gate", &service, &deployment, false).0;
        let values: Vec<_> = addresses.iter().map(|address| address["value"].clone()).collect();
        assert_eq!(values, ["10.96.0.7", "fd00::7"]);
        let of = |service: &Value| observe("gate", service, &deployment, true);
        assert_eq!(of(&service).1.unwrap_err().reason, "AddressNotAssigned");
        let balanced = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "a.example"}]}}});
        let (addresses, programmed) = of(&balanced);
        assert_eq!(programmed, Ok(()));
        assert_eq!(addresses[1], json!({"type": "Hostname", "value": "a.example"}));
        assert_eq!(reason(&service, &deployment), Ok(()));
        assert_eq!(reason(&json!({}), &deployment), Err("AddressNotAssigned"));
        assert_eq!(reason(&service, &json!({})), Err("Pending"));
        let failing =
            json!({"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "quota"}]});
        assert_eq!(reason(&service, &json!({"status": failing})), Err("NoResources"));
    }
}
