//! One suite that every [`Store`] passes: in memory, on one etcd member and on three.
//!
//! It is how the fake is kept honest and how the real one is kept to its contract: what the simulator relies on is
//! exactly what is checked here against real etcd. Each case gets an empty key space of its own; revisions are those
//! of a store that nobody else writes to meanwhile, so cases run one after another.

mod elections;
mod leases;
mod lists;
mod transactions;
mod watches;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::memory::{CommitFault, MemoryStore};
use crate::store::{Batch, Event, Guard, Operation, Outcome, Revision, Store, Transaction, Watch};

/// No case takes longer, on a loaded machine with a slow disk either.
const CASE_WITHIN: Duration = Duration::from_secs(90);

/// No single event takes longer to arrive.
const EVENT_WITHIN: Duration = Duration::from_secs(20);

/// What the suite asks of the thing under test, beyond the trait.
#[async_trait]
pub trait Subject: Send + Sync {
    /// A store over an empty key space of its own.
    async fn store(&self) -> Arc<dyn Store>;

    /// Compacts the history below the store up to and including a revision.
    async fn compact(&self, revision: Revision);

    /// A store of its own, and what loses messages between it and the database.
    async fn faulty(&self) -> (Arc<dyn Store>, Arc<dyn Faults>);
}

/// Loses one message of a commit.
#[async_trait]
pub trait Faults: Send + Sync {
    /// Prepares the loss for the next commit, which writes `key` and only changes it if it is committed.
    async fn lose_next(&self, fault: CommitFault, key: &str);
}

type Case = Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! cases {
    ($($module:ident :: $case:ident),* $(,)?) => {
        &[$((stringify!($case), |subject| Box::pin($module::$case(subject)))),*]
    };
}

/// A name and what makes the case.
type Entry = (&'static str, fn(Arc<dyn Subject>) -> Case);

/// Every case, in the order in which it runs. Compaction stands last: on a shared etcd it forgets everybody's past.
const CASES: &[Entry] = cases![
    transactions::guards_decide,
    transactions::conflict_tells_what_is_there,
    transactions::one_transaction_is_one_revision,
    transactions::rules_are_kept_before_sending,
    transactions::largest_transactions_pass,
    transactions::lost_messages_are_settled,
    lists::list_is_of_one_revision_and_one_prefix,
    lists::what_is_beside_the_root_is_heard_and_not_listed,
    lists::list_at_an_old_revision,
    lists::six_mebibytes_are_listed_whole_while_written,
    watches::watch_from_the_past,
    watches::watch_goes_on_where_another_ended,
    watches::whole_transactions_in_one_batch,
    watches::fragments_are_joined,
    watches::progress_without_events,
    watches::prefix_is_kept,
    watches::watch_ahead_of_the_store_is_told,
    leases::expiry_deletes_all_keys_at_once,
    leases::revoke_deletes_and_may_be_repeated,
    leases::keep_alive_extends_and_tells_the_gone,
    leases::put_moves_a_key_between_leases,
    leases::ensured_twice_is_one_lease,
    elections::one_leads_and_resigns,
    elections::lost_lease_deposes,
    lists::compacted_is_told_and_a_list_goes_on,
];

/// Runs the whole suite, printing each case; the first that fails panics.
///
/// # Panics
/// When the subject breaks the contract.
pub async fn conformance(subject: Arc<dyn Subject>) {
    for (name, case) in CASES {
        println!("conformance: {name}");
        let done = tokio::time::timeout(CASE_WITHIN, case(Arc::clone(&subject))).await;
        assert!(done.is_ok(), "{name} took more than {CASE_WITHIN:?}");
    }
    println!("conformance: {} cases passed", CASES.len());
}

/// The memory store as a subject.
#[derive(Debug, Default)]
pub struct MemorySubject(std::sync::Mutex<Option<MemoryHandle>>);

/// The store that was handed out last.
struct MemoryHandle(MemoryStore);

impl std::fmt::Debug for MemoryHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("MemoryHandle")
    }
}

#[async_trait]
impl Subject for MemorySubject {
    async fn store(&self) -> Arc<dyn Store> {
        let store = MemoryStore::new();
        *self.0.lock().expect("no test panics in the lock") = Some(MemoryHandle(store.clone()));
        Arc::new(store)
    }

    async fn compact(&self, revision: Revision) {
        let handle = self.0.lock().expect("no test panics in the lock");
        let MemoryHandle(store) = handle.as_ref().expect("a store was made before it is compacted");
        store.compact(revision).expect("the revision is there");
    }

    async fn faulty(&self) -> (Arc<dyn Store>, Arc<dyn Faults>) {
        let store = MemoryStore::new();
        (Arc::new(store.clone()), Arc::new(store))
    }
}

#[async_trait]
impl Faults for MemoryStore {
    async fn lose_next(&self, fault: CommitFault, _key: &str) {
        self.plan_fault(fault);
    }
}

/// The present revision of a key, 0 when absent.
async fn mod_revision(store: &dyn Store, key: &str) -> Revision {
    store.get(key).await.expect("get").value.map_or(0, |found| found.mod_revision)
}

/// Guards each written key as it is now.
async fn guarded(store: &dyn Store, operations: Vec<Operation>) -> Transaction {
    let mut guards = Vec::new();
    for operation in &operations {
        let key = operation.key();
        guards.push(Guard::at(key, mod_revision(store, key).await));
    }
    Transaction { guards, operations }
}

/// Commits operations on top of what is there now; they must pass.
async fn write(store: &dyn Store, operations: Vec<Operation>) -> Revision {
    let transaction = guarded(store, operations).await;
    committed(store.commit(transaction).await.expect("commit"))
}

/// Puts one key.
async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    write(store, vec![Operation::put(key, value.to_owned())]).await
}

fn committed(outcome: Outcome) -> Revision {
    match outcome {
        Outcome::Committed { revision } => revision,
        Outcome::Conflict { current, .. } => panic!("expected a commit, got a conflict with {current:?}"),
    }
}

async fn next(watch: &mut Watch) -> Batch {
    let batch = tokio::time::timeout(EVENT_WITHIN, watch.next()).await;
    batch.expect("a batch in time").expect("the watch goes on")
}

/// Collects the batches with events until everything up to `revision` has been delivered, checking their order.
async fn until(watch: &mut Watch, revision: Revision) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    let mut reached = 0;
    while reached < revision {
        let batch = next(watch).await;
        assert!(batch.revision >= reached, "batches go back from {reached} to {}", batch.revision);
        let mut previous = reached;
        for event in &batch.events {
            assert!(event.mod_revision() > reached, "an event of {} after {reached}", event.mod_revision());
            assert!(event.mod_revision() >= previous, "events out of order in {batch:?}");
            assert!(event.mod_revision() <= batch.revision, "an event beyond its batch in {batch:?}");
            previous = event.mod_revision();
        }
        reached = batch.revision;
        if !batch.events.is_empty() {
            batches.push(batch);
        }
    }
    batches
}

/// Events as short texts: `+key=value@revision` and `-key@revision`.
fn tell(batches: &[Batch]) -> Vec<String> {
    batches
        .iter()
        .flat_map(|batch| &batch.events)
        .map(|event| match event {
            Event::Put { key, value } => {
                format!("+{key}={}@{}", String::from_utf8_lossy(&value.value), value.mod_revision)
            }
            Event::Delete { key, mod_revision } => format!("-{key}@{mod_revision}"),
        })
        .collect()
}
