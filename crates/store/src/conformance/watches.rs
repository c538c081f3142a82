//! Watches: order, whole revisions, no gap, progress.

use std::sync::Arc;

use super::{Subject, put, tell, until, write};
use crate::error::StoreError;
use crate::rules::OPERATIONS_MAX;
use crate::store::Operation;

pub(super) async fn watch_from_the_past(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let first = put(&*store, "a", "1").await;
    put(&*store, "a", "2").await;
    write(&*store, vec![Operation::delete("a")]).await;
    let last = put(&*store, "a", "3").await;
    let all = [
        format!("+a=1@{first}"),
        format!("+a=2@{}", first + 1),
        format!("-a@{}", first + 2),
        format!("+a=3@{}", first + 3),
    ];
    for skip in 0..all.len() {
        let from = first + u64::try_from(skip).expect("a small number");
        let mut watch = store.watch("", from).await.expect("watch");
        assert_eq!(tell(&until(&mut watch, last).await), all[skip..], "from {from}");
    }
    let mut watch = store.watch("", last + 1).await.expect("watch");
    let new = put(&*store, "b", "new").await;
    assert_eq!(tell(&until(&mut watch, new).await), [format!("+b=new@{new}")]);
}

pub(super) async fn watch_goes_on_where_another_ended(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let mut from = store.list("", None).await.expect("list").revision + 1;
    let mut told = Vec::new();
    let mut expected = Vec::new();
    for round in 0..5 {
        let mut watch = store.watch("", from).await.expect("watch");
        let seen = put(&*store, "a", &format!("seen-{round}")).await;
        let batches = until(&mut watch, seen).await;
        from = batches.last().expect("a batch").revision + 1;
        told.extend(tell(&batches));
        drop(watch);
        let unseen = put(&*store, "a", &format!("unseen-{round}")).await;
        expected.extend([format!("+a=seen-{round}@{seen}"), format!("+a=unseen-{round}@{unseen}")]);
    }
    let mut watch = store.watch("", from).await.expect("watch");
    let last = put(&*store, "a", "last").await;
    told.extend(tell(&until(&mut watch, last).await));
    expected.push(format!("+a=last@{last}"));
    assert_eq!(told, expected);
}

pub(super) async fn whole_transactions_in_one_batch(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let first = put(&*store, "z", "old").await;
    let mut watch = store.watch("", first + 1).await.expect("watch");
    let revision = write(
        &*store,
        vec![
            Operation::put("y", "1"),
            Operation::delete("z"),
            Operation::put("x", "1"),
            Operation::put("w", "1"),
        ],
    )
    .await;
    let last = put(&*store, "y", "2").await;
    let batches = until(&mut watch, last).await;
    let whole =
        batches.iter().find(|batch| batch.events.iter().any(|event| event.key() == "x")).expect("the batch");
    let mut told = tell(std::slice::from_ref(whole));
    told.retain(|event| event.ends_with(&format!("@{revision}")));
    told.sort();
    let at = |text: &str| format!("{text}@{revision}");
    assert_eq!(told, [at("+w=1"), at("+x=1"), at("+y=1"), at("-z")]);
}

/// Many large revisions at once: more than one message holds, and none may come in parts.
pub(super) async fn fragments_are_joined(subject: Arc<dyn Subject>) {
    const ROUNDS: u64 = 5;
    let store = subject.store().await;
    let from = store.list("", None).await.expect("list").revision + 1;
    let mut live = store.watch("", from).await.expect("watch");
    let mut last = 0;
    for round in 0..ROUNDS {
        let value = vec![u8::try_from(round).unwrap_or(0); 11 * 1000];
        let puts = (0..OPERATIONS_MAX)
            .map(|index| Operation::put(format!("key-{index:03}"), value.clone()))
            .collect();
        last = write(&*store, puts).await;
    }
    let mut late = store.watch("", from).await.expect("watch");
    for watch in [&mut live, &mut late] {
        let batches = until(watch, last).await;
        let mut revisions = std::collections::BTreeMap::new();
        for batch in &batches {
            // A revision that came in parts would stand in two batches.
            let mut here = std::collections::BTreeMap::new();
            batch.events.iter().for_each(|event| *here.entry(event.mod_revision()).or_insert(0) += 1);
            for (revision, count) in here {
                assert_eq!(
                    revisions.insert(revision, count),
                    None,
                    "revision {revision} stands in two batches"
                );
            }
        }
        let expected = (from..from + ROUNDS).map(|revision| (revision, OPERATIONS_MAX)).collect();
        assert_eq!(revisions, expected);
    }
}

pub(super) async fn progress_without_events(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let from = store.list("", None).await.expect("list").revision + 1;
    let mut watch = store.watch("quiet/", from).await.expect("watch");
    let revision = put(&*store, "loud/a", "1").await;
    assert_eq!(until(&mut watch, revision).await, []);
    let revision = put(&*store, "quiet/a", "1").await;
    assert_eq!(tell(&until(&mut watch, revision).await), [format!("+quiet/a=1@{revision}")]);
}

/// A cursor from before a restore must not wait in silence for a history that is not its own.
pub(super) async fn watch_ahead_of_the_store_is_told(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let last = put(&*store, "a", "1").await;
    let error = match store.watch("", last + 2).await {
        Err(error) => error,
        Ok(mut watch) => {
            let told = tokio::time::timeout(super::EVENT_WITHIN, watch.next()).await;
            told.expect("an answer in time").expect_err("nothing has happened")
        }
    };
    assert!(matches!(error, StoreError::FutureRevision { revision } if revision == last + 2), "{error:?}");
}

pub(super) async fn prefix_is_kept(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let from = store.list("", None).await.expect("list").revision + 1;
    let mut watch = store.watch("assigned/w1/", from).await.expect("watch");
    put(&*store, "assigned/w10/vm", "no").await;
    let mixed = write(
        &*store,
        vec![
            Operation::put("assigned/w1/vm", "yes"),
            Operation::put("assigned/w2/vm", "no"),
            Operation::put("assigned/w1", "no"),
        ],
    )
    .await;
    assert_eq!(tell(&until(&mut watch, mixed).await), [format!("+assigned/w1/vm=yes@{mixed}")]);
}
