use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

/// A body that gives the last byte of each chunk by itself.
///
/// A chunk goes to HTTP/2 whole as soon as the client has room for one byte of it, and a body that has given its last one is
/// gone, with all that counts what is held for it. So it stays until all but one byte is on its way.
pub(super) struct HeldBack<B> {
    body: B,
    /// Whether it does so.
    on: bool,
    last: Option<Bytes>,
}

impl<B> HeldBack<B> {
    pub(super) fn new(body: B, on: bool) -> Self {
        Self { body, on, last: None }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for HeldBack<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        if let Some(last) = this.last.take() {
            return Poll::Ready(Some(Ok(Frame::data(last))));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            let frame = frame?;
            Ok(frame.map_data(|mut data| {
                if this.on && data.len() > 1 {
                    this.last = Some(data.split_off(data.len() - 1));
                }
                data
            }))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.last.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let last = u64::from(self.last.is_some());
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + last);
        }
        hint.set_lower(hint.lower() + last);
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http_body_util::Full;

    use super::*;

    fn next(body: &mut HeldBack<Full<Bytes>>) -> Option<Bytes> {
        match Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(frame) => frame.map(|frame| frame.unwrap().into_data().unwrap()),
            Poll::Pending => panic!("all of it is there"),
        }
    }

    #[test]
    fn the_last_byte_of_a_chunk_is_one_by_itself() {
        for (text, on, wanted) in
            [("hello", true, &["hell", "o"][..]), ("hello", false, &["hello"]), ("x", true, &["x"])]
        {
            let mut body = HeldBack::new(Full::new(Bytes::from(text)), on);
            for chunk in wanted {
                assert!(!body.is_end_stream());
                let left = body.size_hint().exact().unwrap();
                assert_eq!(next(&mut body).unwrap(), chunk);
                assert_eq!(body.size_hint().exact(), Some(left - chunk.len() as u64));
            }
            assert!(body.is_end_stream() && next(&mut body).is_none());
        }
    }
}
