//! The table for HTTP/1.

use super::check::{Case, Expected};
use Expected::{Either, Refused, Taken};

const BAD: Expected = Refused(&[400]);
/// The head was good, and the proxy was at work on the request when the body was not.
const BAD_BODY: Expected = Refused(&[0, 400, 502]);
const TOO_LARGE: Expected = Refused(&[0, 400, 414, 431]);

/// What only somebody sees who lost the count of bytes.
const HIDDEN: &str = "GET @smuggled@ HTTP/1.1\r\nHost: a\r\n\r\n";

type Row = (&'static str, Expected, Vec<u8>);

fn get(headers: &str) -> Vec<u8> {
    format!("GET @case@ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n").into_bytes()
}

fn post(headers: &str, body: &str) -> Vec<u8> {
    format!("POST @case@ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n{body}").into_bytes()
}

fn chunked(body: &str) -> Vec<u8> {
    post("Transfer-Encoding: chunked\r\n", body)
}

/// A first line, then what is always right.
fn line(line: &str) -> Vec<u8> {
    format!("{line}\r\nHost: a\r\nConnection: close\r\n\r\n").into_bytes()
}

fn host(headers: &str) -> Vec<u8> {
    format!("GET @case@ HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").into_bytes()
}

pub(super) fn all() -> Vec<Case> {
    let tables = [codings(), lengths(), chunks(), headers(), lines(), hosts(), rest()];
    let case = |(what, expected, bytes): Row| Case { what, bytes, expected, is_h2: false };
    tables.into_iter().flatten().map(case).collect()
}

/// Each spelling beside a length that hides a request behind the end of the coding, and alone.
fn codings() -> Vec<Row> {
    let both = [
        ("a coding and a length", "Transfer-Encoding: chunked"),
        ("a coding in capitals and a length", "TRANSFER-ENCODING: CHUNKED"),
        ("a coding with a space before its colon", "Transfer-Encoding : chunked"),
        ("a coding that is a fold", "X: y\r\n Transfer-Encoding: chunked"),
        ("a coding after a tab", "Transfer-Encoding:\tchunked"),
        ("a coding after a vertical tab", "Transfer-Encoding: \u{b}chunked"),
        ("xchunked", "Transfer-Encoding: xchunked"),
        ("chunked, then identity", "Transfer-Encoding: chunked, identity"),
        ("identity, then chunked", "Transfer-Encoding: identity, chunked"),
        ("identity", "Transfer-Encoding: identity"),
        ("chunked with a parameter", "Transfer-Encoding: chunked;a=b"),
        ("chunked in quotes", "Transfer-Encoding: \"chunked\""),
        ("chunked and a NUL", "Transfer-Encoding: chunked\0"),
        ("chunked, then another line", "Transfer-Encoding: chunked\r\nTransfer-Encoding: x"),
        ("another line, then chunked", "Transfer-Encoding: x\r\nTransfer-Encoding: chunked"),
        ("chunked twice", "Transfer-Encoding: chunked, chunked"),
        ("an empty coding", "Transfer-Encoding:"),
        ("a coding after a carriage return", "X: y\rTransfer-Encoding: chunked"),
        ("a coding after a line feed", "X: y\nTransfer-Encoding: chunked"),
        ("a coding on a folded line", "Transfer-Encoding:\r\n chunked"),
        ("a coding with a letter that folds to k", "Transfer-Encoding: chun\u{212a}ed"),
        ("a coding after a comma", "Transfer-Encoding: , chunked"),
    ];
    let body = format!("0\r\n\r\n{HIDDEN}");
    let length = body.len();
    let mut rows: Vec<Row> = both
        .iter()
        .map(|(what, header)| (*what, BAD, post(&format!("{header}\r\nContent-Length: {length}\r\n"), &body)))
        .collect();
    let first =
        |what, header: &str| (what, BAD, post(&format!("Content-Length: {length}\r\n{header}\r\n"), &body));
    rows.push(first("a length and a coding", "Transfer-Encoding: chunked"));
    rows.push(first("a length and a coding with garbage", "Transfer-Encoding: chunked x"));
    rows.push((
        "a coding under a name with a low line and a length",
        Either,
        post(&format!("Transfer_Encoding: chunked\r\nContent-Length: {length}\r\n"), &body),
    ));
    let alone = [
        ("a coding alone", "Transfer-Encoding: chunked", Taken),
        ("a coding alone in capitals", "TRANSFER-ENCODING: CHUNKED", Taken),
        ("xchunked alone", "Transfer-Encoding: xchunked", BAD),
        ("identity alone", "Transfer-Encoding: identity", Either),
        ("gzip, then chunked alone", "Transfer-Encoding: gzip, chunked", Either),
        ("chunked, then gzip alone", "Transfer-Encoding: chunked, gzip", BAD),
        ("chunked twice alone", "Transfer-Encoding: chunked, chunked", Either),
        ("chunked in two lines", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", Either),
        ("chunked with garbage alone", "Transfer-Encoding: chunked x", BAD),
        ("an empty coding alone", "Transfer-Encoding:", BAD),
    ];
    let alone = alone
        .iter()
        .map(|(what, header, expected)| (*what, *expected, post(&format!("{header}\r\n"), "0\r\n\r\n")));
    rows.extend(alone);
    rows.push((
        "a coding in HTTP/1.0",
        BAD,
        b"POST @case@ HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
    ));
    rows
}

fn lengths() -> Vec<Row> {
    let table = [
        ("two lengths that differ", "Content-Length: 4\r\nContent-Length: 5", BAD),
        ("two lengths that differ, the longer first", "Content-Length: 5\r\nContent-Length: 4", BAD),
        ("a list of lengths that differ", "Content-Length: 4, 5", BAD),
        ("two lengths that agree", "Content-Length: 4\r\nContent-Length: 4", Either),
        ("a list of lengths that agree", "Content-Length: 4, 4", Either),
        ("a length with a plus", "Content-Length: +4", BAD),
        ("a length with a minus", "Content-Length: -4", BAD),
        ("a length in base 16", "Content-Length: 0x4", BAD),
        ("a length with a space in it", "Content-Length: 4 4", BAD),
        ("a length with letters after it", "Content-Length: 4abc", BAD),
        ("a length with a dot", "Content-Length: 4.0", BAD),
        ("a length with an exponent", "Content-Length: 4e0", BAD),
        ("a length in other digits", "Content-Length: \u{664}", BAD),
        ("an empty length", "Content-Length:", BAD),
        ("a length of zeros before it", "Content-Length: 0004", Either),
        ("a length of 2^64 + 4", "Content-Length: 18446744073709551620", BAD),
        (
            "a length of 2^32 + 4 with nothing to it",
            "Content-Length: 4294967300",
            Refused(&[0, 400, 413, 502]),
        ),
        ("a length of many digits", "Content-Length: 99999999999999999999999999999999", BAD),
        ("a length with a NUL", "Content-Length: 4\0", BAD),
        ("a length after a vertical tab", "Content-Length: \u{b}4", BAD),
        ("a length with a space before its colon", "Content-Length : 4", BAD),
        ("a length, and one of another case that differs", "content-length: 4\r\nCONTENT-LENGTH: 5", BAD),
    ];
    let mut rows: Vec<Row> = table
        .iter()
        .map(|(what, header, expected)| (*what, *expected, post(&format!("{header}\r\n"), "abcd")))
        .collect();
    rows.push(("a body that ends early", BAD_BODY, post("Content-Length: 10\r\n", "abcd")));
    let hidden = format!("Content-Length: {}\r\n", HIDDEN.len());
    rows.push((
        "a request in the body of a GET",
        Either,
        [get(&hidden), HIDDEN.as_bytes().to_vec()].concat(),
    ));
    rows
}

fn chunks() -> Vec<Row> {
    let hidden = format!("0\r\n\r\n{HIDDEN}");
    let long = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    let extension = format!("4;{}\r\nabcd\r\n0\r\n\r\n", "a".repeat(100_000));
    let table: [(&'static str, Expected, &str); 20] = [
        ("a chunk", Taken, "4\r\nabcd\r\n0\r\n\r\n"),
        ("a request in a chunk", Taken, &long),
        ("a chunk with an extension", Either, "4;a=b\r\nabcd\r\n0\r\n\r\n"),
        ("a chunk with a long extension", Either, &extension),
        ("a chunk of a negative size", BAD_BODY, "-4\r\nabcd\r\n0\r\n\r\n"),
        ("a chunk size with a plus", BAD_BODY, "+4\r\nabcd\r\n0\r\n\r\n"),
        ("a chunk size with a base", BAD_BODY, "0x4\r\nabcd\r\n0\r\n\r\n"),
        ("a chunk size of zeros before it", Either, "00000004\r\nabcd\r\n0\r\n\r\n"),
        ("a chunk size that is too large by far", BAD_BODY, "fffffffffffffffff\r\nabcd\r\n0\r\n\r\n"),
        ("a chunk size of 2^64 + 4", BAD_BODY, "10000000000000004\r\nabcd\r\n0\r\n\r\n"),
        ("no chunk size", BAD_BODY, "\r\nabcd\r\n0\r\n\r\n"),
        ("a chunk size with an underscore", BAD_BODY, "0_4\r\nabcd\r\n0\r\n\r\n"),
        ("a chunk that ends in a line feed", BAD_BODY, "4\r\nabcd\n0\r\n\r\n"),
        ("a chunk size that ends in a line feed", BAD_BODY, "4\nabcd\r\n0\r\n\r\n"),
        ("a chunk extension that ends in a line feed", BAD_BODY, "4;a\nabcd\r\n0\r\n\r\n"),
        ("a chunk size that ends in a carriage return", BAD_BODY, "4\rabcd\r\n0\r\n\r\n"),
        ("a chunk that is longer than it says", BAD_BODY, "4\r\nabcdef\r\n0\r\n\r\n"),
        ("chunks that do not end", BAD_BODY, "4\r\nabcd\r\n"),
        ("a trailer", Either, "4\r\nabcd\r\n0\r\nX: y\r\n\r\n"),
        ("a trailer that is a length", Either, "4\r\nabcd\r\n0\r\nContent-Length: 5\r\n\r\n"),
    ];
    table.iter().map(|(what, expected, body)| (*what, *expected, chunked(body))).collect()
}

fn headers() -> Vec<Row> {
    let table: [(&'static str, Expected, &str); 24] = [
        ("nothing odd", Taken, ""),
        ("a folded header", BAD, "X: y\r\n z\r\n"),
        ("a header that begins folded", BAD, " X: y\r\n"),
        ("a space before a colon", BAD, "X : y\r\n"),
        ("a tab before a colon", BAD, "X\t: y\r\n"),
        ("a NUL in a value", BAD, "X: y\0z\r\n"),
        ("a NUL in a name", BAD, "X\0Y: z\r\n"),
        ("a control character in a value", BAD, "X: y\u{1}z\r\n"),
        ("DEL in a value", BAD, "X: y\u{7f}z\r\n"),
        ("a carriage return in a value", BAD, "X: y\rz\r\n"),
        ("a carriage return at the end of a value", BAD, "X: y\r\r\n"),
        ("a line feed alone", BAD, "X: y\nZ: z\r\n"),
        ("a line without a colon", BAD, "X\r\n"),
        ("an empty name", BAD, ": y\r\n"),
        ("a name with a parenthesis", BAD, "X(: y\r\n"),
        ("a name with a brace", BAD, "X{: y\r\n"),
        ("a name with a letter of another alphabet", BAD, "X\u{e9}: y\r\n"),
        ("a value with a letter of another alphabet", Either, "X: \u{e9}\r\n"),
        ("a tab in a value", Taken, "X: y\tz\r\n"),
        ("an empty value", Taken, "X:\r\n"),
        ("a hop's header that names the client's", BAD, "Connection: x-forwarded-for\r\n"),
        ("a hop's header that names the host", BAD, "Connection: host\r\n"),
        (
            "another protocol",
            Either,
            "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nConnection: Upgrade, HTTP2-Settings\r\n",
        ),
        ("an expectation of something else", Either, "Expect: tea\r\n"),
    ];
    let mut rows: Vec<Row> =
        table.iter().map(|(what, expected, headers)| (*what, *expected, get(headers))).collect();
    rows.push(("a header of 200 KiB", TOO_LARGE, get(&format!("X: {}\r\n", "y".repeat(200 * 1_024)))));
    rows.push(("ten thousand headers", TOO_LARGE, get(&"X: y\r\n".repeat(10_000))));
    rows.push(("a name of 70 KiB", TOO_LARGE, get(&format!("{}: y\r\n", "x".repeat(70 * 1_024)))));
    rows.push((
        "a head of line feeds alone",
        BAD,
        b"GET @case@ HTTP/1.1\nHost: a\nConnection: close\n\n".to_vec(),
    ));
    rows.push((
        "a head of carriage returns alone",
        Refused(&[0, 400, 408]),
        b"GET @case@ HTTP/1.1\rHost: a\r\r".to_vec(),
    ));
    rows.push((
        "an empty line of a line feed",
        BAD,
        b"GET @case@ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\n".to_vec(),
    ));
    rows
}

fn lines() -> Vec<Row> {
    let table = [
        ("HTTP/0.9 without a version", BAD, "GET @case@"),
        ("HTTP/0.9", BAD, "GET @case@ HTTP/0.9"),
        ("HTTP/1.2", BAD, "GET @case@ HTTP/1.2"),
        ("HTTP/2.0 in a line", BAD, "GET @case@ HTTP/2.0"),
        ("a version of two digits", BAD, "GET @case@ HTTP/1.10"),
        ("a version with a zero before it", BAD, "GET @case@ HTTP/01.1"),
        ("a version in small letters", BAD, "GET @case@ http/1.1"),
        ("another protocol's version", BAD, "GET @case@ ICAP/1.1"),
        ("a space after the version", BAD, "GET @case@ HTTP/1.1 "),
        ("two spaces before the path", BAD, "GET  @case@ HTTP/1.1"),
        ("two spaces after the path", Either, "GET @case@  HTTP/1.1"),
        ("tabs for spaces", BAD, "GET\t@case@\tHTTP/1.1"),
        ("a space before the method", BAD, " GET @case@ HTTP/1.1"),
        ("a space in the path", BAD, "GET @case@ x HTTP/1.1"),
        ("no path", BAD, "GET HTTP/1.1"),
        ("a method with a parenthesis", BAD, "GE(T @case@ HTTP/1.1"),
        ("a method with a NUL", BAD, "GE\0T @case@ HTTP/1.1"),
        ("a method that nobody knows", Either, "FROB @case@ HTTP/1.1"),
        ("a method in small letters", Either, "get @case@ HTTP/1.1"),
        ("TRACE", Either, "TRACE @case@ HTTP/1.1"),
        ("a tunnel", Refused(&[400, 405]), "CONNECT a:80 HTTP/1.1"),
        ("a tunnel to a path", Refused(&[400, 405]), "CONNECT @case@ HTTP/1.1"),
        ("a NUL in the path", BAD, "GET @case@\0x HTTP/1.1"),
        ("a control character in the path", BAD, "GET @case@\u{1}x HTTP/1.1"),
        ("DEL in the path", Either, "GET @case@\u{7f}x HTTP/1.1"),
        ("a carriage return in the path", BAD, "GET @case@\rx HTTP/1.1"),
        ("a line feed in the path", BAD, "GET @case@\nx HTTP/1.1"),
        ("a letter of another alphabet in the path", Either, "GET @case@\u{e9} HTTP/1.1"),
        ("an encoded NUL in the path", Either, "GET @case@%00 HTTP/1.1"),
        ("an encoding that is none in the path", Either, "GET @case@%zz HTTP/1.1"),
        ("an encoded line end in the path", Either, "GET @case@%0d%0a HTTP/1.1"),
        ("a fragment", Either, "GET @case@#x HTTP/1.1"),
        ("a path without its slash", BAD, "GET x@case@ HTTP/1.1"),
        ("two slashes", Either, "GET /@case@ HTTP/1.1"),
        ("dots", BAD, "GET /x/..@case@ HTTP/1.1"),
        ("encoded dots", BAD, "GET /x/%2e%2E%2f@case@ HTTP/1.1"),
        ("dots after a backslash", BAD, "GET /x\\..\\@case@ HTTP/1.1"),
        ("dots that leave the root", BAD, "GET /../..@case@ HTTP/1.1"),
        ("a star", Either, "OPTIONS * HTTP/1.1"),
        ("a star for a GET", Either, "GET * HTTP/1.1"),
        ("an absolute form", Taken, "GET http://a@case@ HTTP/1.1"),
        ("an absolute form of another host", BAD, "GET http://b@case@ HTTP/1.1"),
        (
            "an absolute form of another host with the first's name in it",
            BAD,
            "GET http://b@case@?http://a HTTP/1.1",
        ),
        ("an absolute form with a user", BAD, "GET http://u:p@a@case@ HTTP/1.1"),
        ("an absolute form with a user that looks like the host", BAD, "GET http://a:80@b@case@ HTTP/1.1"),
        ("an absolute form without a host", BAD, "GET http://@case@ HTTP/1.1"),
        ("an absolute form of another scheme", Either, "GET ftp://a@case@ HTTP/1.1"),
        ("an absolute form of no scheme", BAD, "GET ://a@case@ HTTP/1.1"),
        ("a file", BAD, "GET file:@case@ HTTP/1.1"),
    ];
    let mut rows: Vec<Row> =
        table.iter().map(|(what, expected, first)| (*what, *expected, line(first))).collect();
    let long = format!("GET @case@{} HTTP/1.1", "x".repeat(100 * 1_024));
    rows.push(("a path of 100 KiB", TOO_LARGE, line(&long)));
    rows.push((
        "a method of 70 KiB",
        TOO_LARGE,
        line(&format!("{} @case@ HTTP/1.1", "G".repeat(70 * 1_024))),
    ));
    rows
}

fn hosts() -> Vec<Row> {
    let table: [(&'static str, Expected, &str); 18] = [
        ("no host", BAD, ""),
        ("two hosts", BAD, "Host: a\r\nHost: b\r\n"),
        ("the same host twice", BAD, "Host: a\r\nHost: a\r\n"),
        ("an empty host", Either, "Host:\r\n"),
        ("a host with a space", BAD, "Host: a b\r\n"),
        ("a host with a slash", BAD, "Host: a/b\r\n"),
        ("a host with a user", BAD, "Host: u@a\r\n"),
        ("a host with a comma", Either, "Host: a,b\r\n"),
        ("a host with a question mark", BAD, "Host: a?b\r\n"),
        ("a host with a hash", BAD, "Host: a#b\r\n"),
        ("a host with a backslash", BAD, "Host: a\\b\r\n"),
        ("a host with a quote", Either, "Host: a\"b\r\n"),
        ("a host with a NUL", BAD, "Host: a\0b\r\n"),
        ("a host with a port of letters", BAD, "Host: a:b\r\n"),
        ("a host with a port that is too large", Either, "Host: a:99999\r\n"),
        ("a host with two ports", BAD, "Host: a:80:80\r\n"),
        ("a host with half a bracket", BAD, "Host: [::1\r\n"),
        ("a host that is folded", BAD, "Host:\r\n a\r\n"),
    ];
    table.iter().map(|(what, expected, headers)| (*what, *expected, host(headers))).collect()
}

fn rest() -> Vec<Row> {
    let close = get("");
    let keep = b"GET @case@ HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    let with = |parts: &[&[u8]]| parts.concat();
    vec![
        ("a request, and garbage", Taken, with(&[&close, b"\0garbage\r\n\r\n"])),
        ("a request that closes, and another", Taken, with(&[&close, HIDDEN.as_bytes()])),
        ("two requests at once", Taken, with(&[&keep, &close])),
        ("ten requests at once", Taken, with(&[&keep.repeat(9), &close])),
        ("a request, then a bad one", Taken, with(&[&keep, b"GET @smuggled@ HTTP/1.1\r\nHost : a\r\n\r\n"])),
        ("an empty line before a request", Either, with(&[b"\r\n", &close])),
        ("a line feed before a request", Either, with(&[b"\n", &close])),
        ("a million empty lines", Refused(&[0, 400, 408, 431]), with(&[&b"\r\n".repeat(1_000_000), &close])),
        ("half a head", Refused(&[0, 400, 408]), b"GET @case@ HTTP/1.1\r\nHost: a\r\nX:".to_vec()),
        ("nothing but a line", Refused(&[0, 400, 408]), b"GET @case@ HTTP/1.1\r\n".to_vec()),
        ("a preface in HTTP/1", Refused(&[0, 400, 405]), b"PRI @case@ HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("the preface's method", Either, line("PRI @case@ HTTP/1.1")),
        (
            "a hello of TLS",
            Refused(&[0, 400]),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        ),
        (
            "a PROXY header of nobody that is trusted",
            BAD,
            with(&[b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", &close]),
        ),
    ]
}
