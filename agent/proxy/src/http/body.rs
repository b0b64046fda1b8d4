//! Answers' bodies: passed on frame by frame, trailers included, and counted.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use orlop_model::Reason;

use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    call::Failed,
    headers::is_unfit,
    record::RequestRecord,
    replay::{BodyError, broke_off},
    upstream::{Lease, flag_of},
};
use crate::refusal::Refusal;

const GRPC_STATUS: &str = "grpc-status";

/// An answer's body. Dropping it ends the request's record, and gives the connection back if it was read to its end.
pub(super) struct ResponseBody {
    content: Content,
    /// `None` where the request goes on without HTTP.
    record: Option<RequestRecord>,
}

enum Content {
    /// Our own words.
    Own(Bytes),
    Server {
        body: Incoming,
        lease: Lease,
        ended: bool,
        /// When it must have ended.
        deadline: Option<Pin<Box<Sleep>>>,
    },
}

impl ResponseBody {
    pub(super) fn own(text: impl Into<Bytes>, record: RequestRecord) -> Self {
        Self { content: Content::Own(text.into()), record: Some(record) }
    }

    pub(super) fn empty() -> Self {
        Self { content: Content::Own(Bytes::new()), record: None }
    }

    pub(super) fn of_server(
        body: Incoming,
        lease: Lease,
        deadline: Option<Instant>,
        mut record: RequestRecord,
    ) -> Self {
        // Until it has been read to its end.
        record.outcome = Some(Reason::Reset.into());
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        Self { content: Content::Server { body, lease, ended: false, deadline }, record: Some(record) }
    }
}

/// All of a body, and its trailers. One of more than `most` bytes is an error.
pub(super) async fn read(
    mut body: Incoming,
    http2: bool,
    most: usize,
) -> Result<(Bytes, Option<HeaderMap>), Failed> {
    let (mut bytes, mut trailers) = (Vec::new(), None);
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame.map_err(Failed::away)?.into_data() {
            Ok(data) if bytes.len() + data.len() > most => {
                return Err(Failed::Wrong(format!("the answer has more than {most} bytes")));
            }
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok().or(trailers),
        }
    }
    if broke_off(&body, http2) {
        return Err(Failed::away("the answer broke off"));
    }
    Ok((bytes.into(), trailers))
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let (body, ended, deadline, http2) = match &mut this.content {
            Content::Own(text) => {
                let text = std::mem::take(text);
                if let Some(record) = &mut this.record {
                    record.received.set_bytes(text.len() as u64);
                }
                return Poll::Ready((!text.is_empty()).then(|| Ok(Frame::data(text))));
            }
            Content::Server { body, ended, deadline, lease } => (body, ended, deadline, lease.is_http2()),
        };
        let Poll::Ready(mut frame) = Pin::new(&mut *body).poll_frame(cx) else {
            let Some(deadline) = deadline else { return Poll::Pending };
            ready!(deadline.as_mut().poll(cx));
            if let Some(record) = &mut this.record {
                record.outcome = Some(Reason::RequestTimeout.into());
            }
            return Poll::Ready(Some(Err(BodyError::new("the answer took too long"))));
        };
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            keep_fit(trailers);
        }
        match (&frame, &mut this.record) {
            (Some(Ok(frame)), Some(record)) => {
                record.activity.moved();
                if let Some(data) = frame.data_ref() {
                    record.received.pass(data);
                } else if let Some(trailers) = frame.trailers_ref() {
                    record.grpc_status = grpc_status(trailers).or(record.grpc_status);
                }
            }
            (Some(Err(error)), record) => {
                if let Some(record) = record {
                    record.flags.add(flag_of(error));
                    record.outcome = Some(Refusal::new(Reason::UpstreamReset, error));
                }
            }
            (None, record) if broke_off(body, http2) => {
                let why = "the server broke off";
                if let Some(record) = record {
                    record.outcome = Some(Refusal::new(Reason::UpstreamReset, why));
                }
                return Poll::Ready(Some(Err(BodyError::new(why))));
            }
            (None, _) => *ended = true,
            (Some(Ok(_)), None) => {}
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::new)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Own(text) => text.is_empty(),
            Content::Server { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Own(text) => SizeHint::with_exact(text.len() as u64),
            Content::Server { body, .. } => body.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Content::Server { body, lease, ended, .. } = &mut self.content
            && (*ended || body.is_end_stream())
        {
            lease.finish();
            if let Some(record) = &mut self.record {
                record.outcome = None;
            }
        }
    }
}

/// A client may take trailers for headers (RFC 9110, section 6.5.1): what says where a message ends, or is this hop's
/// alone, is not a server's to write there.
fn keep_fit(trailers: &mut HeaderMap) {
    let unfit: Vec<_> = trailers.keys().filter(|name| is_unfit(name)).cloned().collect();
    for name in unfit {
        trailers.remove(name);
    }
}

/// The status that gRPC has in its trailers, or in the head of an answer without a body.
pub(super) fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn an_answers_trailers_say_nothing_of_where_it_ends() {
        let mut trailers = HeaderMap::new();
        for name in
            ["grpc-status", "grpc-message", "content-length", "transfer_encoding", "connection", "host"]
        {
            trailers.append(HeaderName::from_static(name), HeaderValue::from_static("0"));
        }
        keep_fit(&mut trailers);
        assert_eq!(trailers.keys().collect::<Vec<_>>(), ["grpc-status", "grpc-message"]);
    }
}
