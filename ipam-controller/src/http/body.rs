//! Edge: the body of a request on its way in, and whether all of it was read.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};

/// Whether a request's body was read to its end.
#[derive(Clone, Debug)]
pub(super) struct Read(Arc<AtomicBool>);

impl Read {
    /// Whether it was. What follows a body that was not is no request, so its connection ends.
    pub(super) fn is_whole(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Returns the request, and what says later whether its body was read.
pub(super) fn observed(request: Request<Incoming>) -> (Request<Body>, Read) {
    let read = Read(Arc::new(AtomicBool::new(hyper::body::Body::is_end_stream(request.body()))));
    let noted = read.clone();
    (request.map(|inner| Body::new(Observed { inner, read: noted })), read)
}

struct Observed {
    inner: Incoming,
    read: Read,
}

impl hyper::body::Body for Observed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.inner.is_end_stream() {
            self.read.0.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
