//! Copies of requests, whose answers nobody reads. Whatever becomes of them, the caller never notices.

use std::{rc::Rc, sync::Arc, time::Duration};

use hyper::body::{Body as _, Incoming};
use orlop_model::{Snapshot, http::Cluster};
use tokio::{task::spawn_local, time::timeout};

use super::{
    authorize,
    authorizer::{self, Checked},
    exchange::Template,
    forward::{self, Plan},
    replay::{Replay, RequestBody},
    session::Session,
};
use crate::refusal::Refusal;

/// Copies under way on one worker: a mirror that is slow gets no more.
const MAX_MIRRORED: usize = 256;
/// A copy may take this long.
const LIMIT: Duration = Duration::from_secs(60);

/// Sends the copies that the rule wants.
pub(super) fn start(session: &Rc<Session>, plan: &Plan<'_>, template: &Template, replay: &Replay) {
    for mirror in plan.mirrors {
        let local = &session.local;
        if !mirror.percent.hits(local.draws.mirror.next()) {
            continue;
        }
        if Rc::strong_count(&local.mirrored) > MAX_MIRRORED {
            local.own.metrics.mirrors_dropped.inc();
            continue;
        }
        let (session, snapshot) = (Rc::clone(session), plan.snapshot.clone());
        let (cluster, template, body) = (mirror.cluster.clone(), template.clone(), replay.mirror());
        let grpc = plan.grpc;
        let counted = Rc::clone(&local.mirrored);
        spawn_local(async move {
            let copied = timeout(LIMIT, copy(&session, &snapshot, (&cluster, grpc), &template, body)).await;
            match copied {
                Ok(Ok(())) => {}
                Ok(Err(refusal)) => {
                    tracing::debug!(reason = refusal.reason.as_str(), detail = refusal.detail, "mirror");
                }
                Err(_) => tracing::debug!("mirror took too long"),
            }
            drop(counted);
        });
    }
}

async fn copy(
    session: &Rc<Session>,
    snapshot: &Arc<Snapshot>,
    (cluster, grpc): (&Cluster, bool),
    template: &Template,
    body: RequestBody,
) -> Result<(), Refusal> {
    let target = forward::target(session, snapshot, cluster)?;
    let mut template = template.clone();
    let port = target.port.number;
    if let Some(behind) = authorize::further(session, target.service, port, &template) {
        template.authenticate(snapshot, &behind)?;
        // Whoever is asked about copies sees no body: that is the server's, at its pace.
        let mut checked = Checked::default();
        let mut asking = template.asking((&behind, port), None);
        let asked = authorizer::ask(session, snapshot, &mut asking, &mut checked).await;
        asked.map_err(|(refusal, _)| refusal)?;
        authorize::elsewhere(session, snapshot, (&behind, port), &template, &checked.providers)?;
    }
    let authority = template.destined().authority.host();
    let (key, mut lease) = forward::lease_of_copy(session, snapshot, (target, grpc), authority).await?;
    let request = template.request(&key, body)?;
    let response = lease.send(request).await.map_err(|unanswered| unanswered.refusal)?;
    if discard(response.into_body()).await {
        lease.finish();
    }
    Ok(())
}

/// Reads an answer to its end. False if it has none.
async fn discard(mut body: Incoming) -> bool {
    loop {
        let mut pinned = std::pin::Pin::new(&mut body);
        match std::future::poll_fn(|cx| pinned.as_mut().poll_frame(cx)).await {
            Some(Ok(_)) => {}
            Some(Err(_)) => return false,
            None => return true,
        }
    }
}
