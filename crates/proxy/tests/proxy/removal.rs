//! Topologies are replaced under load, and a backend that goes is let go in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rig::{Answer, Backend, DEADLINE, Rig, free_port, get, sealed, simple, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_backend_ends_its_requests_and_is_counted_until_then() {
    let (rig, port) = (Rig::start().await, free_port());
    let (going, staying) = (Backend::start("going").await, Backend::start("staying").await);
    rig.apply(&simple(1, port, &[&going])).await;
    let slow = tokio::spawn(get(port, "a/slow"));
    until("the request is with its backend", || async { going.requests() == 1 }).await;
    assert_eq!(rig.in_flight("going").await, 1);

    rig.apply(&simple(2, port, &[&staying])).await;
    assert_eq!(rig.in_flight("going").await, 1, "no topology names it, and it is counted");
    for _ in 0..20 {
        assert_eq!(get(port, "a/").await.backend(), "staying");
    }
    assert_eq!(going.requests(), 1, "nothing new has begun there");

    going.gate.add_permits(1);
    let answer = slow.await.expect("ends");
    assert_eq!((answer.status, answer.body.as_str(), answer.backend()), (200, "slow", "going"));
    until("nothing is in flight", || async { rig.in_flight("going").await == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retiring_backend_gets_nothing_new() {
    let (rig, port) = (Rig::start().await, free_port());
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let mut topology = simple(1, port, &[&one, &two]);
    topology["pools"][0]["backends"][0]["retiring"] = json!(true);
    rig.apply(&topology).await;
    for _ in 0..10 {
        assert_eq!(get(port, "a/").await.backend(), "two");
    }
    topology["revision"] = json!(2);
    topology["pools"][0]["backends"][1]["retiring"] = json!(true);
    rig.apply(&topology).await;
    assert_eq!(get(port, "a/").await.status, 503, "both were asked to go");
}

/// Requests on kept connections, one after the other, until told to stop. Counts those that failed.
async fn load(port: u16, stop: Arc<AtomicBool>, done: Arc<AtomicUsize>, failed: Arc<AtomicUsize>) {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
    let (mut client, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("shakes hands");
    tokio::spawn(connection);
    while !stop.load(Ordering::Relaxed) {
        let request =
            http::Request::get("/").header("host", "a").body(Empty::<bytes::Bytes>::new()).expect("is good");
        let is_good = match client.send_request(request).await {
            Ok(answer) => answer.status() == 200 && answer.into_body().collect().await.is_ok(),
            Err(_) => false,
        };
        done.fetch_add(1, Ordering::Relaxed);
        if !is_good {
            failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topologies_are_replaced_under_load_and_no_request_fails() {
    let (rig, port) = (Rig::start().await, free_port());
    let backends = [Backend::start("u0").await, Backend::start("u1").await, Backend::start("u2").await];
    rig.apply(&simple(1, port, &[&backends[0], &backends[1]])).await;
    let (stop, done, failed) =
        (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let clients: Vec<_> =
        (0..8).map(|_| tokio::spawn(load(port, stop.clone(), done.clone(), failed.clone()))).collect();
    for revision in 2..60 {
        let gone = usize::try_from(revision % 3).expect("small");
        let staying: Vec<&Backend> =
            (0..3).filter(|index| *index != gone).map(|index| &backends[index]).collect();
        rig.apply(&simple(revision, port, &staying)).await;
        until("what was in flight has ended", || async { rig.in_flight(backends[gone].uid).await == 0 })
            .await;
        let before = backends[gone].requests();
        let seen = done.load(Ordering::Relaxed);
        until("some more requests", || async { done.load(Ordering::Relaxed) > seen + 20 }).await;
        assert_eq!(backends[gone].requests(), before, "revision {revision}: idle once means idle for good");
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("ends");
    }
    assert_eq!(failed.load(Ordering::Relaxed), 0, "of {}", done.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_appear_and_go() {
    let rig = Rig::start().await;
    let one = Backend::start("one").await;
    let (first, second) = (free_port(), free_port());
    rig.apply(&simple(1, first, &[&one])).await;
    assert_eq!(get(first, "a/").await.status, 200);
    rig.apply(&simple(2, second, &[&one])).await;
    assert_eq!(get(second, "a/").await.status, 200);
    until("the first port is closed", || async { TcpStream::connect(("127.0.0.1", first)).await.is_err() })
        .await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = taken.local_addr().expect("has one").port();
    let ghost = Backend::start("ghost").await;
    let (status, body) = rig.control("PUT", "/topology", &sealed(&simple(3, port, &[&ghost]))).await;
    assert_eq!(status, 503, "{body}");
    assert_eq!(rig.status().await["in_flight"]["ghost"], serde_json::Value::Null);
    assert_eq!(rig.status().await["revision"], 2, "what cannot be carried out changes nothing");
    assert_eq!(get(second, "a/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_told_to_end_finishes_what_is_in_flight() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    rig.apply(&simple(1, port, &[&one])).await;
    let slow = tokio::spawn(get(port, "a/slow"));
    until("the request is with its backend", || async { one.requests() == 1 }).await;
    let leaving = tokio::spawn(rig.leave());
    until("the port is closed", || async { TcpStream::connect(("127.0.0.1", port)).await.is_err() }).await;
    assert!(!leaving.is_finished());
    one.gate.add_permits(1);
    assert_eq!(slow.await.expect("ends").body, "slow");
    std::fs::remove_dir_all(leaving.await.expect("ends")).expect("is ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_may_move_to_another_address_of_its_port() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    let mut topology = simple(1, port, &[&one]);
    for (revision, address) in [(1, "127.0.0.1"), (2, "0.0.0.0"), (3, "127.0.0.1")] {
        topology["revision"] = json!(revision);
        topology["listeners"][0]["address"] = json!(address);
        rig.apply(&topology).await;
        assert_eq!(get(port, "a/").await.status, 200, "on {address}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_has_left_has_no_connection_open() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    rig.apply(&simple(1, port, &[&one])).await;
    let mut silent = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
    let mut idle = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sends");
    assert!(idle.read(&mut [0; 4096]).await.expect("is answered") > 0);
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("shakes hands");
    let kept = tokio::spawn(connection);
    let request = http::Request::get("http://a/").body(Empty::<bytes::Bytes>::new()).expect("is good");
    assert_eq!(client.send_request(request).await.expect("answers").status(), 200);
    until("all are counted", || async { rig.status().await["connections"] == 3 }).await;
    let directory = tokio::time::timeout(DEADLINE, rig.leave()).await.expect("does not wait for the silent");
    let _ = tokio::time::timeout(DEADLINE, kept).await.expect("HTTP/2 is told goodbye");
    for stream in [&mut silent, &mut idle] {
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "it is closed");
    }
    std::fs::remove_dir_all(directory).expect("is ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_kernel_has_accepted_for_a_port_that_goes_is_served() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    let mut topology = simple(1, port, &[&one]);
    topology["limits"] = json!({"connections_max": 1});
    rig.apply(&topology).await;
    let slow = tokio::spawn(async move { get(port, "a/slow").await });
    until("it is in flight", || async { rig.in_flight("one").await == 1 }).await;
    // There is no room for these, so they stay where the kernel has them.
    let mut waiting: Vec<TcpStream> = Vec::new();
    for _ in 0..5 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sends");
        waiting.push(stream);
    }
    topology["revision"] = json!(2);
    topology["listeners"] = json!([]);
    rig.apply(&topology).await;
    for mut stream in waiting {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("is answered, and closed");
        let answer = Answer::parse(&answer);
        assert_eq!((answer.status, answer.backend()), (200, "one"), "{answer:?}");
    }
    one.gate.add_permits(1);
    assert_eq!(slow.await.expect("ends").status, 200);
}
