//! The only database of lightbyte, seen through one small trait.
//!
//! Every other part sees objects at revisions: it reads and lists them linearizably, watches a prefix from a revision,
//! and writes by guarded transactions. This crate is the raw layer: keys are strings, values are bytes, and no kind is
//! known here. `EtcdStore` is what runs; [`MemoryStore`] and its synchronous core [`MemoryCore`]
//! are what tests and the simulator run. They are real implementations of the same contract: one suite
//! (`conformance`, behind the feature `testing`) is passed by all of them.
//!
//! Invariants that the rest of the workspace stands on:
//!
//! - A transaction is applied whole, at one revision, or not at all, and only if every guard holds.
//! - Every written key is guarded ([`rules`] refuses anything else), which is what makes an unknown result
//!   settleable ([`settle`]).
//! - A watch delivers whole revisions in order, without a gap and without a repeat, or ends with an error.
//!
//! Deliberately absent: puts without a guard, range deletes, values without an owner's revision, sessions that renew
//! themselves. A lease is renewed by a loop that has a reason to live, never by a task in the background.

pub mod beside;
pub mod election;
mod error;
pub mod feed;
pub mod memory;
pub mod rules;
pub mod settle;
mod store;

#[cfg(feature = "testing")]
pub mod conformance;
#[cfg(feature = "etcd")]
pub mod etcd;

pub use bytes::Bytes;
pub use election::{Candidate, Leadership};
pub use error::{Cause, StoreError};
#[cfg(feature = "etcd")]
pub use etcd::{EtcdOptions, EtcdStore};
pub use memory::{CommitFault, MemoryCore, MemoryStore};
pub use rules::Refusal;
pub use store::{
    Batch, Event, Guard, Lease, LeaseId, Listing, Operation, Outcome, Read, Revision, Store, Transaction,
    Versioned, Watch, WatchSource,
};
