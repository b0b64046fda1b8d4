//! `orlop gate`: holds the node's pods of the mesh from its start on.

use std::{fs, os::unix::net::UnixDatagram, path::Path, sync::Arc};

use anyhow::Context as _;
use nix::unistd::geteuid;
use orlop_datapath::{Datapath, Place};
use orlop_kube::WorldFile;
use orlop_model::{Snapshot, compile};
use orlop_proxy::Netns;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{BootGate, MOMENT};
use crate::{
    check,
    cli::{GateArguments, PlaceArguments},
    handover, logging,
    sandboxes::{PodCgroups, Sandboxes},
};

/// Runs until an agent serves, which has the hooks from then on, and whom they hold.
pub fn run(arguments: &GateArguments) -> anyhow::Result<()> {
    logging::start(&arguments.log)?;
    anyhow::ensure!(geteuid().is_root(), "orlop gate needs root, to load eBPF");
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(hold(arguments))
}

async fn hold(arguments: &GateArguments) -> anyhow::Result<()> {
    let GateArguments { place, kubelet_dir, names, .. } = arguments;
    if handover::is_served(&place.run_dir) {
        tracing::info!("an agent serves this node");
        return tell_ready();
    }
    let Some(world) = WorldFile::new(&place.state_dir, &place.node).read()? else {
        tracing::info!(state_dir = %place.state_dir.display(), "no agent has known the cluster on this node");
        return tell_ready();
    };
    // Its pods have not been heard of since: nobody is let go of by it.
    let snapshot = compile(&world, &names.settings(&place.node), 1);
    if snapshot.local_pods().is_empty() {
        tracing::info!("this node had no pods of the mesh");
        return tell_ready();
    }
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let pods_cgroup = place.pods_cgroup.as_deref();
    let cgroups = PodCgroups::new(pods_cgroup, place.cgroup.as_deref(), &mounts);
    let mut gate = BootGate::new(&place.node, kubelet_dir, attach(place)?, cgroups);
    tracing::info!(
        pods = snapshot.local_pods().len(),
        "this node's pods of the mesh are held until an agent serves"
    );
    tell_ready()?;

    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        held = keep(&mut gate, &snapshot, place, &mounts) => held?,
        () = handover::somebody_serves(&place.run_dir) => tracing::info!("an agent serves"),
        _ = terminate.recv() => tracing::warn!("told to stop before an agent serves: what starts now is in clear"),
    }
    // What has come since it was last looked.
    gate.keep(&snapshot);
    Ok(())
}

/// Puts the hooks in force.
fn attach(place: &PlaceArguments) -> anyhow::Result<Arc<Datapath>> {
    let own_netns = Netns::open(Path::new("/proc/self/ns/net")).context("cannot open our own netns")?;
    check::require_capabilities(true)?;
    let of = Place {
        bpffs: &place.bpffs,
        cgroup: place.cgroup.as_deref(),
        // kubelet makes it, later.
        pods_cgroup: place.pods_cgroup.as_deref().filter(|path| path.is_dir()),
        node: own_netns.cookie(),
        boot_gate: true,
    };
    let datapath = Datapath::open(&of).and_then(|datapath| datapath.attach().map(|()| datapath));
    datapath.map(Arc::new).map_err(|error| check::explain(error, of.bpffs, of.cgroup))
}

/// Holds each pod when its cgroup comes.
async fn keep(
    gate: &mut BootGate,
    snapshot: &Snapshot,
    place: &PlaceArguments,
    mounts: &str,
) -> anyhow::Result<()> {
    let pods_cgroup = place.pods_cgroup.as_deref();
    while pods_cgroup.is_some_and(|path| !path.is_dir()) {
        sleep(MOMENT).await;
    }
    let sandboxes = Sandboxes::new(pods_cgroup, place.cgroup.as_deref(), mounts);
    let mut changes = sandboxes.watch().context("cannot watch pods' cgroups")?;
    loop {
        gate.keep(snapshot);
        changes.next().await.context("cannot watch pods' cgroups")?;
    }
}

/// Tells systemd, if that has started it (sd_notify(3)).
fn tell_ready() -> anyhow::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let socket = UnixDatagram::unbound().context("cannot make a socket")?;
    let told = socket.send_to(b"READY=1", &path);
    told.with_context(|| format!("cannot tell systemd at {}", path.display())).map(drop)
}
