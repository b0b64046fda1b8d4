//! Upgrade without loss: a new agent takes everything over from the one that runs.
//!
//! They meet at a Unix socket in the run directory, where the one that serves listens:
//!
//! ```text
//! new → old   Hello
//! old → new   Refused, or a Socket for each listening socket and then Enrolled; from here on it enrols nobody
//! new → old   Preparing, every second
//! new → old   Ready, with every pod enrolled and its own programs behind the links
//! old → new   Yours; now the new one serves, and the old one accepts nothing more
//! old → new   a Passthrough for each connection that can be moved, until its last connection has ended
//! ```
//!
//! Both hold the same listening sockets meanwhile, so that no connection finds none. Whatever goes wrong before
//! `Yours` ends the new agent, and the old one puts its own programs back and serves on: at once, and again when the
//! new one has ended, which may not have heard of it. One that says nothing for a while is given up.
//!
//! Agents of different versions don't hand over to each other: the new one waits for the old one's end, and nobody
//! awaits it meanwhile, so that whoever replaces agents goes on.

mod new;
mod old;
mod wire;

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::{
        fs::{DirBuilderExt as _, OpenOptionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::sleep;

pub use self::{
    new::{Meeting, Predecessor, ServerSockets},
    old::{Door, Estate, Leaving, Successor},
};

/// Of the messages. Agents of different versions don't hand over to each other.
const VERSION: u32 = 2;
/// For the other agent's next word, where it has nothing to do before it.
const PATIENCE: Duration = Duration::from_secs(10);
/// For a new agent to get ready.
const PREPARATION: Duration = Duration::from_secs(60);
/// For all of it: an agent that is told to stop waits this long for one that comes, and then drains.
pub const HANDOVER: Duration = PREPARATION.saturating_add(PATIENCE);
/// How often it says that it is at work.
const BEAT: Duration = Duration::from_secs(1);
/// Between two looks whether an agent serves, or comes.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Whether an agent serves in `run_dir`, which does not hear of the question: to its socket for packets nobody can
/// connect a stream, and what the kernel says against it tells whether somebody has that socket.
pub fn is_served(run_dir: &Path) -> bool {
    let gone = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
    UnixStream::connect(door(run_dir)).map_or_else(|error| !gone.contains(&error.kind()), |_| true)
}

/// Held by an agent from its first act until it serves or ends. Whoever comes shares the lock, and who looks whether
/// somebody does tries to have it alone, so that no look hides who comes.
#[derive(Debug)]
pub struct Coming(#[expect(dead_code, reason = "the lock goes with it")] File);

impl Coming {
    /// Has whoever serves in `run_dir` know that another comes. Waits for those who look, which takes a moment.
    pub fn announce(run_dir: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(run_dir)?;
        let file = coming(run_dir, true)?;
        file.lock_shared()?;
        Ok(Self(file))
    }
}

/// Whether another agent comes to `run_dir`, which does not serve yet.
pub fn is_awaited(run_dir: &Path) -> bool {
    let locked = |file: File| matches!(file.try_lock(), Err(TryLockError::WouldBlock));
    coming(run_dir, false).is_ok_and(locked)
}

/// Until no other agent comes to `run_dir`.
pub async fn nobody_awaited(run_dir: &Path) {
    while is_awaited(run_dir) {
        sleep(LOOK_AGAIN).await;
    }
}

fn coming(run_dir: &Path, create: bool) -> io::Result<File> {
    let path = run_dir.join("coming.lock");
    OpenOptions::new().read(true).write(true).create(create).truncate(false).mode(0o600).open(path)
}

/// Until no agent serves in `run_dir`.
pub async fn nobody_serves(run_dir: &Path) {
    while is_served(run_dir) {
        sleep(LOOK_AGAIN).await;
    }
}

fn door(run_dir: &Path) -> PathBuf {
    run_dir.join("handover.sock")
}

#[cfg(test)]
mod tests {
    use std::{env, fs, process, thread};

    use super::*;

    #[test]
    fn an_agent_that_comes_is_known_until_it_serves_or_ends() {
        let run_dir = env::temp_dir().join(format!("orlop-coming-{}", process::id()));
        assert!(!is_awaited(&run_dir));
        let one = Coming::announce(&run_dir).unwrap();
        let another = Coming::announce(&run_dir).unwrap();
        assert!(is_awaited(&run_dir) && is_awaited(&run_dir));
        drop(another);
        assert!(is_awaited(&run_dir));
        drop(one);
        assert!(!is_awaited(&run_dir));
        fs::remove_dir_all(run_dir).unwrap();
    }

    #[test]
    fn whoever_looks_just_then_does_not_hide_an_agent_that_comes() {
        let run_dir = env::temp_dir().join(format!("orlop-looks-{}", process::id()));
        drop(Coming::announce(&run_dir).unwrap());
        let looks = coming(&run_dir, false).unwrap();
        looks.try_lock().unwrap();
        let comes = thread::spawn({
            let run_dir = run_dir.clone();
            move || Coming::announce(&run_dir).unwrap()
        });
        drop(looks);
        let coming = comes.join().unwrap();
        assert!(is_awaited(&run_dir));
        drop(coming);
        fs::remove_dir_all(run_dir).unwrap();
    }

    /// Of the plain manifests, which are the chart's as it comes.
    #[test]
    fn a_pod_that_is_deleted_has_time_to_hand_over_and_to_drain() {
        let manifests = include_str!("../../../deploy/manifests/orlop.yaml");
        let agents = manifests.split("kind: DaemonSet").nth(1).unwrap();
        let after = |key: &str| agents.split(key).nth(1).unwrap().lines().next().unwrap();
        let grace = Duration::from_secs(after("terminationGracePeriodSeconds: ").parse().unwrap());
        let drain = humantime::parse_duration(after("--drain-timeout=")).unwrap();
        assert!(grace > HANDOVER + drain, "{grace:?}: {HANDOVER:?} and {drain:?}");
    }

    #[tokio::test]
    async fn an_agent_is_noticed_and_does_not_notice() {
        let run_dir = env::temp_dir().join(format!("orlop-door-{}", process::id()));
        assert!(!is_served(&run_dir));
        let mut open = Door::open(&run_dir).unwrap();
        assert!(is_served(&run_dir));
        let knock = tokio::time::timeout(Duration::ZERO, open.knock());
        assert!(knock.await.is_err());
        drop(open);
        assert!(!is_served(&run_dir));
        fs::remove_dir_all(run_dir).unwrap();
    }
}
