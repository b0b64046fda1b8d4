//! `orlop webhook`: tells an API server what is wrong with policies and routes before it stores them.
//!
//! A process of its own, since what it reads is written by whoever may write policies: what that costs is not the
//! certificate authority's.

mod serve;
mod strangers;

use std::{pin::pin, sync::Arc, time::Duration};

use anyhow::Context as _;
use orlop_identity::ServingTls;
use orlop_kube::{
    admission::{Endpoint, EndpointKeeper, Validator, review_path},
    controller::{CustomKinds, RootSecret, RootStore, connect},
};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::sleep,
};

use crate::{
    cli::WebhookArguments,
    controller::{health::Health, root},
    logging,
};

/// How long it goes on answering once it is told to stop: until no API server comes any more.
const LEAVES_AFTER: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
pub fn run(arguments: WebhookArguments) -> anyhow::Result<()> {
    logging::start(&arguments.log)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(webhook(arguments))
}

async fn webhook(arguments: WebhookArguments) -> anyhow::Result<()> {
    let health = Health::start(arguments.ready, Registry::default()).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let leaving = watch::Sender::new(false);
    let mut serve = pin!(serve(&arguments, &health, leaving.subscribe()));
    tokio::select! {
        served = &mut serve => return served,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    health.not_ready();
    leaving.send_replace(true);
    tokio::select! {
        served = serve => return served,
        () = sleep(LEAVES_AFTER) => {}
    }
    tracing::info!("stopped");
    Ok(())
}

async fn serve(
    arguments: &WebhookArguments,
    health: &Health,
    leaving: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let client = connect(arguments.kubeconfig.as_deref()).await?;
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("cannot listen on {}; choose another with --listen", arguments.listen))?;
    let store = RootStore::new(client.clone(), &arguments.namespace, &arguments.secret, None);
    let mut found = pin!(store.follow());
    let judge = root::Judge(arguments.names.trust_domain.clone());
    let (ca, first) = root::first(&store, found.as_mut(), &judge).await?;
    let (ca, endpoint) = (Arc::new(ca), watch::Sender::new(of_root(&first)));
    let tls = Arc::new(ServingTls::new(Arc::clone(&ca), arguments.serving_names())?);

    let (kinds, kind_watch) = CustomKinds::watch(client.clone());
    let keeper = EndpointKeeper::new(client.clone(), &arguments.configuration, endpoint.subscribe());
    let answering = async {
        let validator = Validator::start(&client, arguments.names.settings(""), &kinds).await?;
        tracing::info!(listen = %arguments.listen, "answering reviews");
        health.ready();
        let webhook = serve::Webhook::new(validator, Arc::clone(&tls), endpoint.subscribe(), leaving);
        tokio::join!(webhook.serve(listener), keeper.run());
        anyhow::Ok(())
    };
    tokio::select! {
        () = kind_watch => {}
        () = tls.run() => {}
        () = root::keep(&ca, found, &judge, |root| drop(endpoint.send_replace(of_root(&root)))) => {}
        answered = answering => answered?,
    }
    anyhow::bail!("a part of the webhook has ended")
}

/// How API servers reach a webhook with this authority.
fn of_root(root: &RootSecret) -> Endpoint {
    Endpoint { path: review_path(&root.key), roots: String::from_utf8_lossy(&root.roots).into_owned() }
}
