//! What the store promises while members die, stop and lose each other: nothing acknowledged is lost, watches go on,
//! leases never end early.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::cluster::{Cluster, Harm};
use crate::proxy::Mode;
use lightbyte_store::{
    EtcdStore, Event, Guard, Operation, Outcome, Revision, Store as _, StoreError, Transaction,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// No step of these tests takes longer, an election of etcd and a slow disk included.
const STEP_WITHIN: Duration = Duration::from_secs(60);

/// What a writer knows of its writes.
#[derive(Default)]
struct Written {
    next: usize,
    acknowledged: BTreeMap<String, Revision>,
    unknown: BTreeSet<String>,
    slowest: Duration,
}

impl Written {
    /// Writes new keys until so many more are acknowledged.
    async fn write(&mut self, store: &EtcdStore, more: usize) -> Revision {
        let deadline = Instant::now() + STEP_WITHIN;
        let wanted = self.acknowledged.len() + more;
        let mut last = 0;
        while self.acknowledged.len() < wanted {
            assert!(Instant::now() < deadline, "only {} of {wanted} writes pass", self.acknowledged.len());
            let key = format!("key-{:05}", self.next);
            self.next += 1;
            let began = Instant::now();
            let transaction = Transaction {
                guards: vec![Guard::absent(&key)],
                operations: vec![Operation::put(&key, key.clone())],
            };
            match store.commit(transaction).await {
                Ok(Outcome::Committed { revision }) => {
                    last = revision;
                    self.acknowledged.insert(key, revision);
                }
                Err(StoreError::Unknown(_)) => {
                    self.unknown.insert(key);
                }
                other => panic!("{key} is written by nobody else, but: {other:?}"),
            }
            self.slowest = self.slowest.max(began.elapsed());
        }
        last
    }
}

/// Watches everything in the background; tells how far it has come, and ends with what it saw.
fn follow(
    store: &EtcdStore,
    from: Revision,
) -> (watch::Receiver<Revision>, JoinHandle<Vec<(String, Revision)>>) {
    let (reached, followed) = watch::channel(from - 1);
    let store = store.clone();
    let following = tokio::spawn(async move {
        let mut watch = store.watch("", from).await.expect("watch");
        let mut seen = Vec::new();
        while !reached.is_closed() {
            let batch = tokio::select! {
                batch = watch.next() => batch.expect("the watch goes on"),
                () = reached.closed() => break,
            };
            seen.extend(batch.events.into_iter().map(|event| match event {
                Event::Put { key, value } => (key, value.mod_revision),
                Event::Delete { key, .. } => panic!("nobody deletes {key}"),
            }));
            assert!(batch.revision >= *reached.borrow(), "the watch went back");
            reached.send_replace(batch.revision);
        }
        seen
    });
    (followed, following)
}

async fn caught_up(followed: &mut watch::Receiver<Revision>, revision: Revision) {
    let reached = followed.wait_for(|reached| *reached >= revision);
    let reached = tokio::time::timeout(STEP_WITHIN, reached).await;
    reached.expect("the watch catches up in time").expect("the watch goes on");
}

/// Writes and watches through the harmed member; the rest of the cluster must take over.
async fn survive(cluster: &mut Cluster, harm: Harm, leader: bool) {
    let leading = cluster.leader().await;
    let target = if leader { leading } else { (leading + 1) % cluster.members.len() };
    let store = cluster.proxied_store(&format!("/{harm:?}/{leader}/"), target).await;
    let from = store.list("", None).await.expect("list").revision + 1;
    let (mut followed, following) = follow(&store, from);
    let mut written = Written::default();
    let revision = written.write(&store, 20).await;
    caught_up(&mut followed, revision).await;

    cluster.harm(target, harm).await;
    let harmed_at = Instant::now();
    let revision = written.write(&store, 40).await;
    let wrote = harmed_at.elapsed();
    caught_up(&mut followed, revision).await;
    let watched = harmed_at.elapsed();
    cluster.heal(target, harm).await;

    let revision = written.write(&store, 20).await;
    caught_up(&mut followed, revision).await;
    drop(followed);
    let seen = following.await.expect("the watch");
    println!(
        "{harm:?} leader={leader}: slowest write {:?}, 40 writes after {wrote:?}, watch there after {watched:?}, unknown {}",
        written.slowest,
        written.unknown.len()
    );

    let listing = store.list("", None).await.expect("list");
    let stored: BTreeMap<String, Revision> =
        listing.entries.iter().map(|(key, value)| (key.clone(), value.mod_revision)).collect();
    for (key, revision) in &written.acknowledged {
        assert_eq!(stored.get(key), Some(revision), "{key} was acknowledged");
    }
    assert!(stored.keys().all(|key| written.acknowledged.contains_key(key) || written.unknown.contains(key)));
    assert!(seen.is_sorted_by_key(|(_, revision)| *revision), "{seen:?}");
    // What is still to come after the last acknowledged write is not asked for.
    let told: BTreeMap<String, Revision> = seen.iter().cloned().collect();
    assert_eq!(told.len(), seen.len(), "the watch told something twice");
    for (key, at) in stored.iter().filter(|(_, at)| **at <= revision) {
        assert_eq!(told.get(key), Some(at), "the watch left out {key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_member_loses_nothing() {
    let Some(binary) = crate::etcd_or_skip("a_bad_member_loses_nothing") else { return };
    let mut cluster = Cluster::start(&binary, 3).await;
    let rows = [
        (Harm::Kill, true),
        (Harm::Stop, true),
        (Harm::Isolate, true),
        (Harm::Stop, false),
        (Harm::Isolate, false),
        (Harm::Hide, false),
    ];
    for (harm, leader) in rows {
        survive(&mut cluster, harm, leader).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_outlives_the_death_of_the_leader() {
    const TTL: Duration = Duration::from_secs(4);
    let Some(binary) = crate::etcd_or_skip("a_lease_outlives_the_death_of_the_leader") else { return };
    let mut cluster = Cluster::start(&binary, 3).await;
    let store = cluster.store("/lease/").await;
    let leader = cluster.leader().await;
    let lease = store.lease_grant(TTL).await.expect("grant");
    let leased = Operation::Put { key: "alive".into(), value: "x".into(), lease: Some(lease.id) };
    let transaction = Transaction { guards: vec![Guard::absent("alive")], operations: vec![leased] };
    let Outcome::Committed { revision } = store.commit(transaction).await.expect("commit") else {
        panic!("nobody else writes");
    };
    let renewed_at = Instant::now();
    let ttl = store.lease_keep_alive(lease.id).await.expect("renew");
    // The later in its life the leader dies, the longer a lease is stretched: this is the scenario, not a wait.
    tokio::time::sleep_until(renewed_at + ttl * 3 / 4).await;
    cluster.harm(leader, Harm::Kill).await;

    let mut watch = store.watch("", revision + 1).await.expect("watch");
    let deleted = async {
        while watch.next().await.expect("the watch goes on").events.is_empty() {}
        renewed_at.elapsed()
    };
    let lived = tokio::time::timeout(STEP_WITHIN, deleted).await.expect("the lease ends");
    println!("a lease of {ttl:?} lived {lived:?} when the leader died at {:?}", ttl * 3 / 4);
    assert!(lived >= ttl, "the lease ended early, after {lived:?}");
    // It was renewed before, so its second life begins with the new leader at the latest.
    assert!(lived < ttl * 2 + Duration::from_secs(15), "the lease lived {lived:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_streams_are_resumed() {
    let Some(binary) = crate::etcd_or_skip("broken_streams_are_resumed") else { return };
    let cluster = Cluster::start(&binary, 1).await;
    let store = cluster.proxied_store("/cut/", 0).await;
    let direct = cluster.store("/cut/").await;
    let from = store.list("", None).await.expect("list").revision + 1;
    let (mut followed, following) = follow(&store, from);
    let mut written = Written::default();
    for _ in 0..6 {
        let revision = written.write(&direct, 15).await;
        cluster.members[0].clients.cut();
        written.write(&direct, 15).await;
        caught_up(&mut followed, revision).await;
    }
    let revision = written.write(&direct, 1).await;
    caught_up(&mut followed, revision).await;
    drop(followed);
    let seen: Vec<(String, Revision)> = following.await.expect("the watch");
    // Keys are numbered in the order of their writes, so both lists are in the same order.
    assert_eq!(seen, written.acknowledged.into_iter().collect::<Vec<_>>());
}

/// Answers pile up in the member while progress is asked for: an old member then answers the question first, and a
/// watch that believed it would skip the events (etcd#15220).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_does_not_overtake_events() {
    const REVISIONS: usize = 64;
    const VALUE_BYTES: usize = 128 * 1024;
    let Some(binary) = crate::etcd_or_skip("progress_does_not_overtake_events") else { return };
    let cluster = Cluster::start(&binary, 1).await;
    let store = cluster.proxied_store("/overtake/", 0).await;
    let direct = cluster.store("/overtake/").await;
    let mut at = 0;
    let mut put = async || {
        let operations = vec![Operation::put("a", vec![0; VALUE_BYTES])];
        match direct.commit(Transaction { guards: vec![Guard::at("a", at)], operations }).await {
            Ok(Outcome::Committed { revision }) => at = revision,
            other => panic!("nobody else writes, but: {other:?}"),
        }
        at
    };
    let first = put().await;
    let (mut followed, following) = follow(&store, first);
    caught_up(&mut followed, first).await;

    cluster.members[0].clients.set(Mode::HoldAnswers);
    let mut last = first;
    for _ in 0..REVISIONS {
        last = put().await;
    }
    // Long enough for more than one question, short enough for the connection to outlive it.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    cluster.members[0].clients.set(Mode::Pass);
    caught_up(&mut followed, last).await;
    drop(followed);
    let seen: Vec<Revision> = following.await.expect("the watch").into_iter().map(|(_, at)| at).collect();
    assert_eq!(seen, (first..=last).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_missed_a_compaction_says_so() {
    let Some(binary) = crate::etcd_or_skip("a_stream_that_missed_a_compaction_says_so") else { return };
    let cluster = Cluster::start(&binary, 1).await;
    let store = cluster.proxied_store("/compact/", 0).await;
    let direct = cluster.store("/compact/").await;
    let mut written = Written::default();
    let first = written.write(&direct, 1).await;
    let mut watch = store.watch("", first).await.expect("watch");
    assert_eq!(watch.next().await.expect("the first event").revision, first);

    cluster.members[0].clients.set(Mode::Hold);
    written.write(&direct, 5).await;
    let compacted = written.write(&direct, 5).await;
    let last = written.write(&direct, 5).await;
    direct.compact(compacted).await.expect("compact");
    cluster.members[0].clients.cut();
    cluster.members[0].clients.set(Mode::Pass);

    let told = async {
        loop {
            match watch.next().await {
                // What was under way before the hold may still come.
                Ok(batch) => assert!(batch.revision < last, "the watch skipped a compaction"),
                Err(error) => return error,
            }
        }
    };
    let error = tokio::time::timeout(STEP_WITHIN, told).await.expect("an answer in time");
    assert!(matches!(error, StoreError::Compacted { .. }), "{error:?}");
    let again = watch.next().await;
    assert!(matches!(again, Err(StoreError::Compacted { .. })), "an ended watch stays ended: {again:?}");
}
