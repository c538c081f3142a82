//! The async store around the core, on tokio's clock (which a test may pause), with faults on demand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;

use super::core::{CommitFault, MemoryCore};
use crate::error::StoreError;
use crate::rules;
use crate::settle::settle;
use crate::store::{
    Batch, Lease, LeaseId, Listing, Outcome, Read, Revision, Store, Transaction, Watch, WatchSource,
};

/// How many revisions a coalescing watcher joins into one batch.
const COALESCED_MAX: usize = 1000;

/// A watch of a [`MemoryStore`], by the order in which they were opened, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WatcherId(pub u64);

/// What a test does to one watcher. Different watchers with different delays are what reorders them.
#[derive(Debug, Clone, Copy, Default)]
struct WatcherFaults {
    held: bool,
    delay: Duration,
    coalesce: bool,
    dropped: bool,
}

struct State {
    core: MemoryCore,
    watchers: BTreeMap<WatcherId, WatcherFaults>,
    next_watcher: u64,
    unavailable: bool,
}

struct Shared {
    started: Instant,
    state: Mutex<State>,
    /// Rung after every change of the state; the value is nothing but a change.
    bell: watch::Sender<u64>,
}

/// A [`Store`] in memory. Clones share one state.
#[derive(Clone)]
pub struct MemoryStore(Arc<Shared>);

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store whose clock starts now.
    #[must_use]
    pub fn new() -> Self {
        Self::from_core(MemoryCore::new())
    }

    /// A store that goes on from a core; the core's time 0 is now.
    #[must_use]
    pub fn from_core(core: MemoryCore) -> Self {
        let state = State { core, watchers: BTreeMap::new(), next_watcher: 0, unavailable: false };
        let bell = watch::Sender::new(0);
        Self(Arc::new(Shared { started: Instant::now(), state: Mutex::new(state), bell }))
    }

    /// A copy of the core as it is now.
    #[must_use]
    pub fn snapshot(&self) -> MemoryCore {
        self.0.with(|state, _| state.core.clone())
    }

    /// Puts an older (or any other) core in place, as a restore does. Running watches end.
    pub fn restore(&self, core: MemoryCore) {
        self.0.with(|state, _| {
            state.core = core;
            state.watchers.values_mut().for_each(|faults| faults.dropped = true);
        });
    }

    /// Forgets the events up to and including `revision`.
    ///
    /// # Errors
    /// As [`MemoryCore::compact`].
    pub fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.0.with(|state, _| state.core.compact(revision))
    }

    /// Plans a fault for the next try of a commit; a settling commit tries again at once.
    pub fn plan_fault(&self, fault: CommitFault) {
        self.0.with(|state, _| state.core.plan_fault(fault));
    }

    /// While set, reads and leases are unavailable, commits stay unknown, and watchers hear nothing.
    pub fn set_unavailable(&self, unavailable: bool) {
        self.0.with(|state, _| state.unavailable = unavailable);
    }

    /// Makes a lease live longer than its renewals say.
    pub fn stretch_lease(&self, lease: LeaseId, by: Duration) {
        self.0.with(|state, _| state.core.lease_stretch(lease, by));
    }

    /// Ends a lease behind its owner's back.
    pub fn lose_lease(&self, lease: LeaseId) {
        self.0.with(|state, _| state.core.lease_revoke(lease));
    }

    /// The watchers that are open.
    #[must_use]
    pub fn watchers(&self) -> Vec<WatcherId> {
        self.0.with(|state, _| state.watchers.keys().copied().collect())
    }

    /// While held, a watcher hears nothing; others do.
    pub fn hold_watcher(&self, watcher: WatcherId, held: bool) {
        self.fault(watcher, |faults| faults.held = held);
    }

    /// Each batch waits this long before a watcher hears it.
    pub fn delay_watcher(&self, watcher: WatcherId, delay: Duration) {
        self.fault(watcher, |faults| faults.delay = delay);
    }

    /// A coalescing watcher gets all that has happened in one batch.
    pub fn coalesce_watcher(&self, watcher: WatcherId, coalesce: bool) {
        self.fault(watcher, |faults| faults.coalesce = coalesce);
    }

    /// Ends a watch with [`StoreError::Unavailable`], as a broken stream does.
    pub fn drop_watcher(&self, watcher: WatcherId) {
        self.fault(watcher, |faults| faults.dropped = true);
    }

    fn fault(&self, watcher: WatcherId, change: impl FnOnce(&mut WatcherFaults)) {
        self.0.with(|state, _| state.watchers.get_mut(&watcher).map(change));
    }

    /// Runs on the core unless the store is unavailable.
    fn reach<T>(&self, act: impl FnOnce(&mut MemoryCore, Duration) -> T) -> Result<T, StoreError> {
        self.0.with(|state, now| {
            if state.unavailable {
                return Err(StoreError::unavailable("the store was made unavailable"));
            }
            Ok(act(&mut state.core, now))
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in a test's closure leaves the state as it was between two whole steps.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every access goes through here: leases whose time has passed end first, and watchers hear of what changed.
    fn with<T>(&self, act: impl FnOnce(&mut State, Duration) -> T) -> T {
        let mut state = self.lock();
        let now = self.started.elapsed();
        state.core.expire(now);
        let result = act(&mut state, now);
        drop(state);
        self.bell.send_modify(|rung| *rung = rung.wrapping_add(1));
        result
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Read, StoreError> {
        self.reach(|core, _| core.get(key))
    }

    async fn list(&self, prefix: &str, at: Option<Revision>) -> Result<Listing, StoreError> {
        self.reach(|core, _| core.list(prefix, at))?
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        let id = self.0.with(|state, _| {
            if state.unavailable {
                return Err(StoreError::unavailable("the store was made unavailable"));
            }
            let id = WatcherId(state.next_watcher);
            state.next_watcher += 1;
            state.watchers.insert(id, WatcherFaults::default());
            Ok(id)
        })?;
        Ok(Watch::new(Box::new(MemoryWatch {
            shared: Arc::clone(&self.0),
            bell: self.0.bell.subscribe(),
            id,
            prefix: prefix.to_owned(),
            from: from.max(1),
            pending: None,
            ended: None,
        })))
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        rules::check(&transaction)?;
        settle(&transaction, || async {
            let attempt = self.reach(|core, _| core.attempt(&transaction));
            attempt.unwrap_or_else(|error| Err(crate::settle::AttemptError::Unknown(Arc::new(error))))
        })
        .await
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.reach(|core, now| core.lease_grant(ttl, now))
    }

    async fn lease_ensure(&self, lease: LeaseId, ttl: Duration) -> Result<(), StoreError> {
        self.reach(|core, now| core.lease_ensure(lease, ttl, now))
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.reach(|core, now| core.lease_keep_alive(lease, now))?
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.reach(|core, _| core.lease_revoke(lease))
    }
}

struct MemoryWatch {
    shared: Arc<Shared>,
    bell: watch::Receiver<u64>,
    id: WatcherId,
    prefix: String,
    /// The first revision that has not been delivered.
    from: Revision,
    /// A batch that waits for its delay to pass.
    pending: Option<(Instant, Batch)>,
    ended: Option<StoreError>,
}

/// What a watcher does next.
enum Step {
    Deliver(Batch),
    WaitUntil(Instant),
    Wait,
}

impl MemoryWatch {
    fn step(&mut self) -> Result<Step, StoreError> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        state.core.expire(shared.started.elapsed());
        let faults = state.watchers.get(&self.id).copied().unwrap_or_default();
        if faults.dropped {
            return Err(StoreError::unavailable("the watch was dropped"));
        }
        if faults.held || state.unavailable {
            return Ok(Step::Wait);
        }
        if self.pending.is_none() {
            self.pending =
                self.take(&state.core, faults)?.map(|batch| (Instant::now() + faults.delay, batch));
        }
        let expiry = state.core.next_expiry().map(|at| Step::WaitUntil(shared.started + at));
        drop(state);
        match self.pending.take() {
            Some((due, batch)) if due <= Instant::now() => {
                self.from = batch.revision + 1;
                Ok(Step::Deliver(batch))
            }
            Some((due, batch)) => {
                self.pending = Some((due, batch));
                Ok(Step::WaitUntil(due))
            }
            None => Ok(expiry.unwrap_or(Step::Wait)),
        }
    }

    fn take(&self, core: &MemoryCore, faults: WatcherFaults) -> Result<Option<Batch>, StoreError> {
        let wanted = if faults.coalesce { COALESCED_MAX } else { 1 };
        let batches = core.events(&self.prefix, self.from, wanted)?;
        let joined = batches.into_iter().reduce(|mut joined, batch| {
            joined.revision = batch.revision;
            joined.events.extend(batch.events);
            joined
        });
        // Nothing under the prefix, yet the store has moved on: that is progress.
        let progress = || {
            (core.revision() >= self.from).then(|| Batch { revision: core.revision(), events: Vec::new() })
        };
        Ok(joined.or_else(progress))
    }
}

#[async_trait]
impl WatchSource for MemoryWatch {
    async fn next(&mut self) -> Result<Batch, StoreError> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        loop {
            self.bell.borrow_and_update();
            let until = match self.step() {
                Ok(Step::Deliver(batch)) => return Ok(batch),
                Ok(Step::WaitUntil(instant)) => Some(instant),
                Ok(Step::Wait) => None,
                Err(error) => {
                    self.ended = Some(error.clone());
                    return Err(error);
                }
            };
            let timer = async {
                match until {
                    Some(instant) => tokio::time::sleep_until(instant).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender lives in `shared`, which this watch holds: it cannot be closed.
                _ = self.bell.changed() => {}
                () = timer => {}
            }
        }
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        self.shared.lock().watchers.remove(&self.id);
    }
}
