//! Lists: one revision, paged, old ones, and compaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Subject, mod_revision, put, tell, until, write};
use crate::error::StoreError;
use crate::store::{Guard, Operation, Transaction};

pub(super) async fn list_is_of_one_revision_and_one_prefix(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    assert_eq!(store.list("", None).await.expect("list").entries, []);
    for key in ["asked/vm/b", "asked/vm/a", "asked/vmx/c", "asked/v", "decided/vm/a", "asked/vm/\u{e9}"] {
        put(&*store, key, key).await;
    }
    let rows: &[(&str, &[&str])] = &[
        ("asked/vm/", &["asked/vm/a", "asked/vm/b", "asked/vm/\u{e9}"]),
        ("asked/vm", &["asked/vm/a", "asked/vm/b", "asked/vm/\u{e9}", "asked/vmx/c"]),
        ("decided/", &["decided/vm/a"]),
        ("nothing/", &[]),
        ("", &["asked/v", "asked/vm/a", "asked/vm/b", "asked/vm/\u{e9}", "asked/vmx/c", "decided/vm/a"]),
    ];
    for (prefix, expected) in rows {
        let listing = store.list(prefix, None).await.expect("list");
        let keys: Vec<&str> = listing.entries.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, *expected, "{prefix:?}");
        assert!(listing.entries.iter().all(|(key, value)| value.value == key.as_bytes()), "{prefix:?}");
        assert_eq!(listing.revision, mod_revision(&*store, "asked/vm/\u{e9}").await);
    }
}

pub(super) async fn what_is_beside_the_root_is_heard_and_not_listed(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let first = write(&*store, vec![Operation::put("a", "1"), Operation::put("-x/a", "1")]).await;
    let last = put(&*store, "-x/b", "1").await;
    assert_eq!(last, first + 1);
    let keys = async |prefix: &str| {
        let listing = store.list(prefix, None).await.expect("list");
        let keys: Vec<String> = listing.entries.into_iter().map(|(key, _)| key).collect();
        keys.join(" ")
    };
    assert_eq!([keys("").await, keys("-x/").await], ["a", "-x/a -x/b"]);
    assert_eq!(mod_revision(&*store, "-x/b").await, last);
    let told = |prefix: &'static str| {
        let store = &store;
        async move {
            let mut watch = store.watch(prefix, first).await.expect("watch");
            let mut told = tell(&until(&mut watch, last).await);
            told.sort();
            told.join(" ")
        }
    };
    assert_eq!(told("").await, format!("+-x/a=1@{first} +-x/b=1@{last} +a=1@{first}"));
    assert_eq!(told("-x/").await, format!("+-x/a=1@{first} +-x/b=1@{last}"));
}

pub(super) async fn list_at_an_old_revision(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let first = put(&*store, "a", "1").await;
    put(&*store, "b", "1").await;
    write(&*store, vec![Operation::put("a", "2"), Operation::delete("b"), Operation::put("c", "1")]).await;
    write(&*store, vec![Operation::delete("a")]).await;
    put(&*store, "a", "3").await;
    let rows: &[(u64, &str)] = &[
        (first - 1, ""),
        (first, "a=1"),
        (first + 1, "a=1 b=1"),
        (first + 2, "a=2 c=1"),
        (first + 3, "c=1"),
        (first + 4, "a=3 c=1"),
    ];
    for (revision, expected) in rows {
        let listing = store.list("", Some(*revision)).await.expect("list");
        let told: Vec<String> = listing
            .entries
            .iter()
            .map(|(key, value)| format!("{key}={}", String::from_utf8_lossy(&value.value)))
            .collect();
        assert_eq!((listing.revision, told.join(" ").as_str()), (*revision, *expected));
    }
    let future = store.list("", Some(first + 5)).await;
    assert!(matches!(future, Err(StoreError::FutureRevision { .. })), "{future:?}");
}

/// Two keys far apart are always written together: a list that mixes revisions shows them apart.
pub(super) async fn six_mebibytes_are_listed_whole_while_written(subject: Arc<dyn Subject>) {
    const PAIRS: usize = 300;
    const VALUE_BYTES: usize = 10 * 1024 + 512;
    const TOGETHER: usize = 50;
    const ROUNDS: usize = 4;
    let store = subject.store().await;
    let keys = |pair: usize| [format!("left/{pair:03}"), format!("right/{pair:03}")];
    let mut revisions: BTreeMap<usize, u64> = BTreeMap::new();
    let fill = |pair: usize, round: usize| vec![u8::try_from((pair + round) % 251).unwrap_or(0); VALUE_BYTES];
    let transaction = |pairs: &[usize], round: usize, revisions: &BTreeMap<usize, u64>| {
        let each = || pairs.iter().flat_map(|pair| keys(*pair).map(|key| (*pair, key)));
        Transaction {
            guards: each()
                .map(|(pair, key)| Guard::at(key, revisions.get(&pair).copied().unwrap_or(0)))
                .collect(),
            operations: each().map(|(pair, key)| Operation::put(key, fill(pair, round))).collect(),
        }
    };
    let mut write_round = async |round: usize, size: usize| {
        for start in (0..PAIRS).step_by(size) {
            let pairs: Vec<usize> = (start..(start + size).min(PAIRS)).collect();
            let outcome = store.commit(transaction(&pairs, round, &revisions)).await.expect("commit");
            let revision = super::committed(outcome);
            revisions.extend(pairs.into_iter().map(|pair| (pair, revision)));
        }
    };
    write_round(0, TOGETHER).await;
    for round in 1..=ROUNDS {
        let (listing, ()) = tokio::join!(store.list("", None), write_round(round, 10));
        let listing = listing.expect("list");
        assert_eq!(listing.entries.len(), 2 * PAIRS);
        let bytes: usize = listing.entries.iter().map(|(_, value)| value.value.len()).sum();
        assert!(bytes > 6 * 1024 * 1024, "{bytes} bytes");
        let (left, right) = listing.entries.split_at(PAIRS);
        for ((left_key, left), (right_key, right)) in left.iter().zip(right) {
            assert_eq!(left, right, "{left_key} and {right_key} were written together");
            assert!(left.mod_revision <= listing.revision);
        }
    }
}

pub(super) async fn compacted_is_told_and_a_list_goes_on(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let first = put(&*store, "a", "1").await;
    put(&*store, "gone", "1").await;
    let deleted = write(&*store, vec![Operation::delete("gone")]).await;
    let last = put(&*store, "a", "2").await;
    let mut early = store.watch("", first + 1).await.expect("watch");
    until(&mut early, last).await;
    subject.compact(deleted).await;

    // A watch from the compacted revision itself may miss its deletion, so that one must not pass either.
    for from in [1, first, deleted] {
        let error = match store.watch("", from).await {
            Err(error) => error,
            Ok(mut watch) => loop {
                match tokio::time::timeout(super::EVENT_WITHIN, watch.next())
                    .await
                    .expect("an answer in time")
                {
                    Ok(batch) => assert_eq!(batch.events, [], "from {from}"),
                    Err(error) => break error,
                }
            },
        };
        assert!(matches!(error, StoreError::Compacted { .. }), "from {from}: {error:?}");
    }
    let list = store.list("", Some(first)).await;
    assert!(matches!(list, Err(StoreError::Compacted { .. })), "{list:?}");

    // What the caller then does, and what was open before goes on.
    let listing = store.list("", None).await.expect("list");
    assert_eq!(listing.entries.len(), 1);
    let mut watch = store.watch("", listing.revision + 1).await.expect("watch");
    let newest = put(&*store, "b", "1").await;
    for watch in [&mut watch, &mut early] {
        assert_eq!(tell(&until(watch, newest).await), [format!("+b=1@{newest}")]);
    }
}
