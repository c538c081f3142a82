//! A virtio-vsock device outside of the VMM: one process per VM, spoken to by QEMU over vhost-user, and by host programs
//! over Unix sockets in Firecracker's hybrid protocol (its `docs/vsock.md`). A guest is therefore reached in the same way
//! under both VMMs.
//!
//! Written from virtio 1.2, section 5.10. The published `vhost-device-vsock` 0.3.0 serves the same protocols, but stays
//! alive and deaf once the host sends while QEMU is paused, or a client hangs up before its `OK`. What differs here:
//! - one thread handles QEMU's messages, rings and sockets in turn ([`daemon`]); a stopped ring is a state, not an error;
//! - all decisions are a pure machine with bounds on everything ([`machine`]), tested without a socket;
//! - the process ends when QEMU goes away, and does not depend on who started it.

mod command;
pub mod connection;
pub mod daemon;
mod device;
pub mod handshake;
pub mod machine;
pub mod packet;
mod ring;
mod sockets;

pub use command::main_with;
pub use daemon::{Listeners, Options, run};
