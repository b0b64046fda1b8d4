//! `orlop keeper`.

use std::{
    collections::HashMap,
    fs::{DirBuilder, OpenOptions, TryLockError},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use nix::unistd::geteuid;
use orlop_proxy::SocketName;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
    time::{sleep, timeout},
};

use super::{LOOK_AGAIN, PATIENCE, VERSION, Word};
use crate::{
    cli::KeeperArguments,
    limits, logging,
    seqpacket::{Door, Peer},
};

/// Runs until SIGTERM or SIGINT.
pub fn run(arguments: &KeeperArguments) -> anyhow::Result<()> {
    logging::start(&arguments.log)?;
    ensure!(geteuid().is_root(), "orlop keeper needs root: agents give their sockets to nobody else");
    limits::raise_descriptors(None);
    let serve = async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            result = keep(&arguments.run_dir, arguments.hold) => result,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(serve)
}

async fn keep(run_dir: &Path, hold: Duration) -> anyhow::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(run_dir)?;
    let path = run_dir.join("keeper.lock");
    let options =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let alone = options.with_context(|| format!("cannot open {}", path.display()))?;
    let mut waited = false;
    while let Err(error) = alone.try_lock() {
        match error {
            // That of a pod that is being replaced.
            TryLockError::WouldBlock if !waited => {
                tracing::info!("waiting until the keeper before has ended")
            }
            TryLockError::WouldBlock => {}
            TryLockError::Error(error) => {
                return Err(error).context(format!("cannot lock {}", path.display()));
            }
        }
        waited = true;
        sleep(LOOK_AGAIN).await;
    }
    let mut door = Door::open(&super::door(run_dir))?;
    let keeper = Arc::new(Keeper { hold, state: Mutex::default(), let_go: Notify::new() });
    tracing::info!(?hold, "holding what agents listen on");
    loop {
        let agent = door.knock().await;
        let keeper = Arc::clone(&keeper);
        tokio::spawn(async move {
            if let Err(error) = keeper.attend(&agent).await {
                tracing::warn!(error = format!("{error:#}"), "an agent is of no use");
            }
        });
    }
}

struct Keeper {
    /// How long whoever dials waits for an agent.
    hold: Duration,
    state: Mutex<State>,
    /// It has closed everything.
    let_go: Notify,
}

#[derive(Default)]
struct State {
    sockets: HashMap<SocketName, Arc<OwnedFd>>,
    /// Agents that serve.
    serving: usize,
    /// How often one has begun to.
    begun: u64,
}

impl Keeper {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the agent has gone.
    async fn attend(self: &Arc<Self>, agent: &Peer) -> anyhow::Result<()> {
        match agent.hear(PATIENCE).await?.message {
            Word::Hello { version: VERSION } => {}
            Word::Hello { version } => {
                let reason = format!("this keeper is of version {VERSION}, and not of {version}");
                return Ok(agent.send(&Word::Refused { reason }).await?);
            }
            other => bail!("it says {other:?} instead of hello"),
        }
        let held: Vec<_> =
            self.state().sockets.iter().map(|(name, socket)| (*name, Arc::clone(socket))).collect();
        let give = async {
            for (name, socket) in held {
                agent.send_with(&Word::Socket(name), &[], &[socket.as_fd()]).await?;
            }
            agent.send(&Word::All).await
        };
        timeout(PATIENCE, give).await.context("it does not take its sockets")??;
        let mut serving = None;
        let mut leaving = false;
        loop {
            let packet = tokio::select! {
                packet = agent.receive() => packet?,
                () = self.let_go.notified(), if leaving => return Ok(()),
            };
            let Some(mut packet) = packet else { return Ok(()) };
            match packet.message {
                Word::Serving => serving = serving.or_else(|| Some(self.begin())),
                Word::Leaving => {
                    leaving = true;
                    serving = None;
                }
                Word::Socket(name) => {
                    let socket = packet.descriptors.pop().context("a socket without its descriptor")?;
                    self.state().sockets.insert(name, Arc::new(socket));
                }
                Word::Forget(name) => drop(self.state().sockets.remove(&name)),
                other => bail!("it says {other:?}"),
            }
        }
    }

    fn begin(self: &Arc<Self>) -> Serving {
        let mut state = self.state();
        state.serving += 1;
        state.begun += 1;
        Serving(Arc::clone(self))
    }

    fn end(self: &Arc<Self>) {
        let mut state = self.state();
        state.serving -= 1;
        let (begun, sockets) = (state.begun, state.sockets.len());
        if state.serving > 0 || sockets == 0 {
            return;
        }
        drop(state);
        let (keeper, hold) = (Arc::clone(self), self.hold);
        tokio::spawn(async move {
            // One that has taken over says so in a moment.
            let moment = LOOK_AGAIN.min(hold);
            sleep(moment).await;
            if keeper.state().begun == begun {
                tracing::warn!(sockets, ?hold, "no agent serves: who dials waits for the next one");
            }
            sleep(hold - moment).await;
            let mut state = keeper.state();
            if state.begun == begun {
                state.sockets.clear();
                keeper.let_go.notify_waiters();
                tracing::error!(after = ?hold, "no agent has come: who waited is refused");
            }
        });
    }
}

/// An agent that serves.
struct Serving(Arc<Keeper>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.end();
    }
}
