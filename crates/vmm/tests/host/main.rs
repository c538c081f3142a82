//! The worker's agent on a host: every small host state, every wish, and a crash after every effect, driven against
//! the fake host, which refuses what a real one would refuse.

mod behaviour;
mod bench;
mod failures;
mod findings;
mod health;
mod messages;
mod parts;
mod states;
mod volumes;
