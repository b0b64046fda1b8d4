use std::net::IpAddr;
use std::sync::Arc;

use crate::authorize::{Allowed, Connection, Denied, DryRun};
use crate::identity::Identity;
use crate::name::NamespacedName;
use crate::reason::Reason;
use crate::snapshot::Snapshot;
use crate::world::security::Mode;

/// What policies had to say of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// The policy that decided: an AuthorizationPolicy, or the PeerAuthentication where the reason is
    /// [`Reason::PlaintextRefused`]. `None` where none applies, and where ALLOW policies apply and none matches.
    pub policy: Option<Arc<NamespacedName>>,
    /// Whether an AUDIT policy matches.
    pub audit: bool,
    /// What policies in dry run would have said.
    pub dry_run: Vec<DryRun>,
}

impl Judgement {
    /// Adds what other policies had to say of the same: the policy that decided stays.
    pub fn add(&mut self, other: Self) {
        self.policy = self.policy.take().or(other.policy);
        self.audit |= other.audit;
        self.dry_run.extend(other.dry_run);
        self.dry_run.sort();
        self.dry_run.dedup();
    }

    /// What came of asking policies; `explain` says why where that was a refusal.
    pub(crate) fn of(
        answer: Result<Allowed, Denied>,
        explain: impl FnOnce(&Denied) -> String,
    ) -> Result<Self, Refused> {
        match answer {
            Ok(Allowed { policy, audit, dry_run }) => Ok(Self { policy, audit, dry_run }),
            Err(denied) => {
                let (reason, detail) = (denied.reason(), explain(&denied));
                let Denied { policy, audit, dry_run, .. } = denied;
                Err(Refused { reason, detail, judgement: Self { policy, audit, dry_run } })
            }
        }
    }
}

/// Whom a waypoint says it speaks for.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Whose certificate the waypoint has verified.
    pub identity: &'a Identity,
    /// Where its connection to the waypoint came from.
    pub address: IpAddr,
}

/// A pod doesn't take a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// For logs and metrics.
    pub reason: Reason,
    /// In one line: the policy or its absence, the nearest rule, and what about the connection did not match.
    pub detail: String,
    /// Who decided.
    pub judgement: Judgement,
}

impl Snapshot {
    /// Decides whether a pod takes a connection: first by the PeerAuthentications, for what comes without mutual
    /// TLS, then by its waypoints, then by the AuthorizationPolicies.
    pub fn admit(&self, connection: &Connection<'_>) -> Result<Judgement, Refused> {
        let (destination, port) = (connection.destination, connection.address.port());
        if connection.source_identity.is_none() && self.mutual_tls(destination, port) == Mode::Strict {
            let policy = self.peer_authentication(destination, port);
            return Err(Refused {
                reason: Reason::PlaintextRefused,
                detail: self.explain_strict(destination, port),
                judgement: Judgement { policy, ..Judgement::default() },
            });
        }
        self.admit_past_waypoints(destination, connection.source_identity)?;
        self.judge(connection)
    }

    /// Like [`Self::admit`], for a connection that its source makes on behalf of `caller`, whom the
    /// AuthorizationPolicies are asked about. If none of those that allow some matches the caller, one will do that names
    /// the waypoint itself, by its account: what else is true of the waypoint says nothing of whom it speaks for.
    ///
    /// Only the destination's own waypoints are believed; whatever others say of a caller is ignored.
    pub fn admit_for(
        &self,
        connection: &Connection<'_>,
        caller: Option<Caller<'_>>,
    ) -> Result<Judgement, Refused> {
        let own = self.admit(connection);
        let vouched = |identity| self.is_waypoint_of(connection.destination, identity);
        let Some(caller) = caller.filter(|_| connection.source_identity.is_some_and(vouched)) else {
            return own;
        };
        // Before policies, whoever dials must be let in.
        if let Err(refused) = &own
            && refused.reason != Reason::PolicyDenied
        {
            return own;
        }
        let of_caller = Connection {
            source_identity: Some(caller.identity),
            source: caller.address.to_canonical(),
            ..*connection
        };
        match self.judge(&of_caller) {
            Err(refused) if refused.judgement.policy.is_none() => {
                let policies = self.policies_of(&connection.destination.name);
                let is_named = policies.is_some_and(|policies| policies.name(&connection.facts()));
                own.ok().filter(|_| is_named).ok_or(refused)
            }
            judged => judged,
        }
    }

    pub(crate) fn judge(&self, connection: &Connection<'_>) -> Result<Judgement, Refused> {
        Judgement::of(self.authorize(connection), |denied| denied.explain(connection))
    }
}
