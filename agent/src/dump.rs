//! `/config_dump`: what is in force, as JSON, without secrets.

use std::{collections::BTreeMap, time::SystemTime};

use orlop_identity::{CertificateInfo, Identities};
use orlop_model::{NamespacedName, Snapshot};
use serde_json::{Value, json};

use crate::enrolment::Status;

/// The dump. Keys are not in it, as [`CertificateInfo`] has none.
pub fn config(
    node: &str,
    snapshot: &Snapshot,
    status: &Status,
    identities: &Identities,
) -> serde_json::Result<String> {
    let by_name = |map: &BTreeMap<NamespacedName, Value>| -> Value {
        map.iter().map(|(name, value)| (name.to_string(), value.clone())).collect()
    };
    let enrolled = status.enrolled.iter().map(|(name, cookie)| {
        let gated = status.gated.as_ref().map(|gated| gated.contains(name));
        (name.clone(), json!({ "netns_cookie": cookie, "gated": gated }))
    });
    let failed = status.failed.iter().map(|(name, error)| (name.clone(), json!(error)));
    let waiting = status.waiting.iter().map(|name| (name.clone(), json!("nothing of it runs yet")));
    let outside = snapshot.outsiders().into_iter();
    let outside: BTreeMap<_, _> =
        outside.map(|of| (of.name, json!({ "why": of.why, "namespace_asks": of.namespace_asks }))).collect();
    let time = |time: SystemTime| humantime::format_rfc3339_seconds(time).to_string();
    let trust = identities.trust().borrow().clone();
    let dump = json!({
        "node": node,
        "version": env!("CARGO_PKG_VERSION"),
        "applied_generation": status.generation,
        "from_disk_as_of": status.as_of.map(time),
        "draining": status.draining,
        "enrolled": by_name(&enrolled.collect()),
        "not_enrolled": by_name(&failed.chain(waiting).collect()),
        "outside": by_name(&outside),
        "certificates": identities.dump().iter().map(certificate).collect::<Vec<_>>(),
        "trust": { "roots": trust.root_serials(), "revoked": trust.revoked() },
        "snapshot": snapshot,
    });
    serde_json::to_string_pretty(&dump).map(|text| text + "\n")
}

fn certificate(info: &CertificateInfo) -> Value {
    let time = |time: SystemTime| humantime::format_rfc3339_seconds(time).to_string();
    json!({
        "identity": info.identity,
        "state": info.state.as_str(),
        "serial": info.serial,
        "not_before": info.not_before.map(time),
        "not_after": info.not_after.map(time),
        "next_attempt": time(info.next_attempt),
        "last_error": info.last_error,
    })
}
