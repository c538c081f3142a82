//! Requests find their backends, and the dead are passed over.

use serde_json::json;

use crate::rig::{Backend, Rig, free_port, get, get_with, pool, sealed, send, simple};

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_where_the_topology_says() {
    let (rig, port) = (Rig::start().await, free_port());
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    rig.apply(&json!({
        "format": 1, "revision": 1,
        "listeners": [{"name": "web", "address": "127.0.0.1", "port": port, "protocol": "http"}],
        "routes": [
            {"name": "api", "hosts": ["a.example"], "path": {"prefix": "/api"}, "rewrite_prefix": "/v2",
             "request_headers": {"set": {"x-set": "yes"}, "remove": ["x-gone"]},
             "response_headers": {"set": {"x-answer": "yes"}}, "targets": [{"pool": "one"}]},
            {"name": "rest", "hosts": ["a.example"], "targets": [{"pool": "two"}]},
            {"name": "emptied", "hosts": ["empty.example"], "targets": [{"pool": "none"}]},
            {"name": "old", "hosts": ["old.example"], "redirect": {"status": 308, "scheme": "https", "host": "a.example"}},
            {"name": "few", "hosts": ["few.example"], "rate_limit": {"per_second": 1, "burst": 1}, "targets": [{"pool": "one"}]},
        ],
        "pools": [pool("one", &[&one]), pool("two", &[&two]), {"name": "none"}],
    }))
    .await;
    let api =
        get_with(port, "a.example/api/x?q=1", "x-gone: no\r\nx-forwarded-for: 6.6.6.6\r\nkeep-alive: 5\r\n")
            .await;
    assert_eq!((api.status, api.backend()), (200, "one"), "{api:?}");
    assert_eq!(api.header("x-answer"), Some("yes"));
    assert!(api.body.starts_with("GET /v2/x "), "{}", api.body);
    for (text, is_there) in [
        ("x-set", true),
        ("x-gone", false),
        ("6.6.6.6", false),
        ("keep-alive", false),
        ("\"x-forwarded-for\": \"127.0.0.1\"", true),
        ("traceparent", true),
    ] {
        assert_eq!(api.body.contains(text), is_there, "{text} in {}", api.body);
    }
    let table = [
        ("a.example/apis", 200, "two"),
        ("A.EXAMPLE:80/", 200, "two"),
        ("b.example/", 404, "none"),
        ("empty.example/", 503, "none"),
        ("few.example/", 200, "one"),
        ("few.example/", 429, "none"),
        ("old.example/x?y", 308, "none"),
    ];
    for (what, status, backend) in table {
        let answer = get(port, what).await;
        assert_eq!((answer.status, answer.backend()), (status, backend), "{what}: {answer:?}");
    }
    assert_eq!(get(port, "old.example/x?y").await.header("location"), Some("https://a.example/x?y"));
    let (_, metrics) = rig.control("GET", "/metrics", "").await;
    let line = "lightbyte_proxy_route_requests_total{route=\"api\",class=\"2xx\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_backend_fails_no_request() {
    let (rig, port) = (Rig::start().await, free_port());
    let (dead, living) = (Backend::start("dead").await, Backend::start("living").await);
    rig.apply(&simple(1, port, &[&dead, &living])).await;
    dead.kill();
    for number in 0..50 {
        // With a body too: nothing was sent when the connection failed.
        let request = "POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello";
        let answer =
            if number % 2 == 0 { get(port, "a/").await } else { send(port, request.as_bytes()).await };
        assert_eq!((answer.status, answer.backend()), (200, "living"), "request {number}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_find_the_dead_and_the_last_are_kept() {
    let (rig, port) = (Rig::start().await, free_port());
    let (dead, living) = (Backend::start("dead").await, Backend::start("living").await);
    let mut topology = simple(1, port, &[&dead, &living]);
    topology["pools"][0]["check"] = json!({"probe": {"http": "/health"}, "every_ms": 20, "timeout_ms": 1000, "healthy_after": 1, "unhealthy_after": 2});
    topology["routes"][0]["tries_max"] = json!(1);
    rig.apply(&topology).await;
    dead.kill();
    let health =
        async |index: usize| rig.status().await["backends"][index]["health"].as_str().map(str::to_owned);
    crate::rig::until("the check fails", || async { health(0).await.as_deref() == Some("failing") }).await;
    assert!(
        rig.status().await["backends"][0]["reason"]
            .as_str()
            .is_some_and(|why| why.starts_with("check: connect"))
    );
    for _ in 0..10 {
        assert_eq!(get(port, "a/").await.backend(), "living");
    }
    living.kill();
    crate::rig::until("the other fails", || async { health(1).await.as_deref() == Some("failing") }).await;
    assert_eq!(get(port, "a/").await.status, 502, "they are tried all the same: not asked for is not 503");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_keeps_a_client_with_its_backend() {
    let (rig, port) = (Rig::start().await, free_port());
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let mut topology = simple(1, port, &[&one, &two]);
    topology["routes"][0]["sticky"] = json!({"cookie": "lb", "max_age_s": 60});
    rig.apply(&topology).await;
    let first = get(port, "a/").await;
    let cookie =
        first.header("set-cookie").and_then(|cookie| cookie.split(';').next()).expect("a cookie").to_owned();
    for _ in 0..6 {
        let next = get_with(port, "a/", &format!("Cookie: x=y; {cookie}\r\n")).await;
        assert_eq!(next.backend(), first.backend());
        assert_eq!(next.header("set-cookie"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_fails_requests_is_ejected_for_a_while() {
    let (rig, port) = (Rig::start().await, free_port());
    let (bad, good) = (Backend::start("bad").await, Backend::start("good").await);
    let mut topology = simple(1, port, &[&bad, &good]);
    topology["pools"][0]["ejection"] =
        json!({"failures": 3, "first_ms": 60_000, "longest_ms": 60_000, "ejected_percent_max": 50});
    rig.apply(&topology).await;
    let statuses = async |rounds: usize| {
        let mut failed = 0;
        for _ in 0..rounds {
            // Both are asked for it; only the bad one says that it is overloaded.
            failed += usize::from(get(port, "a/bad").await.status == 503);
        }
        failed
    };
    assert_eq!(statuses(20).await, 3, "then it gets none");
    let status = rig.status().await;
    assert_eq!(status["backends"][0]["health"], "ejected");
    assert_eq!(status["backends"][0]["reason"], "3 failed requests in a row");
    assert_eq!(status["backends"][1]["health"], "healthy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_sent_early_is_answered_in_its_turn() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    rig.apply(&simple(1, port, &[&one])).await;
    let both = b"GET /first HTTP/1.1\r\nHost: a\r\n\r\nPOST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
        GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = send(port, both).await;
    let places = ["GET /first", "abc", "GET /last"].map(|text| answer.body.find(text));
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certification_authority_is_answered_before_all_routes() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    let mut topology = simple(1, port, &[&one]);
    topology["listeners"][0]["redirect_to_https"] = json!(443);
    topology["challenges"] = json!([{"token": "abc-_1", "answer": "abc-_1.thumb"}]);
    rig.apply(&topology).await;
    let asked = get(port, "a.example/.well-known/acme-challenge/abc-_1").await;
    assert_eq!((asked.status, asked.body.as_str()), (200, "abc-_1.thumb"));
    for other in ["abc", "abc-_1/x", "", "../acme-challenge/abc-_1"] {
        let asked = get(port, &format!("a.example/.well-known/acme-challenge/{other}")).await;
        assert!(asked.status == 308 || asked.status == 400, "{other}: {}", asked.status);
    }
    let posted = b"POST /.well-known/acme-challenge/abc-_1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(send(port, posted).await.status, 308);
    for (token, answer) in [("a/b", "x"), ("", "x"), ("a", ""), ("a", "x\r\ny")] {
        topology["revision"] = json!(2);
        topology["challenges"] = json!([{"token": token, "answer": answer}]);
        let (status, body) = rig.control("PUT", "/topology", &sealed(&topology)).await;
        assert!(status == 422 && body.contains("challenges[0]"), "{token:?} {answer:?}: {status} {body}");
    }
}
