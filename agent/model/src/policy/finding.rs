use serde::Serialize;

use crate::name::NamespacedName;

/// Something a resource's author should know: it can't be decided here, has no effect, or looks like a mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The kind of the resource, such as `AuthorizationPolicy`.
    pub kind: &'static str,
    /// Its name.
    pub name: NamespacedName,
    /// How bad it is.
    pub severity: Severity,
    /// What the matter is, for programs.
    pub reason: FindingReason,
    /// What is the matter, and what to do.
    pub message: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Connections are judged otherwise than the resource says.
    Error,
    /// The resource or part of it does nothing.
    Warning,
    /// Good to know.
    Info,
}

/// What a finding is about, as one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum FindingReason {
    /// Keys that are written into it and are none.
    InvalidKeys,
    /// `targetRefs` name what there is not.
    NoSuchTarget,
    /// A host that is no service.
    NoSuchService,
    /// A port that the service has not.
    NoSuchPort,
    /// A subset that no DestinationRule defines.
    NoSuchSubset,
    /// A backend of a route that is of a kind which can be none.
    InvalidKind,
    /// A backend of another namespace, which no ReferenceGrant lets the route lead to.
    RefNotPermitted,
    /// A backend that speaks something else than the route is for.
    UnsupportedProtocol,
    /// A VirtualService to delegate to that is not there, or is none to delegate to.
    NoSuchDelegate,
    /// No workload has the labels.
    SelectsNothing,
    /// Fields that whoever enforces it does not look at.
    FieldsNotEnforced,
    /// Nobody can be asked whom CUSTOM wants asked.
    NoProvider,
    /// Only a waypoint could enforce it, and there is none that does.
    NoWaypoint,
    /// Only a gateway could enforce it.
    NoGateway,
    /// UDP, which passes untouched.
    UdpNotEnforced,
    /// Another one counts in its place.
    Overruled,
    /// It is not to be enforced, by its author's wish.
    DryRun,
    /// It matches nothing, or nothing that can be.
    NeverMatches,
    /// It also allows those without an identity.
    AllowsUnidentified,
    /// The rules of another one come first.
    Merged,
}

/// What of a resource a finding puts in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Concern {
    /// Whether it is one at all: a part of it can't be right, whatever else there is.
    Validity,
    /// Nothing: but does it say what its author means?
    Meaning,
    /// What it refers to: not all of that is there.
    References,
    /// Its enforcement: it is in force in part, not at all, or says more than it should.
    Enforcement,
}

impl FindingReason {
    /// What it puts in question.
    pub const fn concern(self) -> Concern {
        match self {
            Self::InvalidKeys => Concern::Validity,
            Self::NoSuchTarget
            | Self::NoSuchService
            | Self::NoSuchPort
            | Self::InvalidKind
            | Self::RefNotPermitted
            | Self::UnsupportedProtocol
            | Self::NoSuchSubset
            | Self::NoSuchDelegate
            | Self::SelectsNothing => Concern::References,
            Self::FieldsNotEnforced
            | Self::NoProvider
            | Self::NoWaypoint
            | Self::NoGateway
            | Self::UdpNotEnforced
            | Self::Overruled
            | Self::DryRun => Concern::Enforcement,
            Self::NeverMatches | Self::AllowsUnidentified | Self::Merged => Concern::Meaning,
        }
    }
}
