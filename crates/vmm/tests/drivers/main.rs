//! Drivers: one suite for every set of them, and what only real ones show.

mod contract;
mod fake;
mod guest;
mod real;
