//! An address that is about to be another's is left in order.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rig::{Backend, Rig, free_port, get, simple, until};

const LEFT: &str = "127.0.0.3";

/// A connection to the address that is left.
async fn connect(port: u16) -> TcpStream {
    TcpStream::connect((LEFT, port)).await.expect("it is taken")
}

/// Asks once on a connection that is kept; the head of the answer, in small letters.
async fn ask(stream: &mut TcpStream, path: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.expect("sends");
    let mut answer = vec![0; 4_096];
    let length = stream.read(&mut answer).await.expect("an answer");
    String::from_utf8_lossy(&answer[..length]).to_ascii_lowercase()
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.is_ok()
}

async fn leave(rig: &Rig, address: &str, within_ms: u64) -> bool {
    let (status, answer) = rig.control("PUT", &format!("/leaving/{address}/{within_ms}"), "").await;
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(status, 200, "{answer}");
    answer["left"] == true
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_to_an_address_ends_before_it_is_left_and_nobody_is_refused() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    let mut topology = simple(1, port, &[&one]);
    topology["listeners"][0]["address"] = json!("0.0.0.0");
    rig.apply(&topology).await;
    let (mut idle, mut busy, mut active) = (connect(port).await, connect(port).await, connect(port).await);
    assert!(ask(&mut idle, "/").await.starts_with("http/1.1 200"));
    assert!(!ask(&mut active, "/").await.contains("connection: close"));
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sends");
    until("the request is with its backend", || async { one.requests() == 3 }).await;
    let mut elsewhere = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");

    assert!(!leave(&rig, LEFT, 30_000).await, "three are open");
    assert!(ask(&mut active, "/").await.contains("connection: close"), "each answer is the last");
    assert!(is_closed(&mut active).await);
    assert!(ask(&mut connect(port).await, "/").await.contains("connection: close"), "new ones are taken");
    assert!(is_closed(&mut idle).await, "it had nothing to do");
    assert!(!leave(&rig, LEFT, 30_000).await, "one is busy");
    one.gate.add_permits(1);
    let mut answer = String::new();
    busy.read_to_string(&mut answer).await.expect("an answer");
    assert!(
        answer.ends_with("slow") && answer.to_ascii_lowercase().contains("connection: close"),
        "{answer}"
    );
    until("it is left", || leave(&rig, LEFT, 30_000)).await;

    let begun = tokio::spawn(connect(port));
    assert!(ask(&mut elsewhere, "/").await.starts_with("http/1.1 200"), "other addresses go on");
    assert!(!ask(&mut elsewhere, "/").await.contains("connection: close"));
    assert_eq!(get(port, "a/").await.status, 200);
    assert!(!begun.is_finished(), "nobody is answered there");
    let (status, answer) = rig.control("DELETE", "/leaving", "").await;
    assert_eq!((status, answer.as_str()), (200, r#"{"left":false}"#));
    let mut stream = begun.await.expect("it asks again, and is taken");
    assert!(!ask(&mut stream, "/").await.contains("connection: close"));
    assert_eq!(rig.control("PUT", "/leaving/nonsense/1", "").await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_does_not_end_has_its_time_and_keeps_nobody_else_waiting() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    let mut topology = simple(1, port, &[&one]);
    topology["listeners"][0]["address"] = json!("0.0.0.0");
    rig.apply(&topology).await;
    let mut busy = connect(port).await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sends");
    until("the request is with its backend", || async { one.requests() == 1 }).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        assert!(!leave(&rig, LEFT, 2_500).await, "one is open");
        assert!(ask(&mut connect(port).await, "/").await.starts_with("http/1.1 200"), "others are taken");
    }
    until("it is left, though one is open", || leave(&rig, LEFT, 2_500)).await;
    assert!(begun.elapsed() >= Duration::from_secs(2), "it had its time");
}

/// `::1` has `0.0.0.1` as its last half, as a virtual address of IPv6 has that of IPv4.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_of_ipv6_is_left_with_the_one_that_it_is_made_from() {
    const MADE_FROM: &str = "0.0.0.1";
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    let mut topology = simple(1, port, &[&one]);
    topology["listeners"][0]["address"] = json!("::");
    rig.apply(&topology).await;
    let by6 = || TcpStream::connect(("::1", port));
    let mut kept = by6().await.expect("it is taken");
    assert!(ask(&mut kept, "/").await.contains(r#""x-forwarded-for": "::1""#));
    let by4 = get(port, "a/").await;
    assert!(
        by4.body.contains(r#""x-forwarded-for": "127.0.0.1""#),
        "as if it had come by IPv4: {}",
        by4.body
    );

    until("it is left", || leave(&rig, MADE_FROM, 30_000)).await;
    assert!(is_closed(&mut kept).await);
    let begun = tokio::spawn(by6());
    for _ in 0..3 {
        assert_eq!(get(port, "a/").await.status, 200, "the other family is another address");
    }
    assert!(!begun.is_finished(), "nobody is answered there");
    assert_eq!(rig.control("DELETE", "/leaving", "").await.0, 200);
    let mut stream = begun.await.expect("goes on").expect("it asks again, and is taken");
    assert!(ask(&mut stream, "/").await.starts_with("http/1.1 200"));
}
