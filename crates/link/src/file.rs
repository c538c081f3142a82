//! A file as an answer, from wherever the caller wants to begin: whoever was cut off goes on there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::stream;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderMap, StatusCode};

use crate::client::Problem;

/// How much is read and sent at once.
const CHUNK_BYTES: u64 = 256 << 10;

/// The file, or the rest of it that `Range: bytes=N-` asks for (RFC 9110, section 14.1.2). A range of any other form is
/// answered with the whole, as the standard allows.
///
/// # Errors
/// A [`Problem`] when the file cannot be looked at, or the range begins behind its end.
pub fn answer(file: File, headers: &HeaderMap, keep: impl Send + 'static) -> Result<Response, Problem> {
    let failed = |error: io::Error| Problem {
        title: format!("the file cannot be read: {error}"),
        status: StatusCode::INTERNAL_SERVER_ERROR.as_u16(),
        ..Problem::default()
    };
    let length = file.metadata().map_err(failed)?.len();
    let begin = headers.get(RANGE).and_then(|range| begin_of(range.to_str().ok()?));
    let (status, begin) = match begin {
        Some(begin) if begin > length || (begin == length && length > 0) => {
            return Err(Problem {
                title: format!("the file has {length} bytes"),
                status: StatusCode::RANGE_NOT_SATISFIABLE.as_u16(),
                ..Problem::default()
            });
        }
        Some(begin) => (StatusCode::PARTIAL_CONTENT, begin),
        None => (StatusCode::OK, 0),
    };
    let next = |(file, position, length, keep): (Arc<File>, u64, u64, _)| async move {
        if position >= length {
            return None;
        }
        let source = Arc::clone(&file);
        let bytes = tokio::task::spawn_blocking(move || read(&source, position, length)).await;
        match bytes.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            Ok(bytes) => {
                let position = position + bytes.len() as u64;
                Some((Ok(bytes), (file, position, length, keep)))
            }
            // An end that is not one: the caller sees that the answer was cut.
            Err(error) => Some((Err(error), (file, length, length, keep))),
        }
    };
    let body = Body::from_stream(stream::unfold((Arc::new(file), begin, length, keep), next));
    let head = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (ACCEPT_RANGES, "bytes".to_owned()),
        (CONTENT_LENGTH, (length - begin).to_string()),
    ];
    let mut response = (status, head, body).into_response();
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(range) = format!("bytes {begin}-{}/{length}", length.saturating_sub(1)).parse()
    {
        response.headers_mut().insert(CONTENT_RANGE, range);
    }
    Ok(response)
}

/// Where `bytes=N-` begins.
fn begin_of(range: &str) -> Option<u64> {
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

fn read(file: &File, position: u64, length: u64) -> io::Result<Bytes> {
    let wanted = usize::try_from(CHUNK_BYTES.min(length - position)).unwrap_or(0);
    let mut bytes = vec![0; wanted];
    file.read_exact_at(&mut bytes, position)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rest_of_a_file_is_asked_for() {
        let check = |range: &str, expect: Option<u64>| assert_eq!(begin_of(range), expect, "{range}");
        check("bytes=0-", Some(0));
        check("bytes=17-", Some(17));
        check("bytes=1-2", None);
        check("bytes=-5", None);
        check("lines=1-", None);
    }
}
