//! Labels of metrics as Telemetries have them.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use orlop_model::{
    Service,
    http::Told,
    world::{Metric, TagOverride},
};

use crate::metrics::Labels;

/// Label sets with tags of a namespace's own. Past it they are told apart no more: one namespace must not take what room
/// there is for all.
const MAX_TAGGED: usize = 1000;
const UNKNOWN: &str = "unknown";

/// Label sets with tags that Telemetries ask for, by the namespace of the service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tagged(Arc<Mutex<HashMap<String, HashSet<Labels>>>>);

impl Tagged {
    fn admit(&self, namespace: &str, labels: &Labels) -> bool {
        let mut tagged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_namespace = tagged.entry(namespace.to_owned()).or_default();
        of_namespace.contains(labels)
            || (of_namespace.len() < MAX_TAGGED && of_namespace.insert(labels.clone()))
    }
}

/// Makes the labels of metrics, in the order in which the values of their tags are.
pub(crate) struct Retold<'a> {
    told: &'a Told,
    values: std::slice::Iter<'a, String>,
    namespace: &'a str,
    /// Whether some were one too many.
    pub(crate) folded: bool,
}

impl<'a> Retold<'a> {
    pub(crate) fn new(told: &'a Told, values: &'a [String], service: Option<&'a Service>) -> Self {
        let namespace = service.map_or("", |service| &*service.name.namespace);
        Self { told, values: values.iter(), namespace, folded: false }
    }

    /// What a metric with these labels has instead; `None` where there is to be no such metric.
    pub(crate) fn labels(&mut self, metric: Metric, labels: &Labels, tagged: &Tagged) -> Option<Labels> {
        let mut labels = labels.clone();
        let Some(told) = self.told.metric(metric) else { return Some(labels) };
        let mut is_tagged = false;
        for (name, tag) in &told.tags {
            let at = labels.iter().position(|(other, _)| other == name);
            match (tag, at) {
                (TagOverride::Set(_), at) => {
                    is_tagged = true;
                    let value = self.values.next().cloned().unwrap_or_default();
                    // In its place: the same labels in another order would be another series.
                    match at {
                        Some(at) => labels[at].1 = value,
                        None => labels.push((name.clone().into(), value)),
                    }
                }
                (TagOverride::Remove, Some(at)) => drop(labels.remove(at)),
                (TagOverride::Remove, None) => {}
            }
        }
        if is_tagged && !told.disabled && !tagged.admit(self.namespace, &labels) {
            self.folded = true;
            let names: Vec<_> = told.tags.iter().map(|(name, _)| name).collect();
            let own = labels.iter_mut().filter(|(name, _)| names.iter().any(|own| **own == *name));
            own.for_each(|(_, value)| UNKNOWN.clone_into(value));
        }
        (!told.disabled).then_some(labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_namespaces_tags_leave_room_for_the_others() {
        let tagged = Tagged::default();
        let labels = |number: usize| vec![("path".into(), number.to_string())];
        assert!((0..MAX_TAGGED).all(|number| tagged.admit("shop", &labels(number))));
        assert!(!tagged.admit("shop", &labels(MAX_TAGGED)) && tagged.admit("shop", &labels(0)));
        assert!(tagged.admit("far", &labels(MAX_TAGGED)));
    }
}
