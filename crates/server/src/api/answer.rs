//! What requests get: JSON with the revision of the view, or lines of JSON without an end.

use std::convert::Infallible;
use std::future::Future;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, ETAG, HeaderName};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use lightbyte_link::client::REVISION_HEADER;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use crate::Server;
use crate::api::STREAMS_MAX;
use crate::problem::Failure;

/// Says after which name a list that was cut short goes on.
pub(crate) const NEXT_HEADER: HeaderName = HeaderName::from_static("lightbyte-next");

/// A good answer.
pub(crate) struct Answer<T> {
    /// What was asked for.
    pub(crate) value: T,
    /// The revision of the view that shows it, or of the write that made it.
    pub(crate) revision: u64,
    /// The revision of `asked`, for `If-Match`.
    pub(crate) etag: Option<u64>,
    /// The name after which a list goes on.
    pub(crate) next: Option<String>,
}

/// What handlers return.
pub(crate) type Answered<T> = Result<Answer<T>, Failure>;

impl<T> Answer<T> {
    /// An answer that is true at `revision`.
    pub(crate) fn at(revision: u64, value: T) -> Answer<T> {
        Answer { value, revision, etag: None, next: None }
    }
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        let bytes = match serde_json::to_vec(&self.value) {
            Ok(bytes) => bytes,
            Err(error) => {
                let title = format!("the answer cannot be written as JSON: {error}");
                return Failure::new(StatusCode::INTERNAL_SERVER_ERROR, title).into_response();
            }
        };
        let mut response = ([(CONTENT_TYPE, "application/json")], bytes).into_response();
        let headers = response.headers_mut();
        headers.insert(REVISION_HEADER, self.revision.into());
        let etag = self.etag.and_then(|etag| HeaderValue::from_str(&format!("\"{etag}\"")).ok());
        etag.map(|etag| headers.insert(ETAG, etag));
        let next = self.next.and_then(|next| HeaderValue::from_str(&next).ok());
        next.map(|next| headers.insert(NEXT_HEADER, next));
        response
    }
}

/// Whatever yields lines until it ends.
pub(crate) trait Lines: Send + 'static {
    /// The next bytes of lines; `None` ends the stream. It is not called while the caller has not taken the last ones:
    /// a slow caller is felt by the source of the lines.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// A stream of JSON lines that begins at `revision`.
pub(crate) fn lines<L: Lines>(revision: u64, lines: L, permit: OwnedSemaphorePermit) -> Response {
    let body = stream::unfold((lines, permit), |(mut lines, permit)| async move {
        let bytes = lines.next().await?;
        Some((Ok::<_, Infallible>(bytes), (lines, permit)))
    });
    let mut response = ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response();
    response.headers_mut().insert(REVISION_HEADER, revision.into());
    response
}

/// Adds one line.
pub(crate) fn push_line(lines: &mut Vec<u8>, line: &impl Serialize) {
    // Plain data always serialises; if it ever did not, the reader would see a line that it cannot read, and begin anew.
    if serde_json::to_writer(&mut *lines, line).is_err() {
        tracing::error!("a line of a stream cannot be written as JSON");
    }
    lines.push(b'\n');
}

impl Server {
    /// Room for one more stream.
    pub(crate) fn stream_permit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        std::sync::Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            let title = format!("this server has {STREAMS_MAX} streams open, which is its limit");
            Failure::new(StatusCode::TOO_MANY_REQUESTS, title).hint("ask another server")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    #[test]
    fn one_stream_too_many_is_refused_and_a_closed_one_makes_room() {
        let mut server = Server::unserved(Arc::new(lightbyte_store::MemoryStore::new()));
        server.streams = Arc::new(Semaphore::new(1));
        let first = server.stream_permit().unwrap();
        let refused = server.stream_permit().unwrap_err().0;
        assert_eq!(refused.status, 429);
        assert!(refused.hint.is_some());
        drop(first);
        assert!(server.stream_permit().is_ok());
    }
}
