//! The server through real HTTP on Unix sockets, over a store in memory.

mod cluster;
mod vms;
mod worker;
