//! A cluster on one machine: `lightbyte dev`.
//!
//! [`rack`] works out which hosts there are and what runs on each; [`supervisor`] keeps that running, restarts what
//! dies, and stops a host when asked, as if its power were cut; [`control`] is how other commands reach it; [`dev`] is
//! the command itself.

pub mod control;
pub mod dev;
pub mod log;
pub mod namespaces;
pub mod rack;
pub mod state;
pub mod supervisor;

pub use dev::Options;
pub use rack::VmmChoice;
