//! Whether a request and its answer move on at all: what stalls does not hold memory for ever.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use hyper::rt::Executor;
use tokio::{sync::Notify, task::spawn_local, task_local, time::sleep};

task_local! {
    /// Of the HTTP/2 stream that a task serves.
    static CURRENT: Rc<Activity>;
}

/// Of one stream, or of one HTTP/1 connection, which has one request at a time.
#[derive(Default)]
pub(super) struct Activity {
    stage: Cell<Stage>,
    moves: Cell<u64>,
    /// Bytes of the request's body.
    sent: RefCell<Rc<Cell<u64>>>,
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

    /// A request has come, of whose body so many bytes have.
    pub(super) fn begin(&self, sent: Rc<Cell<u64>>) {
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

    /// Until a request has waited for its answer for this long, and at most twice that, while nothing of its body came.
    pub(super) async fn unanswered(&self, limit: Duration) {
        self.stuck(Stage::Asked, limit).await;
    }

    /// Until nothing of an answer that has begun, and of its request, was passed on for this long, and at most twice that.
    pub(super) async fn stalls(&self, limit: Duration) {
        self.stuck(Stage::Answering, limit).await;
        self.stalled.set(true);
    }

    async fn stuck(&self, stage: Stage, limit: Duration) {
        loop {
            let before = self.seen();
            sleep(limit).await;
            if self.stage.get() == stage && self.seen() == before {
                return;
            }
        }
    }

    fn seen(&self) -> (u64, u64) {
        (self.moves.get(), self.sent.borrow().get())
    }

    fn enter(&self, stage: Stage) {
        self.stage.set(stage);
        self.moved();
    }
}

/// Runs the streams of a client's HTTP/2 connection on the same thread, and tells of one that does not move.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    pub(super) stall_timeout: Duration,
    pub(super) stalled: Rc<Notify>,
}

impl<F: Future<Output: 'static> + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let (activity, limit) = (Rc::new(Activity::default()), self.stall_timeout);
        let stalled = Rc::clone(&self.stalled);
        spawn_local(CURRENT.scope(Rc::clone(&activity), async move {
            tokio::select! {
                _ = stream => {}
                () = activity.stalls(limit) => stalled.notify_one(),
            }
        }));
    }
}
