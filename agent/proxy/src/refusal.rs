use http::StatusCode;
use orlop_model::{Judgement, Reason, Refused};

/// Why a connection is refused or was cut short: the reason for metrics, and what else is known for the log.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) detail: String,
    /// Where policies refuse it.
    pub(crate) judgement: Option<Judgement>,
    /// Where the peer's proxy says no: its answer.
    pub(crate) answered: Option<StatusCode>,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, detail: impl ToString) -> Self {
        Self { detail: detail.to_string(), ..reason.into() }
    }

    /// A fault of our own or of the machine, not of a peer.
    pub(crate) fn internal(error: impl ToString) -> Self {
        Self::new(Reason::Internal, error)
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, detail: String::new(), judgement: None, answered: None }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self { detail: refused.detail, judgement: Some(refused.judgement), ..refused.reason.into() }
    }
}
