//! The table for HTTP/2 without TLS: frames by hand, since no library would make them.

use super::check::{Case, Expected};
use Expected::{Either, Refused, Taken};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A reset, a goodbye, or a status that says no.
const NO: Expected = Refused(&[0, 1, 400, 404, 405, 431, 501]);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What is sent as an answer to [`status_of`]'s question when it is a status of its own in letters.
const SOME_STATUS: u16 = 1;

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Literal fields that nobody is to remember (RFC 7541, 6.2.2), without Huffman's code.
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            number(text.len(), &mut block);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// An integer with a prefix of seven bits (RFC 7541, 5.1).
fn number(value: usize, block: &mut Vec<u8>) {
    let Some(mut rest) = value.checked_sub(127) else {
        return block.push(u8::try_from(value).expect("fits"));
    };
    block.push(127);
    while rest >= 128 {
        block.push(u8::try_from(rest % 128 + 128).expect("fits"));
        rest /= 128;
    }
    block.push(u8::try_from(rest).expect("fits"));
}

pub(super) fn begin() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(SETTINGS, 1, 0, &[])].concat()
}

fn request(fields: &[(&str, &str)]) -> Vec<u8> {
    [begin(), frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(fields))].concat()
}

fn with_body(fields: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    [begin(), frame(HEADERS, END_HEADERS, 1, &block(fields)), frame(DATA, END_STREAM, 1, body)].concat()
}

/// The status of the first answer: 0 if there is none, [`SOME_STATUS`] if it stands there in letters.
pub(super) fn status_of(mut answer: &[u8]) -> u16 {
    while let Some((head, rest)) = answer.split_at_checked(9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let Some((payload, after)) = rest.split_at_checked(length) else { return 0 };
        if head[3] == HEADERS {
            // The size of a table may change first.
            let first = payload.iter().find(|byte| !(0x20..0x40).contains(*byte));
            return match first {
                Some(0x88) => 200,
                Some(0x89) => 204,
                Some(0x8a) => 206,
                Some(0x8b) => 304,
                Some(0x8c) => 400,
                Some(0x8d) => 404,
                Some(0x8e) => 500,
                _ => SOME_STATUS,
            };
        }
        answer = after;
    }
    0
}

const GOOD: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "@case@")];
const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "@case@")];

fn and(
    fields: &[(&'static str, &'static str)],
    more: &[(&'static str, &'static str)],
) -> Vec<(&'static str, &'static str)> {
    [fields, more].concat()
}

/// The good one with one field in another way; with none, without it.
fn but(name: &'static str, value: Option<&'static str>) -> Vec<(&'static str, &'static str)> {
    let change = |(key, old): &(&'static str, &'static str)| match (*key == name, value) {
        (true, value) => value.map(|value| (name, value)),
        (false, _) => Some((*key, *old)),
    };
    GOOD.iter().filter_map(change).collect()
}

pub(super) fn all() -> Vec<Case> {
    let fields = fields().into_iter().map(|(what, expected, fields)| (what, expected, request(&fields)));
    let case = |(what, expected, bytes): (&'static str, Expected, Vec<u8>)| Case {
        what,
        bytes,
        expected,
        is_h2: true,
    };
    fields.chain(frames()).map(case).collect()
}

type Fields = Vec<(&'static str, &'static str)>;

fn fields() -> Vec<(&'static str, Expected, Fields)> {
    let last = |more: &[(&'static str, &'static str)]| and(&GOOD, more);
    vec![
        ("HTTP/2: nothing odd", Taken, GOOD.to_vec()),
        ("HTTP/2: no path", NO, but(":path", None)),
        ("HTTP/2: an empty path", NO, but(":path", Some(""))),
        ("HTTP/2: a path without its slash", NO, but(":path", Some("x@case@"))),
        ("HTTP/2: a path with a space", NO, but(":path", Some("@case@ HTTP/1.1"))),
        (
            "HTTP/2: a path with a request in it",
            NO,
            but(":path", Some("@case@ HTTP/1.1\r\nHost: a\r\n\r\nGET @smuggled@")),
        ),
        ("HTTP/2: a path with a NUL", NO, but(":path", Some("@case@\0"))),
        ("HTTP/2: a path with a line feed", NO, but(":path", Some("@case@\nx"))),
        ("HTTP/2: a path with dots", NO, but(":path", Some("/x/..@case@"))),
        ("HTTP/2: a path that is a whole URL", NO, but(":path", Some("http://b@case@"))),
        ("HTTP/2: no method", NO, but(":method", None)),
        ("HTTP/2: an empty method", NO, but(":method", Some(""))),
        (
            "HTTP/2: a method with a request in it",
            NO,
            but(":method", Some("GET @smuggled@ HTTP/1.1\r\nHost: a\r\n\r\nGET")),
        ),
        ("HTTP/2: a method with a space", NO, but(":method", Some("GET @smuggled@ HTTP/1.1"))),
        ("HTTP/2: a tunnel", NO, vec![(":method", "CONNECT"), (":authority", "a:80")]),
        ("HTTP/2: a tunnel with a path", NO, but(":method", Some("CONNECT"))),
        ("HTTP/2: no scheme", Either, but(":scheme", None)),
        ("HTTP/2: a scheme with a space", NO, but(":scheme", Some("http x"))),
        (
            "HTTP/2: a scheme with a request in it",
            NO,
            but(":scheme", Some("http://a@smuggled@ HTTP/1.1\r\n")),
        ),
        ("HTTP/2: no authority and no host", NO, but(":authority", None)),
        ("HTTP/2: an authority with a user", NO, but(":authority", Some("u@a"))),
        ("HTTP/2: an authority with a slash", NO, but(":authority", Some("a/b"))),
        ("HTTP/2: an authority with a line end", NO, but(":authority", Some("a\r\nX: y"))),
        ("HTTP/2: another host than the authority", NO, last(&[("host", "b")])),
        ("HTTP/2: the authority's host", Either, last(&[("host", "a")])),
        ("HTTP/2: two hosts", NO, last(&[("host", "a"), ("host", "b")])),
        ("HTTP/2: the path twice", NO, last(&[(":path", "@case@")])),
        ("HTTP/2: the method twice", NO, last(&[(":method", "GET")])),
        (
            "HTTP/2: a pseudo header after others",
            NO,
            vec![
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "a"),
                ("x", "y"),
                (":path", "@case@"),
            ],
        ),
        ("HTTP/2: a pseudo header that nobody knows", NO, and(&[(":x", "y")], &GOOD)),
        ("HTTP/2: an answer's pseudo header", NO, and(&[(":status", "200")], &GOOD)),
        ("HTTP/2: a name in capitals", NO, last(&[("X-Y", "z")])),
        ("HTTP/2: a name with a colon", NO, last(&[("x:y", "z")])),
        ("HTTP/2: a name with a space", NO, last(&[("x y", "z")])),
        ("HTTP/2: a name with a line end", NO, last(&[("x: y\r\nz", "z")])),
        ("HTTP/2: a name with a NUL", NO, last(&[("x\0", "z")])),
        ("HTTP/2: an empty name", NO, last(&[("", "z")])),
        (
            "HTTP/2: a value with a request in it",
            NO,
            last(&[("x", "y\r\n\r\nGET @smuggled@ HTTP/1.1\r\nHost: a\r\n\r\n")]),
        ),
        ("HTTP/2: a value with a line feed", NO, last(&[("x", "y\nz: z")])),
        ("HTTP/2: a value with a NUL", NO, last(&[("x", "y\0")])),
        ("HTTP/2: a coding", NO, last(&[("transfer-encoding", "chunked")])),
        ("HTTP/2: a connection", NO, last(&[("connection", "close")])),
        ("HTTP/2: a connection that is kept", NO, last(&[("keep-alive", "5")])),
        ("HTTP/2: a proxy's connection", NO, last(&[("proxy-connection", "close")])),
        ("HTTP/2: another protocol", NO, last(&[("upgrade", "websocket")])),
        ("HTTP/2: te of something else", NO, last(&[("te", "gzip")])),
        ("HTTP/2: te of trailers", Either, last(&[("te", "trailers")])),
        ("HTTP/2: a length without a body", NO, last(&[("content-length", "4")])),
        ("HTTP/2: a coding under a name with a low line", Either, last(&[("transfer_encoding", "chunked")])),
    ]
}

fn frames() -> Vec<(&'static str, Expected, Vec<u8>)> {
    let good = block(&GOOD);
    let hidden = b"GET @smuggled@ HTTP/1.1\r\nHost: a\r\n\r\n";
    let long = "y".repeat(200 * 1_024);
    let long = block(&[GOOD.as_slice(), &[("x", &long)]].concat());
    let mut bomb = vec![begin(), frame(HEADERS, END_STREAM, 1, &long[..16_000])];
    bomb.extend(long[16_000..].chunks(16_000).map(|part| frame(CONTINUATION, 0, 1, part)));
    bomb.push(frame(CONTINUATION, END_HEADERS, 1, &[]));
    // Once in the table of the connection, then a byte each.
    let mut table = block(&GOOD);
    table.extend([0x40, 1, b'x']);
    number(4_000, &mut table);
    table.extend(b"y".repeat(4_000));
    table.extend([0xbe].repeat(4_000));
    let body =
        |length: &'static str, body: &[u8]| with_body(&and(&POST, &[("content-length", length)]), body);
    vec![
        ("HTTP/2: a body", Taken, with_body(&POST, b"abcd")),
        ("HTTP/2: a body and its length", Taken, body("4", b"abcd")),
        ("HTTP/2: a body that is shorter than it says", NO, body("10", b"abcd")),
        ("HTTP/2: a body that is longer than it says", NO, body("2", hidden)),
        ("HTTP/2: a length with a minus", NO, body("-4", b"abcd")),
        ("HTTP/2: a length with a plus", NO, body("+4", b"abcd")),
        ("HTTP/2: a list of lengths", NO, body("4, 5", b"abcd")),
        (
            "HTTP/2: two lengths",
            NO,
            with_body(&and(&POST, &[("content-length", "4"), ("content-length", "5")]), b"abcd"),
        ),
        ("HTTP/2: a request on stream 0", NO, [begin(), frame(HEADERS, 5, 0, &good)].concat()),
        ("HTTP/2: a request on an even stream", NO, [begin(), frame(HEADERS, 5, 2, &good)].concat()),
        (
            "HTTP/2: padding that is longer than its frame",
            NO,
            [begin(), frame(HEADERS, 13, 1, &[&[255], good.as_slice()].concat())].concat(),
        ),
        (
            "HTTP/2: a stream that waits for itself",
            NO,
            [begin(), frame(HEADERS, 0x25, 1, &[&[0, 0, 0, 1, 0], good.as_slice()].concat())].concat(),
        ),
        ("HTTP/2: a continuation of nothing", NO, [begin(), frame(CONTINUATION, 5, 1, &good)].concat()),
        ("HTTP/2: a body of nothing", NO, [begin(), frame(DATA, 1, 1, hidden)].concat()),
        (
            "HTTP/2: another frame between parts of a head",
            NO,
            [
                begin(),
                frame(HEADERS, 1, 1, &good[..8]),
                frame(SETTINGS, 0, 0, &[]),
                frame(CONTINUATION, 4, 1, &good[8..]),
            ]
            .concat(),
        ),
        (
            "HTTP/2: a head in two parts",
            Taken,
            [begin(), frame(HEADERS, 1, 1, &good[..8]), frame(CONTINUATION, 4, 1, &good[8..])].concat(),
        ),
        (
            "HTTP/2: a field of a table that is empty",
            NO,
            [begin(), frame(HEADERS, 5, 1, &[&[0xbe], good.as_slice()].concat())].concat(),
        ),
        ("HTTP/2: a number that does not end", NO, [begin(), frame(HEADERS, 5, 1, &[0xff; 64])].concat()),
        ("HTTP/2: a header of 200 KiB", NO, bomb.concat()),
        ("HTTP/2: 16 MB of headers in 8 KB", NO, [begin(), frame(HEADERS, 5, 1, &table)].concat()),
        (
            "HTTP/2: settings that are no settings",
            NO,
            [PREFACE, &frame(SETTINGS, 0, 0, &[0; 5]), &frame(HEADERS, 5, 1, &good)].concat(),
        ),
        (
            "HTTP/2: a window of more than there is",
            NO,
            [PREFACE, &frame(SETTINGS, 0, 0, &[0, 4, 255, 255, 255, 255]), &frame(HEADERS, 5, 1, &good)]
                .concat(),
        ),
        ("HTTP/2: a frame of more than is allowed", NO, [begin(), frame(DATA, 1, 1, &[0; 20_000])].concat()),
    ]
}
