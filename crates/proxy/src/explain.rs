//! What would become of a request, by the table that holds and the health that is known. Nothing is counted, and nobody's turn
//! is taken.

use http::{HeaderName, HeaderValue, Method};
use lightbyte_api::explain::{Answer, By, Candidate, Candidates, Explained, Question};
use pingora_http::RequestHeader;

use crate::clock;
use crate::gateway::{cookie_of, hash_of, location, location_of_https};
use crate::table::{Pool, Route, Table};

/// What the proxy would do.
///
/// # Errors
/// In words, what makes the question one that no client could send.
pub(crate) fn explain(table: &Table, question: &Question) -> Result<Explained, String> {
    let method: Method =
        question.method.parse().map_err(|_| format!("`{}` is no method", question.method))?;
    let mut request = RequestHeader::build(method, question.path.as_bytes(), None)
        .map_err(|_| format!("`{}` is no path", question.path))?;
    for (name, value) in &question.headers {
        let name: HeaderName = name.parse().map_err(|_| format!("`{name}` is no header"))?;
        let value: HeaderValue = value.parse().map_err(|_| format!("`{value}` is no value of a header"))?;
        request.append_header(name, value).map_err(|error| error.to_string())?;
    }
    Ok(Explained { revision: table.revision, answer: answer(table, question, &request) })
}

fn answer(table: &Table, question: &Question, request: &RequestHeader) -> Answer {
    let Some(listener) = table.listeners.get(&question.port) else { return Answer::NotListening };
    let whole = request.uri.path_and_query().map_or("/", |path| path.as_str());
    if let Some(port) = listener.redirect_to_https {
        let location = location_of_https(&question.host, port, whole);
        return Answer::Redirects { route: None, status: 308, location };
    }
    let path = request.uri.path();
    let Some(route) = table.route(&question.host, path, &request.method) else { return Answer::NoRoute };
    if let Some(redirect) = &route.redirect {
        let location = location(redirect, listener.protocol.scheme(), &question.host, whole);
        return Answer::Redirects { route: Some(route.name.clone()), status: redirect.status, location };
    }
    let (by, pools) = candidates(route, question, request);
    Answer::Forwards {
        route: route.name.clone(),
        path: route.rewritten(path).unwrap_or_else(|| path.to_owned()),
        by,
        pools,
    }
}

fn candidates(route: &Route, question: &Question, request: &RequestHeader) -> (By, Vec<Candidates>) {
    let now_ms = clock::now_ms();
    let cookie = route.sticky.as_ref().and_then(|sticky| cookie_of(request, &sticky.cookie));
    let stuck = cookie.and_then(|cookie| route.stuck_to(cookie));
    if let Some((pool, index)) = stuck.filter(|(pool, index)| pool.members[*index].is_healthy(now_ms)) {
        return (By::Cookie, vec![of_pool(pool, 100, now_ms, |other| other == index)]);
    }
    let mut by = By::Turn;
    let pools = route.shares().map(|(percent, pool)| {
        let key = pool.key.as_ref().zip(question.source.or(Some(std::net::Ipv4Addr::LOCALHOST.into())));
        let key = key.and_then(|(key, source)| hash_of(key, request, source));
        by = if key.is_some() {
            By::Hash
        } else if pool.is_by_load() {
            By::Load
        } else {
            By::Turn
        };
        let next = pool.next(key, now_ms);
        // Health only sorts: where nobody is well everybody is tried.
        let any_well = pool.members.iter().any(|member| member.is_healthy(now_ms));
        let might = |index: usize| match by {
            By::Hash => Some(index) == next,
            _ => !any_well || pool.members[index].is_healthy(now_ms),
        };
        of_pool(pool, percent, now_ms, might)
    });
    let pools = pools.collect();
    (by, pools)
}

fn of_pool(pool: &Pool, percent: u64, now_ms: u64, might: impl Fn(usize) -> bool) -> Candidates {
    let now = std::time::Duration::from_millis(now_ms);
    let backends = pool.members.iter().enumerate().map(|(index, member)| {
        let (standing, _, because) = member.story(now);
        Candidate {
            uid: member.uid.clone(),
            vm: None,
            address: member.address.to_string(),
            health: standing.word().to_owned(),
            because,
            might_be_asked: might(index),
        }
    });
    Candidates { pool: pool.name.clone(), percent, backends: backends.collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::registry::Registry;

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
                { "name": "mine", "path": { "prefix": "/mine" }, "targets": [{ "pool": "h" }] },
            ],
            "pools": [
                { "name": "a", "backends": [backend("u1"), backend("u2")] },
                { "name": "b", "backends": [backend("u3")], "balance": "least_connections" },
                { "name": "h", "backends": [backend("u1"), backend("u2"), backend("u3")], "balance": { "hash": { "header": "x-user" } } },
            ],
        });
        let topology = serde_json::from_value(topology).expect("a topology");
        Table::compile(&topology, &mut Registry::default()).expect("a table")
    }

    fn question(port: u16, path: &str, headers: Value) -> Question {
        let headers = serde_json::from_value(headers).expect("headers");
        Question {
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
        check(81, "/a?b", json!({ "does": "redirects", "status": 308, "location": "https://shop/a?b" }));
        check(
            80,
            "/old",
            json!({ "does": "redirects", "route": "old", "status": 301, "location": "http://shop/new" }),
        );
        let found = explain(&table, &question(80, "/api/x", json!({}))).expect("a question").answer;
        let Answer::Forwards { route, path, pools, .. } = found else { panic!("{found:?}") };
        assert_eq!((route.as_str(), path.as_str()), ("api", "/x"));
        let shares: Vec<(String, u64, usize)> =
            pools.iter().map(|pool| (pool.pool.clone(), pool.percent, pool.backends.len())).collect();
        assert_eq!(shares, [("a".to_owned(), 90, 2), ("b".to_owned(), 10, 1)]);
    }

    #[test]
    fn a_hash_names_one_and_asking_takes_nobodys_turn() {
        let table = table();
        let one = || {
            let asked = question(80, "/mine", json!({ "x-user": "ann" }));
            let Answer::Forwards { by, pools, .. } = explain(&table, &asked).expect("a question").answer
            else {
                panic!("is forwarded")
            };
            assert_eq!(by, By::Hash);
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
    fn what_no_client_could_send_is_refused_in_words() {
        let asked = Question { method: "G T".to_owned(), ..question(80, "/", json!({})) };
        assert_eq!(explain(&table(), &asked), Err("`G T` is no method".to_owned()));
        let asked = question(80, "/", json!({ "a b": "c" }));
        assert_eq!(explain(&table(), &asked), Err("`a b` is no header".to_owned()));
    }
}
