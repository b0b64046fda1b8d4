use orlop_model::{Judgement, Reason, Refused};

/// Why a connection is refused or was cut short: the reason for metrics, and what else is known for the log.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) detail: String,
    /// Where policies refuse it.
    pub(crate) judgement: Option<Judgement>,
    /// Whether it is the peer's policy that refuses: that says nothing of how well the peer is.
    pub(crate) by_peers_policy: bool,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, detail: impl ToString) -> Self {
        Self { reason, detail: detail.to_string(), judgement: None, by_peers_policy: false }
    }

    /// A fault of our own or of the machine, not of a peer.
    pub(crate) fn internal(error: impl ToString) -> Self {
        Self::new(Reason::Internal, error)
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, detail: String::new(), judgement: None, by_peers_policy: false }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let (reason, detail, judgement) = (refused.reason, refused.detail, Some(refused.judgement));
        Self { reason, detail, judgement, by_peers_policy: false }
    }
}
