//! Files and directories as a stream (tar, GNU's form), for `lightbyte cp` and the agent's words `pack` and `unpack`.
//!
//! Where a copy goes is decided as other tools for containers do it: see [`unpack`]. Whoever unpacks believes nothing that
//! the stream says: the other side may be a hostile guest.

mod pack;
mod place;
mod unpack;

pub use pack::{Owners, pack};
pub use unpack::{Keep, Unpacked, unpack};

/// Longest path that is carried (`PATH_MAX` of Linux).
const PATH_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests;
