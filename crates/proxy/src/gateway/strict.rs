//! What the HTTP library takes and we do not: requests that another server on the way might read differently.
//!
//! The library refuses differing lengths, folded headers, NUL bytes and codings that do not end in `chunked` by itself.

use http::header;
use pingora_core::Result;
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::status;

/// # Errors
/// 400 or 431, with the reason.
pub(super) fn check(session: &Session, header_bytes_max: u64) -> Result<()> {
    let Some(h1) = session.as_http1() else {
        let request = session.req_header();
        check_path(request)?;
        let headers: usize =
            request.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        return check_length(headers + request.raw_path().len(), header_bytes_max);
    };
    let head = h1.get_headers_raw_bytes();
    check_length(head.len(), header_bytes_max)?;
    if has_bare_line_feed(&head) {
        return Err(status(400, "a line feed without a carriage return"));
    }
    // Without it, HTTP/1.1 names no host, and an absolute form would be another host for who looks at the header only.
    let request = session.req_header();
    let must_name = request.version >= http::Version::HTTP_11 || is_absolute(request);
    if must_name && !has_header(&head, b"host") {
        return Err(status(400, "no host"));
    }
    if is_absolute(request) && std::str::from_utf8(request.raw_path()).is_err() {
        return Err(status(400, "an absolute form that is not UTF-8"));
    }
    check_path(request)?;
    // The library has taken one of the two away by now; the bytes still have both.
    if request.headers.contains_key(header::TRANSFER_ENCODING) && has_header(&head, b"content-length") {
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

fn has_header(head: &[u8], name: &[u8]) -> bool {
    let mut lines = head.split(|byte| *byte == b'\n').skip(1);
    lines.any(|line| {
        let is_it = line.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name));
        is_it && line.get(name.len()) == Some(&b':')
    })
}

/// Whether a request of HTTP/1 names more than a path. That its host is the header's the library has seen to.
pub(super) fn is_absolute(request: &RequestHeader) -> bool {
    let target = request.raw_path();
    !target.starts_with(b"/") && target != b"*"
}

fn check_path(request: &RequestHeader) -> Result<()> {
    let raw = request.raw_path();
    let path = if std::str::from_utf8(raw).is_ok() {
        request.uri.path().as_bytes()
    } else {
        raw.split(|byte| *byte == b'?').next().unwrap_or_default()
    };
    if has_dots(path) { Err(status(400, "a path with `.` or `..`")) } else { Ok(()) }
}

/// Whether a segment is `.` or `..` for somebody: routes go by the path as it stands, and a backend that resolves it would
/// answer for another one. Encoded dots count, and so do slashes and backslashes that only some take for an end.
fn has_dots(mut path: &[u8]) -> bool {
    // Of the segment so far: the dots, if it has nothing else.
    let mut dots = Some(0);
    let is_dotted = |dots: Option<usize>| matches!(dots, Some(1 | 2));
    while let [first, rest @ ..] = path {
        let (byte, rest) = match (first, rest) {
            (b'%', [b'2', b'e' | b'E', rest @ ..]) => (b'.', rest),
            (b'%', [b'2', b'f' | b'F', rest @ ..] | [b'5', b'c' | b'C', rest @ ..]) => (b'/', rest),
            (b'\\', rest) => (b'/', rest),
            (byte, rest) => (*byte, rest),
        };
        match byte {
            b'/' if is_dotted(dots) => return true,
            b'/' => dots = Some(0),
            b'.' => dots = dots.map(|dots| dots + 1),
            _ => dots = None,
        }
        path = rest;
    }
    is_dotted(dots)
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
            assert_eq!(has_header(head, b"content-length"), is_long, "{text}");
        }
    }

    #[test]
    fn dots_are_seen_however_they_are_written() {
        let dotted = [
            "/.",
            "/..",
            "/a/../b",
            "/a/./b",
            "/%2e%2E/b",
            "/a/.%2e",
            "/..%2fb",
            "/a%2F..",
            "/a\\..\\b",
            "/a%5c%2e/",
        ];
        let plain = ["/", "*", "/a.b/c..d", "/...", "/.well-known/x", "/a%2fb", "/..a/b..", "/%2e%2e%2e"];
        assert!(dotted.iter().all(|path| has_dots(path.as_bytes())));
        for path in plain {
            assert!(!has_dots(path.as_bytes()), "{path}");
        }
    }
}
