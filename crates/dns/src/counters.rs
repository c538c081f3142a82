//! What has happened since the start.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::wire::Rcode;

/// Counts that any thread may raise.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    answers: [AtomicU64; Rcode::ALL.len()],
    pub(crate) silent: AtomicU64,
    pub(crate) truncated: AtomicU64,
    pub(crate) forwarded: AtomicU64,
    pub(crate) forwards_failed: AtomicU64,
    pub(crate) forwards_refused: AtomicU64,
    pub(crate) tcp_connections: AtomicU64,
}

/// What has been counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// Answers from the zone by how they ended; all of [`Rcode::ALL`] are there.
    pub answers: BTreeMap<Rcode, u64>,
    /// Messages that got no answer.
    pub silent: u64,
    /// Answers that did not fit, and were asked for again over TCP.
    pub truncated: u64,
    /// Queries that others answered.
    pub forwarded: u64,
    /// Queries that others should have answered, and did not.
    pub forwards_failed: u64,
    /// Queries for others that were refused since too many were in flight.
    pub forwards_refused: u64,
    /// Connections taken.
    pub tcp_connections: u64,
}

/// Raises a count by one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn answered(&self, rcode: Rcode) {
        let index = Rcode::ALL.iter().position(|other| *other == rcode);
        if let Some(counter) = index.and_then(|index| self.answers.get(index)) {
            count(counter);
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            answers: Rcode::ALL.into_iter().zip(self.answers.iter().map(read)).collect(),
            silent: read(&self.silent),
            truncated: read(&self.truncated),
            forwarded: read(&self.forwarded),
            forwards_failed: read(&self.forwards_failed),
            forwards_refused: read(&self.forwards_refused),
            tcp_connections: read(&self.tcp_connections),
        }
    }
}
