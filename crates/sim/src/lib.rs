//! lightbyte-sim
