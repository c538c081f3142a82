//! Floods over HTTP/2 and many connections: whoever sends them is cut off or kept waiting, and nobody else notices.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::cases_h2::{begin, block, frame};
use crate::rig::{Backend, DEADLINE, Rig, free_port, get, simple, until};

const GOOD: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/flood")];

/// More than any client has to say before it reads an answer.
const FRAMES: u32 = 100_000;

/// Sends a flood and reads all that comes back. Who is not cut off says in the end that this was all.
async fn flood(port: u16, frames: &[u8], is_cut_off: bool) {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
    let (mut read, mut write) = stream.into_split();
    let sending = async {
        let _ = write.write_all(frames).await;
        if !is_cut_off {
            let _ = write.shutdown().await;
        }
    };
    let receiving = async {
        let _ = tokio::io::copy(&mut read, &mut tokio::io::sink()).await;
    };
    let both = async { tokio::join!(sending, receiving) };
    tokio::time::timeout(DEADLINE, both).await.expect("the proxy ends it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_http2_ends_its_own_connection_and_no_other() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    rig.apply(&simple(1, port, &[&one])).await;
    let good = block(&GOOD);
    let streams = |each: &dyn Fn(u32) -> Vec<u8>| -> Vec<u8> {
        let frames = (0..FRAMES).flat_map(|number| each(number * 2 + 1));
        begin().into_iter().chain(frames).collect()
    };
    // Name, the bytes, and whether the proxy has to end the connection by itself.
    let table: [(&str, Vec<u8>, bool); 6] = [
        (
            "rapid reset",
            streams(&|id| [frame(1, 5, id, &good), frame(3, 0, id, &[0, 0, 0, 8])].concat()),
            true,
        ),
        ("settings", streams(&|_| frame(4, 0, 0, &[0, 3, 0, 0, 0, 100])), false),
        ("pings", streams(&|_| frame(6, 0, 0, &[7; 8])), false),
        (
            "continuations",
            {
                let first = frame(1, 1, 1, &good);
                [begin(), first, frame(9, 0, 1, &block(&[("x", "y")])).repeat(FRAMES as usize)].concat()
            },
            true,
        ),
        (
            "empty bodies",
            [begin(), frame(1, 4, 1, &good), frame(0, 0, 1, &[]).repeat(FRAMES as usize)].concat(),
            false,
        ),
        ("windows of nothing", streams(&|_| frame(8, 0, 0, &[0, 0, 0, 0])), true),
    ];
    for (what, bytes, is_cut_off) in table {
        flood(port, &bytes, is_cut_off).await;
        assert_eq!(get(port, "a/").await.status, 200, "after {what}");
        until(what, || async { rig.status().await["connections"] == 0 && rig.in_flight("one").await == 0 })
            .await;
    }
    // Reset before they were begun, most of them have to be none of the backend's business.
    assert!(one.requests() < 10_000, "{} requests reached the backend", one.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_connections_waits_and_leaves() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    let mut topology = simple(1, port, &[&one]);
    topology["limits"] = json!({"connections_max": 50, "header_timeout_ms": 300, "idle_timeout_ms": 300});
    rig.apply(&topology).await;
    let mut flood = Vec::new();
    for number in 0..300 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
        if number % 2 == 0 {
            stream.write_all(b"GET / HT").await.expect("sends");
        }
        flood.push(stream);
    }
    assert!(rig.status().await["connections"].as_u64().is_some_and(|count| count <= 50));
    // It comes behind all of them, and its turn comes.
    assert_eq!(get(port, "a/").await.status, 200);
    for mut stream in flood {
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "nobody stays");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_byte_by_byte_keeps_no_one_else_waiting() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    rig.apply(&simple(1, port, &[&one])).await;
    let mut slow = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
    let head = b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 50\r\n\r\n";
    slow.write_all(head).await.expect("sends");
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    for _ in 0..50 {
        ticks.tick().await;
        slow.write_all(b"x").await.expect("sends");
        assert_eq!(get(port, "a/").await.status, 200);
    }
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.expect("is answered");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(&"x".repeat(50)), "{answer}");
}
