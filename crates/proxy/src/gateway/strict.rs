//! What the HTTP library takes and we do not: requests that another server on the way might read differently.
//!
//! The library refuses differing lengths, folded headers, NUL bytes and codings that do not end in `chunked` by itself.

use http::{Method, header};
use pingora_core::Result;
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::status;

/// # Errors
/// 400 or 431, with the reason.
pub(super) fn check(session: &Session, header_bytes_max: u64) -> Result<()> {
    let Some(h1) = session.as_http1() else {
        let request = session.req_header();
        check_host(super::host_of(request).as_bytes())?;
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
    if let Some(host) = request.headers.get(header::HOST) {
        check_host(host.as_bytes())?;
    }
    if is_absolute(request) && std::str::from_utf8(request.raw_path()).is_err() {
        return Err(status(400, "an absolute form that is not UTF-8"));
    }
    check_target(request)?;
    check_path(request)?;
    check_coding(request)?;
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

/// A target is a path, a whole URL of a web server, or a star for `OPTIONS` (RFC 9112, 3.2). The library takes a word
/// for a path of its own making.
fn check_target(request: &RequestHeader) -> Result<()> {
    let target = request.raw_path();
    let begins = |with: &[u8]| target.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with));
    let is_star = target == b"*" && request.method == Method::OPTIONS;
    // A tunnel names a host, and is refused as what it is.
    let is_tunnel = request.method == Method::CONNECT;
    if begins(b"/") || begins(b"http://") || begins(b"https://") || is_star || is_tunnel {
        Ok(())
    } else {
        Err(status(400, "a target that is neither a path nor a URL"))
    }
}

/// The library takes any list that ends in `chunked`, and passes the whole on. We understand that one alone.
fn check_coding(request: &RequestHeader) -> Result<()> {
    let mut codings = request.headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_fine =
        codings.next().is_none_or(|coding| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"));
    if is_fine && codings.next().is_none() {
        Ok(())
    } else {
        Err(status(400, "a coding that is not `chunked` alone"))
    }
}

fn check_host(host: &[u8]) -> Result<()> {
    if is_host(host) { Ok(()) } else { Err(status(400, "a host that is none")) }
}

/// Whether a host may be one, with or without a port (RFC 3986, 3.2.2; without a user). An empty one is a host too.
pub(crate) fn is_host(host: &[u8]) -> bool {
    let is_name = |name: &[u8]| {
        name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte))
    };
    let is_port = |port: &[u8]| port.iter().all(u8::is_ascii_digit);
    let split = |at: usize| host.split_at_checked(at).unwrap_or((host, &[]));
    let (is_good, rest) = if host.first() == Some(&b'[') {
        let end = host.iter().position(|byte| *byte == b']').unwrap_or_default();
        let (address, rest) = split(end);
        let is_address = |byte: &u8| byte.is_ascii_hexdigit() || b":.".contains(byte);
        (end > 1 && address[1..].iter().all(is_address), rest.get(1..).unwrap_or_default())
    } else {
        let (name, rest) = split(host.iter().position(|byte| *byte == b':').unwrap_or(host.len()));
        (is_name(name), rest)
    };
    is_good
        && match rest {
            [] => true,
            [b':', port @ ..] => is_port(port),
            _ => false,
        }
}

fn check_path(request: &RequestHeader) -> Result<()> {
    let raw = request.raw_path();
    // The library takes them, and a backend may see another line end or the end of the path there.
    if raw.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        return Err(status(400, "a space or a control character in a path"));
    }
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
    fn a_host_is_a_name_or_an_address_and_perhaps_a_port() {
        let good =
            ["", "a", "a.example.", "a_b", "a:80", "a:", "10.0.0.1:8080", "[::1]", "[fd00::1]:443", "xn--a"];
        let bad = [
            "a b", "a/b", "u@a", "a?b", "a#b", "a\\b", "a\"b", "a:b", "a:80:80", "[::1", "[]", "[::1]x",
            "[g]", "::1", "a\0", "\u{e9}", "a:8 0", "[::1]:x",
        ];
        assert!(good.iter().all(|host| is_host(host.as_bytes())));
        for host in bad {
            assert!(!is_host(host.as_bytes()), "{host}");
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
