//! Parts of images: taken in pieces, shown when they are right, given from anywhere on.

use bytes::Bytes;
use lightbyte_api::parts::{PartState, RegisteredParts};
use lightbyte_link::{Client, ClientError};
use lightbyte_store::MemoryStore;

use crate::cluster::{TestServer, begin};

/// Of `abcdef`.
const SHA256: &str = "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721";

async fn send(
    client: &Client,
    sha256: &str,
    offset: u64,
    bytes: &'static str,
) -> Result<PartState, ClientError> {
    let path = format!("/v1/parts/{sha256}?size=6&offset={offset}");
    client.post_bytes(&path, Bytes::from_static(bytes.as_bytes())).await.map(|answer| answer.value)
}

async fn bytes(client: &Client, from: u64) -> Result<Vec<u8>, ClientError> {
    let mut stream = client.bytes_from(&format!("/v1/parts/{SHA256}"), from).await?;
    let mut found = Vec::new();
    while let Some(bytes) = stream.next().await? {
        found.extend_from_slice(&bytes);
    }
    Ok(found)
}

#[tokio::test]
async fn a_part_comes_in_pieces_and_is_shown_when_it_is_right() {
    let server = TestServer::start("s1", &MemoryStore::new());
    let client = Client::new(vec![server.endpoint.clone()]);
    let state = |held, received| PartState { held, received };
    assert_eq!(send(&client, SHA256, 0, "abc").await.expect("taken"), state(false, 3));
    assert_eq!(bytes(&client, 0).await.expect_err("not whole").status(), Some(404));
    // What does not go on where the last piece ended is not taken.
    assert_eq!(send(&client, SHA256, 0, "abc").await.expect("told"), state(false, 3));
    assert_eq!(send(&client, SHA256, 5, "f").await.expect("told"), state(false, 3));
    assert_eq!(send(&client, SHA256, 3, "def").await.expect("taken"), state(true, 6));
    assert_eq!(send(&client, SHA256, 0, "").await.expect("there"), state(true, 6));
    assert_eq!(bytes(&client, 0).await.expect("given"), b"abcdef");
    assert_eq!(bytes(&client, 4).await.expect("given"), b"ef");
    assert_eq!(bytes(&client, 7).await.expect_err("behind its end").status(), Some(416));
}

#[tokio::test]
async fn what_is_wrong_is_not_shown_and_can_be_sent_again() {
    let server = TestServer::start("s1", &MemoryStore::new());
    let client = Client::new(vec![server.endpoint.clone()]);
    let refused = send(&client, SHA256, 0, "abcdeF").await.expect_err("wrong");
    assert_eq!(refused.status(), Some(422), "{refused}");
    assert_eq!(bytes(&client, 0).await.expect_err("not there").status(), Some(404));
    assert!(send(&client, SHA256, 0, "abcdef").await.expect("taken").held);
    for bad in ["../../etc/passwd", "abc", &SHA256.to_uppercase()] {
        let path = format!("/v1/parts/{}?size=1&offset=0", bad.replace('/', "%2F"));
        let refused = client.post_bytes::<PartState>(&path, Bytes::from_static(b"x")).await;
        assert_eq!(refused.expect_err("no checksum").status(), Some(400), "{bad}");
    }
}

#[tokio::test]
async fn registered_parts_are_said_with_the_epoch_that_they_are_of() {
    let (_store, _server, client) = begin().await;
    let part = serde_json::json!({"sha256": SHA256, "size": "6"});
    let image = serde_json::json!({"kind": "image", "name": "demo", "spec": {"current": "v1",
        "versions": [{"version": "v1", "kernel": part, "root": part}]}});
    let apply = serde_json::json!({"documents": [image]});
    let applied = client.post::<_, serde_json::Value>("/v1/apply", &apply).await.expect("applied");
    let path = format!("/v1/parts?min_revision={}", applied.revision.expect("a revision"));
    let said = client.get::<RegisteredParts>(&path).await.expect("said").value;
    assert_eq!((said.epoch.epoch, said.parts.into_iter().collect::<Vec<_>>()), (1, vec![SHA256.to_owned()]));
}
