//! Leases: they end, never early, and take their keys with them in one revision.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Subject, put, tell, until, write};
use crate::error::StoreError;
use crate::store::{LeaseId, Operation};

/// The shortest that etcd grants at its default timers.
const TTL: Duration = Duration::from_secs(2);

/// How much earlier than asked an end may seem: clocks are read in whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(5);

fn leased(key: &str, lease: LeaseId) -> Operation {
    Operation::Put { key: key.to_owned(), value: Bytes::from_static(b"x"), lease: Some(lease) }
}

pub(super) async fn expiry_deletes_all_keys_at_once(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let asked_at = Instant::now();
    let lease = store.lease_grant(TTL).await.expect("grant");
    assert!(lease.ttl >= TTL, "{lease:?}");
    let written =
        write(&*store, vec![leased("a", lease.id), leased("b", lease.id), Operation::put("c", "1")]).await;
    assert_eq!(store.get("a").await.expect("get").value.expect("a").lease, Some(lease.id));
    let mut watch = store.watch("", written + 1).await.expect("watch");
    let ended = written + 1;
    let mut told = tell(&until(&mut watch, ended).await);
    assert!(
        asked_at.elapsed() + ROUNDING >= lease.ttl,
        "ended after {:?} of {:?}",
        asked_at.elapsed(),
        lease.ttl
    );
    told.sort();
    assert_eq!(told, [format!("-a@{ended}"), format!("-b@{ended}")]);
    let listing = store.list("", None).await.expect("list");
    assert_eq!(listing.entries.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["c"]);
}

pub(super) async fn revoke_deletes_and_may_be_repeated(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let lease = store.lease_grant(TTL * 30).await.expect("grant").id;
    let written = write(&*store, vec![leased("a", lease)]).await;
    let mut watch = store.watch("", written + 1).await.expect("watch");
    store.lease_revoke(lease).await.expect("revoke");
    assert_eq!(tell(&until(&mut watch, written + 1).await), [format!("-a@{}", written + 1)]);
    store.lease_revoke(lease).await.expect("a second revoke is no error");
    assert_eq!(store.get("a").await.expect("get").revision, written + 1);
    let gone = store.lease_keep_alive(lease).await;
    assert!(matches!(gone, Err(StoreError::LeaseGone { lease: told }) if told == lease), "{gone:?}");
}

pub(super) async fn keep_alive_extends_and_tells_the_gone(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let lease = store.lease_grant(TTL).await.expect("grant");
    let written = write(&*store, vec![leased("a", lease.id)]).await;
    let mut renewed_at = Instant::now();
    let end = renewed_at + lease.ttl * 2;
    while Instant::now() < end {
        tokio::time::sleep(lease.ttl / 4).await;
        renewed_at = Instant::now();
        assert_eq!(store.lease_keep_alive(lease.id).await.expect("renew"), lease.ttl);
    }
    assert!(store.get("a").await.expect("get").value.is_some(), "it outlived its first time to live");
    let mut watch = store.watch("", written + 1).await.expect("watch");
    until(&mut watch, written + 1).await;
    assert!(
        renewed_at.elapsed() + ROUNDING >= lease.ttl,
        "ended {:?} after its renewal",
        renewed_at.elapsed()
    );
    let gone = store.lease_keep_alive(lease.id).await;
    assert!(matches!(gone, Err(StoreError::LeaseGone { .. })), "{gone:?}");
    let never = store.lease_keep_alive(LeaseId(987_654_321)).await;
    assert!(matches!(never, Err(StoreError::LeaseGone { .. })), "{never:?}");
}

pub(super) async fn put_moves_a_key_between_leases(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let old = store.lease_grant(TTL * 30).await.expect("grant").id;
    let new = store.lease_grant(TTL * 30).await.expect("grant").id;
    write(&*store, vec![leased("kept", old), leased("moved", old), leased("ends", old)]).await;
    write(&*store, vec![leased("moved", new)]).await;
    let last = put(&*store, "kept", "without a lease").await;
    let mut watch = store.watch("", last + 1).await.expect("watch");
    store.lease_revoke(old).await.expect("revoke");
    store.lease_revoke(new).await.expect("revoke");
    let told = tell(&until(&mut watch, last + 2).await);
    assert_eq!(told, [format!("-ends@{}", last + 1), format!("-moved@{}", last + 2)]);
    assert_eq!(store.get("kept").await.expect("get").value.expect("kept").lease, None);
}

pub(super) async fn ensured_twice_is_one_lease(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    // Of this run: leases are of the whole database, not of a root.
    let lease = LeaseId(0x5eed_0000_0000 + i64::from(std::process::id()));
    store.lease_ensure(lease, TTL).await.expect("grant");
    let asked_at = Instant::now();
    let written = write(&*store, vec![leased("a", lease)]).await;
    store.lease_ensure(lease, TTL * 300).await.expect("it lives already");
    let mut watch = store.watch("", written + 1).await.expect("watch");
    until(&mut watch, written + 1).await;
    assert!(asked_at.elapsed() < TTL * 30, "the second grant changed nothing");
    store.lease_ensure(lease, TTL * 300).await.expect("it is free again");
    write(&*store, vec![leased("a", lease)]).await;
    store.lease_revoke(lease).await.expect("revoke");
}
