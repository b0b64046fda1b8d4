//! `orlop controller`: the certificate authority of a cluster, and what only one of its replicas does.

mod gate;
pub mod health;
mod offline;
pub mod root;

use std::{
    pin::pin,
    sync::{Arc, OnceLock},
};

use anyhow::Context as _;
use futures_util::future::OptionFuture;
use orlop_identity::{CertificateAuthority as _, CertificateService, GivenCa, ServingTls};
use orlop_kube::controller::{
    BundlePublisher, CertificateCopies, CustomKinds, Election, Events, PlacedPods, Reviewer, RootStore,
    RotationTiming, StatusWriter, WaypointProvisioner, connect, follow_token_issuer,
};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    cli::ControllerArguments,
    controller::{
        gate::{Asked, NodeGate},
        health::Health,
        offline::OfflineReviewer,
    },
    figures, logging,
};

/// Runs until SIGTERM or SIGINT.
pub fn run(arguments: ControllerArguments) -> anyhow::Result<()> {
    logging::start(&arguments.log)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(controller(arguments))
}

async fn controller(arguments: ControllerArguments) -> anyhow::Result<()> {
    let client = connect(arguments.kubeconfig.as_deref()).await?;
    let election = Arc::new(Election::new(client.clone(), &arguments.namespace, LEASE, &arguments.name));
    let (ca, mut registry) = (Arc::new(OnceLock::new()), Registry::default());
    let authority = figures::Authority { ca: Arc::clone(&ca), leads: election.leads() };
    registry.register_collector(Box::new(authority));
    let asked = Asked::register(&mut registry);
    let health = Health::start(arguments.ready, registry).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let serve = serve(&arguments, client, &election, &health, (&ca, asked));
    tokio::select! {
        served = serve => return served,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    health.not_ready();
    election.resign().await;
    tracing::info!("stopped");
    Ok(())
}

async fn serve(
    arguments: &ControllerArguments,
    client: orlop_kube::controller::Client,
    election: &Election,
    health: &Health,
    (signing, asked): (&OnceLock<Arc<GivenCa>>, Asked),
) -> anyhow::Result<()> {
    let store =
        RootStore::new(client.clone(), &arguments.namespace, &arguments.secret, Some(&arguments.plugged_in));
    let mut found = pin!(store.follow());
    let trust_domain = &arguments.names.trust_domain;
    let judge = root::Judge(trust_domain.clone());
    let (ca, _) = root::first(&store, found.as_mut(), &judge).await?;
    let ca = Arc::new(ca);
    signing.get_or_init(|| Arc::clone(&ca));

    let pods = Arc::new(PlacedPods::new(client.clone()));
    let issuer = watch::Sender::new(None);
    let offline = OfflineReviewer {
        issuer: issuer.subscribe(),
        audience: arguments.token_audience.clone(),
        pods: Arc::clone(&pods),
    };
    let gate = NodeGate {
        reviewer: Reviewer::new(client.clone(), &arguments.token_audience),
        offline,
        pods: Arc::clone(&pods),
        trust_domain: trust_domain.clone(),
        node_accounts: arguments.node_accounts.clone(),
        asked,
    };
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("cannot listen on {}; choose another with --listen", arguments.listen))?;
    let tls = Arc::new(ServingTls::new(Arc::clone(&ca), arguments.serving_names())?);
    let current = Arc::clone(&tls);
    let service =
        CertificateService::new(Arc::clone(&ca) as _, Arc::new(gate), arguments.certificate_lifetime);
    let service = Arc::new(service).serve(listener, move || current.current());
    tracing::info!(listen = %arguments.listen, %trust_domain, "serving certificates");
    health.ready();

    let roots = watch::Sender::new(ca.trust().borrow().to_pem());
    let timing =
        RotationTiming { spread: arguments.rotation_spread, lifetime: arguments.certificate_lifetime };
    let waypoints = arguments.waypoints();
    let lead = || {
        let (published, is_published) = watch::channel(String::new());
        let publisher = BundlePublisher::new(client.clone(), roots.subscribe(), published);
        let (events, event_writer) = Events::new(client.clone(), &arguments.name);
        let rotation = store.rotate(timing, &judge, is_published, events.clone());
        let (kinds, kind_watch) = CustomKinds::watch(client.clone());
        let provisioner = waypoints
            .clone()
            .map(|with| WaypointProvisioner::new(client.clone(), with, kinds.clone(), events.clone()));
        // Of no node.
        let mut status = StatusWriter::new(client.clone(), arguments.names.settings(""), kinds, events);
        if let Some(provisioner) = &provisioner {
            status = status.with_own(provisioner.own());
        }
        let provisioner =
            provisioner.map(|of| of.with_attached(status.attached()).with_credentials(status.credentials()));
        // Of use to waypoints and gateways alone.
        let copies = provisioner.as_ref().map(|_| status.copies());
        async move {
            let waypoints = OptionFuture::from(provisioner.map(WaypointProvisioner::run));
            let copies = OptionFuture::from(copies.map(CertificateCopies::run));
            let told = async { tokio::join!(status.run(), event_writer.run(), kind_watch) };
            tokio::join!(publisher.run(), rotation, waypoints, copies, told);
        }
    };
    tokio::select! {
        () = service => {}
        () = pods.run() => {}
        () = follow_token_issuer(client.clone(), issuer) => {}
        () = tls.run() => {}
        () = root::keep(&ca, found, &judge, drop) => {}
        () = announce(&ca, &roots) => {}
        () = election.run(lead) => {}
    }
    anyhow::bail!("a part of the controller has ended")
}

/// Tells the publisher of the roots that are trusted.
async fn announce(ca: &GivenCa, roots: &watch::Sender<String>) {
    let mut trust = ca.trust();
    loop {
        roots.send_replace(trust.borrow_and_update().to_pem());
        if trust.changed().await.is_err() {
            return;
        }
    }
}

const LEASE: &str = "orlop-controller";
