//! A store that has reached its quota, and how it is given room again.

use std::time::Duration;

use lightbyte_store::etcd::Alarm;
use lightbyte_store::{
    Bytes, EtcdStore, Guard, Operation, Outcome, Revision, Store as _, StoreError, Transaction,
};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::etcd_or_skip;

/// The least that etcd does not call too little.
const QUOTA_BYTES: &str = "16777216";
/// A write of the test.
const VALUE_BYTES: usize = 512 * 1024;
/// How long etcd may take to do what it was told.
const STEP_WITHIN: Duration = Duration::from_secs(60);

/// Writes the one key again.
async fn write(store: &EtcdStore, before: Revision) -> Result<Revision, StoreError> {
    let operations = vec![Operation::put("key", Bytes::from(vec![7; VALUE_BYTES]))];
    match store.commit(Transaction { guards: vec![Guard::at("key", before)], operations }).await? {
        Outcome::Committed { revision } => Ok(revision),
        Outcome::Conflict { revision, .. } => panic!("nobody else writes, but at {revision} it differs"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_says_so_and_is_given_room() {
    let Some(binary) = etcd_or_skip("a_full_store_says_so_and_is_given_room") else { return };
    let cluster = Cluster::start_with(&binary, 3, &["--quota-backend-bytes", QUOTA_BYTES]).await;
    let store = cluster.store("/room/").await;
    assert_eq!(store.alarms().await.expect("they answer"), []);
    let mut newest = 0;
    // Each write leaves the one before in the history.
    let refused = loop {
        match write(&store, newest).await {
            Ok(revision) => newest = revision,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, StoreError::Full), "{refused}");
    let alarms = store.alarms().await.expect("they answer");
    assert!(!alarms.is_empty() && alarms.iter().all(|(_, alarm)| *alarm == Alarm::Space), "{alarms:?}");

    store.compact(newest).await.expect("forgets");
    for (endpoint, before) in store.members().await {
        let before = before.expect("answers");
        assert!(before.database_bytes > before.used_bytes / 2, "{before:?}");
        // What is forgotten becomes free a moment later.
        let deadline = Instant::now() + STEP_WITHIN;
        loop {
            store.defragment(&endpoint).await.expect("writes its file anew");
            let members = store.members().await;
            let (_, after) = members.into_iter().find(|(other, _)| *other == endpoint).expect("is one");
            if after.expect("answers").database_bytes < before.database_bytes / 2 {
                break;
            }
            assert!(Instant::now() < deadline, "{endpoint} gets no smaller");
        }
    }
    assert!(matches!(write(&store, newest).await, Err(StoreError::Full)), "until the alarm is taken back");
    // Each of them raises it for itself, some a moment later than others.
    let deadline = Instant::now() + STEP_WITHIN;
    loop {
        let raised = store.alarms().await.expect("they answer");
        if raised.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{raised:?} is raised again and again");
        for (member, _) in raised {
            store.let_write(member).await.expect("takes it back");
        }
    }
    write(&store, newest).await.expect("there is room");
    let refused = store.defragment("http://127.0.0.1:1").await.expect_err("none of them");
    assert!(matches!(refused, StoreError::Misconfigured(_)), "{refused}");
}
