//! Drivers: the thin hands of a worker. Behaviour must not live here: what is done, and in which order, is decided by
//! `lightbyte_plan::agent`.
//!
//! Drivers are blocking: each call is bounded by a named time-out, the worker runs them on its blocking pool, and the
//! simulator calls the fake ones directly. Each verb is idempotent, so that a step can be done again after a crash.

mod ask;
mod channel;
pub mod clock;
mod console;
mod disks;
pub mod driver;
pub mod ended;
pub mod fake;
mod fake_guest;
pub mod files;
pub mod firecracker;
pub mod hands;
mod http;
mod identity;
pub mod kvm;
mod machines;
mod minder;
pub mod parts;
pub mod peers;
mod process;
pub mod qemu;
mod room;
mod spawn;
pub mod taps;
mod transfer;

pub use ask::{carried, explain, metrics};
pub use driver::{
    ConsoleChunk, ConsoleFrom, Disks, DriverError, Drivers, Guest, Network, Records, TapState, Vmm, VmmEvent,
};
pub use fake::FakeHost;
pub use files::Files;
pub use kvm::KvmVerdict;
pub use machines::Machines;
pub use parts::Parts;
pub use taps::Taps;
