//! WebSockets, HTTP/2 on both sides, and the PROXY header.

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::rig::{Backend, Rig, free_port, get, send, simple, until};

/// A WebSocket that the other side has agreed to.
async fn open_websocket(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
    let request = b"GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request).await.expect("sends");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("reads"));
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_carried_and_counted() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    rig.apply(&simple(1, port, &[&one])).await;
    let mut stream = open_websocket(port).await;
    for text in [b"hello".as_slice(), &[0; 100_000]] {
        let (mut read, mut write) = stream.split();
        let mut back = vec![0; text.len()];
        let (sent, got) = tokio::join!(write.write_all(text), read.read_exact(&mut back));
        sent.expect("sends");
        got.expect("reads");
        assert!(back == text, "what comes back is what was sent");
    }
    assert_eq!(rig.in_flight("one").await, 1);
    drop(stream);
    until("it is over", || async { rig.in_flight("one").await == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_lives_though_its_backend_agrees_before_it_was_asked() {
    let (rig, port) = (Rig::start().await, free_port());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let mut topology = simple(1, port, &[]);
    let address = listener.local_addr().expect("has one");
    topology["pools"][0]["backends"] =
        json!([{"uid": "hasty", "address": address.ip(), "port": address.port()}]);
    rig.apply(&topology).await;
    let backend = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let agreed = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Accept: x\r\n\r\n";
            stream.write_all(agreed).await.expect("sends");
            tokio::spawn(async move {
                // The request goes back too: the client looks for what it sent after it.
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    for round in 0..300 {
        let mut stream = open_websocket(port).await;
        let mut back = Vec::new();
        stream.write_all(b"still there?").await.expect("sends");
        while !back.ends_with(b"still there?") {
            back.push(stream.read_u8().await.unwrap_or_else(|error| panic!("round {round}: {error}")));
        }
    }
    backend.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_spoken_on_both_sides() {
    let rig = Rig::start().await;
    let (one, two) = (Backend::start("one").await, Backend::start_h2("two").await);
    for (revision, backend, protocol) in [(1, &one, "h1"), (20, &two, "h2")] {
        let port = free_port();
        let mut topology = simple(revision, port, &[backend]);
        topology["pools"][0]["protocol"] = json!(protocol);
        rig.apply(&topology).await;
        assert_eq!(get(port, "a/").await.backend(), backend.uid, "HTTP/1 to {protocol}");
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("shakes hands");
        tokio::spawn(connection);
        let body = bytes::Bytes::from(vec![7; 200_000]);
        let request = || {
            let request =
                http::Request::post("http://a.example/echo").body(Full::new(body.clone())).expect("is good");
            client.clone().send_request(request)
        };
        let (first, second) = tokio::join!(request(), request());
        for answer in [first, second] {
            let answer = answer.expect("answers");
            assert_eq!(answer.status(), 200, "HTTP/2 to {protocol}");
            assert_eq!(answer.headers()["x-backend"], backend.uid);
            assert!(answer.into_body().collect().await.expect("reads").to_bytes() == body);
        }
        let request = http::Request::get("http://a.example/").body(Full::default()).expect("is good");
        assert_eq!(client.send_request(request).await.expect("answers").status(), 200);
        topology["revision"] = json!(revision + 10);
        topology["routes"][0]["rewrite_prefix"] = json!("/below");
        rig.apply(&topology).await;
        let request = http::Request::get("http://a.example/x").body(Full::default()).expect("is good");
        let answer = client.send_request(request).await.expect("answers");
        assert!(answer.headers()["x-target"].to_str().expect("text").ends_with("/below/x"));
        let body = answer.into_body().collect().await.expect("reads").to_bytes();
        let host = if protocol == "h1" { "\"host\": \"a.example\"" } else { "" };
        assert!(String::from_utf8_lossy(&body).contains(host), "the host survives the other path");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_header_names_the_client_where_it_must_stand() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    let mut topology = simple(1, port, &[&one]);
    topology["listeners"][0]["proxy_protocol"] = json!("required");
    topology["trusted_peers"] = json!([{"address": "127.0.0.0", "prefix_bits": 8}]);
    rig.apply(&topology).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let with = send(port, format!("PROXY TCP4 192.0.2.7 127.0.0.1 4000 80\r\n{request}").as_bytes()).await;
    assert!(with.body.contains("\"x-forwarded-for\": \"192.0.2.7\""), "{with:?}");
    assert_eq!(send(port, request.as_bytes()).await.status, 0, "none is closed without a word");
    topology["revision"] = json!(2);
    topology["trusted_peers"] = json!([{"address": "192.0.2.0", "prefix_bits": 24}]);
    rig.apply(&topology).await;
    let with = send(port, format!("PROXY TCP4 192.0.2.7 127.0.0.1 4000 80\r\n{request}").as_bytes()).await;
    assert_eq!(with.status, 0, "who is not trusted may not write one: {with:?}");
    assert_eq!(one.requests(), 1);
}
