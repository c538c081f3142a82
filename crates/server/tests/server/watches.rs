//! People's watches: complete, resumable, and ended when they are too far behind.

use std::collections::BTreeSet;

use lightbyte_api::wire::WatchLine;
use lightbyte_link::Lines;
use serde_json::Value;

use crate::cluster::{apply, begin, delete, image, network, next_change, refused, soon, vm};

/// Reads up to the first progress: what was told before it, and its revision.
async fn until_progress(lines: &mut Lines) -> (BTreeSet<String>, u64) {
    let mut told = BTreeSet::new();
    loop {
        match soon("a line", lines.next::<WatchLine>())
            .await
            .expect("a good line")
            .expect("the watch goes on")
        {
            WatchLine::Progress { revision } => return (told, revision),
            WatchLine::Object { object, .. } => told.insert(format!("{}/{}", object.kind, object.name)),
            WatchLine::Gone { object, .. } => told.insert(format!("{object} gone")),
        };
    }
}

fn set(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test]
async fn a_watch_begins_with_everything_and_goes_on_with_changes() {
    let (_store, _server, client) = begin().await;
    apply(&client, vec![image(), network()]).await.unwrap();
    let mut lines = client.lines("/v1/watch").await.unwrap();
    assert_eq!(until_progress(&mut lines).await.0, set(&["image/demo", "network/default"]));
    let mut vms = client.lines("/v1/watch?kind=vms").await.unwrap();
    assert_eq!(until_progress(&mut vms).await.0, set(&[]));
    apply(&client, vec![vm("a")]).await.unwrap();
    let WatchLine::Object { object, .. } = next_change(&mut vms).await else { panic!("vm/a is there") };
    assert_eq!(object.name.as_str(), "a");
    // Nothing was placed, so its end needs nobody.
    delete(&client, "vm/a").await.unwrap();
    loop {
        match next_change(&mut vms).await {
            WatchLine::Gone { object, .. } => break assert_eq!(object.to_string(), "vm/a"),
            WatchLine::Object { object, .. } => assert_eq!(object.name.as_str(), "a"),
            WatchLine::Progress { .. } => {}
        }
    }
}

#[tokio::test]
async fn a_watch_is_resumed_from_a_revision_without_a_gap() {
    let (_store, _server, client) = begin().await;
    apply(&client, vec![image(), network(), vm("a"), vm("b")]).await.unwrap();
    let mut lines = client.lines("/v1/watch").await.unwrap();
    let (told, revision) = until_progress(&mut lines).await;
    assert_eq!(told, set(&["image/demo", "network/default", "vm/a", "vm/b"]));
    drop(lines);
    apply(&client, vec![vm("c")]).await.unwrap();
    delete(&client, "vm/b").await.unwrap();
    crate::cluster::watch_until(&client, "vm/b", |vm| vm.is_none()).await;
    let mut lines = client.lines(&format!("/v1/watch?from={revision}")).await.unwrap();
    let (mut told, later) = until_progress(&mut lines).await;
    // The leader may have decided on `a` between the first watch's end and now.
    told.remove("vm/a");
    assert_eq!(told, set(&["vm/b gone", "vm/c"]));
    assert!(later > revision);
}

#[tokio::test]
async fn what_is_not_remembered_is_gone_and_what_is_to_come_is_waited_for() {
    let (_store, _server, client) = begin().await;
    let problem = refused(client.lines("/v1/watch?from=1").await.map(|_| ()));
    assert_eq!(problem.status, 410);
    assert!(problem.hint.is_some_and(|hint| hint.contains("without `from`")));
    assert_eq!(refused(client.lines("/v1/watch?from=now").await.map(|_| ())).status, 400);
    assert_eq!(refused(client.lines("/v1/watch?from=1000000").await.map(|_| ())).status, 504);
}

#[tokio::test]
async fn a_silent_watch_shows_that_it_lives() {
    let (_store, _server, client) = begin().await;
    let mut lines = client.lines("/v1/watch?kind=image&name=none").await.unwrap();
    for _ in 0..2 {
        assert_eq!(until_progress(&mut lines).await.0, set(&[]));
    }
}

#[tokio::test]
async fn watches_end_when_the_server_stops() {
    let (_store, mut server, client) = begin().await;
    let mut lines = client.lines("/v1/watch").await.unwrap();
    until_progress(&mut lines).await;
    server.stop();
    soon("the end of the watch", async { while let Ok(Some(_)) = lines.next::<Value>().await {} }).await;
}
