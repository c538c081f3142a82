//! A cluster on one machine: `lightbyte dev`.
//!
//! [`rack`] works out which hosts there are and what runs on each; [`namespaces`] are the hosts, and [`outside`] says
//! what leaves them; [`supervisor`] keeps everything running, restarts what dies, and stops a host when asked, as if its
//! power were cut; [`control`] is how other commands reach it; `rootless` and [`forward`] make and reach a lab of an
//! ordinary user; [`dev`] is the command itself.

pub mod control;
pub mod dev;
pub mod forward;
mod ground;
pub mod log;
pub mod namespaces;
pub mod outside;
pub mod process;
pub mod rack;
mod rootless;
pub mod state;
pub mod supervisor;

pub use dev::Options;
pub use rack::VmmChoice;
