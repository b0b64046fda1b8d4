use std::collections::BTreeMap;
use std::sync::Arc;

use super::findings::Enforcing;
use super::{Finding, FindingReason, Severity};
use crate::compile::Settings;
use crate::http::is_of_mesh;
use crate::service::Service;
use crate::world::{TagOverride, Telemetry, World};

/// What the authors of Telemetries should know. For waypoints: nobody else reads them.
pub(crate) fn telemetry_findings<'a>(
    world: &'a World,
    settings: &'a Settings,
    services: impl IntoIterator<Item = &'a Arc<Service>>,
) -> Vec<Finding> {
    let mut found = Vec::new();
    if world.telemetries.is_empty() {
        return found;
    }
    let enforcing = Enforcing::new(world, settings, services);
    let mut tell = |of: &Telemetry, severity, reason, message: String| {
        found.push(Finding { kind: "Telemetry", name: of.name.clone(), severity, reason, message });
    };
    let mut all: Vec<&Telemetry> = world.telemetries.values().map(|of| &**of).collect();
    all.sort_by_key(|of| (of.created, &of.name));
    let mut first = BTreeMap::new();
    for of in all {
        for what in &of.unread {
            tell(of, Severity::Warning, FindingReason::FieldsNotEnforced, format!("{what} has no effect"));
        }
        let root = &settings.root_namespace;
        let tags = of.metrics.iter().flat_map(|entry| &entry.tags).filter(|_| of.name.namespace != *root);
        for (name, _) in tags.filter(|(name, tag)| is_of_mesh(name) && *tag != TagOverride::Remove) {
            let message = format!(
                "the label {name} is the mesh's own, which only a Telemetry of {root} can set: it can be removed here, \
                 and a value of it has no effect"
            );
            tell(of, Severity::Warning, FindingReason::FieldsNotEnforced, message);
        }
        if !of.selector.is_empty() {
            let message = "has a selector, and nodes don't read it, so that it has no effect: name waypoints or what is \
                           behind them in targetRefs";
            tell(of, Severity::Warning, FindingReason::NoWaypoint, message.to_owned());
            continue;
        }
        for target in &of.targets {
            if let Err((reason, why)) = enforcing.check(&of.name, target) {
                tell(
                    of,
                    Severity::Error,
                    reason,
                    format!("is for {target}, where nobody tells anything: {why}"),
                );
            }
        }
        let scopes = of.targets.iter().map(ToString::to_string);
        for scope in scopes.chain(of.targets.is_empty().then(String::new)) {
            let oldest = *first.entry((&of.name.namespace, scope)).or_insert(of);
            if !std::ptr::eq(oldest, of) {
                let message =
                    format!("is for the same as {}, which alone counts since that is older", oldest.name);
                tell(of, Severity::Warning, FindingReason::Merged, message);
            }
        }
    }
    found
}
