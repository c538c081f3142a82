//! What the HTTP library takes and we do not: requests that another server on the way might read differently.
//!
//! The library refuses differing lengths, folded headers, NUL bytes and codings that do not end in `chunked` by itself.

use http::header;
use pingora_core::Result;
use pingora_proxy::Session;

use super::status;

/// # Errors
/// 400 or 431, with the reason.
pub(super) fn check(session: &Session, header_bytes_max: u64) -> Result<()> {
    let Some(h1) = session.as_http1() else {
        let request = session.req_header();
        let headers: usize =
            request.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        return check_length(headers + request.raw_path().len(), header_bytes_max);
    };
    let head = h1.get_headers_raw_bytes();
    check_length(head.len(), header_bytes_max)?;
    if has_bare_line_feed(&head) {
        return Err(status(400, "a line feed without a carriage return"));
    }
    // The library has taken one of the two away by now; the bytes still have both.
    if session.req_header().headers.contains_key(header::TRANSFER_ENCODING) && has_length(&head) {
        return Err(status(400, "both a length and a coding"));
    }
    Ok(())
}

fn check_length(length: usize, length_max: u64) -> Result<()> {
    if length as u64 > length_max { Err(status(431, "the headers are too large")) } else { Ok(()) }
}

fn has_bare_line_feed(head: &[u8]) -> bool {
    let mut before = 0;
    head.iter().any(|byte| {
        let is_bare = *byte == b'\n' && before != b'\r';
        before = *byte;
        is_bare
    })
}

fn has_length(head: &[u8]) -> bool {
    const NAME: &[u8] = b"content-length";
    let mut lines = head.split(|byte| *byte == b'\n').skip(1);
    lines.any(|line| line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_strictly() {
        let table: [(&[u8], bool, bool); 5] = [
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", false, false),
            (b"GET / HTTP/1.1\nHost: a\r\n\r\n", true, false),
            (b"GET / HTTP/1.1\r\nHost: a\n\r\n", true, false),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-LENGTH: 3\r\n\r\n", false, true),
            (b"POST /content-length HTTP/1.1\r\nHost: content-length\r\n\r\n", false, false),
        ];
        for (head, is_bare, is_long) in table {
            let text = String::from_utf8_lossy(head);
            assert_eq!(has_bare_line_feed(head), is_bare, "{text}");
            assert_eq!(has_length(head), is_long, "{text}");
        }
    }
}
