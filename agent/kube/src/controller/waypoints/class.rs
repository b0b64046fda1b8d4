use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::{Api, Client, Error, ResourceExt as _};
use serde_json::{Value, json};

use super::gateway::Fault;
use super::status::Conditions;
use crate::controller::{Backoff, CONTROLLER, FIELD_MANAGER, GATEWAY_CONTROLLER};

/// What a Gateway becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Waypoint,
    Gateway,
}

impl Role {
    const ALL: [Self; 2] = [Self::Waypoint, Self::Gateway];

    /// The class that there is without anybody having made it.
    pub fn class(self) -> &'static str {
        match self {
            Self::Waypoint => "orlop-waypoint",
            Self::Gateway => "orlop",
        }
    }

    /// What Gateways of a class of this name become, if it is one of ours.
    pub fn of_class(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.class() == name)
    }

    fn controller(self) -> &'static str {
        match self {
            Self::Waypoint => CONTROLLER,
            Self::Gateway => GATEWAY_CONTROLLER,
        }
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waypoint => "waypoint",
            Self::Gateway => "gateway",
        }
    }
}

/// Says of a definition which release of the Gateway API it is from.
const BUNDLE_VERSION: &str = "gateway.networking.k8s.io/bundle-version";

/// What Gateways of this class become, if they are ours.
pub(super) fn role(class: &DynamicObject) -> Option<Role> {
    let controller = class.data["spec"]["controllerName"].as_str();
    Role::ALL.into_iter().find(|role| controller == Some(role.controller()))
}

/// Whether Gateways of this class are ours.
pub(super) fn is_ours(class: &DynamicObject) -> bool {
    role(class).is_some()
}

/// Whether all classes are there that [`ensure`] makes.
pub(super) fn are_there(names: &BTreeSet<String>) -> bool {
    Role::ALL.iter().all(|role| names.contains(role.class()))
}

/// Makes our classes, unless there are some of their names; until that is done.
pub(super) async fn ensure(client: &Client) {
    for role in Role::ALL {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        while let Err(error) = create(client, role).await {
            tracing::warn!(%error, "cannot make the GatewayClass {}", role.class());
            backoff.wait().await;
        }
    }
}

async fn create(client: &Client, role: Role) -> Result<(), Error> {
    let classes = Api::<DynamicObject>::all_with(client.clone(), &resource());
    let class = DynamicObject::new(role.class(), &resource()).data(json!({
        "spec": {
            "controllerName": role.controller(), "description": format!("A {} of Orlop", role.name()),
        },
    }));
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    match classes.create(&params, &class).await {
        Err(Error::Api(status)) if status.is_already_exists() => Ok(()),
        made => made.map(drop),
    }
}

/// Says of a class of ours whether it can be had.
pub(super) async fn write_status(client: &Client, class: &DynamicObject) -> Result<(), Error> {
    let name = class.name_any();
    let status = status(class, bundle_version(client).await?.as_deref(), &Timestamp::now().to_string());
    let classes = Api::<DynamicObject>::all_with(client.clone(), &resource());
    let ApiResource { api_version, kind, .. } = resource();
    let patch =
        json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "status": status});
    let params = PatchParams::apply(FIELD_MANAGER).force();
    classes.patch_status(&name, &params, &Patch::Apply(&patch)).await.map(drop)
}

pub(super) fn resource() -> ApiResource {
    super::resource("GatewayClass", "gatewayclasses")
}

fn status(class: &DynamicObject, version: Option<&str>, now: &str) -> Value {
    let becomes = role(class).unwrap_or(Role::Waypoint);
    let before = &class.data["status"]["conditions"];
    let conditions = Conditions { before, generation: class.metadata.generation.unwrap_or_default(), now };
    let parameters = match &class.data["spec"]["parametersRef"] {
        Value::Null => Ok(()),
        _ => Err(Fault::new("InvalidParameters", "remove spec.parametersRef: there are no parameters")),
    };
    let supported = match version {
        Some(version) if version.starts_with("v1.") => Ok(()),
        found => {
            let found = found.unwrap_or("unknown");
            let message = format!(
                "the Gateway API's definitions are of version {found}: install those of version 1; meanwhile Gateways \
                 are served as well as can be"
            );
            Err(Fault::new("UnsupportedVersion", message))
        }
    };
    json!({"conditions": [
        conditions.of("Accepted", &parameters, &format!("Gateways of this class become {}s", becomes.name())),
        conditions.of("SupportedVersion", &supported, "version 1 of the Gateway API"),
    ]})
}

async fn bundle_version(client: &Client) -> Result<Option<String>, Error> {
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    let definition: Option<PartialObjectMeta<CustomResourceDefinition>> =
        definitions.get_metadata_opt(super::GATEWAYS).await?;
    Ok(definition.and_then(|definition| definition.annotations().get(BUNDLE_VERSION).cloned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(spec: &Value) -> DynamicObject {
        serde_json::from_value(json!({"metadata": {"name": "a", "generation": 3}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_class_is_ours_by_what_it_says_and_not_by_its_name() {
        assert_eq!(role(&class(&json!({"controllerName": CONTROLLER}))), Some(Role::Waypoint));
        assert_eq!(role(&class(&json!({"controllerName": GATEWAY_CONTROLLER}))), Some(Role::Gateway));
        assert!(!is_ours(&class(&json!({"controllerName": "istio.io/mesh-controller"}))));
        assert!(!is_ours(&class(&json!({}))));
    }

    #[test]
    fn what_a_class_asks_in_vain_and_an_unknown_version_are_told() {
        let told = |spec: &Value, version| {
            let status = status(&class(spec), version, "2026-01-01T00:00:00Z");
            [0, 1].map(|index| status["conditions"][index]["reason"].as_str().unwrap().to_owned())
        };
        assert_eq!(told(&json!({}), Some("v1.4.0")), ["Accepted", "SupportedVersion"]);
        assert_eq!(told(&json!({"parametersRef": {}}), Some("v1.4.0"))[0], "InvalidParameters");
        for version in [None, Some("v0.8.1"), Some("v2.0.0")] {
            assert_eq!(told(&json!({}), version), ["Accepted", "UnsupportedVersion"]);
        }
    }
}
