//! The memory store passes the suite, on a paused clock (leases end in no time), and does the harm it is asked for.

use std::sync::Arc;
use std::time::Duration;

use lightbyte_store::conformance::{MemorySubject, conformance};
use lightbyte_store::{
    Batch, Bytes, CommitFault, Event, Guard, MemoryCore, MemoryStore, Operation, Outcome, Revision, Store,
    StoreError, Transaction, Watch,
};
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn memory_conforms() {
    conformance(Arc::new(MemorySubject::default())).await;
}

/// Writes a key over whatever is there.
fn put(core: &mut MemoryCore, key: &str, value: &str) -> Revision {
    let at = core.get(key).value.map_or(0, |found| found.mod_revision);
    let transaction = Transaction {
        guards: vec![Guard::at(key, at)],
        operations: vec![Operation::put(key, value.to_owned())],
    };
    match core.commit(&transaction).expect("commit") {
        Outcome::Committed { revision } => revision,
        conflict @ Outcome::Conflict { .. } => panic!("{conflict:?}"),
    }
}

async fn write(store: &MemoryStore, key: &str) -> Revision {
    let at = store.get(key).await.expect("get").value.map_or(0, |found| found.mod_revision);
    let transaction =
        Transaction { guards: vec![Guard::at(key, at)], operations: vec![Operation::put(key, "x")] };
    match store.commit(transaction).await.expect("commit") {
        Outcome::Committed { revision } => revision,
        conflict @ Outcome::Conflict { .. } => panic!("{conflict:?}"),
    }
}

#[test]
fn a_core_is_a_value() {
    let mut core = MemoryCore::new();
    assert_eq!(core.revision(), 1);
    assert_eq!(put(&mut core, "a", "1"), 2);
    let snapshot = core.clone();
    assert_eq!(put(&mut core, "a", "2"), 3);
    assert_eq!(snapshot.revision(), 2);
    assert_eq!(core.list("", Some(2)).expect("old"), snapshot.list("", None).expect("new"));
}

#[test]
fn faults_fall_on_the_commit_they_are_planned_for() {
    let rows: [(&[CommitFault], Revision); 4] = [
        (&[], 2),
        (&[CommitFault::Before], 2),
        (&[CommitFault::After], 2),
        (&[CommitFault::Before, CommitFault::After, CommitFault::Before], 2),
    ];
    for (faults, expected) in rows {
        let mut core = MemoryCore::new();
        faults.iter().for_each(|fault| core.plan_fault(*fault));
        let transaction =
            Transaction { guards: vec![Guard::absent("a")], operations: vec![Operation::put("a", "ours")] };
        let outcome = core.commit_settled(&transaction).expect("settled");
        assert_eq!(outcome, Outcome::Committed { revision: expected }, "{faults:?}");
        assert_eq!(core.revision(), expected, "{faults:?}: applied once");
    }
}

#[test]
fn leases_end_in_the_order_of_their_times() {
    let second = Duration::from_secs;
    let mut core = MemoryCore::new();
    let leases: Vec<_> = [5, 3, 4, 3].map(|ttl| core.lease_grant(second(ttl), second(0)).id).into();
    for (index, lease) in leases.iter().enumerate() {
        let key = format!("key-{index}");
        let operations = vec![Operation::Put { key: key.clone(), value: Bytes::new(), lease: Some(*lease) }];
        core.commit(&Transaction { guards: vec![Guard::absent(key)], operations }).expect("commit");
    }
    core.lease_stretch(leases[1], second(10));
    assert_eq!(core.next_expiry(), Some(second(3)));
    assert_eq!(core.expire(second(2)), []);
    assert_eq!(core.expire(second(4)), [leases[3], leases[2]]);
    assert_eq!(core.lease_keep_alive(leases[0], second(4)).expect("it lives"), second(5));
    assert_eq!(core.expire(second(8)), []);
    // Time has passed but nobody has swept: it is gone for its owner all the same.
    let gone = core.lease_keep_alive(leases[0], second(9));
    assert!(matches!(gone, Err(StoreError::LeaseGone { .. })), "{gone:?}");
    // A renewal does not shorten what was stretched.
    core.lease_keep_alive(leases[1], second(5)).expect("it lives");
    assert_eq!(core.expire(second(12)), [leases[0]]);
    assert_eq!(core.expire(second(13)), [leases[1]]);
    let deleted = core.events("", 6, usize::MAX).expect("events");
    let keys: Vec<&str> = deleted.iter().flat_map(|batch| &batch.events).map(Event::key).collect();
    assert_eq!(keys, ["key-3", "key-2", "key-0", "key-1"]);
}

async fn batch(watch: &mut Watch) -> Batch {
    watch.next().await.expect("the watch goes on")
}

/// Whether a watch stays silent for a long (paused) time.
async fn silent(watch: &mut Watch) -> bool {
    tokio::time::timeout(Duration::from_secs(3600), watch.next()).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn watchers_are_harmed_one_by_one() {
    let store = MemoryStore::new();
    let mut first = store.watch("", 2).await.expect("watch");
    let mut second = store.watch("", 2).await.expect("watch");
    let [one, two] = store.watchers()[..] else { panic!("two watchers") };

    // Reordered: the second hears at once what the first hears an hour later.
    store.delay_watcher(one, Duration::from_secs(3600));
    let revision = write(&store, "a").await;
    let began = Instant::now();
    assert_eq!(batch(&mut second).await.revision, revision);
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(batch(&mut first).await.revision, revision);
    assert!(began.elapsed() >= Duration::from_secs(3600));
    store.delay_watcher(one, Duration::ZERO);

    // Held, and then coalesced into one batch.
    store.hold_watcher(two, true);
    store.coalesce_watcher(two, true);
    for _ in 0..3 {
        write(&store, "a").await;
    }
    assert!(silent(&mut second).await);
    store.hold_watcher(two, false);
    let joined = batch(&mut second).await;
    assert_eq!((joined.revision, joined.events.len()), (revision + 3, 3));
    assert_eq!(batch(&mut first).await.events.len(), 1);

    // Dropped: it ends, and a new one goes on from there.
    store.drop_watcher(one);
    let error = first.next().await;
    assert!(matches!(error, Err(StoreError::Unavailable(_))), "{error:?}");
    let mut third = store.watch("", revision + 2).await.expect("watch");
    assert_eq!(batch(&mut third).await.revision, revision + 2);
    drop((first, second, third));
    assert_eq!(store.watchers(), []);
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_store_is_outlasted_or_told() {
    let store = MemoryStore::new();
    let mut watch = store.watch("", 2).await.expect("watch");
    store.set_unavailable(true);
    assert!(matches!(store.get("a").await, Err(StoreError::Unavailable(_))));
    let transaction =
        || Transaction { guards: vec![Guard::absent("a")], operations: vec![Operation::put("a", "x")] };
    assert!(matches!(store.commit(transaction()).await, Err(StoreError::Unknown(_))));
    let (committed, ()) = tokio::join!(store.commit(transaction()), async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        store.set_unavailable(false);
    });
    assert_eq!(committed.expect("settled"), Outcome::Committed { revision: 2 });
    assert_eq!(batch(&mut watch).await.revision, 2);
}

#[tokio::test(start_paused = true)]
async fn a_restore_goes_back_and_ends_watches() {
    let store = MemoryStore::new();
    write(&store, "a").await;
    let backup = store.snapshot();
    write(&store, "b").await;
    let mut watch = store.watch("", 4).await.expect("watch");
    store.restore(backup);
    assert!(matches!(watch.next().await, Err(StoreError::Unavailable(_))));
    let read = store.get("b").await.expect("get");
    assert_eq!((read.revision, read.value), (2, None));
    let ahead = store.watch("", 4).await.expect("watch").next().await;
    assert!(matches!(ahead, Err(StoreError::FutureRevision { revision: 4 })), "{ahead:?}");
}
