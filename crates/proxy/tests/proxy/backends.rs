//! Backends that behave in ways of their own, and what is known of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::rig::{Backend, Rig, free_port, get, send, simple, until};

/// A backend that does with its connections what the test says.
struct Odd {
    entry: Value,
    connections: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Odd {
    async fn start<F: Future<Output = std::io::Result<()>> + Send + 'static>(
        uid: &str,
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Odd {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has one");
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream));
            }
        });
        let entry = json!({"uid": uid, "address": address.ip(), "port": address.port()});
        Odd { entry, connections, task: task.abort_handle() }
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Speaks as much HTTP/2 as is needed to refuse each request unread.
async fn refuse_streams(mut stream: TcpStream) -> std::io::Result<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        match (head[3], head[4]) {
            (4, 0) => stream.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0]).await?,
            (1, _) => {
                let [.., a, b, c, d] = head;
                stream.write_all(&[0, 0, 4, 3, 0, a, b, c, d, 0, 0, 0, 7]).await?;
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backend_of_http2_refused_unread_is_tried_elsewhere_whatever_the_method() {
    let (rig, port) = (Rig::start().await, free_port());
    let (refusing, good) = (Odd::start("refusing", refuse_streams).await, Backend::start_h2("good").await);
    let mut topology = simple(1, port, &[]);
    topology["pools"][0]["protocol"] = json!("h2");
    topology["pools"][0]["backends"] = json!([refusing.entry, good.entry()]);
    rig.apply(&topology).await;
    for _ in 0..6 {
        let request = b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\n\r\nabcd";
        let answer = send(port, request).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "abcd"));
    }
    assert!(refusing.connections.load(Ordering::Relaxed) > 0);
    assert_eq!(good.requests(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_not_checked_any_more_does_not_stay_failing() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    one.kill();
    let mut topology = simple(1, port, &[&one]);
    topology["pools"][0]["check"] =
        json!({"probe": "tcp", "every_ms": 20, "timeout_ms": 20, "healthy_after": 1, "unhealthy_after": 1});
    rig.apply(&topology).await;
    until("it fails", || async { rig.status().await["backends"][0]["health"] == "failing" }).await;
    rig.apply(&simple(2, port, &[&one])).await;
    assert_eq!(rig.status().await["backends"][0]["health"], "healthy");
}

/// Answers so many requests on a connection, and closes it in the face of the next.
async fn answer_some(mut stream: TcpStream, requests: usize) -> std::io::Result<()> {
    for _ in 0..requests {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await?;
    }
    stream.read_u8().await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_to_stand_at_an_address_gets_no_connection_of_its_predecessor() {
    let (rig, port) = (Rig::start().await, free_port());
    let mut odd = Odd::start("old", |stream| answer_some(stream, 100)).await;
    let mut topology = simple(1, port, &[]);
    topology["pools"][0]["backends"] = json!([odd.entry]);
    rig.apply(&topology).await;
    // Several at once, so that a connection is sure to be kept.
    let (first, second) = tokio::join!(get(port, "a/"), get(port, "a/"));
    assert_eq!((first.status, second.status), (200, 200));
    until("nothing is in flight", || async { rig.in_flight("old").await == 0 }).await;
    let before = odd.connections.load(Ordering::Relaxed);
    odd.entry["uid"] = json!("new");
    topology["revision"] = json!(2);
    topology["pools"][0]["backends"] = json!([odd.entry]);
    rig.apply(&topology).await;
    assert_eq!(get(port, "a/").await.status, 200);
    assert_eq!(odd.connections.load(Ordering::Relaxed), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_closes_what_it_waited_on_has_not_failed() {
    let (rig, port) = (Rig::start().await, free_port());
    let odd = Odd::start("odd", |stream| answer_some(stream, 1)).await;
    let mut topology = simple(1, port, &[]);
    topology["pools"][0]["backends"] = json!([odd.entry]);
    topology["pools"][0]["ejection"] =
        json!({"failures": 1, "first_ms": 60000, "longest_ms": 60000, "ejected_percent_max": 100});
    rig.apply(&topology).await;
    for _ in 0..5 {
        assert_eq!(get(port, "a/").await.status, 200);
        until("nothing is in flight", || async { rig.in_flight("odd").await == 0 }).await;
    }
    assert_eq!(rig.status().await["backends"][0]["health"], "healthy");
}

/// Takes everything and never answers, as a program does that was stopped: its kernel goes on taking connections.
async fn hang(mut stream: TcpStream) -> std::io::Result<()> {
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_falls_silent_loses_safe_requests_to_another_and_no_others() {
    let (rig, port) = (Rig::start().await, free_port());
    let (hung, good) = (Odd::start("hung", hang).await, Backend::start("good").await);
    let mut topology = simple(1, port, &[]);
    topology["pools"][0]["backends"] = json!([hung.entry, good.entry()]);
    rig.apply(&topology).await;
    for _ in 0..6 {
        // Its own time-out is a minute.
        assert_eq!(get(port, "a/").await.backend(), "good");
    }
    assert!(hung.connections.load(Ordering::Relaxed) > 0);
    topology["revision"] = json!(2);
    topology["routes"][0]["timeouts"] = json!({"connect_ms": 1_000, "read_ms": 900, "write_ms": 1_000});
    rig.apply(&topology).await;
    let post = b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx";
    let (one, other) = tokio::join!(send(port, post), send(port, post));
    let mut statuses = [one.status, other.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 504], "who cannot be repeated waits to the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_of_a_backend_that_answers_others_is_waited_for() {
    let (rig, port) = (Rig::start().await, free_port());
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    rig.apply(&simple(1, port, &[&one, &two])).await;
    let slow = tokio::spawn(async move { get(port, "a/slow").await });
    until("it waits", || async { one.requests() + two.requests() == 1 }).await;
    let end = tokio::time::Instant::now() + Duration::from_millis(900);
    while tokio::time::Instant::now() < end {
        assert_eq!(get(port, "a/").await.status, 200);
    }
    one.gate.add_permits(1);
    two.gate.add_permits(1);
    assert_eq!(slow.await.expect("ends").status, 200);
    let retries = rig.control("GET", "/metrics", "").await.1;
    let none = "lightbyte_proxy_route_retries_total{route=\"web\"} 0";
    assert!(retries.contains(none), "{retries}");
}
