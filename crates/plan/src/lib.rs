//! lightbyte-plan
