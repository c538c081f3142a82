//! What holds for all bytes.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use http::{HeaderName, HeaderValue, Method};
use lightbyte_api::topology::{PathMatch, Topology};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::hold;
use crate::disk;
use crate::forwarded::{self, Origin};
use crate::framing::{Flaw, Framing};
use crate::gateway::probe;
use crate::proxy_header::{self, Parsed};
use crate::registry::Registry;
use crate::table::{Table, name_of};

/// The result of what never waits.
fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

#[test]
fn a_proxy_header_is_read_to_its_end_and_no_further() {
    let words = ["PROXY ", "TCP4", "TCP6", "UNKNOWN", "\r\n", "\r\n\r\n\0\r\nQUIT\n", "::1", "1.2.3.4"];
    hold("proxy_header", &words, |bytes| {
        let parsed = proxy_header::parse(bytes);
        if let Parsed::Header(length, source) = parsed {
            assert!(length <= bytes.len());
            assert_eq!(proxy_header::parse(&bytes[..length]), Parsed::Header(length, source));
            assert!((0..length).all(|shorter| proxy_header::parse(&bytes[..shorter]) == Parsed::Partial));
        }
        // What is no header does not become one by more bytes.
        let first_bad =
            (0..=bytes.len().min(200)).find(|end| proxy_header::parse(&bytes[..*end]) == Parsed::Invalid);
        assert!(first_bad.is_none() || parsed == Parsed::Invalid);
        let mut rest = bytes;
        let read = at_once(proxy_header::read(&mut rest)).expect("a slice never waits");
        match (&parsed, read) {
            (Parsed::Header(length, source), Ok(read)) => {
                assert_eq!((read, rest.len()), (*source, bytes.len() - length));
            }
            (Parsed::Header(..), Err(error)) => panic!("a header that is not read: {error}"),
            (_, read) => assert!(read.is_err()),
        }
        matches!(parsed, Parsed::Header(..))
    });
}

/// As a backend may see it: dots and slashes decoded, a backslash a slash.
fn has_dots_in_the_end(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let decoded = lower.replace("%2e", ".").replace("%2f", "/").replace("%5c", "/").replace('\\', "/");
    decoded.split('/').any(|segment| matches!(segment, "." | ".."))
}

#[test]
fn a_head_that_is_taken_can_be_read_in_one_way_only() {
    let words = [
        "\r\n",
        "Host: a\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Content-Length: 4\r\n",
        "http://a/",
        "GET ",
        " HTTP/1.1",
        "/..",
        "%2e",
        "%2F",
        "\\",
        "\n",
        "\0",
        "OPTIONS * ",
        "CONNECT ",
        "chunked",
        "[::1]",
        "u@",
    ];
    hold("head", &words, |bytes| {
        let mut session = Session::new_h1(Box::new(std::io::Cursor::new(bytes.to_vec())));
        let Some(Ok(true)) = at_once(session.as_downstream_mut().read_request()) else { return false };
        if probe::check(&session).is_err() {
            return false;
        }
        let head = session.as_http1().expect("is one").get_headers_raw_bytes();
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        assert!(head.ends_with(b"\r\n\r\n"), "{text}");
        assert_eq!(text.matches('\n').count(), text.matches("\r\n").count(), "{text}");
        let count = |name: &str| text.lines().skip(1).filter(|line| line.starts_with(name)).count();
        assert!(count("host:") <= 1 && count("transfer-encoding:") <= 1, "{text}");
        assert!(count("transfer-encoding:") == 0 || count("content-length:") == 0, "{text}");
        assert!(text.lines().skip(1).all(|line| !line.starts_with([' ', '\t'])), "{text}");
        let request = session.req_header();
        assert!(!has_dots_in_the_end(request.uri.path()), "{text}");
        let host = probe::host_of(request);
        assert!(!host.contains(|letter: char| letter <= ' ' || "/?#@\\".contains(letter)), "{host}");
        assert!(request.version >= http::Version::HTTP_11 || count("transfer-encoding:") == 0, "{text}");
        true
    });
}

/// Where the first request ends.
fn end_of_request(bytes: &[u8]) -> Option<usize> {
    let mut framing = Framing::default();
    let ends = |at: &usize| framing.read(&bytes[*at..=*at]).is_ok() && !framing.is_between();
    let begin = (0..bytes.len()).find(|at| bytes[*at] > b' ')?;
    let last = (begin..bytes.len()).take_while(ends).last()? + 1;
    // What ended it was its own last byte, or a flaw.
    let mut framing = Framing::default();
    (framing.read(bytes.get(..=last)?).is_ok() && framing.is_between()).then_some(last + 1)
}

/// The library's reading of these bytes: whether it takes a request, and whether that is whole.
fn library_reads(bytes: &[u8]) -> Option<bool> {
    let mut session = Session::new_h1(Box::new(std::io::Cursor::new(bytes.to_vec())));
    let Some(Ok(true)) = at_once(session.as_downstream_mut().read_request()) else { return None };
    probe::check(&session).ok()?;
    loop {
        match at_once(session.as_downstream_mut().read_request_body())? {
            Ok(Some(_)) => {}
            Ok(None) => return Some(session.as_downstream_mut().is_body_done()),
            Err(_) => return Some(false),
        }
    }
}

#[test]
fn a_request_ends_where_the_library_says_that_it_does() {
    let words = [
        "\r\n",
        "\r\n\r\n",
        "Host: a\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Content-Length: 4\r\n",
        "0\r\n\r\n",
        "4\r\nabcd\r\n",
        ";a=b",
        " ",
        "\0",
        "a\r\n",
        "X: y\r\n",
        " HTTP/1.1",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    hold("request", &words, |bytes| {
        let (mut whole, mut parts) = (Framing::default(), Framing::default());
        let flaw = whole.read(bytes).err();
        let broken = bytes.chunks(3).enumerate().find_map(|(part, bytes)| {
            let flaw = parts.read(bytes).err()?;
            Some(Flaw { passes: part * 3 + flaw.passes, ..flaw })
        });
        assert_eq!(flaw, broken, "in parts");
        if let Some(flaw) = flaw {
            assert_eq!(whole.read(b"G").map_err(|flaw| flaw.passes), Err(0), "a flaw is for ever");
            assert_eq!(Framing::default().read(&bytes[..flaw.passes]), Ok(()), "what comes before it passes");
        } else {
            assert_eq!(whole, parts);
        }
        let Some(end) = end_of_request(bytes) else { return false };
        let Some(is_whole) = library_reads(&bytes[..end]) else { return false };
        assert!(is_whole, "the library waits for more");
        assert_ne!(library_reads(&bytes[..end - 1]), Some(true), "the library has it all before");
        let line = bytes[..end].split(|byte| *byte == b'\r').find(|line| line.len() > 1).expect("a line");
        assert_eq!(line.iter().filter(|byte| **byte == b' ').count(), 2, "a line of three words");
        true
    });
}

#[test]
fn a_host_that_is_taken_is_an_authority_without_a_user() {
    hold("host", &["[", "]", "::", ":80", "%41", ".", "@", "a"], |bytes| {
        if !probe::is_host(bytes) {
            return false;
        }
        let host = std::str::from_utf8(bytes).expect("is ASCII");
        let name = name_of(host);
        assert!(host.starts_with(name) && !name.contains('@'), "{host}");
        assert!(name.starts_with('[') || !name.contains(':'), "{host}");
        true
    });
}

/// Lines of `name: value`, as far as they are headers; the first byte chooses who is asked.
fn headers(bytes: &[u8]) -> RequestHeader {
    let mut request = RequestHeader::build("GET", b"/", None).expect("a request");
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(line[..colon].trim_ascii());
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            request.append_header(name, value).expect("fits");
        }
    }
    request
}

#[test]
fn nobody_but_us_and_whom_we_trust_says_where_a_request_came_from() {
    let words =
        ["x-forwarded-for: ", "X-Real-IP: ", "forwarded: for=", "\n", "traceparent: 00-", "_", "1.1.1.1, "];
    hold("forwarded", &words, |bytes| {
        let (is_trusted, peer): (bool, IpAddr) = match bytes.first().copied().unwrap_or_default() % 4 {
            0 => (false, [10, 0, 0, 9].into()),
            1 => (true, [10, 0, 0, 9].into()),
            2 => (false, [0xfd00, 0, 0, 0, 0, 0, 0, 1].into()),
            _ => (true, [0xfd00, 0, 0, 0, 0, 0, 0, 1].into()),
        };
        let mut request = headers(bytes);
        let peer_text = &forwarded::peer_text(peer);
        forwarded::say(
            &mut request,
            Origin { peer, peer_text, is_trusted, scheme: "https", host: "a.example" },
        )
        .expect("fits");
        forwarded::trace(&mut request).expect("fits");
        let all = |name: &str| request.headers.get_all(name).iter().collect::<Vec<_>>();
        let chain = all("x-forwarded-for");
        let chain = chain.first().and_then(|value| value.to_str().ok()).expect("is one text");
        assert!(chain.ends_with(&peer.to_string()) && all("x-forwarded-for").len() == 1, "{chain}");
        assert_eq!(all("traceparent").len(), 1);
        assert!(all("forwarded").len() <= 1);
        if !is_trusted {
            assert_eq!(chain, peer.to_string());
            let tales =
                ["x-real-ip", "forwarded", "client-ip", "true-client-ip", "x-original-url", "x-rewrite-url"];
            assert!(tales.iter().all(|tale| all(tale).is_empty()));
            assert_eq!(all("x-forwarded-proto"), ["https"]);
            assert_eq!(all("x-forwarded-host"), ["a.example"]);
        }
        let dashed = |name: &HeaderName| name.as_str().replace('_', "-").starts_with("x-forwarded-");
        assert!(request.headers.keys().filter(|name| name.as_str().contains('_')).all(|name| !dashed(name)));
        !chain.eq(&peer.to_string())
    });
}

/// Lines: what is asked (host, a space, path), then routes (host or `*`, a space, `=` before an exact path, path).
fn routes(text: &str) -> Option<(&str, &str, Topology)> {
    let mut lines = text.lines();
    let (host, path) = lines.next()?.split_once(' ')?;
    // Every other one is refused before.
    path.strip_prefix('/')?;
    let mut topology: Topology = serde_json::from_str(r#"{"format":1,"revision":1}"#).expect("is one");
    for (index, line) in lines.enumerate().take(20) {
        let (host, path) = line.split_once(' ')?;
        let mut route: lightbyte_api::topology::Route =
            serde_json::from_str(&format!(r#"{{"name":"r{index}"}}"#)).expect("is one");
        route.hosts = if host == "*" { Vec::new() } else { vec![host.to_owned()] };
        route.path = match path.strip_prefix('=') {
            Some(exact) => PathMatch::Exact(exact.to_owned()),
            None => PathMatch::Prefix(path.to_owned()),
        };
        topology.routes.push(route);
    }
    Some((host, path, topology))
}

/// How precise a route is for a request; none if it does not fit. The slow and plain way.
fn precision(route: &lightbyte_api::topology::Route, host: &str, path: &str) -> Option<(usize, usize)> {
    let host = match route.hosts.first().map(String::as_str) {
        None => 0,
        Some(wanted) if wanted == host => usize::MAX,
        Some(wanted) => {
            let domain = wanted.strip_prefix("*.")?;
            host.strip_suffix(domain)?.strip_suffix('.')?;
            domain.len() + 1
        }
    };
    let path = match &route.path {
        PathMatch::Exact(exact) => (exact == path).then_some(usize::MAX)?,
        PathMatch::Prefix(prefix) => {
            let prefix = prefix.trim_end_matches('/');
            let rest = path.strip_prefix(prefix)?;
            (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())?
        }
    };
    Some((host, path))
}

#[test]
fn the_route_that_is_found_is_the_most_precise_one() {
    let words = ["\n", "* /", "*.b.c", "a.b.c", " =/", "//", "/a", "/a/b", "/ab"];
    hold("route", &words, |bytes| {
        let Some((host, path, topology)) = std::str::from_utf8(bytes).ok().and_then(routes) else {
            return false;
        };
        let Ok(table) = Table::compile(&topology, &mut Registry::default()) else { return false };
        let found = table.route(host, path, &Method::GET);
        let host = name_of(host).to_ascii_lowercase();
        let fits = topology.routes.iter().enumerate();
        let fits = fits.filter_map(|(index, route)| precision(route, &host, path).map(|how| (how, index)));
        // Of equals the first.
        let best = fits.max_by_key(|(how, index)| (*how, std::cmp::Reverse(*index)));
        assert_eq!(found.map(|route| route.name.clone()), best.map(|(_, index)| format!("r{index}")));
        let _ = found.map(|route| (route.rewritten(path), route.stuck_to(path)));
        found.is_some()
    });
}

#[test]
fn a_cookie_is_one_of_those_that_were_sent() {
    hold("cookie", &["lb=", ";", "; ", "\"", "=", ",", "lb"], |bytes| {
        let mut request = RequestHeader::build("GET", b"/", None).expect("a request");
        let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok());
        lines.for_each(|line| drop(request.append_header("cookie", line)));
        let Some(value) = probe::cookie_of(&request, "lb") else { return false };
        assert!(!value.contains(';'));
        let sent: Vec<_> =
            request.headers.get_all("cookie").iter().filter_map(|value| value.to_str().ok()).collect();
        assert!(sent.iter().any(|sent| sent.contains(value) && sent.contains("lb")));
        true
    });
}

#[test]
fn a_topology_that_is_taken_is_taken_again_as_it_is_written() {
    let words = [
        "\"pools\":[]",
        "\"weight\":0",
        "null",
        "true",
        "{}",
        "[]",
        "\"routes\"",
        "\"hosts\":[\"*.a\"]",
        "\"::1\"",
        "\"rate_limit\":{\"per_second\":0,\"burst\":0}",
        "\"h2\"",
        "\"hash\":\"source\"",
        "\"exact\"",
        "\\u0000",
        "-",
    ];
    hold("topology", &words, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let sealed = format!(r#"{{"checksum":"{}","topology":{text}}}"#, disk::checksum(text));
        let Ok(unsealed) = disk::unseal(sealed.as_bytes()) else {
            let _ = disk::unseal(bytes);
            return false;
        };
        let topology = unsealed.topology;
        if Table::compile(&topology, &mut Registry::default()).is_err() {
            return false;
        }
        let written = serde_json::to_string(&topology).expect("is written");
        let again: Topology = serde_json::from_str(&written).expect("is read");
        assert_eq!(again, topology);
        let table = Table::compile(&again, &mut Registry::default()).expect("is taken again");
        for pool in &table.pools {
            let chosen = pool.choose(Some(7), &[], 0);
            assert_eq!(chosen.is_none(), pool.members.is_empty());
        }
        let _ = table
            .listeners
            .values()
            .map(lightbyte_api::topology::Listener::address)
            .collect::<Vec<SocketAddr>>();
        true
    });
}
