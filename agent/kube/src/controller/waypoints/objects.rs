use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{KeyToPath, ResourceRequirements, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::ApiResource;
use serde_json::{Value, json};

use super::gateway::{Infrastructure, PORT};
use super::secrets::CertificateCheck;
use crate::controller::{BUNDLE, FIELD_MANAGER};

/// What all waypoints and gateways of a cluster are made with.
#[derive(Clone, Debug)]
pub struct WaypointSettings {
    /// The image, whose entry point is `orlop`.
    pub image: String,
    /// Arguments of `orlop waypoint` and `orlop gateway` that are the same for all: where the certificate authority is,
    /// what identities and hosts are called.
    pub args: Vec<String>,
    /// Whom the token is for that a waypoint shows to the certificate authority.
    pub audience: String,
    /// Names of Secrets of the Gateway's namespace that the image is pulled with.
    pub pull_secrets: Vec<String>,
    /// The container's `resources`.
    pub resources: Resources,
    /// By what the certificates of gateways' listeners are judged, if their Secrets are to be read.
    pub check: Option<CertificateCheck>,
}

/// What a container asks for, and what it may have.
#[derive(Clone, Debug)]
pub struct Resources(Value);

impl Default for Resources {
    fn default() -> Self {
        Self(json!({"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}))
    }
}

impl FromStr for Resources {
    type Err = serde_json::Error;

    /// As JSON.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // What the API server would not take is told at once.
        let known: ResourceRequirements = serde_json::from_str(text)?;
        Ok(Self(serde_json::to_value(known)?))
    }
}

/// The Gateway that everything belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
    pub class: &'a str,
    pub infrastructure: &'a Infrastructure,
    /// Of a gateway, how clients come to it; `None` of a waypoint.
    pub entrances: Option<&'a Entrances>,
    /// The Secrets of its namespace that DestinationRules of that name.
    pub credentials: &'a BTreeSet<String>,
}

/// How clients come to a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entrances {
    /// Its ports, and what is spoken there.
    pub ports: BTreeMap<u16, &'static str>,
    /// The Secrets of its namespace with the certificates that it shows.
    pub certificates: BTreeSet<String>,
}

/// Labels that tell whose an object is, as Istio and others have them.
pub(super) const GATEWAY_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
const CLASS_LABEL: &str = "gateway.networking.k8s.io/gateway-class-name";
/// And that this controller has made it.
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", FIELD_MANAGER);

/// Until every node knows that the pod goes; only then it is told to drain.
const PRE_STOP_SECONDS: u32 = 5;
const DRAIN_SECONDS: u32 = 25;
/// The volume of a gateway's certificates.
const CERTIFICATES: &str = "certificates";
/// The volume of what servers outside of the mesh are known by and shown.
const CREDENTIALS: &str = "credentials";
/// What of a Secret its pods have, as Kubernetes and Istio have it.
const CREDENTIAL_KEYS: [&str; 8] = ["ca.crt", "cacert", "ca.crl", "crl", "tls.crt", "cert", "tls.key", "key"];
/// A Secret of a credential's name with this ending may have what is believed, as Istio has it.
const ROOTS_ENDING: &str = "-cacert";
const ROOTS_KEYS: [&str; 4] = ["ca.crt", "cacert", "ca.crl", "crl"];
/// And a moment to end in.
const GRACE_SECONDS: u32 = PRE_STOP_SECONDS + DRAIN_SECONDS + 5;

/// What a waypoint or a gateway is made of, all of the Gateway's name, in the order in which it is needed.
#[derive(Debug)]
pub(super) struct Objects {
    pub service_account: Value,
    pub service: Value,
    pub deployment: Value,
    pub disruption_budget: Value,
    pub autoscaler: Value,
}

impl Objects {
    pub fn of(owner: Owner<'_>, settings: &WaypointSettings) -> Self {
        Self {
            service_account: object::<ServiceAccount>(owner, json!({})),
            service: match owner.entrances {
                None => object::<Service>(owner, service(owner)),
                Some(entrances) => {
                    let mut service = object::<Service>(owner, balanced(owner, &entrances.ports));
                    // Load balancers are told by those of Kubernetes too what is wanted of them.
                    service["metadata"]["annotations"] = json!(owner.infrastructure.annotations);
                    service
                }
            },
            deployment: object::<Deployment>(owner, deployment(owner, settings)),
            disruption_budget: object::<PodDisruptionBudget>(
                owner,
                json!({"spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(owner)}}}),
            ),
            autoscaler: object::<HorizontalPodAutoscaler>(owner, autoscaler(owner)),
        }
    }
}

fn object<K: kube::Resource<DynamicType = ()>>(owner: Owner<'_>, body: Value) -> Value {
    let ApiResource { api_version, kind, .. } = ApiResource::erase::<K>(&());
    let Owner { namespace, name, uid, .. } = owner;
    let mut object = json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels(owner, &[]),
            "annotations": annotations(owner),
            "ownerReferences": [{
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": name, "uid": uid,
                "controller": true,
            }],
        },
    });
    if let (Value::Object(object), Value::Object(body)) = (&mut object, body) {
        object.extend(body);
    }
    object
}

/// Those of `spec.infrastructure`, and ours, which count.
fn labels<'a>(owner: Owner<'a>, more: &[(&'a str, &'a str)]) -> BTreeMap<&'a str, &'a str> {
    let given = owner.infrastructure.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let ours = [
        (GATEWAY_LABEL, owner.name),
        (CLASS_LABEL, owner.class),
        MANAGED_BY,
        // It is behind no waypoint, whatever its namespace says.
        ("istio.io/use-waypoint", "none"),
    ];
    given.chain(ours).chain(more.iter().copied()).collect()
}

/// Those of `spec.infrastructure`, but for Kubernetes' own: its controllers write them, and would do so again each time
/// that we have written something else, and some switch a pod's protection off.
fn annotations(owner: Owner<'_>) -> BTreeMap<&str, &str> {
    let is_kubernetes = |key: &str| {
        let domain = key.split_once('/').map_or("", |(domain, _)| domain);
        ["kubernetes.io", "k8s.io"]
            .iter()
            .any(|own| domain.strip_suffix(own).is_some_and(|sub| sub.is_empty() || sub.ends_with('.')))
    };
    let given = owner.infrastructure.annotations.iter();
    given.map(|(key, value)| (key.as_str(), value.as_str())).filter(|(key, _)| !is_kubernetes(key)).collect()
}

/// No class: a selector can't be changed.
fn selector(owner: Owner<'_>) -> Value {
    json!({GATEWAY_LABEL: owner.name})
}

fn service(owner: Owner<'_>) -> Value {
    json!({
        "spec": {
            "type": "ClusterIP",
            "ipFamilyPolicy": "PreferDualStack",
            "selector": selector(owner),
            "ports": [{"name": "hbone", "port": PORT, "targetPort": "hbone", "protocol": "TCP"}],
        },
    })
}

/// A gateway's.
fn balanced(owner: Owner<'_>, ports: &BTreeMap<u16, &str>) -> Value {
    let ports = ports.iter().map(|(port, spoken)| {
        json!({
            "name": format!("{spoken}-{port}"), "port": port, "targetPort": port, "protocol": "TCP",
            "appProtocol": spoken,
        })
    });
    json!({
        "spec": {
            "type": "LoadBalancer",
            // What is neither has been refused.
            "externalTrafficPolicy": owner.infrastructure.traffic_policy().unwrap_or("Local"),
            "ipFamilyPolicy": "PreferDualStack",
            "selector": selector(owner),
            "ports": ports.collect::<Vec<_>>(),
        },
    })
}

fn deployment(owner: Owner<'_>, settings: &WaypointSettings) -> Value {
    let spread = |topology: &str| {
        json!({
            "maxSkew": 1, "topologyKey": topology, "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(owner)},
        })
    };
    let pod_labels = [
        // Nodes carry what comes to it and what it dials as they find it: it speaks for itself.
        ("orlop.dev/mesh", "disabled"),
        ("istio.io/dataplane-mode", "none"),
        ("sidecar.istio.io/inject", "false"),
    ];
    json!({
        "spec": {
            // How many there are the autoscaler says.
            "selector": {"matchLabels": selector(owner)},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {
                    "labels": labels(owner, &pod_labels),
                    "annotations": annotations(owner),
                },
                "spec": {
                    "serviceAccountName": owner.name,
                    "terminationGracePeriodSeconds": GRACE_SECONDS,
                    "securityContext": security(owner),
                    "topologySpreadConstraints": [
                        spread("kubernetes.io/hostname"),
                        spread("topology.kubernetes.io/zone"),
                    ],
                    "imagePullSecrets":
                        settings.pull_secrets.iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
                    "containers": [container(owner, settings)],
                    "volumes": volumes(owner, settings),
                },
            },
        },
    })
}

/// With Secrets as volumes its service account needs no right to read any.
fn volumes(owner: Owner<'_>, settings: &WaypointSettings) -> Vec<Value> {
    let mut volumes = vec![
        json!({"name": "root", "configMap": {"name": BUNDLE}}),
        json!({"name": "token", "projected": {"sources": [{
            "serviceAccountToken": {
                "path": "token", "audience": settings.audience, "expirationSeconds": 3600,
            },
        }]}}),
    ];
    let source = |name: &String, keys: &[&str]| {
        let items =
            keys.iter().map(|key| json!({"key": key, "path": format!("{}/{name}/{key}", owner.namespace)}));
        // Of one that is missing only those know who name it.
        json!({"secret": {"name": name, "optional": true, "items": items.collect::<Vec<_>>()}})
    };
    let certificates = owner.entrances.into_iter().flat_map(|entrances| &entrances.certificates);
    let certificates: Vec<_> = certificates.map(|name| source(name, &["tls.crt", "tls.key"])).collect();
    let roots = owner.credentials.iter().map(|name| format!("{name}{ROOTS_ENDING}"));
    // One that is a credential itself is there already, with these keys too.
    let roots = roots.filter(|name| !owner.credentials.contains(name));
    let roots: Vec<_> = roots.map(|name| source(&name, &ROOTS_KEYS)).collect();
    let credentials = owner.credentials.iter().map(|name| source(name, &CREDENTIAL_KEYS)).chain(roots);
    for (name, sources) in [(CERTIFICATES, certificates), (CREDENTIALS, credentials.collect())] {
        if !sources.is_empty() {
            volumes.push(json!({"name": name, "projected": {"sources": sources}}));
        }
    }
    volumes
}

/// The Secrets that a Deployment's pods have to show servers, and to know them by.
pub(super) fn credentials_of(deployment: &Deployment) -> BTreeSet<String> {
    let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let volumes = pod.and_then(|pod| pod.volumes.as_ref()).into_iter().flatten();
    let projected =
        volumes.filter(|volume| volume.name == CREDENTIALS).filter_map(|of| of.projected.as_ref());
    let secrets =
        projected.filter_map(|of| of.sources.as_ref()).flatten().filter_map(|of| of.secret.as_ref());
    let has_keys = |items: &Vec<KeyToPath>| items.iter().any(|item| item.key == "tls.key");
    // Others are beside one of these.
    let whole = secrets.filter(|secret| secret.items.as_ref().is_some_and(has_keys));
    whole.map(|secret| secret.name.clone()).collect()
}

fn security(owner: Owner<'_>) -> Value {
    let mut security = json!({
        "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    if owner.entrances.is_some() {
        // Its listeners have whatever ports, and it has no capability.
        security["sysctls"] = json!([{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]);
    }
    security
}

fn container(owner: Owner<'_>, settings: &WaypointSettings) -> Value {
    let is_gateway = owner.entrances.is_some();
    let mut args = vec![
        if is_gateway { "gateway" } else { "waypoint" }.to_owned(),
        "--kube".to_owned(),
        format!("--name={}/{}", owner.namespace, owner.name),
        format!("--service-account={}", owner.name),
        format!("--drain-timeout={DRAIN_SECONDS}s"),
    ];
    if is_gateway {
        args.push(format!("--class={}", owner.class));
    }
    args.extend(settings.args.iter().cloned());
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut env = vec![field("NODE_NAME", "spec.nodeName")];
    env.extend(is_gateway.then(|| field("POD_NAME", "metadata.name")));
    // Those of a gateway's listeners come and go, and no pod with them.
    let mut ports = vec![
        json!({"name": "metrics", "containerPort": 15020, "protocol": "TCP"}),
        json!({"name": "health", "containerPort": 15021, "protocol": "TCP"}),
    ];
    if !is_gateway {
        ports.insert(0, json!({"name": "hbone", "containerPort": PORT, "protocol": "TCP"}));
    }
    let mut mounts = vec![
        json!({"name": "root", "mountPath": "/var/run/secrets/orlop.dev/root", "readOnly": true}),
        json!({"name": "token", "mountPath": "/var/run/secrets/orlop.dev/token", "readOnly": true}),
    ];
    if owner.entrances.is_some_and(|entrances| !entrances.certificates.is_empty()) {
        let path = "/etc/orlop/certificates";
        args.push(format!("--certificates={path}"));
        mounts.push(json!({"name": CERTIFICATES, "mountPath": path, "readOnly": true}));
    }
    if !owner.credentials.is_empty() {
        let path = "/etc/orlop/credentials";
        args.push(format!("--credentials={path}"));
        mounts.push(json!({"name": CREDENTIALS, "mountPath": path, "readOnly": true}));
    }
    let probe = |path: &str, seconds: u32| json!({"httpGet": {"path": path, "port": "health"}, "periodSeconds": seconds});
    json!({
        "name": "orlop",
        "image": settings.image,
        "args": args,
        "env": env,
        "ports": ports,
        "readinessProbe": probe("/healthz/ready", 2),
        "livenessProbe": probe("/healthz/live", 10),
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}},
        "resources": settings.resources.0,
        "securityContext": {
            "privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    })
}

fn autoscaler(owner: Owner<'_>) -> Value {
    json!({
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": owner.name},
            "minReplicas": 2,
            "maxReplicas": 10,
            "metrics": [{
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::gateway::TRAFFIC_POLICY;
    use super::*;

    #[test]
    fn labels_of_the_infrastructure_are_on_everything_and_take_nothing_out() {
        let infrastructure = json!({
            "labels": {"team": "shop", "orlop.dev/mesh": "enabled", GATEWAY_LABEL: "other"},
            "annotations": {
                "note": "mine",
                "deployment.kubernetes.io/revision": "99",
                "kubernetes.io/change-cause": "mine",
                "container.apparmor.security.beta.kubernetes.io/waypoint": "unconfined",
                "x.k8s.io/y": "z",
                "notkubernetes.io/kubernetes.io": "kept",
            },
        });
        let infrastructure: Infrastructure = serde_json::from_value(infrastructure).unwrap();
        let owner = Owner {
            namespace: "shop",
            name: "gate",
            uid: "u1",
            class: "orlop-waypoint",
            infrastructure: &infrastructure,
            entrances: None,
            credentials: &BTreeSet::new(),
        };
        let settings = WaypointSettings {
            image: "orlop:1".to_owned(),
            args: vec!["--ca-address=https://ca:15012".to_owned()],
            audience: "istio-ca".to_owned(),
            pull_secrets: vec!["pull".to_owned()],
            resources: r#"{"limits": {"memory": "2Gi"}}"#.parse().unwrap(),
            check: None,
        };
        let objects = Objects::of(owner, &settings);
        let template = &objects.deployment["spec"]["template"];
        for object in [
            &objects.service_account,
            &objects.service,
            &objects.deployment,
            &objects.disruption_budget,
            &objects.autoscaler,
            template,
        ] {
            let metadata = &object["metadata"];
            assert_eq!(
                (&metadata["labels"]["team"], &metadata["labels"][GATEWAY_LABEL]),
                (&json!("shop"), &json!("gate"))
            );
            assert_eq!(
                metadata["annotations"],
                json!({"note": "mine", "notkubernetes.io/kubernetes.io": "kept"})
            );
        }
        assert_eq!(template["metadata"]["labels"]["orlop.dev/mesh"], "disabled");
        assert_eq!(template["spec"]["imagePullSecrets"], json!([{"name": "pull"}]));
        let resources = &template["spec"]["containers"][0]["resources"];
        assert_eq!(*resources, json!({"limits": {"memory": "2Gi"}}));
        assert!("{\"limits\": 1}".parse::<Resources>().is_err());
        assert_eq!(objects.deployment["metadata"]["ownerReferences"][0]["uid"], "u1");
        assert_eq!(objects.deployment["spec"].get("replicas"), None);
    }

    #[test]
    fn a_gateway_has_its_listeners_ports_and_what_load_balancers_are_to_be_told() {
        let internal = "service.beta.kubernetes.io/aws-load-balancer-scheme";
        let infrastructure = json!({"annotations": {internal: "internal", "note": "mine"}});
        let infrastructure: Infrastructure = serde_json::from_value(infrastructure).unwrap();
        let entrances = Entrances { ports: [(80, "http"), (8080, "http")].into(), ..Entrances::default() };
        let owner = Owner {
            namespace: "edge",
            name: "gate",
            uid: "u1",
            class: "corp",
            infrastructure: &infrastructure,
            entrances: Some(&entrances),
            credentials: &BTreeSet::new(),
        };
        let settings = WaypointSettings {
            image: "orlop:1".to_owned(),
            args: Vec::new(),
            audience: "istio-ca".to_owned(),
            pull_secrets: Vec::new(),
            resources: Resources::default(),
            check: None,
        };
        let objects = Objects::of(owner, &settings);
        let service = &objects.service;
        assert_eq!(service["metadata"]["annotations"], json!({internal: "internal", "note": "mine"}));
        assert_eq!(objects.deployment["metadata"]["annotations"], json!({"note": "mine"}));
        assert_eq!(
            (&service["spec"]["type"], &service["spec"]["externalTrafficPolicy"]),
            (&json!("LoadBalancer"), &json!("Local"))
        );
        let numbers = service["spec"]["ports"].as_array().unwrap().iter();
        let numbers: Vec<_> =
            numbers.map(|port| (port["port"].clone(), port["targetPort"].clone())).collect();
        assert_eq!(numbers, [(json!(80), json!(80)), (json!(8080), json!(8080))]);
        let pod = &objects.deployment["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["sysctls"][0]["value"], "0");
        let args = pod["containers"][0]["args"].as_array().unwrap();
        assert_eq!(args[0], "gateway");
        assert!(args.contains(&json!("--class=corp")) && args.contains(&json!("--name=edge/gate")));
        assert_eq!(pod["containers"][0]["env"][1]["name"], "POD_NAME");
        let mut hidden = infrastructure.clone();
        hidden.annotations.insert(TRAFFIC_POLICY.to_owned(), "Cluster".to_owned());
        let other = Objects::of(Owner { infrastructure: &hidden, ..owner }, &settings);
        assert_eq!(other.service["spec"]["externalTrafficPolicy"], "Cluster");
        // A port more makes no new pods.
        let more = Entrances { ports: [(80, "http"), (81, "http")].into(), ..Entrances::default() };
        let other = Objects::of(Owner { entrances: Some(&more), ..owner }, &settings);
        assert_eq!(other.deployment, objects.deployment);
        // A certificate more is a volume.
        let sealed = Entrances { ports: [(443, "https")].into(), certificates: ["cert".to_owned()].into() };
        let objects = Objects::of(Owner { entrances: Some(&sealed), ..owner }, &settings);
        assert_eq!(objects.service["spec"]["ports"][0]["appProtocol"], "https");
        let pod = &objects.deployment["spec"]["template"]["spec"];
        let secret = &pod["volumes"][2]["projected"]["sources"][0]["secret"];
        assert_eq!((&secret["name"], &secret["optional"]), (&json!("cert"), &json!(true)));
        let paths: Vec<_> = secret["items"].as_array().unwrap().iter().map(|item| &item["path"]).collect();
        assert_eq!(paths, ["edge/cert/tls.crt", "edge/cert/tls.key"]);
        assert_eq!(pod["containers"][0]["volumeMounts"][2]["name"], pod["volumes"][2]["name"]);
        // So is what it shows servers, of a waypoint too.
        let named = BTreeSet::from(["client".to_owned()]);
        let objects = Objects::of(Owner { entrances: None, credentials: &named, ..owner }, &settings);
        let pod = &objects.deployment["spec"]["template"]["spec"];
        let secret = &pod["volumes"][2]["projected"]["sources"][0]["secret"];
        assert_eq!((&secret["name"], &secret["optional"]), (&json!("client"), &json!(true)));
        let paths: Vec<_> = secret["items"].as_array().unwrap().iter().map(|item| &item["path"]).collect();
        assert_eq!(paths, CREDENTIAL_KEYS.map(|key| format!("edge/client/{key}")).each_ref());
        let made: Deployment = serde_json::from_value(objects.deployment.clone()).unwrap();
        assert_eq!(credentials_of(&made), named);
        assert_eq!(pod["containers"][0]["volumeMounts"][2]["mountPath"], "/etc/orlop/credentials");
    }
}
