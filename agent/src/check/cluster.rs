//! How a cluster stands: before Orlop is installed, whether it can be; after, whether its parts are ready.

use std::collections::HashMap;

use orlop_kube::preflight::{Asks, IstioPod, Part, Pods, Preflight, Role, Sidecar, Unknown};
use serde_json::Value;

use super::{Report, Row, State};
use crate::{
    agents::{Which, ask_cluster, ask_part, runtime},
    cli::{AgentArguments, CheckArguments},
};

/// The oldest minor version of Kubernetes 1 that is tried.
const OLDEST: u32 = 30;
/// How many pods are named.
const MOST_PODS: usize = 20;
/// What Helm makes: group, resource, whether it is in Orlop's namespace, and the value of the chart that asks for it,
/// if it is not always made.
const MADE: [(&str, &str, bool, Option<&str>); 20] = [
    ("", "namespaces", false, None),
    ("apiextensions.k8s.io", "customresourcedefinitions", false, None),
    ("rbac.authorization.k8s.io", "clusterroles", false, None),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false, None),
    ("rbac.authorization.k8s.io", "roles", true, None),
    ("rbac.authorization.k8s.io", "rolebindings", true, None),
    ("", "serviceaccounts", true, None),
    ("", "services", true, None),
    ("", "secrets", true, None),
    ("apps", "daemonsets", true, None),
    ("apps", "deployments", true, None),
    ("policy", "poddisruptionbudgets", true, None),
    ("networking.k8s.io", "networkpolicies", true, Some("networkPolicy.enabled")),
    ("", "resourcequotas", true, Some("resourceQuota.enabled")),
    ("", "configmaps", true, Some("monitoring.dashboard")),
    ("monitoring.coreos.com", "podmonitors", true, Some("monitoring.podMonitor")),
    ("storage.k8s.io", "csidrivers", false, Some("node.bootGate.enabled")),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicies", false, Some("node.bootGate.enabled")),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicybindings", false, Some("node.bootGate.enabled")),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", false, Some("webhook.enabled")),
];
/// What the API server asks for besides of whoever makes roles and gives them: it lets nobody give what they have not.
const GIVEN: [(&str, &str, bool); 4] = [
    ("escalate", "clusterroles", false),
    ("bind", "clusterroles", false),
    ("escalate", "roles", true),
    ("bind", "roles", true),
];

pub(super) fn check(arguments: &CheckArguments) -> anyhow::Result<Report> {
    let mut rows = Vec::new();
    let runtime = runtime()?;
    let preflight = runtime.block_on(Preflight::of(
        arguments.kubeconfig.as_deref(),
        arguments.context.as_deref(),
        &arguments.namespace,
    ))?;
    // Nothing else is worth asking without it.
    let (version, minor) = runtime.block_on(preflight.version())?;
    rows.push(of_version(&version, minor));
    let agents = runtime.block_on(preflight.agents());
    let installed = matches!(agents, Ok(Some(_)));
    match agents {
        Ok(Some(agents)) => {
            rows.push(ready("agents", agents, "kubectl describe pods -l app.kubernetes.io/name=orlop-node"));
            match runtime.block_on(preflight.controllers()) {
                Ok(Some(controllers)) => {
                    let how = "kubectl describe pods -l app.kubernetes.io/name=orlop-controller";
                    rows.push(ready("controller", controllers, how));
                }
                Ok(None) => {}
                Err(error) => rows.push(unknown("controller", &error)),
            }
            let nodes = runtime.block_on(preflight.nodes());
            rows.extend(of_agents(arguments, nodes));
            match runtime.block_on(preflight.parts()) {
                Ok(parts) => rows.extend(parts.iter().map(|part| {
                    let path = if part.role == Role::Controller { "/version" } else { "/config_dump" };
                    let said = runtime.block_on(ask_part(&preflight, part, path));
                    of_part(part, said.as_deref(), env!("CARGO_PKG_VERSION"))
                })),
                Err(error) => rows.push(unknown("waypoints and gateways", &error)),
            }
        }
        Ok(None) => {
            for (group, resource, namespaced, value) in MADE {
                let may = runtime.block_on(preflight.may("create", group, resource, namespaced));
                rows.push(of_right(resource, value, may));
            }
            for (verb, resource, namespaced) in GIVEN {
                let may = preflight.may(verb, "rbac.authorization.k8s.io", resource, namespaced);
                rows.push(of_giving(verb, resource, runtime.block_on(may)));
            }
        }
        Err(error) => rows.push(unknown("agents", &error)),
    }
    rows.push(of_pod_security(&arguments.namespace, runtime.block_on(preflight.pod_security())));
    let found = runtime.block_on(async { (preflight.istio().await, preflight.namespaces().await) });
    let nobody_injects = found.0.as_ref().is_ok_and(Vec::is_empty);
    rows.extend(of_istio(found));
    rows.extend(of_sidecars(runtime.block_on(preflight.sidecars()), nobody_injects));
    let is_missing = rows.iter().any(|row| row.state == State::Missing);
    let verdict = match (installed, is_missing) {
        (false, false) => {
            "Orlop can be installed here; `orlop check` on a node says whether its kernel will do"
        }
        (false, true) => "Orlop can't be installed here as it is: see what is MISSING",
        (true, false) => "Orlop is installed and ready",
        (true, true) => "Orlop is installed, and not all of it works: see what is MISSING",
    };
    Ok(Report { of: format!("Kubernetes {version}"), rows, verdict: verdict.to_owned() })
}

fn row(name: impl Into<String>, state: State, detail: impl Into<String>) -> Row {
    Row { name: name.into(), state, detail: detail.into() }
}

fn unknown(name: &str, error: &Unknown) -> Row {
    match error {
        Unknown::Forbidden(said) => {
            row(name, State::Note, format!("not known: {said}; ask somebody who may see it"))
        }
        Unknown::Failed(said) => row(name, State::Missing, format!("not known: {said}")),
    }
}

fn of_version(version: &str, minor: Option<u32>) -> Row {
    match minor {
        Some(minor) if minor < OLDEST => {
            let detail = format!("{version} is older than 1.{OLDEST}, before which nothing was tried");
            row("Kubernetes API", State::Note, detail)
        }
        _ => row("Kubernetes API", State::Ok, version),
    }
}

fn of_right(resource: &str, value: Option<&str>, may: Result<bool, Unknown>) -> Row {
    let name = format!("right to create {resource}");
    match (may, value) {
        (Ok(true), _) => row(name, State::Ok, ""),
        // On by default, so that it is missing unless somebody does without.
        (Ok(false), None | Some("networkPolicy.enabled")) => {
            let detail = "you have none; have somebody with the role cluster-admin install the chart";
            row(name, State::Missing, detail)
        }
        (Ok(false), Some(value)) => {
            row(name, State::Note, format!("you have none; only with `{value}` does the chart need it"))
        }
        (Err(error), _) => unknown(&name, &error),
    }
}

/// Whoever has each right of the chart's roles themselves is not asked for it; that is not looked into.
fn of_giving(verb: &str, resource: &str, may: Result<bool, Unknown>) -> Row {
    let name = format!("right to {verb} {resource}");
    match may {
        Ok(true) => row(name, State::Ok, ""),
        Ok(false) => {
            let detail = "you have none, and may give nobody rights that you have not yourself; have somebody with the \
                          role cluster-admin install the chart";
            row(name, State::Missing, detail)
        }
        Err(error) => unknown(&name, &error),
    }
}

fn of_pod_security(namespace: &str, level: Result<Option<String>, Unknown>) -> Row {
    let name = "Pod Security";
    let how = format!(
        "`kubectl label --overwrite namespace {namespace} pod-security.kubernetes.io/enforce=privileged`"
    );
    match level {
        Ok(Some(level)) if level == "privileged" => row(name, State::Ok, "privileged"),
        Ok(Some(level)) => {
            let detail = format!("namespace {namespace} enforces {level}, which refuses agents: {how}");
            row(name, State::Missing, detail)
        }
        Ok(None) => {
            let detail =
                format!("namespace {namespace} has no level; if the cluster's default refuses agents: {how}");
            row(name, State::Ok, detail)
        }
        Err(error) => unknown(name, &error),
    }
}

fn ready(name: &str, pods: Pods, how: &str) -> Row {
    let detail = format!("{} of {} ready", pods.ready, pods.wanted);
    if pods.ready < pods.wanted {
        return row(name, State::Missing, format!("{detail}: `{how}` says why not"));
    }
    row(name, State::Ok, detail)
}

/// A row for each node: whether its agent answers, of what version it is, and how its certificates stand.
fn of_agents(arguments: &CheckArguments, nodes: Result<Vec<String>, Unknown>) -> Vec<Row> {
    let asked =
        AgentArguments::of_all(arguments.kubeconfig.clone(), arguments.context.clone(), &arguments.namespace);
    let answers = match ask_cluster(&asked, Which::All, "/config_dump") {
        Ok(answers) => answers,
        Err(error) => return vec![row("agents' answers", State::Missing, format!("{error:#}"))],
    };
    let mut rows = Vec::new();
    let mut pods = Vec::new();
    let mut known: HashMap<String, Row> = HashMap::new();
    for answer in answers {
        let name = format!("agent of {}", answer.node);
        let found = match answer.body.and_then(|body| Ok(serde_json::from_slice::<Value>(&body)?)) {
            Ok(dump) => {
                pods.extend(of_pods(&answer.node, &dump));
                of_dump(name, &dump, env!("CARGO_PKG_VERSION"))
            }
            Err(error) => row(name, State::Missing, format!("it does not answer: {error:#}")),
        };
        known.insert(answer.node, found);
    }
    match nodes {
        Ok(nodes) => {
            for node in nodes {
                let none = || {
                    let detail = "there is none: pods of this node are not in the mesh; see taints, and `node.nodeSelector` and \
                                  `node.tolerations` of the chart";
                    row(format!("agent of {node}"), State::Missing, detail)
                };
                rows.push(known.remove(&node).unwrap_or_else(none));
            }
        }
        Err(error) => rows.push(unknown("nodes without an agent", &error)),
    }
    let mut left: Vec<_> = known.into_values().collect();
    left.sort_by(|a, b| a.name.cmp(&b.name));
    rows.extend(left);
    rows.extend(as_many_as_fit(pods));
    rows
}

/// The pods of a node that are not as their namespace's label asks, each with what to do.
fn of_pods(node: &str, dump: &Value) -> Vec<Row> {
    let of = |key: &str| dump[key].as_object().into_iter().flatten();
    let name = |pod: &str| format!("pod {pod}");
    let why = |text: &Value| text.as_str().unwrap_or_default().to_owned();
    let refused = of("not_enrolled").map(|(pod, reason)| {
        let detail = format!("refused on {node}, as it is not enrolled: {}", why(reason));
        row(name(pod), State::Missing, detail)
    });
    let ungated = of("enrolled").filter(|(_, of)| of["gated"] == false).map(|(pod, _)| {
        let detail = format!("not held by the boot gate after a reboot of {node}, as it is static or older than that: replace it, or set the chart's node.bootGate.systemd (if it is set, the agent's log says what is the matter with it)");
        row(name(pod), State::Note, detail)
    });
    let outside = of("outside").filter(|(_, of)| of["namespace_asks"] == true).map(|(pod, of)| {
        let detail = format!("in clear on {node}, though its namespace is in the mesh: {}", why(&of["why"]));
        row(name(pod), State::Note, detail)
    });
    refused.chain(ungated).chain(outside).collect()
}

/// What is worst comes first, and how many there are besides is said.
fn as_many_as_fit(mut pods: Vec<Row>) -> Vec<Row> {
    pods.sort_by_key(|row| row.state != State::Missing);
    let more = pods.len().saturating_sub(MOST_PODS);
    pods.truncate(MOST_PODS);
    if more > 0 {
        pods.push(row("more pods", State::Note, format!("{more}: `orlop status -o wide` has all")));
    }
    pods
}

fn of_dump(name: String, dump: &Value, own_version: &str) -> Row {
    let version = dump["version"].as_str().unwrap_or("of another make");
    let count = |of: &Value| of.as_object().map_or(0, serde_json::Map::len);
    let (enrolled, refused) = (count(&dump["enrolled"]), count(&dump["not_enrolled"]));
    let certificates: Vec<&Value> = dump["certificates"].as_array().into_iter().flatten().collect();
    let spoilt = certificates.iter().find(|one| one["state"] != "valid");
    let pods = if enrolled > 0 { format!("{enrolled} pods, ") } else { String::new() };
    let detail = format!("version {version}, {pods}{} certificates", certificates.len());
    if let Some(spoilt) = spoilt {
        let said = |key: &str| spoilt[key].as_str().unwrap_or_default().to_owned();
        let detail =
            format!("{detail}; that of {} is {}: {}", said("identity"), said("state"), said("last_error"));
        return row(name, State::Missing, detail);
    }
    if refused > 0 {
        let detail = format!("{detail}; {refused} pods are not enrolled, see below");
        return row(name, State::Missing, detail);
    }
    if version != own_version {
        return row(name, State::Note, format!("{detail}; this orlop is of version {own_version}"));
    }
    row(name, State::Ok, detail)
}

/// Of what version a controller, waypoint or gateway is, and how its certificates stand.
fn of_part(part: &Part, said: Result<&[u8], &anyhow::Error>, own_version: &str) -> Row {
    let role = match part.role {
        Role::Controller => "controller",
        Role::Waypoint => "waypoint",
        Role::Gateway => "gateway",
    };
    let name = format!("{role} {}/{}", part.namespace, part.name);
    let problem = match said {
        _ if !part.ready => {
            format!("not ready: `kubectl describe pod {} -n {}` says why not", part.name, part.namespace)
        }
        // Who may list pods need not have the right to ask them.
        Err(error) => return row(name, State::Note, format!("ready; it does not answer: {error:#}")),
        Ok(said) if part.role == Role::Controller => {
            let version = String::from_utf8_lossy(said);
            let note = format!("version {version}; this orlop is of version {own_version}");
            return match version == own_version {
                true => row(name, State::Ok, format!("version {version}")),
                false => row(name, State::Note, note),
            };
        }
        Ok(said) => match serde_json::from_slice::<Value>(said) {
            Ok(dump) => return of_dump(name, &dump, own_version),
            Err(error) => format!("its answer is no JSON: {error}"),
        },
    };
    row(name, State::Missing, problem)
}

/// What of Istio would be in the way.
fn of_istio((pods, asks): (Result<Vec<IstioPod>, Unknown>, Result<Vec<Asks>, Unknown>)) -> Vec<Row> {
    let (pods, asks) = match (pods, asks) {
        (Ok(pods), Ok(asks)) => (pods, asks),
        (Err(error), _) | (_, Err(error)) => return vec![unknown("Istio", &error)],
    };
    if pods.is_empty() {
        return vec![row("Istio", State::Ok, "none is installed")];
    }
    let found: Vec<_> = pods.iter().map(|pod| format!("{} in {}", pod.app, pod.namespace)).collect();
    let mut rows = vec![row("Istio", State::Note, format!("there is {}", found.join(", ")))];
    let ambient = pods.iter().any(|pod| pod.app == "ztunnel");
    let plugin = pods.iter().any(|pod| pod.app == "istio-cni");
    for Asks { namespace, sidecars, ambient: asks_for_ambient, orlop } in asks {
        let name = format!("namespace {namespace}");
        if sidecars && (orlop || asks_for_ambient) {
            let detail = "asks for Istio's sidecars and for Orlop: take one of the labels off";
            rows.push(row(name, State::Missing, detail));
        } else if ambient && asks_for_ambient {
            let detail = "istio.io/dataplane-mode=ambient is for ztunnel and for Orlop: use orlop.dev/mesh=enabled for Orlop, and \
                          orlop.dev/mesh=disabled for what stays with ztunnel";
            rows.push(row(name, State::Missing, detail));
        } else if plugin && asks_for_ambient {
            let detail = "istio.io/dataplane-mode=ambient is for Orlop, and for istio-cni if its ambient mode is on: \
                          orlop.dev/mesh=enabled is for Orlop alone";
            rows.push(row(name, State::Note, detail));
        }
    }
    rows
}

/// Pods that two meshes would redirect, whoever labelled what.
fn of_sidecars(found: Result<Vec<Sidecar>, Unknown>, nobody_injects: bool) -> Vec<Row> {
    let found = match found {
        Ok(found) => found,
        Err(error) => return vec![unknown("sidecars", &error)],
    };
    let told = found.into_iter().map(|Sidecar { namespace, name, runs }| {
        let detail = match runs {
            true => "has Istio's sidecar and is in Orlop's mesh",
            false => "asks for Istio's sidecar (sidecar.istio.io/inject) and is in Orlop's mesh",
        };
        let how =
            "take it out of one: sidecar.istio.io/inject=false and a restart, or orlop.dev/mesh=disabled";
        let state = if nobody_injects && !runs { State::Note } else { State::Missing };
        row(format!("pod {namespace}/{name}"), state, format!("{detail}: {how}"))
    });
    as_many_as_fit(told.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn states(rows: &[Row]) -> Vec<(&str, State)> {
        rows.iter().map(|row| (row.name.as_str(), row.state)).collect()
    }

    #[test]
    fn a_namespace_that_both_meshes_would_take_is_told() {
        let pod = |app: &str| IstioPod { app: app.into(), namespace: "istio-system".into() };
        let asks = |namespace: &str, sidecars, ambient, orlop| Asks {
            namespace: namespace.into(),
            sidecars,
            ambient,
            orlop,
        };
        let all = || {
            vec![
                asks("both", true, false, true),
                asks("old", true, false, false),
                asks("ours", false, false, true),
                asks("ambient", false, true, false),
            ]
        };
        assert_eq!(states(&of_istio((Ok(Vec::new()), Ok(all())))), [("Istio", State::Ok)]);
        let sidecars = of_istio((Ok(vec![pod("istiod")]), Ok(all())));
        assert_eq!(states(&sidecars), [("Istio", State::Note), ("namespace both", State::Missing)]);
        let ambient = of_istio((Ok(vec![pod("istiod"), pod("ztunnel")]), Ok(all())));
        assert_eq!(states(&ambient)[2], ("namespace ambient", State::Missing));
        let plugin = of_istio((Ok(vec![pod("istio-cni")]), Ok(all())));
        assert_eq!(states(&plugin)[2], ("namespace ambient", State::Note));
        let forbidden = of_istio((Err(Unknown::Forbidden("no".into())), Ok(all())));
        assert_eq!(states(&forbidden), [("Istio", State::Note)]);
    }

    #[test]
    fn what_nobody_asks_for_by_default_need_not_be_allowed() {
        for (_, resource, _, value) in MADE {
            let usual = value.is_none() || resource == "networkpolicies";
            let wanted = if usual { State::Missing } else { State::Note };
            assert_eq!(of_right(resource, value, Ok(false)).state, wanted, "{resource}");
            assert_eq!(of_right(resource, value, Ok(true)).state, State::Ok, "{resource}");
        }
        assert_eq!(of_giving("bind", "roles", Ok(false)).state, State::Missing);
    }

    #[test]
    fn only_a_level_that_refuses_agents_is_in_the_way() {
        let state = |level: Option<&str>| of_pod_security("orlop-system", Ok(level.map(str::to_owned))).state;
        assert_eq!([None, Some("privileged")].map(state), [State::Ok, State::Ok]);
        assert_eq!([Some("baseline"), Some("restricted")].map(state), [State::Missing, State::Missing]);
        let forbidden = of_pod_security("orlop-system", Err(Unknown::Forbidden("no".into())));
        assert_eq!(forbidden.state, State::Note);
    }

    #[test]
    fn what_is_no_agent_says_its_version_and_whether_it_is_ready() {
        let part = |role, ready| Part { role, namespace: "shop".into(), name: "w-1".into(), ready };
        let dump = |state: &str| json!({"version": "1", "certificates": [{"state": state}]}).to_string();
        let state = |of: &Part, said: &str| of_part(of, Ok(said.as_bytes()), "1").state;
        let (controller, waypoint) = (part(Role::Controller, true), part(Role::Waypoint, true));
        assert_eq!((state(&controller, "1"), state(&controller, "0")), (State::Ok, State::Note));
        assert_eq!(state(&waypoint, &dump("valid")), State::Ok);
        assert_eq!(state(&waypoint, &dump("expired")), State::Missing);
        assert_eq!(state(&part(Role::Gateway, false), &dump("valid")), State::Missing);
        let silent = of_part(&waypoint, Err(&anyhow::anyhow!("no right")), "1");
        assert!(silent.state == State::Note && silent.detail.contains("no right"), "{}", silent.detail);
        assert_eq!(silent.name, "waypoint shop/w-1");
    }

    #[test]
    fn a_pod_of_both_meshes_is_told() {
        let pod = |name: &str, runs| Sidecar { namespace: "shop".into(), name: name.into(), runs };
        let found = || Ok(vec![pod("a", true), pod("b", false)]);
        let rows = of_sidecars(found(), false);
        assert_eq!(states(&rows), [("pod shop/a", State::Missing), ("pod shop/b", State::Missing)]);
        assert!(rows[0].detail.starts_with("has") && rows[1].detail.starts_with("asks"));
        let rows = of_sidecars(found(), true);
        assert_eq!(states(&rows), [("pod shop/a", State::Missing), ("pod shop/b", State::Note)]);
        assert!(of_sidecars(Ok(Vec::new()), false).is_empty());
    }

    #[test]
    fn an_agent_is_as_good_as_its_certificates() {
        let dump = |state: &str| {
            json!({
                "version": "1", "enrolled": {"shop/web": {}}, "not_enrolled": {},
                "certificates": [{"identity": "spiffe://x", "state": state, "last_error": "away"}],
            })
        };
        assert_eq!(of_dump("a".into(), &dump("valid"), "1").state, State::Ok);
        assert_eq!(of_dump("a".into(), &dump("valid"), "2").state, State::Note);
        let spoilt = of_dump("a".into(), &dump("pending"), "1");
        assert!(spoilt.state == State::Missing && spoilt.detail.contains("away"), "{}", spoilt.detail);
        let mut refused = dump("valid");
        refused["not_enrolled"] = json!({"shop/late": "no network namespace"});
        assert_eq!(of_dump("a".into(), &refused, "1").state, State::Missing);
        let pods = |dump: &Value| {
            let rows = of_pods("n1", dump);
            rows.into_iter().map(|row| (row.name, row.state, row.detail)).collect::<Vec<_>>()
        };
        let late = "refused on n1, as it is not enrolled: no network namespace".to_owned();
        assert_eq!(pods(&refused), [("pod shop/late".to_owned(), State::Missing, late)]);
        // Of another version, or no agent at all.
        assert_eq!(of_dump("a".into(), &Value::Null, "1").state, State::Note);
        assert_eq!(pods(&Value::Null), []);
    }

    #[test]
    fn pods_that_are_not_as_their_namespace_asks_are_named() {
        let dump = json!({
            "enrolled": {"shop/old": {"gated": false}, "shop/new": {"gated": true}, "shop/any": {"gated": null}},
            "outside": {
                "shop/db": {"why": "its label says so", "namespace_asks": true},
                "street/x": {"why": "nothing asks for it", "namespace_asks": false},
            },
        });
        let rows = of_pods("n1", &dump);
        assert_eq!(states(&rows), [("pod shop/old", State::Note), ("pod shop/db", State::Note)]);
        assert!(rows[0].detail.contains("replace it") && rows[1].detail.contains("its label says so"));
        let many = || {
            let notes = (0..30).map(|n| row(format!("pod {n}"), State::Note, ""));
            notes.chain([row("pod bad", State::Missing, "")]).collect()
        };
        let fitting = as_many_as_fit(many());
        assert_eq!((fitting.len(), &*fitting[0].name), (MOST_PODS + 1, "pod bad"));
        assert!(fitting[MOST_PODS].detail.starts_with("11: "));
    }
}
