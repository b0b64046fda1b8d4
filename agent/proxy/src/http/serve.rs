//! HTTP/1.1 and HTTP/2 with a client, and how long it may take over what it says.

use std::{
    convert::Infallible, error::Error as _, iter::successors, pin::pin, rc::Rc, sync::Arc, time::Duration,
};

use http::{HeaderValue, Request, header::CONNECTION};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use orlop_model::Reason;
use tokio::time::{Instant, sleep, timeout};

use super::{
    activity::{Activity, Patience, Streams},
    edge, exchange,
    held_back::HeldBack,
    io::Io,
    pace::Pace,
    session::Session,
    upstream::STRANGERS_WINDOW,
};
use crate::{refusal::Refusal, shared::Phase};

/// What of a stranger's connection is buffered of HTTP/1, either way.
const MAX_BUFFER: usize = 64 << 10;
/// For so long a kept connection of HTTP/1 that has no request waits for one once the process is leaving, and one of HTTP/2
/// that has ended for its client's end.
const LINGER: Duration = Duration::from_secs(2);
/// What of one request may be on its way to a waypoint.
const SHARED_WINDOW: u32 = 256 << 10;

pub(super) async fn http1(session: &Rc<Session>, mut io: Io) {
    let limits = &session.local.own.limits;
    let activity = Rc::new(Activity::default());
    let patience = Patience::of_stalled(session);
    io.pace = Some(Arc::clone(&session.pace));
    let service = service_fn(|request: Request<Incoming>| {
        let (session, activity) = (Rc::clone(session), Rc::clone(&activity));
        async move {
            let mut answer = exchange::serve(&session, request, activity).await;
            if session.local.worker.shared.phase.borrow().is_leaving() && !answer.status().is_informational()
            {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut builder = http1::Builder::new();
    if session.is_from_outside() {
        // Of an answer that nobody reads no more is kept.
        builder.max_buf_size(limits.max_header_size.max(MAX_BUFFER));
    }
    let connection = builder
        .timer(hyper_util::rt::TokioTimer::new())
        .half_close(true)
        .auto_date_header(false)
        .max_headers(limits.max_headers)
        .max_header_size(limits.max_header_size)
        .header_read_timeout(limits.client_idle_timeout)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut phase = session.local.worker.shared.phase.subscribe();
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        // The next answer says that it is the last: a client that is just asking would be cut off otherwise.
        _ = async { drop(phase.wait_for(Phase::is_leaving).await); sleep(LINGER).await } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = activity.stalls(&patience) => return,
        () = session.broken.notified() => return,
        () = session.dawdles(&session.pace) => return session.dawdled(),
        () = session.idles() => return,
    };
    session.ended(ended, &session.pace);
}

pub(super) async fn http2(session: &Rc<Session>, mut io: Io) {
    let limits = &session.local.own.limits;
    let budget = session.is_from_outside().then(|| edge::budget(&session.local, session.client.ip()));
    let pace = Arc::new(Pace::of_http2(budget));
    io.pace = Some(Arc::clone(&pace));
    let service = service_fn(|request: Request<Incoming>| {
        let session = Rc::clone(session);
        async move {
            let answer = exchange::serve(&session, request, Activity::current()).await;
            Ok::<_, Infallible>(answer.map(|body| HeldBack::new(body, session.is_from_outside())))
        }
    });
    let streams = Streams { patience: Patience::of_stalled(session), stalled: Rc::clone(&session.broken) };
    let size = u32::try_from(limits.max_header_size).unwrap_or(u32::MAX);
    let (of_stream, of_connection) = session.windows();
    let ended = {
        let connection = http2::Builder::new(streams)
            .auto_date_header(false)
            .max_concurrent_streams(limits.max_streams)
            .max_header_list_size(size)
            .initial_stream_window_size(of_stream)
            .initial_connection_window_size(of_connection)
            .serve_connection(&mut io, service);
        let mut connection = pin!(connection);
        let mut phase = session.local.worker.shared.phase.subscribe();
        tokio::select! {
            ended = connection.as_mut() => ended,
            _ = phase.wait_for(Phase::is_leaving) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = session.dawdles(&pace) => return session.dawdled(),
            // Its body may be held by what sends it on: only the connection's end lets go of all.
            () = session.broken.notified() => return,
            () = session.idles() => {
                // Whoever does not answer would keep what is needed at once.
                if session.is_from_outside() && session.local.is_short_of_room() {
                    return;
                }
                connection.as_mut().graceful_shutdown();
                // A client that does not answer keeps it no longer.
                match timeout(limits.header_timeout, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                }
            }
        }
    };
    let may_linger = ended.is_ok() && !(session.is_from_outside() && session.local.is_short_of_room());
    session.ended(ended, &pace);
    if may_linger {
        // A client may have asked before it heard that it asks in vain here. If that were met by a reset, it might lose with
        // it what it was told, and not know that it may ask again elsewhere.
        let _ = timeout(LINGER, io.source.run_out()).await;
    }
}

impl Session {
    /// What of a body may be on its way here, of one and of all of the connection. A client from outside the mesh stops
    /// nobody but itself; a gateway has all of its clients' in one.
    fn windows(&self) -> (u32, u32) {
        /// As RFC 9113 has it, section 6.9.1.
        const MAX: u32 = (1 << 31) - 1;
        if self.is_from_outside() {
            return (STRANGERS_WINDOW, STRANGERS_WINDOW * 16);
        }
        (SHARED_WINDOW, SHARED_WINDOW.saturating_mul(self.local.own.limits.max_streams).min(MAX))
    }

    /// Until there was no request for the time that a connection may wait for one, and at most twice that.
    async fn idles(&self) {
        let requests = || (self.active.get() == 0).then(|| self.requests.get());
        Patience::of_idle(self).exhausted(requests).await;
    }

    /// Tells of a connection whose client breaks the rules, or for whose head there is no room: requests that were none have
    /// no record.
    fn ended(&self, ended: hyper::Result<()>, pace: &Pace) {
        let refusal = match ended {
            _ if pace.is_refused() => Some(edge::no_room()),
            Err(error) => broken(&error).or_else(|| self.unserved(pace)),
            Ok(()) => self.unserved(pace),
        };
        if let Some(refusal) = refusal {
            self.record().finish(Err(refusal));
        }
    }

    /// Whether there were streams of HTTP/2 that came to be no request: h2 answers them itself.
    fn unserved(&self, pace: &Pace) -> Option<Refusal> {
        let unserved = pace.streams().saturating_sub(self.requests.get());
        // Whoever is told that it is the last asks elsewhere.
        let is_leaving = self.local.worker.shared.phase.borrow().is_leaving();
        let detail = || format!("streams that were no requests, too large or too many at once: {unserved}");
        (unserved > 0 && !is_leaving).then(|| Refusal::new(Reason::BadRequest, detail()))
    }

    /// Until a head has been coming for more than the time that it may take, and at most twice that.
    async fn dawdles(&self, pace: &Pace) {
        let limit = self.local.own.limits.header_timeout;
        loop {
            let left = match pace.begun() {
                Some(begun) => (begun + limit).saturating_duration_since(Instant::now()),
                None => limit,
            };
            if left.is_zero() {
                return;
            }
            sleep(left).await;
        }
    }

    fn dawdled(&self) {
        let slow = Refusal::new(Reason::HeaderTimeout, "a request's head did not end in time");
        self.record().finish(Err(slow));
    }
}

/// How the client has broken the rules, or says that we have, if the connection has ended for that.
fn broken(error: &hyper::Error) -> Option<Refusal> {
    if error.is_parse_too_large() {
        return Some(Refusal::new(Reason::HeaderLimit, error));
    }
    if error.is_parse() {
        return Some(Refusal::new(Reason::BadRequest, error));
    }
    let mut sources = successors(error.source(), |&error| error.source());
    let error = sources.find_map(|error| error.downcast_ref::<h2::Error>())?;
    let reason = match error.reason() {
        Some(h2::Reason::ENHANCE_YOUR_CALM) if error.is_library() => Reason::StreamLimit,
        Some(_) if error.is_library() => Reason::BadRequest,
        Some(_) if error.is_go_away() => Reason::Reset,
        _ => return None,
    };
    Some(Refusal::new(reason, error))
}
