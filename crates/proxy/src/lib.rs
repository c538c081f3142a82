//! The HTTP proxy that runs in load-balancer VMs.
//!
//! It holds one topology and carries requests by it. It never speaks to a control plane: whoever has a topology for it
//! hands it over on a Unix socket, and what it was last given it keeps on disk.

mod access;
mod bucket;
mod certificates;
mod chance;
mod checks;
mod clock;
mod connection;
mod control;
mod counts;
mod disk;
mod explain;
mod forwarded;
mod framed;
mod framing;
#[cfg(test)]
mod fuzz;
mod gateway;
mod health;
mod leaving;
mod listeners;
mod lock;
mod patience;
mod pick;
mod proxy;
mod proxy_header;
mod rate;
mod registry;
mod rehearsal;
mod retry;
mod say;
mod state;
mod table;
mod waits;

pub use proxy::{Options, Proxy};
