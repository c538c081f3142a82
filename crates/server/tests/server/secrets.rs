//! Secrets: what is stored of a private key, what anybody is shown of it, and who alone is given it.

use std::path::PathBuf;
use std::sync::Arc;

use lightbyte_server::SealingKeys;
use lightbyte_store::{MemoryStore, Store as _};
use serde_json::{Value, json};

use crate::cluster::{TestServer, apply, begin, begin_as, foresee, get, refused, until_some};

/// A chain and its key, as PEM.
fn made(name: &str) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn secret(chain: &str, key: &str) -> Value {
    json!({ "kind": "secret", "name": "shop", "spec": { "chain": chain, "key": key } })
}

/// The sealing keys of one digit each.
fn keys(digits: &str) -> Arc<SealingKeys> {
    use std::os::unix::fs::PermissionsExt as _;
    let path: PathBuf = std::env::temp_dir().join(format!("lightbyte-keys-{}-{digits}", std::process::id()));
    let lines: String = digits.chars().map(|digit| digit.to_string().repeat(64) + "\n").collect();
    std::fs::write(&path, lines).expect("a file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    let read = SealingKeys::read(&path).expect("keys");
    std::fs::remove_file(&path).expect("is removed");
    Arc::new(read)
}

fn start_with(digits: &'static str) -> impl FnOnce(&str, &MemoryStore) -> TestServer {
    move |name, store| TestServer::start_with(name, store, |config| config.sealing_keys = Some(keys(digits)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_key_is_stored_and_shown_sealed_and_the_same_again_changes_nothing() {
    let (store, _server, client) = begin_as(start_with("a")).await;
    let (chain, key) = made("shop.example");
    let body = key.lines().nth(1).expect("a line of the key").to_owned();
    let foreseen = foresee(&client, vec![secret(&chain, &key)]).await.expect("is foreseen");
    assert!(!serde_json::to_string(&foreseen).expect("JSON").contains(&body));
    let made = apply(&client, vec![secret(&chain, &key)]).await.expect("is taken");
    let again = apply(&client, vec![secret(&chain, &key)]).await.expect("is taken");
    assert_eq!((made.changes[0].generation, again.changes[0].generation), (1, 1));
    let shown = get(&client, "secret/shop").await.expect("is there");
    let sealed = shown.spec["key"].as_str().expect("a text").to_owned();
    assert!(sealed.starts_with("sealed:1:"), "{sealed}");

    let stored = store.list("", None).await.expect("a list");
    assert!(stored.entries.iter().any(|(key, _)| key == "asked/secret/shop"));
    for (name, entry) in &stored.entries {
        assert!(!String::from_utf8_lossy(&entry.value).contains(&body), "{name}");
    }

    // What was shown may be applied again, and under no other name.
    let again = apply(&client, vec![secret(&chain, &sealed)]).await.expect("is taken");
    assert_eq!(again.changes[0].generation, 1);
    let mut other = secret(&chain, &sealed);
    other["name"] = json!("other");
    let problem = refused(apply(&client, vec![other]).await);
    assert_eq!(
        problem.details,
        ["secret/other: spec.key: was not sealed for secret/other, or not in this cluster"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rotation_the_same_key_is_sealed_anew_and_the_older_sealing_key_may_go() {
    let (store, mut server, client) = begin_as(start_with("a")).await;
    let (chain, key) = made("shop.example");
    apply(&client, vec![secret(&chain, &key)]).await.expect("is taken");
    let sealed_by =
        |shown: &Value| shown["key"].as_str().expect("a text").split(':').nth(2).map(str::to_owned);
    let first = sealed_by(&get(&client, "secret/shop").await.expect("is there").spec);
    server.kill();

    let server = start_with("ba")("s2", &store);
    let client = server.client();
    let shown = || async { get(&client, "secret/shop").await.ok() };
    let old = until_some("the server has a view", shown).await.spec;
    // Its sealed text does as well as the key.
    apply(&client, vec![secret(&chain, old["key"].as_str().expect("a text"))]).await.expect("is taken");
    let second = sealed_by(&get(&client, "secret/shop").await.expect("is there").spec);
    assert_ne!(first, second);

    let server = start_with("b")("s3", &store);
    let client = server.client();
    let shown = || async { get(&client, "secret/shop").await.ok() };
    let new = until_some("the server has a view", shown).await.spec;
    apply(&client, vec![secret(&chain, new["key"].as_str().expect("a text"))]).await.expect("it is opened");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_shown_is_refused_and_its_key_never_told() {
    let (_store, _server, client) = begin_as(start_with("a")).await;
    let ((chain, key), (_, other_key)) = (made("shop.example"), made("shop.example"));
    for (chain, key, expected) in [
        (
            chain.as_str(),
            other_key.as_str(),
            "secret/shop: spec: certificate and key are not usable together",
        ),
        (chain.as_str(), "nonsense", "secret/shop: spec: its key is not PEM"),
        ("nonsense", key.as_str(), "secret/shop: spec.chain: its chain has 0 certificates"),
        (made("192.0.2.1").0.as_str(), key.as_str(), "spec.chain: its first certificate names no DNS name"),
    ] {
        let problem = refused(apply(&client, vec![secret(chain, key)]).await);
        let told = format!("{problem:?}");
        assert!(told.contains(expected), "{told}");
        assert!(!told.contains(other_key.lines().nth(1).expect("a line")), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_a_sealing_key_takes_no_secret() {
    let (_store, _server, client) = begin().await;
    let (chain, key) = made("shop.example");
    let problem = refused(apply(&client, vec![secret(&chain, &key)]).await);
    assert_eq!(problem.title, "this server has no sealing key, so it takes no secrets");
}
