//! lightbyte-vmm
