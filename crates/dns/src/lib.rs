//! Names of the cluster by DNS: a resolver that holds one zone and answers from it (RFC 1034 and 1035).
//!
//! Whoever runs it hands it zones and says when the one that it has is the newest; it asks nobody. What it was last handed
//! it keeps on disk, so it knows its names with no server there. What is answered is decided in `answer`, without I/O;
//! `udp`, `tcp`, `forward` and `disk` only carry.

mod alias;
mod answer;
mod bind;
mod counters;
mod disk;
mod dns;
mod forward;
mod reply;
mod state;
mod table;
mod tcp;
mod tickets;
mod turns;
mod udp;
mod wire;

pub use bind::{BindError, Protocol};
pub use counters::Counts;
pub use dns::{Dns, NotApplied, Options, StartError, Status};
pub use wire::Rcode;
