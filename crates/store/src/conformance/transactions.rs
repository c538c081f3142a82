//! Guards, conflicts, limits, and unknown results.

use std::sync::Arc;

use bytes::Bytes;

use super::{Subject, committed, guarded, mod_revision, put, write};
use crate::error::StoreError;
use crate::memory::CommitFault;
use crate::rules::{self, GUARDS_MAX, OPERATIONS_MAX, TRANSACTION_BYTES_MAX};
use crate::store::{Guard, LeaseId, Operation, Outcome, Transaction};

pub(super) async fn guards_decide(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let old = put(&*store, "there", "1").await;
    let new = put(&*store, "there", "2").await;
    let gone = put(&*store, "gone", "1").await;
    write(&*store, vec![Operation::delete("gone")]).await;
    // Each row: the guards, and whether they hold.
    let rows: &[(&[(&str, u64)], bool)] = &[
        (&[("there", new)], true),
        (&[("there", old)], false),
        (&[("there", 0)], false),
        (&[("there", new + 100)], false),
        (&[("never", 0)], true),
        (&[("never", new)], false),
        (&[("gone", 0)], true),
        (&[("gone", gone)], false),
        (&[("there", new), ("gone", 0), ("never", 0)], true),
        (&[("there", new), ("gone", gone), ("never", 0)], false),
        (&[], true),
    ];
    for (index, (guards, holds)) in rows.iter().enumerate() {
        let target = format!("target-{index}");
        let mut transaction = Transaction {
            guards: vec![Guard::absent(&target)],
            operations: vec![Operation::put(&target, "x")],
        };
        transaction.guards.extend(guards.iter().map(|(key, revision)| Guard::at(*key, *revision)));
        let before = store.get(&target).await.expect("get").revision;
        let outcome = store.commit(transaction).await.expect("commit");
        let after = store.get(&target).await.expect("get");
        match outcome {
            Outcome::Committed { revision } => {
                assert!(*holds, "{guards:?} were passed");
                assert_eq!((revision, after.revision), (before + 1, before + 1), "{guards:?}");
                assert_eq!(after.value.map(|found| found.mod_revision), Some(revision), "{guards:?}");
            }
            Outcome::Conflict { revision, .. } => {
                assert!(!*holds, "{guards:?} were not passed");
                assert_eq!((revision, after.revision), (before, before), "{guards:?}");
                assert_eq!(after.value, None, "{guards:?}");
            }
        }
    }
}

pub(super) async fn conflict_tells_what_is_there(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let at = put(&*store, "a", "one").await;
    let transaction = Transaction {
        guards: vec![Guard::at("a", at), Guard::absent("b"), Guard::absent("c")],
        operations: vec![Operation::put("a", "mine"), Operation::put("b", "mine")],
    };
    let theirs = put(&*store, "b", "theirs").await;
    let Outcome::Conflict { revision, current } = store.commit(transaction).await.expect("commit") else {
        panic!("a guard did not hold");
    };
    assert_eq!(revision, theirs);
    let told: Vec<_> = current
        .iter()
        .map(|(key, value)| {
            (key.as_str(), value.as_ref().map(|found| (&found.value[..], found.mod_revision)))
        })
        .collect();
    assert_eq!(told, [("a", Some((&b"one"[..], at))), ("b", Some((&b"theirs"[..], theirs))), ("c", None)]);
}

pub(super) async fn one_transaction_is_one_revision(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let first = put(&*store, "b", "old").await;
    let operations = vec![Operation::put("a", "1"), Operation::delete("b"), Operation::put("c", "")];
    assert_eq!(write(&*store, operations).await, first + 1);
    let listing = store.list("", None).await.expect("list");
    assert_eq!(listing.revision, first + 1);
    let told: Vec<_> =
        listing.entries.iter().map(|(key, value)| (key.as_str(), value.mod_revision)).collect();
    assert_eq!(told, [("a", first + 1), ("c", first + 1)]);

    // A transaction without operations checks its guards and takes no revision.
    let check = |revision| Transaction { guards: vec![Guard::at("a", revision)], operations: vec![] };
    assert_eq!(committed(store.commit(check(first + 1)).await.expect("commit")), first + 1);
    assert!(matches!(store.commit(check(first)).await, Ok(Outcome::Conflict { .. })));

    // A lease that does not exist stops the whole transaction.
    let leased = Operation::Put { key: "d".into(), value: Bytes::new(), lease: Some(LeaseId(4_242_424_242)) };
    let refused = store.commit(guarded(&*store, vec![Operation::put("e", "1"), leased]).await).await;
    assert!(matches!(refused, Err(StoreError::LeaseGone { .. })), "{refused:?}");
    assert_eq!(store.get("e").await.expect("get"), crate::Read { revision: first + 1, value: None });
}

pub(super) async fn rules_are_kept_before_sending(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let many = |count: usize| (0..count).map(|index| format!("key-{index:03}"));
    let guards = |count| many(count).map(Guard::absent).collect::<Vec<_>>();
    let puts = |count| many(count).map(|key| Operation::put(key, "x")).collect::<Vec<_>>();
    let rows: Vec<(&str, Vec<Guard>, Vec<Operation>)> = vec![
        ("not guarded", vec![], vec![Operation::put("a", "1")]),
        ("guarded twice", vec![Guard::absent("a"), Guard::at("a", 3)], vec![]),
        ("written twice", vec![Guard::at("a", 3)], vec![Operation::put("a", "1"), Operation::delete("a")]),
        ("guarded as absent", vec![Guard::absent("a")], vec![Operation::delete("a")]),
        ("empty", vec![Guard::absent("")], vec![Operation::put("", "1")]),
        ("129 guards", guards(GUARDS_MAX + 1), puts(1)),
        ("129 operations", guards(GUARDS_MAX), puts(OPERATIONS_MAX + 1)),
        ("bytes", guards(1), vec![Operation::put("key-000", vec![0; TRANSACTION_BYTES_MAX])]),
    ];
    let before = store.get("a").await.expect("get").revision;
    for (part, guards, operations) in rows {
        let error = store.commit(Transaction { guards, operations }).await.expect_err(part);
        let (StoreError::Refused(_) | StoreError::TooLarge { .. }) = error else {
            panic!("{part}: refused as {error:?}");
        };
        let text = format!(
            "{error} {}",
            std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default()
        );
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
    assert_eq!(store.get("a").await.expect("get").revision, before);
}

/// The limits are ours; this shows that the database keeps to them, to the last byte and operation.
pub(super) async fn largest_transactions_pass(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    for count in [1, OPERATIONS_MAX] {
        let keys: Vec<String> = (0..count).map(|index| format!("{count}/key-{index:03}")).collect();
        let build = |bytes: usize| Transaction {
            guards: keys.iter().map(Guard::absent).collect(),
            operations: keys.iter().map(|key| Operation::put(key, vec![7; bytes])).collect(),
        };
        let room = TRANSACTION_BYTES_MAX - rules::size_bytes(&build(0));
        let revision = committed(store.commit(build(room / count)).await.expect("the largest transaction"));
        let listing = store.list(&format!("{count}/"), None).await.expect("list");
        assert_eq!(listing.entries.len(), count);
        assert!(listing.entries.iter().all(|(_, value)| value.mod_revision == revision));
        let deletes: Vec<_> = keys.iter().map(Operation::delete).collect();
        write(&*store, deletes).await;
    }
}

pub(super) async fn lost_messages_are_settled(subject: Arc<dyn Subject>) {
    let (store, faults) = subject.faulty().await;
    for fault in [CommitFault::After, CommitFault::Before] {
        // A put on top of a value, with a key that only guards.
        let epoch = put(&*store, "epoch", "1").await;
        let was = put(&*store, "a", "old").await;
        faults.lose_next(fault, "a").await;
        let transaction = Transaction {
            guards: vec![Guard::at("a", was), Guard::at("epoch", epoch), Guard::absent("b")],
            operations: vec![Operation::put("a", "new"), Operation::put("b", "new")],
        };
        let revision = committed(store.commit(transaction).await.expect("the result is settled"));
        assert_eq!(revision, was + 1, "{fault:?}: applied once");
        assert_eq!(mod_revision(&*store, "b").await, revision, "{fault:?}");

        // A deletion.
        faults.lose_next(fault, "a").await;
        let transaction =
            Transaction { guards: vec![Guard::at("a", revision)], operations: vec![Operation::delete("a")] };
        assert_eq!(committed(store.commit(transaction).await.expect("the result is settled")), revision + 1);
        write(&*store, vec![Operation::delete("b")]).await;
    }
    // What was not ours stays a conflict, lost request or not.
    let was = put(&*store, "a", "theirs").await;
    faults.lose_next(CommitFault::Before, "a").await;
    let stale = Transaction {
        guards: vec![Guard::at("a", was), Guard::at("b", 1)],
        operations: vec![Operation::put("a", "x")],
    };
    assert!(matches!(store.commit(stale).await, Ok(Outcome::Conflict { .. })));
    assert_eq!(mod_revision(&*store, "a").await, was);
}
