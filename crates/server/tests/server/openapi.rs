//! The document describes what is there.
