use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;

use crate::identity::Identity;
use crate::name::NamespacedName;
use crate::policy::{CompiledPolicy, Facts, Hit, Policies};
use crate::reason::Reason;
use crate::snapshot::{Snapshot, Workload};
use crate::world::security::Action;

/// What policies are asked about.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// Who dials, as its certificate or the kernel has shown; `None` without mutual TLS.
    pub source_identity: Option<&'a Identity>,
    /// From where.
    pub source: IpAddr,
    /// The pod that is reached.
    pub destination: &'a Workload,
    /// The address and port of it that is reached.
    pub address: SocketAddr,
}

/// No policy objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// The ALLOW policy that matches; `None` where none applies to the destination.
    pub policy: Option<Arc<NamespacedName>>,
    /// Whether an AUDIT policy matches.
    pub audit: bool,
    /// What policies in dry run would have said.
    pub dry_run: Vec<DryRun>,
}

/// A policy objects, or none of those needed to allow it matches.
#[derive(Clone, Debug)]
pub struct Denied {
    /// The DENY or CUSTOM policy that matches; `None` where ALLOW policies apply and none of them matches.
    pub policy: Option<Arc<NamespacedName>>,
    /// Whether an AUDIT policy matches.
    pub audit: bool,
    /// What policies in dry run would have said.
    pub dry_run: Vec<DryRun>,
    pub(crate) cause: Cause,
}

/// Why it is denied, with what an explanation needs.
#[derive(Clone, Debug)]
pub(crate) enum Cause {
    /// A DENY or CUSTOM policy matches.
    Matched(Hit),
    /// No ALLOW policy matches.
    NoneAllows(Policies),
    /// The snapshot doesn't know the pod, and so not which policies apply.
    UnknownDestination,
}

impl Denied {
    /// For logs and metrics.
    pub fn reason(&self) -> Reason {
        Reason::PolicyDenied
    }
}

/// What a policy with the annotation `istio.io/dry-run: "true"` would have said.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct DryRun {
    /// The policy.
    pub policy: Arc<NamespacedName>,
    /// What it would have said.
    pub outcome: Outcome,
}

/// What a policy has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Its rules match and it denies; or it is the first of the ALLOW policies in dry run, and no ALLOW policy at
    /// all matches.
    Deny,
    /// It allows.
    Allow,
    /// It marks for audit.
    Audit,
}

impl Outcome {
    /// The name in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Deny => "deny",
            Outcome::Allow => "allow",
            Outcome::Audit => "audit",
        }
    }
}

impl Snapshot {
    /// Judges a connection by the AuthorizationPolicies that apply to its destination: one that a CUSTOM or DENY
    /// policy matches is denied; else, where ALLOW policies apply, one of them must match.
    ///
    /// A pod the snapshot doesn't know is denied everything. For the enrolled pods of this node that allocates for
    /// policies in dry run alone.
    pub fn authorize(&self, connection: &Connection<'_>) -> Result<Allowed, Denied> {
        let Some(policies) = self.policies_of(&connection.destination.name) else {
            let cause = Cause::UnknownDestination;
            return Err(Denied { policy: None, audit: false, dry_run: Vec::new(), cause });
        };
        policies.judge(&connection.facts())
    }

    /// `None` of a pod that the snapshot doesn't know.
    pub(crate) fn policies_of(&self, pod: &NamespacedName) -> Option<Cow<'_, Policies>> {
        match self.local.policies.get(pod) {
            Some(policies) => Some(Cow::Borrowed(policies)),
            // Another node guards it.
            None => self.live_pod(pod).map(|pod| Cow::Owned(self.policies.of(pod))),
        }
    }
}

impl<'a> Connection<'a> {
    pub(crate) fn facts(&self) -> Facts<'a> {
        Facts::new(self.source_identity, self.source, self.address)
    }
}

impl CompiledPolicy {
    pub(crate) fn outcome(&self) -> Outcome {
        match self.action {
            Action::Allow => Outcome::Allow,
            Action::Deny | Action::Custom => Outcome::Deny,
            Action::Audit => Outcome::Audit,
        }
    }
}
