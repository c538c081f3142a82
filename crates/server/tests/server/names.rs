//! What resolvers follow: each change of a name, nothing else, and that there is nothing newer.

use std::time::Duration;

use lightbyte_api::wire::ZoneLine;
use lightbyte_api::zone::Zone;
use lightbyte_link::{Client, Lines};
use lightbyte_store::MemoryStore;
use serde_json::{Value, json};

use crate::cluster::{TestServer, apply, begin, delete, image, network, refused, soon, vm, watch_until};
use crate::worker::TestWorker;

fn record(name: &str, value: &str) -> Value {
    json!({ "kind": "dnsrecord", "name": name, "spec": { "type": "TXT", "values": [value] } })
}

async fn next(lines: &mut Lines) -> ZoneLine {
    soon("a line", lines.next()).await.expect("a good line").expect("the stream goes on")
}

/// The next zone, and how many confirmations came before it.
async fn next_zone(lines: &mut Lines) -> (Zone, usize) {
    let mut confirmed = 0;
    loop {
        match next(lines).await {
            ZoneLine::Zone(zone) => return (*zone, confirmed),
            ZoneLine::Confirmed { .. } => confirmed += 1,
            ZoneLine::Unconfirmed => panic!("everything is in it"),
        }
    }
}

/// Reads until something is confirmed: its revision, and when, in milliseconds.
async fn next_confirmed(lines: &mut Lines) -> (u64, u64) {
    loop {
        match next(lines).await {
            ZoneLine::Confirmed { revision, at_ms } => return (revision, at_ms),
            ZoneLine::Zone(zone) => assert_eq!(zone.check(), []),
            ZoneLine::Unconfirmed => panic!("everything is in it"),
        }
    }
}

/// The address that a VM has by name.
fn address(zone: &Zone, owner: &str) -> Option<String> {
    Some(zone.names.get(owner)?.a.values.first()?.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_has_its_name_when_it_runs_and_not_when_its_end_is_asked_for() {
    let (_store, _server, client) = begin().await;
    let worker = tokio::spawn(TestWorker::new("n1", &client).run());
    let mut lines = client.lines("/v1/zone").await.unwrap();
    let (mut zone, _) = next_zone(&mut lines).await;
    assert_eq!((zone.name.as_str(), zone.names.len()), ("lab", 0));
    apply(&client, vec![image(), network(), vm("hello")]).await.unwrap();
    watch_until(&client, "vm/hello", |vm| vm.is_some_and(|vm| vm.status.ready)).await;
    while address(&zone, "hello.vm").is_none() {
        let (newer, _) = next_zone(&mut lines).await;
        assert!(newer.revision > zone.revision);
        zone = newer;
    }
    assert_eq!(address(&zone, "hello.vm").as_deref(), Some("10.77.0.2"));
    delete(&client, "vm/hello").await.unwrap();
    while address(&zone, "hello.vm").is_some() {
        zone = next_zone(&mut lines).await.0;
    }
    assert_eq!(zone.reverse.len(), 1, "its address is known to have no name");
    worker.abort();
}

#[tokio::test]
async fn what_changes_no_name_sends_no_zone_and_is_confirmed_all_the_same() {
    let (_store, _server, client) = begin().await;
    let mut lines = client.lines("/v1/zone").await.unwrap();
    let (first, at_ms) = next_confirmed(&mut lines).await;
    apply(&client, vec![image(), vm("waits")]).await.unwrap();
    for _ in 0..3 {
        let (revision, later) = next_confirmed(&mut lines).await;
        assert_eq!(revision, first, "no zone came, so it is the first that is confirmed");
        assert!(later > at_ms && later - at_ms < 40_000, "{at_ms} {later}");
    }
    apply(&client, vec![record("said", "hello")]).await.unwrap();
    let (zone, _) = next_zone(&mut lines).await;
    assert_eq!(zone.names["said"].txt.values, ["hello"]);
    assert_eq!(next_confirmed(&mut lines).await.0, zone.revision);
}

#[tokio::test]
async fn nobody_is_sent_back_by_another_server() {
    let (store, _server, client) = begin().await;
    let other = TestServer::start("s2", &store);
    let mut lines = client.lines("/v1/zone").await.unwrap();
    let (before, _) = next_zone(&mut lines).await;
    // Others' names stay as they are, whatever is written: each server may have seen them first at another revision.
    apply(&client, vec![image()]).await.unwrap();
    // The other server may not have seen what this one has: who has names already says so.
    let asked = format!("/v1/zone?after={}", before.revision);
    let mut lines = other.client().lines(&asked).await.unwrap();
    let (later, _) = next_zone(&mut lines).await;
    let after = |client: Client, revision: u64| async move {
        let mut lines = client.lines(&format!("/v1/zone?after={revision}")).await?;
        Ok(next_zone(&mut lines).await.0)
    };
    let back = after(client.clone(), later.revision).await.unwrap();
    assert!(before.revision <= later.revision && later.revision <= back.revision);
    assert_eq!((&before.names, &later.names), (&later.names, &back.names));
    assert_eq!(refused(after(client.clone(), 1_000_000).await).status, 503);
    assert_eq!(refused(client.lines("/v1/zone?after=x").await.map(|_| ())).status, 400);
}

#[tokio::test]
async fn many_changes_come_as_few_zones() {
    let (_store, _server, client) = begin().await;
    let mut lines = client.lines("/v1/zone").await.unwrap();
    next_zone(&mut lines).await;
    for round in 0..20 {
        let records =
            (0..20).map(|number| record(&format!("r{number}"), &format!("round {round}"))).collect();
        apply(&client, records).await.unwrap();
    }
    let mut zones = 0;
    loop {
        let (zone, _) = next_zone(&mut lines).await;
        zones += 1;
        let is_last = (0..20).all(|number| zone.names[&format!("r{number}")].txt.values == ["round 19"]);
        if is_last {
            break;
        }
    }
    println!("400 changes came as {zones} zones");
    assert!(zones < 400, "{zones}");
}

#[tokio::test]
async fn a_cluster_that_is_not_set_up_has_no_names_and_a_stream_ends_with_its_server() {
    let store = MemoryStore::new();
    let server = TestServer::start("s1", &store);
    assert_eq!(refused(server.client().lines("/v1/zone").await.map(|_| ())).status, 503);
    let (_store, mut server, client) = begin().await;
    let mut lines = client.lines("/v1/zone").await.unwrap();
    next_zone(&mut lines).await;
    server.stop();
    let ended = async { while let Ok(Some(_)) = lines.next::<Value>().await {} };
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("the stream ends");
}
