//! Whether a pod may be reached: asked when a connection arrives, and again whenever the world changes.

use std::{
    cell::RefCell,
    collections::HashMap,
    future::{Future, pending},
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use orlop_model::{Caller, Connection, Identity, Judgement, NamespacedName, Reason, Snapshot};
use tokio::sync::watch;

use crate::{refusal::Refusal, shared::Shared, shown::Shown, worker::Worker};

/// What decides on a connection to a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Arrival {
    /// As the tunnel's certificate has shown; `None` for plaintext.
    pub(crate) identity: Option<Identity>,
    pub(crate) client: IpAddr,
    /// The pod.
    pub(crate) pod: NamespacedName,
    /// Its address and port that is reached.
    pub(crate) address: SocketAddr,
    /// Whom the tunnel's other end says it speaks for, and from where that one came.
    pub(crate) caller: Option<(Identity, IpAddr)>,
}

/// Decides on an arrival.
pub(crate) fn admit(snapshot: &Snapshot, arrival: &Arrival) -> Result<Judgement, Refusal> {
    let destination = snapshot.workload(&arrival.pod).ok_or(Reason::NotEnrolled)?;
    let connection = Connection {
        source_identity: arrival.identity.as_ref(),
        source: arrival.client,
        destination,
        address: arrival.address,
    };
    let caller = arrival.caller.as_ref();
    let caller = caller.map(|(identity, address)| Caller { identity, address: *address });
    snapshot.admit_for(&connection, caller).map_err(Refusal::from)
}

/// Runs `carry` for as long as the arrival is admitted and its tunnel, if it has one, is good.
pub(crate) async fn while_admitted(
    worker: &Worker,
    arrival: &Arrival,
    tunnel: Option<&Shown>,
    carry: impl Future<Output = Result<(), Reason>>,
) -> Result<(), Refusal> {
    let shared = &worker.shared;
    let place = worker.docket.enter(arrival);
    // For a change between the arrival and now.
    admit(&shared.snapshot.load(), arrival)?;
    let fallen = async {
        match tunnel {
            Some(shown) => shown.fallen().await,
            None => pending().await,
        }
    };
    tokio::select! {
        biased;
        refusal = place.refused() => Err(refusal),
        refusal = fallen => Err(refusal),
        // The tunnel may have been told first, and have ended under the connection.
        result = carry => result.map_err(|reason| {
            let fallen = tunnel.and_then(Shown::has_fallen);
            fallen.or_else(|| admit(&shared.snapshot.load(), arrival).err()).unwrap_or_else(|| reason.into())
        }),
    }
}

/// Runs `carry`, through a tunnel, for as long as what the tunnel's other end has shown is good.
pub(crate) async fn while_trusted(
    tunnel: &Shown,
    carry: impl Future<Output = Result<(), Reason>>,
) -> Result<(), Refusal> {
    tokio::select! {
        biased;
        refusal = tunnel.fallen() => Err(refusal),
        // As above.
        result = carry => result.map_err(|reason| tunnel.has_fallen().unwrap_or_else(|| reason.into())),
    }
}

/// What decides on the open connections of one worker: each is judged once, however many connections it has.
#[derive(Default)]
pub(crate) struct Docket(RefCell<HashMap<Arrival, Case>>);

/// Tells the connections of an arrival that it is no longer admitted.
type Case = Rc<watch::Sender<Option<Refusal>>>;

impl Docket {
    /// Has the arrival judged again whenever the world changes, as long as the place is kept.
    fn enter<'a>(&'a self, arrival: &'a Arrival) -> Place<'a> {
        let mut cases = self.0.borrow_mut();
        let case = match cases.get(arrival) {
            Some(case) => Rc::clone(case),
            None => {
                Rc::clone(cases.entry(arrival.clone()).or_insert_with(|| Rc::new(watch::Sender::new(None))))
            }
        };
        Place { docket: self, arrival, case }
    }

    /// Judges every case by what is in force now.
    pub(crate) fn judge(&self, shared: &Shared) {
        let snapshot = shared.snapshot.load();
        self.0.borrow_mut().retain(|arrival, case| {
            let Err(refusal) = admit(&snapshot, arrival) else { return true };
            case.send_replace(Some(refusal));
            // Who comes from now on has a case of their own.
            false
        });
    }
}

/// One connection's place in a case.
struct Place<'a> {
    docket: &'a Docket,
    arrival: &'a Arrival,
    case: Case,
}

impl Place<'_> {
    /// Until the arrival is no longer admitted.
    async fn refused(&self) -> Refusal {
        let mut case = self.case.subscribe();
        match case.wait_for(Option::is_some).await.ok().and_then(|refusal| refusal.clone()) {
            Some(refusal) => refusal,
            None => pending().await,
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut cases = self.docket.0.borrow_mut();
        let is_own = cases.get(self.arrival).is_some_and(|case| Rc::ptr_eq(case, &self.case));
        // The docket's and this one.
        if is_own && Rc::strong_count(&self.case) == 2 {
            cases.remove(self.arrival);
        }
    }
}
