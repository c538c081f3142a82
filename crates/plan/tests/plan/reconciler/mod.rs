//! The reconciler: batches, the overlay, conflicts and waking, driven against a store of bytes.
//!
//! The quarantine of a planner that panics is not tested here: no view makes a planner panic, which is the point of
//! them, and a planner cannot be put in from outside. A planted bug with a panicking planner would run it. What is
//! tested is the other way into quarantine, a plan that no transaction can hold.

mod batches;
mod conflicts;
mod groups;
mod preemption;
mod waits;
mod waking;

use std::collections::BTreeMap;

use lightbyte_api::records::Leader;
use lightbyte_api::{Key, Timestamp, Uid};
use lightbyte_plan::transaction::{GUARDS_MAX, WRITES_MAX};
use lightbyte_plan::view::PENDING;
use lightbyte_plan::{Reconciler, Transaction, View, Write};

use crate::world::{Store, at, name, world};

/// How many turns a loop may take to settle.
const TURNS_MAX: usize = 1_000;

/// A leader's loop with its store and its feed.
struct Leading {
    store: Store,
    reconciler: Reconciler,
    fed: View,
    now: Timestamp,
    fresh: u128,
    batches: Vec<Transaction>,
}

impl Leading {
    /// A leader of the world of `text`, whose view is up to date.
    fn new(text: &str) -> Leading {
        let mut store = world(text);
        let leader = Leader { server: name("s1"), run: Uid::from_bits(1), url: String::new() };
        store.put(&Key::Leader, leader);
        let view = store.view();
        let session = [Key::Epoch, Key::Leader].map(|key| (key.clone(), view.mod_revision(&key)));
        let reconciler = Reconciler::new(BTreeMap::from(session), view.clone());
        Leading { store, reconciler, fed: view, now: at(60), fresh: 0, batches: Vec::new() }
    }

    /// A leader of that world after everything came to rest.
    fn settled(text: &str) -> Leading {
        let mut leading = Leading::new(text);
        leading.settle();
        leading
    }

    /// One turn: what is to be sent, with the rules that every batch keeps.
    fn next(&mut self) -> Option<Transaction> {
        let fresh = &mut self.fresh;
        let batch = self.reconciler.next(self.now, || {
            *fresh += 1 << 64;
            *fresh
        })?;
        self.reconciler.view().check().expect("indexes that say what the entries say");
        assert!(batch.guards.len() <= GUARDS_MAX, "{} guards", batch.guards.len());
        assert!(batch.writes.len() <= WRITES_MAX, "{} writes", batch.writes.len());
        for key in [Key::Epoch, Key::Leader] {
            assert!(batch.guards.contains_key(&key), "a batch of a deposed leader must fail on {key}");
        }
        for (key, write) in &batch.writes {
            let guard = batch.guards.get(key).unwrap_or_else(|| panic!("{key} is not guarded"));
            assert!(*guard != 0 || matches!(write, Write::Put(..)), "{key} is deleted and must be absent");
        }
        assert!(
            !batch.guards.values().any(|revision| *revision == PENDING),
            "a guard on what is not written yet"
        );
        Some(batch)
    }

    /// Sends `batch`, and hands the answer back. Whether it was committed.
    fn send(&mut self, batch: &Transaction) -> bool {
        match self.store.commit(batch) {
            Ok(revision) => {
                self.reconciler.committed(revision);
                self.batches.push(batch.clone());
                true
            }
            Err((revision, current)) => {
                self.reconciler.conflicted(revision, &current, self.now);
                false
            }
        }
    }

    /// The feed brings everything.
    fn feed(&mut self) {
        let changed = self.store.follow(&mut self.fed);
        self.fed.check().expect("indexes that say what the entries say");
        self.reconciler.feed(self.fed.clone(), Some(&changed));
        self.reconciler.confirm(self.fed.revision(), self.now);
    }

    /// Turns and feeds until nothing is left to do at this time.
    fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            self.feed();
            match self.next() {
                Some(batch) => {
                    self.send(&batch);
                }
                None if self.reconciler.is_idle() => return,
                None => {}
            }
        }
        panic!("the loop does not come to rest");
    }

    fn after(&mut self, milliseconds: u64) {
        self.now =
            self.now.checked_add(std::time::Duration::from_millis(milliseconds)).expect("a time in range");
    }

    /// The milliseconds until the loop wants to be called again.
    fn wakes_in(&self) -> i64 {
        let wake = self.reconciler.next_wake().expect("a loop that has turned resyncs some day");
        wake.as_millisecond() - self.now.as_millisecond()
    }

    /// What the last commit wrote.
    fn last(&self) -> String {
        let last = self.batches.last().expect("a batch");
        crate::world::writes(&crate::world::Names::of(&self.store.view()), last)
    }

    /// What commits wrote of ledgers and decisions from one on, a paragraph each.
    fn decided_from(&self, first: usize) -> String {
        let names = crate::world::Names::of(&self.store.view());
        let of = |batch: &Transaction| {
            let text = crate::world::writes(&names, batch);
            let is_meant = |line: &&str| {
                line.starts_with("ledger")
                    || line.contains("decided vm")
                    || line.contains("decided scalegroup")
            };
            text.lines().filter(is_meant).collect::<Vec<&str>>().join("\n")
        };
        self.batches[first..].iter().map(of).collect::<Vec<String>>().join("\n\n")
    }
}

/// Whether two views say the same.
fn same(one: &View, other: &View) -> bool {
    one.keys().eq(other.keys()) && one.keys().all(|(key, _)| one.record(key) == other.record(key))
}
