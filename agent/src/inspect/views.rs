//! From `/config_dump` to what is shown of it: pure.

use serde_json::{Map, Value, json};

use super::{View, table::Table};

/// What a program reads.
pub fn data(view: View, dump: &Value) -> Value {
    match view {
        View::Status => {
            let mut status: Map<String, Value> = Map::new();
            for key in [
                "node",
                "version",
                "applied_generation",
                "from_disk_as_of",
                "draining",
                "enrolled",
                "not_enrolled",
                "outside",
            ] {
                status.insert(key.to_owned(), dump[key].clone());
            }
            status.insert("trust".to_owned(), dump["trust"].clone());
            status.insert("certificates".to_owned(), dump["certificates"].clone());
            status.insert("findings".to_owned(), dump["snapshot"]["findings"].clone());
            Value::Object(status)
        }
        View::Workloads => dump["snapshot"]["workloads"].clone(),
        View::Services => {
            let of = |key: &str| dump["snapshot"][key].as_array().cloned().unwrap_or_default();
            Value::Array([of("services"), of("service_entries")].concat())
        }
        View::Policies => json!({
            "policies": dump["snapshot"]["listed_policies"],
            "findings": dump["snapshot"]["findings"],
        }),
        View::Certificates => dump["certificates"].clone(),
    }
}

/// What a program reads of several nodes: the same, and of each thing which node's it is.
pub fn data_of_nodes(view: View, dumps: &[(String, Value)]) -> Value {
    let mut all = Vec::new();
    for (node, dump) in dumps {
        let of_node = match data(view, dump) {
            Value::Array(list) => list,
            one => vec![one],
        };
        for mut one in of_node {
            if let Value::Object(fields) = &mut one {
                fields.insert("node".to_owned(), Value::String(node.clone()));
            }
            all.push(one);
        }
    }
    Value::Array(all)
}

/// What a person reads.
pub fn table(view: View, dump: &Value) -> Table {
    match view {
        View::Status => status(dump),
        View::Workloads => workloads(dump),
        View::Services => services(dump),
        View::Policies => policies(dump),
        View::Certificates => certificates(dump),
    }
}

/// Of a pod that has no volume of the boot gate.
const NOT_GATED: &str = "not gated after a reboot: in clear then until it is enrolled; replace the pod, or hold it from the node's start on \
     (--boot-gate-unit, in the chart node.bootGate.systemd)";

/// The node's pods, and how each stands.
fn status(dump: &Value) -> Table {
    let mut table = Table::new(
        &["POD", "STATE", "CERTIFICATE", "EXPIRES", "+IDENTITY", "+AGENT", "DETAIL"],
        "no pod of this node is in the mesh: `-o wide` says of each why not",
    );
    let certificate = |identity: &Value| {
        list(&dump["certificates"]).find(|one| one["identity"] == *identity).unwrap_or(&Value::Null)
    };
    let identity_of = |pod: &str| {
        let mut workloads = list(&dump["snapshot"]["workloads"]);
        workloads.find(|one| one["name"] == *pod).map_or(&Value::Null, |one| &one["identity"])
    };
    for (state, key) in [("enrolled", "enrolled"), ("refused", "not_enrolled")] {
        for (pod, detail) in dump[key].as_object().into_iter().flatten() {
            let identity = identity_of(pod);
            let held = certificate(identity);
            let not_gated = if detail["gated"] == false { NOT_GATED } else { "" };
            let details = [text(detail), text(&held["last_error"]), not_gated.to_owned()];
            let detail = details.into_iter().find(|text| !text.is_empty());
            table.row([
                pod.clone(),
                state.to_owned(),
                text(&held["state"]),
                text(&held["not_after"]),
                text(identity),
                text(&dump["version"]),
                detail.unwrap_or_default(),
            ]);
        }
    }
    for (pod, of) in dump["outside"].as_object().into_iter().flatten() {
        let [none, version] = [String::new(), text(&dump["version"])];
        let cells =
            [pod.clone(), "outside".to_owned(), none.clone(), none.clone(), none, version, text(&of["why"])];
        table.wide_row(cells);
    }
    table
}

fn workloads(dump: &Value) -> Table {
    let headings = ["WORKLOAD", "NODE", "ADDRESSES", "MESH", "SERVICE", "+IDENTITY", "+OWNER", "+REVISION"];
    let mut table = Table::new(&headings, "there are no workloads");
    for workload in list(&dump["snapshot"]["workloads"]) {
        let mesh = if workload["enrolled"] == true { "HBONE" } else { "no" };
        table.row([
            text(&workload["name"]),
            text(&workload["node"]),
            words(&workload["addresses"]),
            mesh.to_owned(),
            text(&workload["canonical_service"]),
            text(&workload["identity"]),
            text(&workload["owner"]),
            text(&workload["canonical_revision"]),
        ]);
    }
    table
}

fn services(dump: &Value) -> Table {
    let headings = ["SERVICE", "KIND", "ADDRESSES", "PORTS", "WAYPOINT", "+HOST"];
    let mut table = Table::new(&headings, "there are no services");
    for service in list(&dump["snapshot"]["services"]).chain(list(&dump["snapshot"]["service_entries"])) {
        let ports: Vec<String> = list(&service["ports"])
            .map(|port| {
                let endpoints = list(&port["endpoints"]).count();
                format!("{} ({endpoints})", text(&port["number"]))
            })
            .collect();
        table.row([
            text(&service["name"]),
            text(&service["kind"]),
            words(&service["vips"]),
            ports.join(", "),
            text(&service["waypoint"]),
            text(&service["hostname"]),
        ]);
    }
    table
}

fn policies(dump: &Value) -> Table {
    let headings = ["POLICY", "KIND", "ACTION", "APPLIES TO", "FINDINGS"];
    let mut table = Table::new(&headings, "there are no policies");
    for policy in list(&dump["snapshot"]["listed_policies"]) {
        let same = |found: &&Value| found["kind"] == policy["kind"] && found["name"] == policy["name"];
        let found: Vec<String> = list(&dump["snapshot"]["findings"])
            .filter(same)
            .map(|found| format!("{}: {}", text(&found["severity"]), text(&found["message"])))
            .collect();
        table.row([
            text(&policy["name"]),
            text(&policy["kind"]),
            text(&policy["action"]),
            text(&policy["applies_to"]),
            found.join("; "),
        ]);
    }
    table
}

fn certificates(dump: &Value) -> Table {
    let headings = ["IDENTITY", "STATE", "EXPIRES", "RENEWAL", "+SERIAL", "+FROM", "ERROR"];
    let mut table = Table::new(&headings, "there are no certificates: no pod of this node is in the mesh");
    for certificate in list(&dump["certificates"]) {
        let keys = ["identity", "state", "not_after", "next_attempt", "serial", "not_before", "last_error"];
        table.row(keys.map(|key| text(&certificate[key])));
    }
    table
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn words(value: &Value) -> String {
    list(value).map(text).collect::<Vec<_>>().join(",")
}

/// A scalar without quotes; nothing for anything else.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(yes) => yes.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump() -> Value {
        json!({
            "node": "n1",
            "enrolled": {"shop/cart": {"netns_cookie": 7, "gated": false}},
            "version": "1.2.3",
            "not_enrolled": {"shop/pay": "cannot open its netns"},
            "outside": {"street/x": {"why": "nothing asks for it", "namespace_asks": false}},
            "certificates": [{
                "identity": "spiffe://cluster.local/ns/shop/sa/cart",
                "state": "valid",
                "not_after": "2026-01-02T00:00:00Z",
                "last_error": null,
            }],
            "snapshot": {
                "workloads": [{
                    "name": "shop/cart",
                    "identity": "spiffe://cluster.local/ns/shop/sa/cart",
                    "enrolled": true,
                    "addresses": ["10.0.0.1", "fd00::1"],
                }],
                "listed_policies": [{"kind": "AuthorizationPolicy", "name": "shop/lock", "action": "DENY"}],
                "findings": [
                    {"kind": "AuthorizationPolicy", "name": "shop/lock", "severity": "warning", "message": "no pod"},
                    {"kind": "PeerAuthentication", "name": "shop/lock", "severity": "info", "message": "other"},
                ],
            },
        })
    }

    #[test]
    fn a_pod_is_shown_with_its_certificate_or_why_it_is_not_enrolled() {
        let shown = table(View::Status, &dump()).render(false);
        let lines: Vec<Vec<&str>> = shown
            .lines()
            .map(|line| line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(lines[1], ["shop/cart", "enrolled", "valid", "2026-01-02T00:00:00Z", NOT_GATED]);
        assert_eq!(lines[2], ["shop/pay", "refused", "-", "-", "cannot open its netns"]);
        assert_eq!(lines.len(), 3, "who is not in the mesh is for wide output");
        let wide = table(View::Status, &dump()).render(true);
        let last: Vec<&str> = wide.lines().last().unwrap().split("   ").map(str::trim).collect();
        let last: Vec<_> = last.into_iter().filter(|cell| !cell.is_empty()).collect();
        assert_eq!(last, ["street/x", "outside", "-", "-", "-", "1.2.3", "nothing asks for it"]);
    }

    #[test]
    fn of_several_nodes_a_program_reads_whose_each_is() {
        let dumps = [("n1".to_owned(), dump()), ("n2".to_owned(), dump())];
        let certificates = data_of_nodes(View::Certificates, &dumps);
        let nodes: Vec<_> = list(&certificates).map(|one| text(&one["node"])).collect();
        assert_eq!(nodes, ["n1", "n2"]);
        let status = data_of_nodes(View::Status, &dumps);
        assert_eq!((&status[1]["node"], status.as_array().unwrap().len()), (&json!("n2"), 2));
    }

    #[test]
    fn a_policy_is_shown_with_its_own_findings_alone() {
        let shown = table(View::Policies, &dump()).render(false);
        assert!(shown.contains("warning: no pod") && !shown.contains("other"), "{shown}");
    }

    #[test]
    fn a_dump_of_another_version_is_no_reason_to_fail() {
        for view in [View::Status, View::Workloads, View::Services, View::Policies, View::Certificates] {
            for dump in [Value::Null, json!([]), json!({"snapshot": 1, "enrolled": []})] {
                table(view, &dump).render(true);
                data(view, &dump);
            }
        }
    }
}
