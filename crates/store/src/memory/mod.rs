//! The store in memory: a deterministic core for the simulator, and an async store around it for tests.
//!
//! It is a real implementation with the arithmetic of etcd, not a mock: revisions start at 1, a transaction is one
//! revision, a delete leaves an event, compaction forgets. Faults are asked for, never random: randomness belongs to
//! whoever owns a seed.

mod core;
mod store;

pub use self::core::{CommitFault, MemoryCore};
pub use self::store::{MemoryStore, WatcherId};
