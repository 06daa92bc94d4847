//! Edge: sending a file, which needs no more memory than a piece of it.

use std::fs::File;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use hyper::{Request, header};

use super::connection::{Connection, Lines};
use super::{ClientError, Method};

/// How much is read at once, in bytes.
const PIECE: usize = 1 << 18;

impl Connection {
    /// Sends a file from where it stands to its end, and reads the head of the answer, which comes in lines, within
    /// `limit`. `sent` hears how many bytes were read so far.
    ///
    /// # Errors
    ///
    /// As [`Connection::call`].
    pub async fn upload(
        self,
        path: &str,
        file: File,
        sent: impl FnMut(u64) + Send + 'static,
        limit: Duration,
    ) -> Result<Lines, ClientError> {
        let body = Pieces { file, read: 0, sent };
        let head = Request::builder().method(Method::POST).uri(path);
        let head = head.header(header::HOST, self.authority());
        let head = head.header(header::CONTENT_TYPE, "application/x-ndjson");
        let request = head.body(body.boxed_unsync()).map_err(|error| self.inexpressible(error))?;
        self.answered_in_lines(request, limit).await
    }
}

/// A file as the body of a request.
struct Pieces<F> {
    file: File,
    read: u64,
    sent: F,
}

impl<F> Unpin for Pieces<F> {}

impl<F: FnMut(u64)> Body for Pieces<F> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let mut piece = vec![0; PIECE];
        Poll::Ready(match this.file.read(&mut piece) {
            Ok(0) => None,
            Ok(length) => {
                piece.truncate(length);
                this.read += u64::try_from(length).unwrap_or(0);
                (this.sent)(this.read);
                Some(Ok(Frame::data(piece.into())))
            }
            Err(error) => Some(Err(error)),
        })
    }
}
