//! What Telemetries have a waypoint tell of requests and connections.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::authentication::service_key;
use super::authorize::ServiceKey;
use super::own::Own;
use crate::behind::Behind;
use crate::world::routing::Percent;
use crate::world::security::Target;
use crate::world::{AccessLogging, Metric, SpanTag, TagOverride, Telemetry, World};

/// What is told of the requests for a service, where that is otherwise than of all others.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// What metrics are otherwise.
    metrics: HashMap<Metric, ToldMetric>,
    /// Of the requests that begin a trace, so many are traced.
    pub sampling: Option<Percent>,
    /// Whether there are no spans.
    pub untraced: bool,
    /// What spans are tagged with, by name.
    pub span_tags: Vec<(String, SpanTag)>,
    /// What is written to the access log.
    pub logging: AccessLogging,
    /// The headers of a request that are asked for, in lower case.
    pub headers: Vec<String>,
}

/// What is otherwise about a metric.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToldMetric {
    /// Whether there is none.
    pub disabled: bool,
    /// In the order of the tags' names, each once.
    pub tags: Vec<(String, TagOverride)>,
}

/// Whether a label says who talked to whom, and what came of it, and is set by the mesh alone: whoever could set it elsewhere
/// would write another namespace's metrics.
pub(crate) fn is_of_mesh(label: &str) -> bool {
    const OTHERS: [&str; 6] = [
        "reporter",
        "request_protocol",
        "response_code",
        "response_flags",
        "grpc_response_status",
        "connection_security_policy",
    ];
    label.starts_with("source_") || label.starts_with("destination_") || OTHERS.contains(&label)
}

impl Told {
    /// What is otherwise about the metric, if anything is.
    pub fn metric(&self, metric: Metric) -> Option<&ToldMetric> {
        self.metrics.get(&metric)
    }

    /// What this one says counts before what is said so far. What the mesh says itself the root namespace alone can have
    /// said otherwise; all may leave it out.
    fn add(&mut self, of: &Telemetry, root: &str) {
        let may = |name: &str, tag: &TagOverride| {
            *tag == TagOverride::Remove || of.name.namespace == root || !is_of_mesh(name)
        };
        for entry in &of.metrics {
            let metrics = entry.metric.map_or(Metric::ALL.to_vec(), |metric| vec![metric]);
            for metric in metrics {
                let told = self.metrics.entry(metric).or_default();
                told.disabled = entry.disabled.unwrap_or(told.disabled);
                for (name, tag) in entry.tags.iter().filter(|(name, tag)| may(name, tag)) {
                    match told.tags.binary_search_by(|(other, _)| other.cmp(name)) {
                        Ok(at) => told.tags[at].1 = tag.clone(),
                        Err(at) => told.tags.insert(at, (name.clone(), tag.clone())),
                    }
                }
            }
        }
        self.sampling = of.tracing.sampling.or(self.sampling);
        self.untraced = of.tracing.disabled.unwrap_or(self.untraced);
        if let Some(tags) = &of.tracing.tags {
            self.span_tags.clone_from(tags);
        }
        if let Some(logging) = &of.logging {
            self.logging.clone_from(logging);
        }
    }

    fn with_headers(mut self) -> Self {
        let tags = self.metrics.values().flat_map(|told| &told.tags);
        let expressions = tags.filter_map(|(_, tag)| match tag {
            TagOverride::Set(expression) => Some(expression),
            TagOverride::Remove => None,
        });
        let mut headers: BTreeSet<String> = BTreeSet::new();
        for expression in expressions.chain(&self.logging.filter) {
            headers.extend(expression.headers().into_iter().map(str::to_owned));
        }
        headers.extend(self.span_tags.iter().filter_map(|(_, tag)| match tag {
            SpanTag::Header { name, .. } => Some(name.clone()),
            SpanTag::Literal(_) => None,
        }));
        self.headers = headers.into_iter().collect();
        self
    }
}

/// What is told of each service.
#[derive(Clone, Debug, Default)]
pub(super) struct Telling {
    common: Option<Arc<Told>>,
    services: HashMap<ServiceKey, Arc<Told>>,
}

impl Telling {
    /// From the mesh to the proxy's class, its namespace, itself, and the services: what is said later counts, field by
    /// field. Of several Telemetries for the same the oldest counts.
    pub fn new(world: &World, own: &Own<'_>) -> Self {
        if world.telemetries.is_empty() {
            return Self::default();
        }
        let mut all: Vec<&Telemetry> = world.telemetries.values().map(|of| &**of).collect();
        all.sort_by_key(|of| (of.created, &of.name));
        let (namespace, root) = (&*own.name.namespace, own.root_namespace);
        let of_namespace = |namespace: &str| {
            let mut of_it = all.iter().filter(|of| of.name.namespace == namespace);
            of_it.find(|of| of.selector.is_empty() && of.targets.is_empty())
        };
        let of_target = |is_it: fn(&Target) -> bool| {
            let is_own = |of: &Telemetry, target: &Target| is_it(target) && own.is_target(&of.name, target);
            all.iter().find(|of| of.targets.iter().any(|target| is_own(of, target)))
        };
        let levels = [
            of_namespace(root),
            of_target(|target| matches!(target, Target::GatewayClass(_))),
            of_namespace(namespace).filter(|_| namespace != root),
            of_target(|target| matches!(target, Target::Gateway(_))),
        ];
        let mut common = Told::default();
        levels.iter().flatten().for_each(|of| common.add(of, root));
        let mut services: HashMap<ServiceKey, Arc<Told>> = HashMap::new();
        for of in &all {
            for key in of.targets.iter().filter_map(|target| service_key(&of.name, target)) {
                services.entry(key).or_insert_with(|| {
                    let mut told = common.clone();
                    told.add(of, root);
                    Arc::new(told.with_headers())
                });
            }
        }
        let is_any = levels.iter().any(Option::is_some);
        Self { common: is_any.then(|| Arc::new(common.with_headers())), services }
    }

    pub fn of(&self, target: &Behind) -> Option<&Arc<Told>> {
        let own = match target {
            Behind::Service { service, .. } if !self.services.is_empty() => {
                self.services.get(&(service.kind, service.name.clone()))
            }
            Behind::Service { .. } | Behind::Workload { .. } | Behind::Gateway { .. } => None,
        };
        own.or(self.common.as_ref())
    }
}
