//! The server through real HTTP on Unix sockets, over a store in memory.

mod cluster;
mod leaders;
mod objects;
mod openapi;
mod parts;
mod vms;
mod watches;
mod worker;
mod workers;
