use serde_json::{Value, json};

use super::*;
use crate::registry::Registry;

fn table(routes: &Value, pools: &Value) -> Table {
    let document = json!({"format": 1, "revision": 1, "routes": routes, "pools": pools});
    let topology = serde_json::from_value(document).expect("reads");
    Table::compile(&topology, &mut Registry::default()).expect("compiles")
}

fn pool(name: &str, uids: &[&str]) -> Value {
    let backends: Vec<Value> = uids
        .iter()
        .map(|uid| json!({"uid": uid, "address": "127.0.0.1", "port": 80, "retiring": uid.starts_with('-')}))
        .collect();
    json!({"name": name, "backends": backends})
}

#[test]
fn the_more_precise_route_wins_and_among_equals_the_first() {
    let routes = json!([
        {"name": "any"},
        {"name": "any-api", "path": {"prefix": "/api/"}},
        {"name": "exact-host", "hosts": ["a.example"]},
        {"name": "host-api", "hosts": ["a.example"], "path": {"prefix": "/api"}},
        {"name": "host-api-later", "hosts": ["a.example"], "path": {"prefix": "/api"}},
        {"name": "host-api-v1", "hosts": ["a.example"], "path": {"prefix": "/api/v1"}},
        {"name": "host-exact", "hosts": ["a.example"], "path": {"exact": "/api/v1"}},
        {"name": "post", "hosts": ["m.example"], "methods": ["POST"]},
        {"name": "wild", "hosts": ["*.b.example"]},
        {"name": "wilder", "hosts": ["*.c.b.example"], "path": {"prefix": "/deep"}},
    ]);
    let table = table(&routes, &json!([]));
    let cases = [
        ("GET x.example/", "any"),
        ("GET x.example/api", "any-api"),
        ("GET x.example/api/", "any-api"),
        ("GET x.example/apis", "any"),
        ("GET a.example/", "exact-host"),
        ("GET A.Example:8080/", "exact-host"),
        ("GET a.example./", "exact-host"),
        ("GET a.example/api", "host-api"),
        ("GET a.example/api/v2/x", "host-api"),
        ("GET a.example/api/v1", "host-exact"),
        ("GET a.example/api/v1/", "host-api-v1"),
        ("GET a.example/api/v1/very/long/path/that/goes/on", "host-api-v1"),
        ("GET a.example/api/v10", "host-api"),
        ("POST m.example/", "post"),
        ("GET m.example/", "any"),
        ("GET b.example/", "any"),
        ("GET x.b.example/", "wild"),
        ("GET y.x.b.example/", "wild"),
        ("GET x.c.b.example/deep/er", "wilder"),
        ("GET x.c.b.example/", "wild"),
        ("GET [::1]:80/", "any"),
        ("GET /", "any"),
        ("OPTIONS *", "any"),
    ];
    for (request, expected) in cases {
        let (method, rest) = request.split_once(' ').expect("a method");
        let (host, path) = rest.find('/').map_or(("", rest), |slash| rest.split_at(slash));
        let method: Method = method.parse().expect("a method");
        let found = table.route(host, path, &method).map(|route| route.name.as_str());
        // `*` is no path, so only a route of its own could take it.
        let expected = (path != "*").then_some(expected);
        assert_eq!(found, expected, "{request}");
    }
}

#[test]
fn pools_share_by_weight_and_the_empty_get_nothing() {
    let routes = json!([
        {"name": "split", "targets": [{"pool": "a", "weight": 90}, {"pool": "b", "weight": 10}, {"pool": "empty", "weight": 100}]},
        {"name": "emptied", "path": {"prefix": "/emptied"}, "targets": [{"pool": "empty"}, {"pool": "retiring"}]},
    ]);
    let table = table(
        &routes,
        &json!([pool("a", &["u1"]), pool("b", &["u2"]), pool("empty", &[]), pool("retiring", &["-u3"])]),
    );
    let of_b = (0..1_000).filter(|_| table.routes[0].pool().is_some_and(|pool| pool.name == "b")).count();
    assert!((95..=105).contains(&of_b), "{of_b}");
    assert!(table.routes[1].pool().is_none());
}

#[test]
fn prefixes_are_rewritten() {
    let cases = [
        ("/api", "/", "/api/x", Some("/x")),
        ("/api", "/", "/api", Some("/")),
        ("/api/", "/v2/", "/api/x/y", Some("/v2/x/y")),
        ("/api", "/v2", "/api", Some("/v2")),
        ("/", "/v2", "/x", Some("/v2/x")),
        ("/", "/", "/", Some("/")),
    ];
    for (prefix, replacement, path, expected) in cases {
        let routes = json!([{"name": "r", "path": {"prefix": prefix}, "rewrite_prefix": replacement}]);
        let table = table(&routes, &json!([]));
        assert_eq!(table.routes[0].rewritten(path).as_deref(), expected, "{prefix} {replacement} {path}");
    }
}

#[test]
fn a_cookie_leads_to_its_backend_while_that_takes_requests() {
    let cookie = |uid: &str| format!("{:016x}", chance::stable_hash(uid.as_bytes()));
    let routes =
        json!([{"name": "r", "targets": [{"pool": "a"}, {"pool": "b"}], "sticky": {"cookie": "lb"}}]);
    let table = table(&routes, &json!([pool("a", &["u1", "-gone"]), pool("b", &["u2", "u3"])]));
    let cases = [
        (cookie("u1"), Some("u1")),
        (cookie("u3"), Some("u3")),
        (cookie("-gone"), None),
        ("zz".to_owned(), None),
        (String::new(), None),
    ];
    for (cookie, expected) in cases {
        let found = table.routes[0].stuck_to(&cookie).map(|(pool, index)| pool.members[index].uid.as_str());
        assert_eq!(found, expected, "{cookie}");
    }
}

#[test]
fn a_retry_goes_elsewhere_while_there_is_an_elsewhere() {
    let table = table(&json!([]), &json!([pool("a", &["u1", "u2"])]));
    let pool = &table.pools[0];
    for _ in 0..4 {
        assert_eq!(pool.choose(None, &["u1".to_owned()], 0), Some(1));
        assert!(pool.choose(None, &["u1".to_owned(), "u2".to_owned()], 0).is_some());
    }
}

#[test]
fn a_certificate_that_is_none_is_refused_with_its_place() {
    let document = json!({"format": 1, "revision": 1,
        "certificates": [{"server_names": ["a.example"], "chain_pem": "x", "key_pem": "y"}]});
    let topology = serde_json::from_value(document).expect("reads");
    let problem = Table::compile(&topology, &mut Registry::default()).expect_err("is no certificate");
    assert_eq!(problem.to_string(), "certificates[0]: its chain has 0 certificates, not 1 to 16");
}
