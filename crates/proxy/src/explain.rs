//! What would become of a request, by the table that holds and the health that is known. Nothing is counted, and nobody's turn
//! is taken.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, header};
use lightbyte_api::explain::{Answer, By, CANDIDATES_MAX, Candidate, Candidates, Explained, Question};
use pingora_http::RequestHeader;

use crate::clock;
use crate::gateway::{cookie_of, hash_of, location, location_of_https, strict};
use crate::registry::Member;
use crate::table::{Key, Pool, Route, Table};

/// What the proxy would do.
///
/// # Errors
/// In words, what makes the question one that no client could send.
pub(crate) fn explain(table: &Table, question: &Question) -> Result<Explained, String> {
    let method: Method =
        question.method.parse().map_err(|_| format!("`{}` is no method", question.method))?;
    let mut request = RequestHeader::build(method, question.path.as_bytes(), None)
        .map_err(|_| format!("`{}` is no path", question.path))?;
    let is_host = |name: &str| name.eq_ignore_ascii_case("host");
    let given = question.headers.iter().find(|(name, _)| is_host(name));
    let host = given.map_or(&question.host, |(_, host)| host);
    if host.is_empty() || !strict::is_host(host.as_bytes()) {
        return Err(format!("`{host}` is no host"));
    }
    request.insert_header(header::HOST, host).map_err(|error| error.to_string())?;
    for (name, value) in question.headers.iter().filter(|(name, _)| !is_host(name)) {
        let name: HeaderName = name.parse().map_err(|_| format!("`{name}` is no header"))?;
        let value: HeaderValue = value.parse().map_err(|_| format!("`{value}` is no value of a header"))?;
        request.append_header(name, value).map_err(|error| error.to_string())?;
    }
    Ok(Explained { revision: table.revision, answer: answer(table, question, host, &request) })
}

fn answer(table: &Table, question: &Question, host: &str, request: &RequestHeader) -> Answer {
    let Some(listener) = table.listeners.get(&question.port) else { return Answer::NotListening };
    if listener.protocol != question.protocol {
        return Answer::Speaks { protocol: listener.protocol };
    }
    let is_read = matches!(request.method, Method::GET | Method::HEAD);
    if is_read && table.challenge(request.uri.path()).is_some() {
        return Answer::Proves;
    }
    let whole = request.uri.path_and_query().map_or("/", |path| path.as_str());
    if let Some(port) = listener.redirect_to_https {
        let location = location_of_https(host, port, whole);
        return Answer::Redirects { route: None, status: 308, location };
    }
    let path = request.uri.path();
    let Some(route) = table.route(host, path, &request.method) else { return Answer::NoRoute };
    if let Some(redirect) = &route.redirect {
        let location = location(redirect, listener.protocol.scheme(), host, whole);
        return Answer::Redirects { route: Some(route.name.clone()), status: redirect.status, location };
    }
    let query = request.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let path = route.rewritten(path).unwrap_or_else(|| path.to_owned()) + &query;
    Answer::Forwards { route: route.name.clone(), path, pools: candidates(route, question, request) }
}

fn candidates(route: &Route, question: &Question, request: &RequestHeader) -> Vec<Candidates> {
    let now_ms = clock::now_ms();
    let cookie = route.sticky.as_ref().and_then(|sticky| cookie_of(request, &sticky.cookie));
    let stuck = cookie.and_then(|cookie| route.stuck_to(cookie));
    if let Some((pool, index)) = stuck.filter(|(pool, index)| pool.members[*index].is_healthy(now_ms)) {
        return vec![of_pool(pool, (100, By::Cookie), now_ms, |other| other == index)];
    }
    let pools = route.shares().map(|(percent, pool)| {
        // Whom an address leads to is known of an address.
        let is_unknown = matches!(pool.key, Some(Key::Source)) && question.source.is_none();
        let source = question.source.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let key = pool.key.as_ref().filter(|_| !is_unknown).and_then(|key| hash_of(key, request, source));
        let by = match (key.is_some() || is_unknown, pool.is_by_load()) {
            (true, _) => By::Hash,
            (false, true) => By::Load,
            (false, false) => By::Turn,
        };
        let hashed = key.and_then(|key| pool.next(Some(key), now_ms));
        // Health only sorts: where nobody is well everybody is tried.
        let any_well = pool.members.iter().any(|member| member.is_healthy(now_ms));
        let might = |index: usize| match hashed {
            Some(hashed) => index == hashed,
            None => !any_well || pool.members[index].is_healthy(now_ms),
        };
        of_pool(pool, (percent, by), now_ms, might)
    });
    pools.collect()
}

fn of_pool(pool: &Pool, (percent, by): (u64, By), now_ms: u64, might: impl Fn(usize) -> bool) -> Candidates {
    let now = std::time::Duration::from_millis(now_ms);
    let candidate = |(index, member): (usize, &Arc<Member>)| {
        let (standing, _, because) = member.story(now);
        Candidate {
            uid: member.uid.clone(),
            vm: None,
            address: member.address.to_string(),
            health: standing.word().to_owned(),
            because,
            might_be_asked: might(index),
        }
    };
    let mut backends: Vec<Candidate> = pool.members.iter().enumerate().map(candidate).collect();
    let untold = backends.len().saturating_sub(CANDIDATES_MAX) as u64;
    if untold > 0 {
        // Those who might be asked are told first.
        backends.sort_by_key(|backend| !backend.might_be_asked);
        backends.truncate(CANDIDATES_MAX);
    }
    Candidates { pool: pool.name.clone(), percent, by, backends, untold }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::registry::Registry;
    use lightbyte_api::topology::Protocol;

    fn table() -> Table {
        let backend = |uid: &str| json!({ "uid": uid, "address": "10.0.0.1", "port": 80 });
        let topology = json!({
            "format": 1, "revision": 7,
            "listeners": [
                { "name": "plain", "port": 80, "protocol": "http" },
                { "name": "moved", "port": 81, "protocol": "http", "redirect_to_https": 443 },
            ],
            "routes": [
                { "name": "api", "path": { "prefix": "/api" }, "rewrite_prefix": "/", "targets": [
                    { "pool": "a", "weight": 9 }, { "pool": "b", "weight": 1 }] },
                { "name": "old", "path": { "exact": "/old" }, "redirect": { "status": 301, "path": "/new" } },
                { "name": "near", "path": { "prefix": "/near" }, "targets": [{ "pool": "s" }] },
                { "name": "named", "hosts": ["other"], "targets": [{ "pool": "b" }] },
                { "name": "mine", "path": { "prefix": "/mine" }, "targets": [{ "pool": "h" }] },
            ],
            "challenges": [{ "token": "t", "answer": "t.a" }],
            "pools": [
                { "name": "a", "backends": [backend("u1"), backend("u2")] },
                { "name": "b", "backends": [backend("u3")], "balance": "least_connections" },
                { "name": "s", "backends": [backend("u1"), backend("u2")], "balance": { "hash": "source" } },
                { "name": "h", "backends": [backend("u1"), backend("u2"), backend("u3")], "balance": { "hash": { "header": "x-user" } } },
            ],
        });
        let topology = serde_json::from_value(topology).expect("a topology");
        Table::compile(&topology, &mut Registry::default()).expect("a table")
    }

    fn question(port: u16, path: &str, headers: Value) -> Question {
        let headers = serde_json::from_value(headers).expect("headers");
        Question {
            protocol: Protocol::Http,
            port,
            method: "GET".to_owned(),
            host: "shop".to_owned(),
            path: path.to_owned(),
            headers,
            source: None,
        }
    }

    #[test]
    fn it_says_what_would_be_done() {
        let table = table();
        let check = |port, path: &str, expected: Value| {
            let found = explain(&table, &question(port, path, json!({}))).expect("a question");
            assert_eq!(found.revision, 7);
            assert_eq!(serde_json::to_value(found.answer).expect("JSON"), expected, "{path}");
        };
        check(82, "/", json!({ "does": "not_listening" }));
        check(80, "/", json!({ "does": "no_route" }));
        check(81, "/.well-known/acme-challenge/t", json!({ "does": "proves" }));
        check(80, "/.well-known/acme-challenge/u", json!({ "does": "no_route" }));
        let by_tls = Question { protocol: Protocol::Https, ..question(80, "/", json!({})) };
        let found = explain(&table, &by_tls).expect("a question").answer;
        assert_eq!(found, Answer::Speaks { protocol: Protocol::Http });
        check(81, "/a?b", json!({ "does": "redirects", "status": 308, "location": "https://shop/a?b" }));
        check(
            80,
            "/old",
            json!({ "does": "redirects", "route": "old", "status": 301, "location": "http://shop/new" }),
        );
        let found = explain(&table, &question(80, "/api/x?y=z", json!({}))).expect("a question").answer;
        let Answer::Forwards { route, path, pools } = found else { panic!("{found:?}") };
        assert_eq!((route.as_str(), path.as_str()), ("api", "/x?y=z"));
        assert_eq!((pools[0].by, pools[1].by), (By::Turn, By::Load));
        let shares: Vec<(String, u64, usize)> =
            pools.iter().map(|pool| (pool.pool.clone(), pool.percent, pool.backends.len())).collect();
        assert_eq!(shares, [("a".to_owned(), 90, 2), ("b".to_owned(), 10, 1)]);
    }

    #[test]
    fn a_hash_names_one_and_asking_takes_nobodys_turn() {
        let table = table();
        let one = || {
            let asked = question(80, "/mine", json!({ "x-user": "ann" }));
            let Answer::Forwards { pools, .. } = explain(&table, &asked).expect("a question").answer else {
                panic!("is forwarded")
            };
            assert_eq!(pools[0].by, By::Hash);
            let might = pools[0].backends.iter().filter(|backend| backend.might_be_asked);
            might.map(|backend| backend.uid.clone()).collect::<Vec<String>>()
        };
        assert_eq!(one().len(), 1);
        assert_eq!(one(), one());
        let pool = &table.pools[0];
        let first = pool.next(None, 0);
        assert_eq!((pool.next(None, 0), pool.choose(None, &[], 0)), (first, first));
    }

    #[test]
    fn a_host_of_its_own_counts_and_an_address_that_is_not_known_leads_to_nobody_alone() {
        let asked = |path: &str, headers: Value, source: Option<&str>| {
            let source = source.map(|source| source.parse().expect("an address"));
            let asked = Question { source, ..question(80, path, headers) };
            match explain(&table(), &asked).expect("a question").answer {
                Answer::Forwards { route, pools, .. } => {
                    let might = pools[0].backends.iter().filter(|backend| backend.might_be_asked).count();
                    format!("{route} {:?} {might}", pools[0].by)
                }
                other => format!("{other:?}"),
            }
        };
        assert_eq!(asked("/", json!({ "Host": "other" }), None), "named Load 1");
        assert_eq!(asked("/near", json!({}), None), "near Hash 2");
        assert_eq!(asked("/near", json!({}), Some("192.0.2.7")), "near Hash 1");
    }

    #[test]
    fn what_no_client_could_send_is_refused_in_words() {
        let asked = Question { method: "G T".to_owned(), ..question(80, "/", json!({})) };
        assert_eq!(explain(&table(), &asked), Err("`G T` is no method".to_owned()));
        let asked = question(80, "/", json!({ "a b": "c" }));
        assert_eq!(explain(&table(), &asked), Err("`a b` is no header".to_owned()));
    }
}
