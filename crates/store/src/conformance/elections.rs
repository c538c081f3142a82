//! Elections, and that a deposed leader cannot write.

use std::sync::Arc;
use std::time::Duration;

use super::{EVENT_WITHIN, Subject, put};
use crate::election::Candidate;
use crate::error::StoreError;
use crate::store::{Guard, Operation, Outcome, Store, Transaction};

const TTL: Duration = Duration::from_secs(2);

fn candidate(store: &Arc<dyn Store>, name: &'static str) -> Candidate {
    Candidate::new(Arc::clone(store), "leader", name, TTL)
}

async fn leads(store: &Arc<dyn Store>, name: &str) -> bool {
    let value = store.get("leader").await.expect("get").value;
    value.is_some_and(|found| found.value == name.as_bytes())
}

pub(super) async fn one_leads_and_resigns(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let (first, second) = (candidate(&store, "first"), candidate(&store, "second"));
    let mut leadership = first.campaign().await.expect("campaign");
    assert!(leads(&store, "first").await);

    let mut waiting = Box::pin(second.campaign());
    // While the first renews, the second waits; a key that only begins like the leader's changes nothing.
    let renewals = async {
        for round in 0..6 {
            tokio::time::sleep(TTL / 3).await;
            leadership.renew().await.expect("renew");
            put(&*store, "leader-notes", &round.to_string()).await;
        }
    };
    tokio::select! {
        biased;
        won = &mut waiting => panic!("two lead: {won:?}"),
        () = renewals => {}
    }
    let guard = leadership.guard();
    let (resigned, won) = tokio::join!(leadership.resign(), tokio::time::timeout(EVENT_WITHIN, waiting));
    resigned.expect("resign");
    let successor = won.expect("in time").expect("campaign");
    assert!(leads(&store, "second").await);
    assert_ne!(guard, successor.guard());
    refuse_deposed(&store, guard).await;
}

pub(super) async fn lost_lease_deposes(subject: Arc<dyn Subject>) {
    let store = subject.store().await;
    let mut leadership = candidate(&store, "first").campaign().await.expect("campaign");
    let transaction = Transaction {
        guards: vec![leadership.guard(), Guard::absent("a")],
        operations: vec![Operation::put("a", "by the leader")],
    };
    assert!(matches!(store.commit(transaction).await, Ok(Outcome::Committed { .. })));
    // The first leader stops renewing, as one that is paused does; the second wins by waiting.
    let successor = tokio::time::timeout(EVENT_WITHIN, candidate(&store, "second").campaign()).await;
    let successor = successor.expect("in time").expect("campaign");
    assert!(leadership.sure_until() <= successor.renewed_at(), "the first was still sure of its leadership");
    let renewed = leadership.renew().await;
    assert!(matches!(renewed, Err(StoreError::LeaseGone { .. })), "{renewed:?}");
    refuse_deposed(&store, leadership.guard()).await;
}

async fn refuse_deposed(store: &Arc<dyn Store>, guard: Guard) {
    let transaction = Transaction {
        guards: vec![guard, Guard::absent("b")],
        operations: vec![Operation::put("b", "deposed")],
    };
    let outcome = store.commit(transaction).await;
    assert!(matches!(outcome, Ok(Outcome::Conflict { .. })), "a deposed leader wrote: {outcome:?}");
    assert_eq!(store.get("b").await.expect("get").value, None);
}
