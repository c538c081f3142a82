//! What lightbyte decides. Nothing here acts: no I/O, no clock, no randomness, no task, no log line.
//!
//! ```text
//!   store ──> View ──> planner::plan ──────> Plan ─┐
//!               │         (scheduler)              ├─> Reconciler ──> Transaction ──> store
//!               │                                  ┘
//!               └──> request (what people and workers ask) ──> Transaction
//!
//!   assignment + what the host shows ──> agent::next_step ──> one step on the host
//! ```
//!
//! Each decision is a function of an immutable snapshot, so the same code serves the server, the simulator, and
//! people who ask what a change would do or why something waits.

pub mod agent;
pub mod care;
pub mod delivery;
pub mod forecast;
pub mod fronts;
pub mod guest;
mod labels;
pub mod load;
pub mod places;
pub mod planner;
pub mod reconciler;
pub mod request;
pub mod room;
mod runs;
pub mod scheduler;
pub mod status;
pub mod transaction;
pub mod view;
pub mod why;
pub mod zone;

pub use planner::{Inputs, Plan};
pub use reconciler::Reconciler;
pub use transaction::{Transaction, Write};
pub use view::View;
