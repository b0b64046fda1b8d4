//! Whether a request and its answer move on at all: what stalls does not hold memory for ever.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use hyper::rt::Executor;
use tokio::{sync::Notify, task::spawn_local, task_local, time::sleep};

use super::{Local, passed::Passed, session::Session};

task_local! {
    /// Of the HTTP/2 stream that a task serves.
    static CURRENT: Rc<Activity>;
}

/// Of one stream, or of one HTTP/1 connection, which has one request at a time.
#[derive(Default)]
pub(super) struct Activity {
    stage: Cell<Stage>,
    moves: Cell<u64>,
    /// What has come of the request's body.
    sent: RefCell<Rc<Passed>>,
    stalled: Cell<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// There is no request.
    #[default]
    Idle,
    /// One waits for its answer.
    Asked,
    /// The answer is on its way.
    Answering,
}

impl Activity {
    /// That of the stream that this task serves.
    pub(super) fn current() -> Rc<Self> {
        CURRENT.try_with(Rc::clone).unwrap_or_default()
    }

    /// A request has come, and of its body this.
    pub(super) fn begin(&self, sent: Rc<Passed>) {
        self.sent.replace(sent);
        self.enter(Stage::Asked);
    }

    /// The answer has begun.
    pub(super) fn answers(&self) {
        self.enter(Stage::Answering);
    }

    /// Nobody waits for anything.
    pub(super) fn end(&self) {
        self.enter(Stage::Idle);
    }

    /// Something of the answer was passed on.
    pub(super) fn moved(&self) {
        self.moves.set(self.moves.get().wrapping_add(1));
    }

    /// Whether it was cut short for not moving.
    pub(super) fn has_stalled(&self) -> bool {
        self.stalled.get()
    }

    /// Until a request has waited for its answer for too long, while nothing of its body came.
    pub(super) async fn unanswered(&self, patience: &Patience) {
        self.stuck(Stage::Asked, patience).await;
    }

    /// Until nothing of an answer that has begun, and of its request, was passed on for too long.
    pub(super) async fn stalls(&self, patience: &Patience) {
        self.stuck(Stage::Answering, patience).await;
        self.stalled.set(true);
    }

    async fn stuck(&self, stage: Stage, patience: &Patience) {
        patience.exhausted(|| (self.stage.get() == stage).then(|| self.seen())).await;
    }

    fn seen(&self) -> (u64, u64) {
        (self.moves.get(), self.sent.borrow().bytes())
    }

    fn enter(&self, stage: Stage) {
        self.stage.set(stage);
        self.moved();
    }
}

/// How long what does not move may go on: for a time, and at most twice that; of strangers' much less while there is no
/// room for others'.
#[derive(Clone)]
pub(super) struct Patience {
    limit: Duration,
    /// Where they are strangers'.
    at_edge: Option<Rc<Local>>,
}

/// How long while there is no room, at the least.
const PRESSED: Duration = Duration::from_secs(5);

impl Patience {
    fn new(session: &Session, limit: Duration) -> Self {
        Self { limit, at_edge: session.is_from_outside().then(|| Rc::clone(&session.local)) }
    }

    /// For requests and answers.
    pub(super) fn of_stalled(session: &Session) -> Self {
        Self::new(session, session.local.own.limits.stall_timeout)
    }

    /// For connections without any.
    pub(super) fn of_idle(session: &Session) -> Self {
        Self::new(session, session.local.own.limits.client_idle_timeout)
    }

    /// Until what is `seen` has been the same for too long; `None` is nothing to wait for.
    pub(super) async fn exhausted<T: PartialEq>(&self, seen: impl Fn() -> Option<T>) {
        let step = if self.at_edge.is_some() { self.limit.min(PRESSED) } else { self.limit };
        let (mut before, mut still) = (seen(), Duration::ZERO);
        loop {
            sleep(step).await;
            let now = seen();
            if now.is_none() || now != before {
                (before, still) = (now, Duration::ZERO);
                continue;
            }
            still += step;
            let is_pressed = || self.at_edge.as_ref().is_some_and(|local| local.is_short_of_room());
            if still >= self.limit || is_pressed() {
                return;
            }
        }
    }
}

/// Runs the streams of a client's HTTP/2 connection on the same thread, and tells of one that does not move.
#[derive(Clone)]
pub(super) struct Streams {
    pub(super) patience: Patience,
    pub(super) stalled: Rc<Notify>,
}

impl<F: Future<Output: 'static> + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let (activity, patience) = (Rc::new(Activity::default()), self.patience.clone());
        let stalled = Rc::clone(&self.stalled);
        spawn_local(CURRENT.scope(Rc::clone(&activity), async move {
            tokio::select! {
                _ = stream => {}
                () = activity.stalls(&patience) => stalled.notify_one(),
            }
        }));
    }
}
