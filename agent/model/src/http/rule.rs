use std::sync::Arc;
use std::time::Duration;

use crate::name::NamespacedName;
use crate::reason::Reason;
use crate::service::Service;
use crate::world::routing::{
    Cors, DirectResponse, Fault, HeaderChanges, Percent, Redirect, Retries, Rewrite,
};

/// What becomes of a request that follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its own name; empty where it has none.
    pub name: String,
    /// The kind of the resource that it is from, such as `VirtualService`.
    pub kind: &'static str,
    /// The resource itself.
    pub resource: Arc<NamespacedName>,
    /// The VirtualService that has delegated to it, whose rule counts where its own says nothing.
    pub root: Option<Arc<NamespacedName>>,
    /// What is done.
    pub action: Action,
    /// Done to the request before it is sent.
    pub rewrite: Option<Rewrite>,
    /// From the request's end to the answer's.
    pub timeout: Option<Duration>,
    /// What is tried again; `attempts` is 0 where nothing is.
    pub retries: Retries,
    /// Delays and errors that are wanted.
    pub fault: Fault,
    /// Where copies go.
    pub mirrors: Vec<MirrorTo>,
    /// Who else's scripts may ask.
    pub cors: Option<Cors>,
    /// What is done to headers.
    pub headers: HeaderChanges,
}

/// What is done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes to one of several destinations.
    Route(Split),
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// It is answered.
    Direct(DirectResponse),
    /// It is refused with [`Reason::InvalidRoute`]: what is wrong with the rule.
    Invalid(String),
}

/// Destinations by weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Those that get any, with the sum of the weights so far.
    choices: Vec<(u64, Choice)>,
}

/// One of the destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Where it is.
    pub cluster: Cluster,
    /// What is done to headers, after what the rule does.
    pub headers: HeaderChanges,
    /// What is done otherwise than the rule says; `None` is nothing.
    pub own: Option<Box<Own>>,
}

/// What is done with the requests of one destination, instead of what the rule says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// The client is sent elsewhere.
    pub redirect: Option<Redirect>,
    /// Done to the request before it is sent.
    pub rewrite: Option<Rewrite>,
    /// Where copies go.
    pub mirrors: Vec<MirrorTo>,
    /// Who else's scripts may ask.
    pub cors: Option<Cors>,
}

/// A service, or a subset of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The host as it is called in full.
    pub host: String,
    /// The service; else why requests for it are refused.
    pub service: Result<Arc<Service>, Reason>,
    /// The port that the rule names.
    pub port: Option<u16>,
    /// The subset's name.
    pub subset: Option<String>,
    /// Whether nothing goes there but by TLS with the server, which speaks nothing else.
    pub needs_tls: bool,
}

/// Where copies of requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorTo {
    /// Where.
    pub cluster: Cluster,
    /// Of how many requests.
    pub percent: Percent,
}

impl Choice {
    /// What it says itself of who else's scripts may ask.
    pub fn cors(&self) -> Option<&Cors> {
        self.own.as_ref()?.cors.as_ref()
    }
}

impl Split {
    pub(crate) fn new(weighted: impl IntoIterator<Item = (u32, Choice)>) -> Self {
        let mut sum = 0;
        let choices = weighted.into_iter().filter(|(weight, _)| *weight > 0).map(|(weight, choice)| {
            sum += u64::from(weight);
            (sum, choice)
        });
        Self { choices: choices.collect() }
    }

    /// Those that get any.
    pub(crate) fn choices(&self) -> impl Iterator<Item = &Choice> {
        self.choices.iter().map(|(_, choice)| choice)
    }

    /// Whether destinations say for themselves who else's scripts may ask, so that one has to be chosen first.
    pub fn has_cors(&self) -> bool {
        self.choices().any(|choice| choice.cors().is_some())
    }

    /// The destination for a number that is spread evenly over all of them; `None` if there is none at all.
    pub fn pick(&self, random: u64) -> Option<&Choice> {
        let (total, _) = self.choices.last()?;
        let at = u64::try_from((u128::from(random) * u128::from(*total)) >> 64).ok()?;
        let index = self.choices.partition_point(|(sum, _)| *sum <= at);
        self.choices.get(index).map(|(_, choice)| choice)
    }
}
