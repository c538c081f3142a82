//! What clients may not take.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rig::{Backend, DEADLINE, Rig, free_port, get_with, send, simple, until};

#[tokio::test(flavor = "multi_thread")]
async fn heads_and_bodies_are_bounded() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    let mut topology = simple(1, port, &[&one]);
    topology["limits"] = json!({"header_bytes_max": 4096, "body_bytes_max": 1000});
    rig.apply(&topology).await;
    let head = |length: usize| format!("x-long: {}\r\n", "a".repeat(length));
    assert_eq!(get_with(port, "a/", &head(3_000)).await.status, 200);
    assert_eq!(get_with(port, "a/", &head(5_000)).await.status, 431);
    assert_eq!(get_with(port, "a/", &head(2_000_000)).await.status / 100, 4);
    let post = |length: usize| {
        format!(
            "POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{}",
            "b".repeat(length)
        )
    };
    assert_eq!(send(port, post(1_000).as_bytes()).await.body.len(), 1_000);
    assert_eq!(send(port, post(1_001).as_bytes()).await.status, 413);
    let chunk = format!("1f4\r\n{}\r\n", "c".repeat(500));
    let chunked = |chunks: usize| {
        format!(
            "POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
            chunk.repeat(chunks)
        )
    };
    assert_eq!(send(port, chunked(2).as_bytes()).await.status, 200);
    assert_eq!(send(port, chunked(3).as_bytes()).await.status, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_never_ends_and_a_connection_without_requests_are_closed() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    let mut topology = simple(1, port, &[&one]);
    topology["limits"] = json!({"header_timeout_ms": 200, "idle_timeout_ms": 400});
    rig.apply(&topology).await;
    for dripping in [true, false] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
        let closed = async {
            // A byte now and then keeps no connection: it is the whole head that has its time.
            while !dripping || stream.write_all(b"G").await.is_ok() {
                let mut byte = [0];
                let tick = std::time::Duration::from_millis(20);
                let read = tokio::time::timeout(tick, stream.read(&mut byte)).await;
                if matches!(read, Ok(Ok(0) | Err(_))) {
                    return;
                }
            }
        };
        tokio::time::timeout(DEADLINE, closed).await.expect("is closed in time");
    }
    until("no connection is counted", || async { rig.status().await["connections"] == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_request_need_not_be_as_long_as_a_preface() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    rig.apply(&simple(1, port, &[&one])).await;
    assert_eq!(send(port, b"GET / HTTP/1.0\r\n\r\n").await.status, 200);
}
