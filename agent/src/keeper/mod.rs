//! The listening sockets of a node's pods, held by a second process while no agent runs: whoever dials meanwhile waits
//! in them for the next agent, and is not refused.
//!
//! `orlop keeper` does nothing else, and so has nothing to fail with. It listens at a Unix socket in the run directory:
//!
//! ```text
//! agent → keeper   Hello
//! keeper → agent   Refused, or a Socket for each that it holds and then All
//! agent → keeper   Serving, once it does; a Socket for each of its own, and Forget for each that it closes
//! agent → keeper   Leaving, when it takes nobody any more and no other agent does
//! ```
//!
//! An agent that starts takes those of the agent before, if that one has died. What was accepted has died with it, and
//! what nobody has accepted is the next agent's. If none serves soon enough the keeper closes them all, and ends the talk
//! with those that are leaving, which close theirs: pods are refused as they are without it. It never accepts anything itself.

mod client;
mod serve;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use orlop_proxy::SocketName;
use serde::{Deserialize, Serialize};

pub use self::{
    client::{Keeping, Kept},
    serve::run,
};

/// Of the messages. An agent goes without a keeper of another version.
const VERSION: u32 = 1;
/// For an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks for a keeper, and whether another has gone.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// `Hello` and `Refused` stay as they are in all versions.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Hello {
        version: u32,
    },
    Refused {
        reason: String,
    },
    /// With its descriptor.
    Socket(SocketName),
    /// Every socket that is held has been sent.
    All,
    Serving,
    Leaving,
    Forget(SocketName),
}

fn door(run_dir: &Path) -> PathBuf {
    run_dir.join("keeper.sock")
}
