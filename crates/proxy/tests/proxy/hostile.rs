//! Bytes that two servers could read differently are refused, and never reach a backend: ours beside haproxy and nginx.

mod cases;
mod cases_h2;
mod check;
mod floods;
mod peers;
mod recorder;

use crate::rig::{Backend, Rig, free_port, get, send, simple};

#[tokio::test(flavor = "multi_thread")]
async fn noise_closes_only_its_own_connection() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    rig.apply(&simple(1, port, &[&one])).await;
    let mut number = 1_u64;
    for _ in 0..200 {
        let noise: Vec<u8> = (0..200)
            .map(|_| {
                number =
                    number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (number >> 56) as u8
            })
            .chain(*b"\r\n\r\n")
            .collect();
        let answer = send(port, &noise).await;
        assert!(matches!(answer.status, 0 | 400), "{answer:?}");
    }
    assert_eq!(get(port, "a/").await.status, 200);
    assert_eq!(one.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_is_asked_by_path_and_the_absolute_forms_host() {
    let (rig, port) = (Rig::start().await, free_port());
    let one = Backend::start("one").await;
    let mut topology = simple(1, port, &[&one]);
    topology["routes"] = serde_json::json!([
        {"name": "other", "hosts": ["other.example"], "path": {"prefix": "/cut"}, "rewrite_prefix": "/",
            "targets": [{"pool": "web"}]},
        {"name": "web", "targets": [{"pool": "web"}]},
    ]);
    rig.apply(&topology).await;
    for (host, path, expected) in
        [("a.example", "/x?y=1", "/x?y=1"), ("other.example", "/cut/z?q", "/z?q"), ("a.example", "/", "/")]
    {
        let request =
            format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = send(port, request.as_bytes()).await;
        assert_eq!(answer.header("x-target"), Some(expected), "{answer:?}");
        assert!(answer.body.contains(&format!("\"host\": \"{host}\"")), "{answer:?}");
    }
    // The header alone would choose another route than the target.
    let request = b"GET http://a.example/ HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n";
    assert_eq!(send(port, request).await.status, 400);
    let raw = |host: &str| {
        [b"GET /cut/\xff HTTP/1.1\r\nConnection: close\r\nHost: ", host.as_bytes(), b"\r\n\r\n"].concat()
    };
    assert_eq!(send(port, &raw("other.example")).await.status, 400);
}
