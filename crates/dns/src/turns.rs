//! Whose turn it is: counters that turn the order of records, so that clients share themselves out.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::table::SLOTS;

/// One counter for each slot. A single counter for all would keep step with clients that ask for A and AAAA by turns, and
/// give them the same address for ever.
#[derive(Debug)]
pub(crate) struct Turns(Box<[AtomicU32]>);

impl Turns {
    pub(crate) fn new() -> Turns {
        Turns((0..SLOTS).map(|_| AtomicU32::new(0)).collect())
    }

    /// The next number of a slot.
    pub(crate) fn next(&self, slot: u16) -> usize {
        let turn = self.0.get(usize::from(slot)).map(|counter| counter.fetch_add(1, Ordering::Relaxed));
        usize::try_from(turn.unwrap_or_default()).unwrap_or_default()
    }
}
