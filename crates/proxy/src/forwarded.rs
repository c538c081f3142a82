//! What a request tells its backend of where it came from.
//!
//! A stranger's word about the client is worth nothing, so it is dropped; a trusted peer's is passed on and added to.
//! Hop-by-hop headers are the HTTP library's affair (RFC 9110, 7.6.1): it strips them and passes WebSockets only.

use std::net::IpAddr;

use http::HeaderValue;
use pingora_http::RequestHeader;

use crate::chance;

/// Longest list that is passed on and added to. A longer one is a loop or an attack, and begins anew.
const FORWARDED_BYTES_MAX: usize = 4_096;

/// Headers in which a client could tell stories about itself.
const TALES: [&str; 9] = [
    "client-ip",
    "forwarded",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "x-original-url",
    "x-real-ip",
    "x-rewrite-url",
];

/// All that begins so is one too: `-for`, `-host`, `-proto`, and whatever somebody reads.
const TALES_PREFIX: &str = "x-forwarded-";

/// Whether a header tells of the client. Some servers read `_` as `-` (by CGI both are the same), so here both are.
fn is_tale(name: &str) -> bool {
    let is_like = |name: &str, tale: &str| {
        let is_same = |(is, want): (u8, u8)| is == want || (is == b'_' && want == b'-');
        name.len() == tale.len() && name.bytes().zip(tale.bytes()).all(is_same)
    };
    let is_prefixed = name.get(..TALES_PREFIX.len()).is_some_and(|begin| is_like(begin, TALES_PREFIX));
    is_prefixed || TALES.iter().any(|tale| is_like(name, tale))
}

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'a> {
    pub(crate) peer: IpAddr,
    /// The same as text, which is the same for all requests of a connection: see [`peer_text`].
    pub(crate) peer_text: &'a HeaderValue,
    pub(crate) is_trusted: bool,
    pub(crate) scheme: &'static str,
    pub(crate) host: &'a str,
}

/// An address as it stands in a header.
pub(crate) fn peer_text(peer: IpAddr) -> HeaderValue {
    HeaderValue::try_from(peer.to_canonical().to_string()).unwrap_or(HeaderValue::from_static("unknown"))
}

/// Sets the headers that say where the request came from.
pub(crate) fn say(request: &mut RequestHeader, origin: Origin<'_>) -> pingora_core::Result<()> {
    let peer = origin.peer.to_canonical();
    // A trusted peer writes the headers as they are called; with `_` they are its client's.
    let is_dropped = |name: &str| is_tale(name) && (!origin.is_trusted || name.contains('_'));
    let dropped: Vec<_> = request.headers.keys().filter(|name| is_dropped(name.as_str())).cloned().collect();
    for name in &dropped {
        request.remove_header(name);
    }
    match joined(request, "x-forwarded-for") {
        None => request.insert_header("x-forwarded-for", origin.peer_text.clone())?,
        Some(before) => request.insert_header("x-forwarded-for", format!("{before}, {peer}"))?,
    }
    if !request.headers.contains_key("x-forwarded-proto") {
        request.insert_header("x-forwarded-proto", HeaderValue::from_static(origin.scheme))?;
    }
    if !request.headers.contains_key("x-forwarded-host")
        && let Ok(host) = HeaderValue::from_str(origin.host)
    {
        request.insert_header("x-forwarded-host", host)?;
    }
    // Who speaks RFC 7239 begins it; only then it is gone on with.
    if let Some(before) = joined(request, "forwarded") {
        let node = if peer.is_ipv6() { format!("\"[{peer}]\"") } else { peer.to_string() };
        request.insert_header("forwarded", format!("{before}, for={node};proto={}", origin.scheme))?;
    } else {
        // One that cannot be gone on with would leave out this hop.
        request.remove_header("forwarded");
    }
    Ok(())
}

/// All values of a list header as one; none if that is too long or not plain text.
fn joined(request: &RequestHeader, name: &'static str) -> Option<String> {
    let mut joined = String::new();
    for value in request.headers.get_all(name) {
        let separator = if joined.is_empty() { "" } else { ", " };
        joined.push_str(separator);
        joined.push_str(value.to_str().ok()?);
    }
    (!joined.is_empty() && joined.len() <= FORWARDED_BYTES_MAX).then_some(joined)
}

/// The trace of the request: the client's own, or a new one.
pub(crate) fn trace(request: &mut RequestHeader) -> pingora_core::Result<()> {
    let mut given = request.headers.get_all("traceparent").iter();
    let is_good = given.next().is_some_and(is_traceparent) && given.next().is_none();
    if is_good {
        return Ok(());
    }
    request.remove_header("tracestate");
    // Sampled: what stands behind samples by this bit, and 0 would make all traces of a cluster vanish.
    let (high, low, span) = (chance::next(), chance::next() | 1, chance::next() | 1);
    request.insert_header("traceparent", traceparent(high, low, span))
}

/// Written by hand: by `format!` it takes as long as all else here.
fn traceparent(high: u64, low: u64, span: u64) -> Vec<u8> {
    let mut text = Vec::with_capacity(55);
    text.extend_from_slice(b"00-");
    text.extend_from_slice(&hex(high));
    text.extend_from_slice(&hex(low));
    text.push(b'-');
    text.extend_from_slice(&hex(span));
    text.extend_from_slice(b"-01");
    text
}

fn hex(number: u64) -> [u8; 16] {
    std::array::from_fn(|place| b"0123456789abcdef"[(number >> (60 - 4 * place)) as usize & 0xf])
}

/// Version 00 of W3C Trace Context, or a later one that begins like it.
fn is_traceparent(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    let is_hex = |range: std::ops::Range<usize>| {
        bytes.get(range).is_some_and(|part| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
    };
    let is_zero = |range: std::ops::Range<usize>| {
        bytes.get(range).is_some_and(|part| part.iter().all(|byte| *byte == b'0'))
    };
    let is_length_fine =
        bytes.len() == 55 || (bytes.len() > 55 && bytes.len() <= 128 && bytes.get(55) == Some(&b'-'));
    is_length_fine
        && [2, 35, 52].iter().all(|dash| bytes.get(*dash) == Some(&b'-'))
        && is_hex(0..2)
        && is_hex(3..35)
        && is_hex(36..52)
        && is_hex(53..55)
        && !bytes.starts_with(b"ff")
        && (bytes.len() == 55 || !bytes.starts_with(b"00"))
        && !is_zero(3..35)
        && !is_zero(36..52)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Trusted or not, the peer, headers that come, and what becomes of some.
    type Case = (
        bool,
        &'static str,
        &'static [(&'static str, &'static str)],
        &'static [(&'static str, Option<&'static str>)],
    );

    fn request(headers: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).expect("a request");
        for (name, value) in headers {
            request.append_header(*name, *value).expect("a header");
        }
        request
    }

    #[test]
    fn a_strangers_word_is_dropped_and_a_trusted_ones_is_added_to() {
        let table: [Case; 9] = [
            (
                false,
                "10.0.0.9",
                &[],
                &[
                    ("x-forwarded-for", Some("10.0.0.9")),
                    ("x-forwarded-proto", Some("https")),
                    ("x-forwarded-host", Some("a.example")),
                    ("forwarded", None),
                ],
            ),
            (
                false,
                "10.0.0.9",
                &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")],
                &[("x-forwarded-for", Some("10.0.0.9"))],
            ),
            (
                false,
                "10.0.0.9",
                &[
                    ("forwarded", "for=1.1.1.1"),
                    ("x-real-ip", "1.1.1.1"),
                    ("x-forwarded-proto", "ftp"),
                    ("x-forwarded-port", "1"),
                ],
                &[
                    ("forwarded", None),
                    ("x-real-ip", None),
                    ("x-forwarded-proto", Some("https")),
                    ("x-forwarded-port", None),
                ],
            ),
            (
                true,
                "::ffff:10.0.0.9",
                &[
                    ("x-forwarded-for", "1.1.1.1"),
                    ("x-forwarded-for", "2.2.2.2"),
                    ("x-forwarded-proto", "http"),
                ],
                &[
                    ("x-forwarded-for", Some("1.1.1.1, 2.2.2.2, 10.0.0.9")),
                    ("x-forwarded-proto", Some("http")),
                ],
            ),
            (
                true,
                "fd00::1",
                &[("forwarded", "for=1.1.1.1")],
                &[("forwarded", Some("for=1.1.1.1, for=\"[fd00::1]\";proto=https"))],
            ),
            (
                false,
                "10.0.0.9",
                &[
                    ("x_forwarded_for", "1.1.1.1"),
                    ("x-forwarded-ssl", "on"),
                    ("x_real-ip", "1"),
                    ("x-rewrite-url", "/"),
                ],
                &[
                    ("x_forwarded_for", None),
                    ("x-forwarded-ssl", None),
                    ("x_real-ip", None),
                    ("x-rewrite-url", None),
                ],
            ),
            (
                true,
                "10.0.0.9",
                &[("x_forwarded_for", "1.1.1.1"), ("x-forwarded-ssl", "on"), ("x-request-id", "7")],
                &[("x_forwarded_for", None), ("x-forwarded-ssl", Some("on")), ("x-request-id", Some("7"))],
            ),
            (true, "10.0.0.9", &[("forwarded", "for=\u{e9}")], &[("forwarded", None)]),
            (true, "10.0.0.9", &[("x-forwarded-for", "\u{e9}")], &[("x-forwarded-for", Some("10.0.0.9"))]),
        ];
        for (is_trusted, peer, given, expected) in table {
            let mut request = request(given);
            let peer = peer.parse().expect("an address");
            let peer_text = &peer_text(peer);
            say(&mut request, Origin { peer, peer_text, is_trusted, scheme: "https", host: "a.example" })
                .expect("fits");
            for (name, value) in expected {
                let found: Vec<_> = request
                    .headers
                    .get_all(*name)
                    .iter()
                    .map(|value| value.to_str().expect("text"))
                    .collect();
                assert_eq!(found, value.iter().copied().collect::<Vec<_>>(), "{name} after {given:?}");
            }
        }
    }

    #[test]
    fn a_trace_is_written_as_its_numbers() {
        let (high, low, span) = (0x4bf9_2f35_77b3_4da6, 0xa3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7);
        let text = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(high, low, span), text);
    }

    #[test]
    fn a_good_trace_passes_and_another_is_replaced() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let table: [(&[&str], bool); 8] = [
            (&[good], true),
            (&["01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"], true),
            (&["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"], false),
            (&["ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"], false),
            (&["00-00000000000000000000000000000000-00f067aa0ba902b7-01"], false),
            (&["00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"], false),
            (&[good, good], false),
            (&[], false),
        ];
        for (given, is_kept) in table {
            let headers: Vec<_> = given.iter().map(|value| ("traceparent", *value)).collect();
            let mut request = request(&headers);
            trace(&mut request).expect("fits");
            let values: Vec<_> = request.headers.get_all("traceparent").iter().collect();
            assert_eq!(values.len(), 1, "{given:?}");
            assert!(is_traceparent(values[0]), "{given:?}");
            assert_eq!(given.first().is_some_and(|first| values[0] == first), is_kept, "{given:?}");
        }
    }
}
