//! Makes a tiny VM image from Debian packages that were unpacked, never installed: an uncompressed kernel, an initramfs
//! that is the guest agent with its modules, an ext4 root disk and a manifest. No root, no mount, no cpio, no lz4 program;
//! `mke2fs` is the only helper. The same inputs give the same bytes, and so the same version.

pub mod blobs;
pub mod cpio;
pub mod ext4;
pub mod kernel;
pub mod manifest;
pub mod modules;
pub mod pack;
