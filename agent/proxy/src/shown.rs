//! What the other ends of tunnels have shown, judged again when it changes whom to trust.

use std::{cell::RefCell, future::pending, rc::Rc, sync::Arc};

use orlop_identity::{Identities, PeerChain, Trust};
use tokio::sync::watch;

use crate::{refusal::Refusal, tunnel::handshake_reason};

/// The chain that one tunnel's other end has shown.
pub(crate) struct Shown {
    chain: PeerChain,
    trust: watch::Receiver<Arc<Trust>>,
    /// By what the chain was judged last, so that a tunnel's streams ask for nothing twice, and why it fell, if so.
    judged: RefCell<(Arc<Trust>, Option<Refusal>)>,
}

impl Shown {
    /// What was shown in a handshake that began when `then` was in force.
    pub(crate) fn new(chain: PeerChain, then: Arc<Trust>, identities: &Identities) -> Rc<Self> {
        Rc::new(Self { chain, trust: identities.trust(), judged: RefCell::new((then, None)) })
    }

    /// Until the chain is no longer good.
    pub(crate) async fn fallen(&self) -> Refusal {
        let mut trust = self.trust.clone();
        loop {
            trust.mark_unchanged();
            if let Some(refusal) = self.has_fallen() {
                return refusal;
            }
            if trust.changed().await.is_err() {
                return pending().await;
            }
        }
    }

    /// Why it is no longer good, if so.
    pub(crate) fn has_fallen(&self) -> Option<Refusal> {
        let trust = Arc::clone(&self.trust.borrow());
        let mut judged = self.judged.borrow_mut();
        if !Arc::ptr_eq(&judged.0, &trust) {
            let refusal = |failure| Refusal::new(handshake_reason(failure), "since the tunnel was opened");
            *judged = (Arc::clone(&trust), trust.judge(&self.chain).err().map(refusal));
        }
        judged.1.clone()
    }
}
