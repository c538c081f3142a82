//! TLS by server name, and certificates that change while the proxy runs.

use std::sync::Arc;

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::rig::{Answer, Backend, Rig, free_port, get, pool, sealed};

struct Issued {
    entry: Value,
    der: CertificateDer<'static>,
}

fn issue(name: &str) -> Issued {
    let issued = rcgen::generate_simple_self_signed([name.to_owned()]).expect("issues");
    let (chain, key) = (issued.cert.pem(), issued.signing_key.serialize_pem());
    Issued {
        entry: json!({"server_names": [name], "chain_pem": chain, "key_pem": key}),
        der: issued.cert.der().clone(),
    }
}

fn topology(revision: u64, port: u16, plain_port: u16, certificates: &[&Issued], backend: &Backend) -> Value {
    let certificates: Vec<&Value> = certificates.iter().map(|issued| &issued.entry).collect();
    json!({
        "format": 1, "revision": revision, "certificates": certificates,
        "listeners": [
            {"name": "tls", "address": "127.0.0.1", "port": port, "protocol": "https"},
            {"name": "plain", "address": "127.0.0.1", "port": plain_port, "protocol": "http", "redirect_to_https": port},
        ],
        "routes": [{"name": "web", "targets": [{"pool": "web"}]}],
        "pools": [pool("web", &[backend])],
    })
}

/// Connects as a client that trusts this certificate only.
async fn connect(
    port: u16,
    name: &'static str,
    trusted: &Issued,
    alpn: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.der.clone()).expect("is a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("has versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name).expect("a name"), stream).await
}

async fn ask(stream: TlsStream<TcpStream>, is_h2: bool) -> (u16, String) {
    let stream = TokioIo::new(stream);
    let builder = http::Request::get("https://a.example/").header("host", "a.example");
    let request = builder.body(Empty::<bytes::Bytes>::new()).expect("is good");
    let answer = if is_h2 {
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.expect("shakes hands");
        tokio::spawn(connection);
        client.send_request(request).await
    } else {
        let (mut client, connection) =
            hyper::client::conn::http1::handshake(stream).await.expect("shakes hands");
        tokio::spawn(connection);
        client.send_request(request).await
    };
    let answer = answer.expect("answers");
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.expect("reads").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_shown_by_name_and_change_without_a_restart() {
    let (rig, port, plain_port) = (Rig::start().await, free_port(), free_port());
    let one = Backend::start("one").await;
    let (first, second, wild) = (issue("a.example"), issue("b.example"), issue("*.c.example"));
    rig.apply(&topology(1, port, plain_port, &[&first, &second, &wild], &one)).await;
    for (name, certificate) in [("a.example", &first), ("b.example", &second), ("x.c.example", &wild)] {
        for (alpn, is_h2) in [(b"h2".as_slice(), true), (b"http/1.1", false)] {
            let stream = connect(port, name, certificate, alpn).await.expect("shakes hands");
            let (status, body) = ask(stream, is_h2).await;
            assert_eq!(status, 200, "{name}");
            assert!(body.contains("\"x-forwarded-proto\": \"https\""), "{body}");
        }
    }
    assert!(connect(port, "a.example", &second, b"h2").await.is_err(), "each name has its own");

    let renewed = issue("a.example");
    rig.apply(&topology(2, port, plain_port, &[&renewed, &second, &wild], &one)).await;
    let stream = connect(port, "a.example", &renewed, b"h2").await.expect("the new one is shown");
    assert_eq!(ask(stream, true).await.0, 200);
    assert!(connect(port, "a.example", &first, b"h2").await.is_err(), "the old one is shown no more");

    let plain = get(plain_port, "a.example/x?y").await;
    assert_eq!(plain.status, 308);
    assert_eq!(plain.header("location"), Some(format!("https://a.example:{port}/x?y").as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_certificate_is_refused() {
    let rig = Rig::start().await;
    let one = Backend::start("one").await;
    let (mut first, second) = (issue("a.example"), issue("b.example"));
    first.entry["key_pem"] = second.entry["key_pem"].clone();
    let topology = sealed(&topology(1, free_port(), free_port(), &[&first], &one));
    let (status, body) = rig.control("PUT", "/topology", &topology).await;
    assert_eq!(status, 422, "{body}");
    assert!(body.contains("certificates[0]: certificate and key are not usable together"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_over_tls_is_looked_at_too() {
    let (rig, port, plain_port) = (Rig::start().await, free_port(), free_port());
    let (one, issued) = (Backend::start("one").await, issue("a.example"));
    rig.apply(&topology(1, port, plain_port, &[&issued], &one)).await;
    for (path, status) in [("/a", 200), ("/a b", 400)] {
        let mut stream = connect(port, "a.example", &issued, b"http/1.1").await.expect("shakes hands");
        let request = format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sends");
        let mut answer = Vec::new();
        // A refusal may come without a farewell of TLS.
        let _ = stream.read_to_end(&mut answer).await;
        assert_eq!(Answer::parse(&answer).status, status, "{path}");
    }
}
