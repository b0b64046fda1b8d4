//! Whether a tunnel's other end is still there. TCP gives up only after minutes, and a process that hangs acknowledges
//! whatever comes.

use std::{pin::pin, time::Duration};

use h2::{Ping, PingPong};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

/// A stream that has no answer for this long has the tunnel's other end asked whether it is there.
const DOUBT: Duration = Duration::from_secs(1);
/// It has so much time to say so.
const ANSWER: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(100);

/// What one task knows of a tunnel, and others wait for.
pub(crate) struct Pulse {
    doubted: Notify,
    silent: watch::Sender<bool>,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        Self { doubted: Notify::new(), silent: watch::Sender::new(false) }
    }

    /// Asks the other end whenever somebody doubts, beside the connection, and does not end.
    pub(crate) async fn watch(&self, pings: Option<PingPong>) {
        if let Some(mut pings) = pings {
            loop {
                self.doubted.notified().await;
                let mut pong = pin!(pings.ping(Ping::opaque()));
                let mut answer = timeout(ANSWER, &mut pong).await;
                if answer.is_err() {
                    // Where this very thread stood still, it may have come already.
                    answer = timeout(AGAIN, &mut pong).await;
                }
                let answer = match answer {
                    Ok(answer) => answer,
                    Err(_) => {
                        self.silent.send_replace(true);
                        pong.await
                    }
                };
                if answer.is_err() {
                    break;
                }
            }
        }
        std::future::pending().await
    }

    /// Whether the other end has not answered.
    pub(crate) fn is_silent(&self) -> bool {
        *self.silent.borrow()
    }

    /// Once the other end has not answered, neither the stream that is being waited for nor a ping.
    pub(crate) async fn silence(&self) {
        sleep(DOUBT).await;
        let mut silent = self.silent.subscribe();
        self.doubted.notify_one();
        let _ = silent.wait_for(|silent| *silent).await;
    }
}
