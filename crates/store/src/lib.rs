//! lightbyte-store
