//! What the host and the agent in a guest say to each other: HTTP/1.1 over vsock with the JSON of [`protocol`], and for
//! running commands a stream of [`frame`]s. The agent itself is the binary of this crate.

#[cfg(feature = "archive")]
pub mod archive;
pub mod frame;
pub mod proc;
pub mod protocol;
