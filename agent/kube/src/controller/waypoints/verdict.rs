//! What is to be said of a Gateway before it is stored, by what its status would say then.

use kube::ResourceExt as _;
use kube::core::DynamicObject;

use super::class::Role;
use super::gateway::GatewaySpec;
use super::ingress::Ingress;
use crate::controller::Verdict;

/// Of a Gateway as JSON. Whose it is is told by the name of its class, as it may be there before its class is; of others'
/// nothing is said, nor of Secrets, which whoever asks may not be let see.
pub(crate) fn judge_gateway(text: &str) -> Verdict {
    let gateway: DynamicObject = match serde_json::from_str(text) {
        Ok(gateway) => gateway,
        Err(error) => return Verdict::error(&error.to_string()),
    };
    let class = gateway.data["spec"]["gatewayClassName"].as_str().unwrap_or_default();
    let Some(role) = Role::of_class(class) else { return Verdict::default() };
    let spec = match GatewaySpec::of(&gateway) {
        Ok(spec) => spec,
        Err(fault) => return Verdict::error(&fault.message),
    };
    // One whose name is still to be made has none.
    let name = if gateway.name_any().is_empty() { "gateway".to_owned() } else { gateway.name_any() };
    let judged = match role {
        Role::Waypoint => spec.judge(&name).map(|()| spec.warnings()),
        Role::Gateway => {
            Ingress::of(&gateway, None).and_then(|of| of.judge(&spec, &name).map(|()| of.warnings()))
        }
    };
    match judged {
        Ok(warnings) => {
            warnings.iter().map(|text| Verdict::warning(text)).fold(Verdict::default(), Verdict::and)
        }
        Err(fault) => Verdict::error(&fault.message),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn judge(class: &str, listeners: &Value) -> Verdict {
        let spec = json!({"gatewayClassName": class, "listeners": listeners});
        judge_gateway(&json!({"metadata": {"name": "gate", "namespace": "edge"}, "spec": spec}).to_string())
    }

    #[test]
    fn one_that_would_not_be_accepted_is_refused() {
        let http = |port: u16| json!({"name": "web", "port": port, "protocol": "HTTP"});
        let mesh = json!({"name": "mesh", "port": 15008, "protocol": "HBONE"});
        assert_eq!(judge("orlop-waypoint", &json!([mesh])), Verdict::default());
        assert_eq!(judge("orlop", &json!([http(80)])), Verdict::default());
        let errors = |class: &str, listeners: &Value| judge(class, listeners).errors;
        assert!(errors("orlop-waypoint", &json!([http(80)]))[0].contains("make its protocol HBONE"));
        assert!(errors("orlop", &json!([http(15008)]))[0].contains("choose another port"));
        assert!(errors("orlop", &json!(7))[0].starts_with("spec.listeners"));
        assert_eq!(judge("somebody-s", &json!(7)), Verdict::default());
        // One of its listeners can be opened.
        let both = judge("orlop", &json!([http(80), {"name": "own", "port": 15008, "protocol": "HTTP"}]));
        assert!(both.errors.is_empty() && both.warnings[0].starts_with("listener own: "), "{both:?}");
        let kinds =
            json!([{"name": "mesh", "port": 15008, "protocol": "HBONE", "allowedRoutes": {"kinds": [{}]}}]);
        assert!(judge("orlop-waypoint", &kinds).warnings[0].contains("allowedRoutes.kinds"));
    }

    #[test]
    fn what_is_no_gateway_at_all_is_refused() {
        for text in ["", "[]", "{\"metadata\": 7}"] {
            assert_eq!(judge_gateway(text).errors.len(), 1, "{text}");
        }
    }
}
