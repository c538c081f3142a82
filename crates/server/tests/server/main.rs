//! The server through real HTTP on Unix sockets, over a store in memory, or real etcd where that counts.

mod cluster;
mod etcd;
mod events;
mod leaders;
mod names;
mod objects;
mod openapi;
mod parts;
mod room;
mod secrets;
mod vms;
mod watches;
mod worker;
mod workers;
