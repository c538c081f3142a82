//! Rules for Rust code: where TCP is opened, how lints are silenced, and what keeps planners pure.
//!
//! clippy knows the last two as well, but only where its configuration reaches and only for code that is compiled on
//! this machine; a search for words sees everything. Comments and strings are blanked first.

use super::{Finding, Source, line_of, words};

/// Modules that may open TCP listeners or dial TCP, with the reason. One of them serves lightbyte's own protocol, so
/// that identity and TLS live in one place; any other entry speaks to something that is not lightbyte.
const TCP_MODULES: &[(&str, &str)] = &[
    ("crates/link/src/endpoint.rs", "the one place that opens listeners and dials peers"),
    ("crates/cli/src/verbs/forward.rs", "listens on 127.0.0.1 for its own user; the way on is the cluster's"),
    ("crates/guest/src/words.rs", "reaches 127.0.0.1 inside a guest, for `lightbyte forward`"),
    ("crates/guest/src/check.rs", "reaches the guest's own services inside it, for its health"),
    (
        "crates/proxy/src/listeners.rs",
        "listens for clients of a load balancer; TLS of its certificates, not the cluster's",
    ),
    ("crates/proxy/src/connection.rs", "the stream of such a client"),
    (
        "crates/server/src/acme/http.rs",
        "asks certification authorities by HTTPS: no peer, and trusted as this machine trusts",
    ),
    ("crates/proxy/src/rehearsal.rs", "asks itself over loopback"),
    ("crates/proxy/src/checks.rs", "tries whether backends answer"),
    ("crates/bench/src/deaths/backend.rs", "a backend of proxies that are measured"),
    ("crates/bench/src/deaths/client.rs", "a client of theirs"),
    ("crates/bench/src/requests/clocked.rs", "clients of proxies that are measured"),
    ("crates/bench/src/requests/origin.rs", "a backend of theirs"),
    ("crates/bench/src/requests/peers.rs", "looks whether they listen"),
    ("crates/dns/src/bind.rs", "takes the ports of DNS, which is a protocol of its own"),
    ("crates/dns/src/dns.rs", "hands them to the runtime"),
    ("crates/dns/src/tcp.rs", "the streams of DNS clients"),
    ("crates/dns/src/forward.rs", "asks other resolvers whose answer was cut"),
    ("crates/guest/src/page.rs", "the page of the demo image: inside a guest, and no part of the cluster"),
];

const TCP_WORDS: &[&str] = &["TcpListener", "TcpStream", "TcpSocket"];

/// What a planner must not touch, with the reason.
const IMPURE: &[(&str, &str)] = &[
    ("Instant::now", "time reaches planners only through their inputs"),
    ("SystemTime::now", "time reaches planners only through their inputs"),
    ("Timestamp::now", "time reaches planners only through their inputs"),
    ("Zoned::now", "time reaches planners only through their inputs"),
    ("thread_rng", "chance reaches planners only through their inputs"),
    ("Uuid::now_v7", "fresh ids reach planners only through their inputs"),
    ("Uuid::new_v4", "fresh ids reach planners only through their inputs"),
    ("Uuid::new_v7", "fresh ids reach planners only through their inputs"),
    (
        "HashMap",
        "its order differs from run to run, so the same view would give different plans; take an ordered map",
    ),
    (
        "HashSet",
        "its order differs from run to run, so the same view would give different plans; take an ordered set",
    ),
];

/// Findings in one file; none if it is not Rust.
pub(super) fn check(source: &Source) -> Vec<Finding> {
    if !source.has_extension(&["rs"]) {
        return Vec::new();
    }
    let code = code_only(&source.text);
    let mut findings = Vec::new();
    let mut find = |code: &str, word: &str, what: &str| {
        for byte in words(code, word) {
            findings.push(Finding::new(&source.path, line_of(code, byte), format!("`{word}`; {what}")));
        }
    };
    for attribute in ["#[allow(", "#![allow("] {
        find(&code, attribute, "`#[expect(lint, reason = \"…\")]` says why and ends when its cause ends");
    }
    find(&code, concat!("to", "do!("), "it panics; work that is left over is an issue");
    if source.path.starts_with("crates/plan/src/") {
        for (word, why) in IMPURE {
            find(&code, word, why);
        }
    }
    if opens_no_tcp(&source.path) {
        let shipped = without_tests(&code);
        for word in TCP_WORDS {
            find(
                &shipped,
                word,
                "only the modules listed in tidy's TCP_MODULES open TCP, so that TLS is in one place",
            );
        }
    }
    findings
}

/// An entry of the list whose file is gone, or no longer opens TCP, would silently allow a later one.
pub(super) fn check_allowed_list(sources: &[Source]) -> Vec<Finding> {
    stale(TCP_MODULES, sources)
}

fn stale(allowed: &[(&str, &str)], sources: &[Source]) -> Vec<Finding> {
    let is_used = |path: &str| {
        sources
            .iter()
            .any(|source| source.path == path && TCP_WORDS.iter().any(|word| source.text.contains(word)))
    };
    let unused = allowed.iter().filter(|(path, _)| !is_used(path));
    unused
        .map(|(path, _)| Finding::new(path, 1, "listed in TCP_MODULES, yet it opens no TCP; take it off"))
        .collect()
}

fn opens_no_tcp(path: &str) -> bool {
    path.starts_with("crates/")
        && !is_test_file(path)
        && !TCP_MODULES.iter().any(|(allowed, _)| *allowed == path)
}

fn is_test_file(path: &str) -> bool {
    let stem = path.rsplit('/').next().and_then(|name| name.strip_suffix(".rs")).unwrap_or_default();
    stem == "tests"
        || stem.ends_with("_tests")
        || path.split('/').any(|part| part == "tests" || part == "benches")
}

/// Blanks the items under `#[cfg(test)]`. It relies on rustfmt: an item ends with a brace at its own indentation.
fn without_tests(code: &str) -> String {
    let mut kept = String::with_capacity(code.len());
    let mut end: Option<String> = None;
    let mut is_attribute_of_test = false;
    for line in code.lines() {
        let trimmed = line.trim_start();
        let indentation = &line[..line.len() - trimmed.len()];
        if let Some(brace) = &end {
            if line == brace {
                end = None;
            }
        } else if trimmed.starts_with("#[cfg(test)]") || trimmed.starts_with("#[cfg(all(test,") {
            is_attribute_of_test = true;
        } else if is_attribute_of_test && trimmed.starts_with("#[") {
            // Another attribute of the same item.
        } else if is_attribute_of_test {
            is_attribute_of_test = false;
            if trimmed.ends_with('{') {
                end = Some(format!("{indentation}}}"));
            }
        } else {
            kept.push_str(line);
        }
        kept.push('\n');
    }
    kept
}

/// The text with comments, strings and character literals blanked; lines stay where they are.
fn code_only(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut position = 0;
    while position < characters.len() {
        let end = skipped_end(&characters, position);
        if end == position {
            code.push(characters[position]);
            position += 1;
        } else {
            for character in &characters[position..end] {
                code.push(if *character == '\n' { '\n' } else { ' ' });
            }
            position = end;
        }
    }
    code
}

/// Where the comment or literal that begins here ends; `start` itself if none begins.
fn skipped_end(text: &[char], start: usize) -> usize {
    let at = |offset: usize| text.get(start + offset).copied().unwrap_or_default();
    let is_in_name = start > 0 && (text[start - 1].is_alphanumeric() || text[start - 1] == '_');
    match at(0) {
        '/' if at(1) == '/' => find(text, start, |position| text[position] == '\n'),
        '/' if at(1) == '*' => comment_end(text, start),
        '"' => string_end(text, start + 1),
        'r' if !is_in_name => raw_string_end(text, start, 1),
        'b' if !is_in_name && at(1) == 'r' => raw_string_end(text, start, 2),
        '\'' if at(1) == '\\' => find(text, start + 3, |position| text[position] == '\'') + 1,
        '\'' if at(2) == '\'' => start + 3,
        _ => start,
    }
    .min(text.len())
}

fn find(text: &[char], from: usize, is_end: impl Fn(usize) -> bool) -> usize {
    (from..text.len()).find(|position| is_end(*position)).unwrap_or(text.len())
}

fn string_end(text: &[char], from: usize) -> usize {
    let mut position = from;
    while position < text.len() && text[position] != '"' {
        position += if text[position] == '\\' { 2 } else { 1 };
    }
    position + 1
}

/// Block comments nest.
fn comment_end(text: &[char], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut position = start;
    while position < text.len() {
        match (text[position], text.get(position + 1)) {
            ('/', Some('*')) => depth += 1,
            ('*', Some('/')) => depth -= 1,
            _ => {
                position += 1;
                continue;
            }
        }
        position += 2;
        if depth == 0 {
            break;
        }
    }
    position
}

fn raw_string_end(text: &[char], start: usize, prefix: usize) -> usize {
    let hashes = text[start + prefix..].iter().take_while(|character| **character == '#').count();
    if text.get(start + prefix + hashes) != Some(&'"') {
        return start;
    }
    let body = start + prefix + hashes + 1;
    let closes = |position: usize| {
        text[position] == '"'
            && text[position + 1..].iter().take(hashes).filter(|character| **character == '#').count()
                == hashes
    };
    find(text, body, closes) + 1 + hashes
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        let mut lines: Vec<usize> = check(&source(path, text)).iter().map(|finding| finding.line).collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn forbidden_words_are_found_only_in_code() {
        let table: [(&str, &str, &[usize]); 19] = [
            ("crates/plan/src/a.rs", "let now = Instant::now();", &[1]),
            ("crates/plan/src/a.rs", "let now = std::time::SystemTime::now();", &[1]),
            ("crates/plan/src/a.rs", "jiff::Timestamp::now()", &[1]),
            ("crates/plan/src/a.rs", "\nuse std::collections::HashMap;\nx: HashSet<u8>", &[2, 3]),
            ("crates/plan/src/a.rs", "Uuid::now_v7(); Uuid::new_v4(); thread_rng()", &[1, 1, 1]),
            (
                "crates/plan/src/a.rs",
                "// HashMap\n/* HashSet /* */ HashMap */ \"HashMap\" r#\"\"HashMap\"#",
                &[],
            ),
            ("crates/plan/src/a.rs", "'\"'; HashMap; '\\''; \"\\\"HashMap\"", &[1]),
            ("crates/plan/src/a.rs", "fn f<'a>(x: &'a str) { HashMap }", &[1]),
            ("crates/store/src/a.rs", "HashMap Instant::now", &[]),
            ("crates/store/src/a.rs", "#[allow(dead_code)]\nfn f() {}\n#![allow(unused)]", &[1, 3]),
            ("crates/store/src/a.rs", "#[expect(dead_code, reason = \"r\")]", &[]),
            ("crates/store/src/a.rs", concat!("fn f() { to", "do!() }"), &[1]),
            ("crates/store/src/a.rs", "use tokio::net::{TcpListener, TcpStream};", &[1, 1]),
            ("crates/store/tests/a.rs", "TcpListener", &[]),
            ("crates/store/src/b/tests.rs", "TcpListener", &[]),
            ("crates/a/src/a.rs", "#[cfg(test)]\nmod tests {\n    TcpStream\n}\nTcpStream", &[5]),
            ("crates/a/src/a.rs", "#[cfg(test)]\nuse x::TcpStream;\nTcpStream", &[3]),
            ("crates/a/src/a.rs", "#[cfg(not(test))]\nuse x::TcpStream;", &[2]),
            ("docs/a.md", "TcpListener HashMap", &[]),
        ];
        for (path, text, expected) in table {
            assert_eq!(lines(path, text), expected, "{path}: {text}");
        }
    }

    #[test]
    fn stale_entries_of_the_allowed_list_are_found() {
        let sources = [source("crates/a/src/net.rs", "TcpListener"), source("crates/a/src/b.rs", "nothing")];
        let table = [("crates/a/src/net.rs", 0), ("crates/a/src/b.rs", 1), ("crates/a/src/gone.rs", 1)];
        for (path, expected) in table {
            assert_eq!(stale(&[(path, "reason")], &sources).len(), expected, "{path}");
        }
    }
}
