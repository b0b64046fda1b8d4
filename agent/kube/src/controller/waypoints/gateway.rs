use std::collections::BTreeMap;

use kube::core::DynamicObject;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::object::typed;

/// What is read of a Gateway's `spec` (`gateway.networking.k8s.io/v1`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct GatewaySpec {
    pub gateway_class_name: String,
    pub listeners: Vec<Listener>,
    addresses: Vec<IgnoredAny>,
    pub infrastructure: Infrastructure,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Infrastructure {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    parameters_ref: Option<IgnoredAny>,
}

/// By what a gateway's Service is told how clients come to its pods.
pub(super) const TRAFFIC_POLICY: &str = "orlop.dev/external-traffic-policy";

impl Infrastructure {
    /// `externalTrafficPolicy` of a gateway's Service. By default a client's address is kept: nothing else tells one from
    /// another.
    pub fn traffic_policy(&self) -> Result<&'static str, Fault> {
        match self.annotations.get(TRAFFIC_POLICY).map(String::as_str) {
            None | Some("Local") => Ok("Local"),
            Some("Cluster") => Ok("Cluster"),
            Some(other) => {
                let message = format!("annotation {TRAFFIC_POLICY} is {other:?}: make it Local or Cluster");
                Err(Fault::new("Invalid", message))
            }
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Listener {
    pub name: String,
    port: u16,
    protocol: String,
    hostname: Option<String>,
    tls: Option<IgnoredAny>,
    allowed_routes: AllowedRoutes,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct AllowedRoutes {
    kinds: Vec<IgnoredAny>,
}

/// What is wrong: the reason for a condition, and what to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub reason: &'static str,
    pub message: String,
}

impl Fault {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// The longest value of a label.
const MAX_LABEL: usize = 63;
/// The protocol of a waypoint's only listener, and its port.
const PROTOCOL: &str = "HBONE";
pub(super) const PORT: u16 = 15008;

impl GatewaySpec {
    /// Of an object of which nothing but its metadata is certain.
    pub fn of(gateway: &DynamicObject) -> Result<Self, Fault> {
        let spec = gateway.data.get("spec").unwrap_or(&serde_json::Value::Null);
        typed(spec).map_err(|error| Fault::new("Invalid", format!("spec.{error}")))
    }

    /// Whether a waypoint can be made of it, whose Gateway has this name.
    pub fn judge(&self, name: &str) -> Result<(), Fault> {
        self.judge_common("waypoint", name)?;
        let [listener] = self.listeners.as_slice() else {
            let message =
                format!("a waypoint has one listener: leave one of protocol {PROTOCOL}, port {PORT}");
            return Err(Fault::new("ListenersNotValid", message));
        };
        listener.judge().map_err(|fault| {
            Fault::new("ListenersNotValid", format!("listener {}: {}", listener.name, fault.message))
        })
    }

    /// What else its author should know of a waypoint that can be made.
    pub fn warnings(&self) -> Vec<String> {
        let kinds =
            |of: &Listener| Some(format!("listener {}: {}", of.name, of.judge_kinds().err()?.message));
        self.listeners.iter().filter_map(kinds).collect()
    }

    /// The same, but for its listeners, of what is called `a`.
    pub fn judge_common(&self, a: &str, name: &str) -> Result<(), Fault> {
        if !is_service_name(name) {
            let rule = "at most 63 lower-case letters, digits and '-', a letter first";
            let message = format!("a {a}'s Service has the Gateway's name: choose one of {rule}");
            return Err(Fault::new("Invalid", message));
        }
        if self.gateway_class_name.len() > MAX_LABEL {
            let message = format!(
                "choose a class whose name has at most {MAX_LABEL} characters: what a {a} is made of has it as a \
                 label"
            );
            return Err(Fault::new("Invalid", message));
        }
        if self.infrastructure.parameters_ref.is_some() {
            let message = format!("remove spec.infrastructure.parametersRef: a {a} has no parameters");
            return Err(Fault::new("InvalidParameters", message));
        }
        if !self.addresses.is_empty() {
            let message = format!("remove spec.addresses: a {a} has the addresses of its Service");
            return Err(Fault::new("UnsupportedAddress", message));
        }
        Ok(())
    }
}

impl Listener {
    pub fn judge(&self) -> Result<(), Fault> {
        let Self { port, protocol, .. } = self;
        if protocol != PROTOCOL {
            let message = format!("make its protocol {PROTOCOL}: a waypoint takes no {protocol}");
            return Err(Fault::new("UnsupportedProtocol", message));
        }
        if *port != PORT {
            return Err(Fault::new("PortUnavailable", format!("make its port {PORT}: nodes dial no other")));
        }
        if self.tls.is_some() {
            let message = "remove its tls: certificates are the mesh's own";
            return Err(Fault::new("UnsupportedValue", message));
        }
        if self.hostname.as_ref().is_some_and(|hostname| !hostname.is_empty()) {
            let message = "remove its hostname: labels say what is behind a waypoint";
            return Err(Fault::new("UnsupportedValue", message));
        }
        Ok(())
    }

    /// Whether the routes that it wants can be attached: routes have services as their parents, and so none can.
    pub fn judge_kinds(&self) -> Result<(), Fault> {
        if self.allowed_routes.kinds.is_empty() {
            return Ok(());
        }
        let message = "remove its allowedRoutes.kinds: routes are attached to services, not to a waypoint";
        Err(Fault::new("InvalidRouteKinds", message))
    }
}

/// RFC 1035's label, which is what a Service may be called.
fn is_service_name(name: &str) -> bool {
    let is_letter = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase());
    is_letter(name.bytes().next())
        && name.len() <= 63
        && !name.ends_with('-')
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(spec: Value) -> Result<GatewaySpec, Fault> {
        let gateway = json!({"metadata": {"name": "gate"}, "spec": spec});
        GatewaySpec::of(&serde_json::from_value(gateway).unwrap())
    }

    fn listener(changes: &Value) -> Value {
        let mut listener = json!({
            "name": "mesh", "port": 15008, "protocol": "HBONE", "allowedRoutes": {"namespaces": {"from": "Same"}},
        });
        listener.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        listener
    }

    fn fault(of: Value) -> Fault {
        spec(of).and_then(|spec| spec.judge("gate")).unwrap_err()
    }

    #[test]
    fn a_waypoint_has_one_hbone_listener() {
        assert_eq!(spec(json!({"listeners": [listener(&json!({}))]})).unwrap().judge("gate"), Ok(()));
        for (changes, reason, change) in [
            (json!({"protocol": "HTTP"}), "UnsupportedProtocol", "make its protocol HBONE"),
            (json!({"port": 80}), "PortUnavailable", "make its port 15008"),
            (json!({"tls": {}}), "UnsupportedValue", "remove its tls"),
            (json!({"hostname": "web.example"}), "UnsupportedValue", "remove its hostname"),
        ] {
            let listeners = json!({"listeners": [listener(&changes)]});
            let of_listener = spec(listeners.clone()).unwrap().listeners[0].judge().unwrap_err();
            assert_eq!(of_listener.reason, reason);
            let Fault { reason, message } = fault(listeners);
            assert_eq!(reason, "ListenersNotValid");
            assert!(message.starts_with("listener mesh: ") && message.contains(change), "{message}");
        }
        for listeners in [json!([]), json!([listener(&json!({})), listener(&json!({"name": "other"}))])] {
            let Fault { reason, message } = fault(json!({"listeners": listeners}));
            assert_eq!(reason, "ListenersNotValid");
            assert!(message.contains("a waypoint has one listener"), "{message}");
        }
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        let with = |more: &Value| {
            let mut spec = json!({"listeners": [listener(&json!({}))]});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            fault(spec).reason
        };
        assert_eq!(with(&json!({"addresses": [{"value": "10.0.0.1"}]})), "UnsupportedAddress");
        let parameters = json!({"group": "", "kind": "ConfigMap", "name": "a"});
        assert_eq!(with(&json!({"infrastructure": {"parametersRef": parameters}})), "InvalidParameters");
        let kinds = listener(&json!({"allowedRoutes": {"kinds": [{"kind": "HTTPRoute"}]}}));
        let listener = spec(json!({"listeners": [kinds]})).unwrap().listeners.remove(0);
        assert_eq!(listener.judge(), Ok(()));
        assert_eq!(listener.judge_kinds().unwrap_err().reason, "InvalidRouteKinds");
    }

    #[test]
    fn a_class_whose_name_is_no_label_is_refused() {
        let of = |length| {
            let name = "a".repeat(length);
            spec(json!({"gatewayClassName": name, "listeners": [listener(&json!({}))]}))
                .unwrap()
                .judge("gate")
        };
        assert_eq!(of(63), Ok(()));
        assert_eq!(of(64).unwrap_err().reason, "Invalid");
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let Fault { reason, message } = fault(json!({"listeners": [listener(&json!({"port": "x"}))]}));
        assert_eq!(reason, "Invalid");
        assert!(message.starts_with("spec.listeners[0].port"), "{message}");
    }

    #[test]
    fn a_gateway_must_be_called_what_a_service_can_be() {
        let spec = spec(json!({"listeners": [listener(&json!({}))]})).unwrap();
        for bad in ["", "1gate", "gate-", "gate.shop", "Gate", &"a".repeat(64)] {
            assert!(spec.judge(bad).unwrap_err().message.contains("the Gateway's name"), "{bad:?}");
        }
        assert_eq!(spec.judge(&"a".repeat(63)), Ok(()));
    }
}
