//! Makes VM images from Debian packages: an uncompressed kernel, an initramfs that is the guest agent with its modules, an
//! ext4 root disk (a tiny one with busybox, or a whole Debian) and a manifest. No root, no mount, no cpio, no lz4 program;
//! `mke2fs` and `debugfs` are the only helpers. The same inputs give the same bytes, and so the same version.

pub mod blobs;
pub mod cpio;
pub mod ext4;
pub mod foreign;
mod full;
pub mod kernel;
pub mod manifest;
pub mod modules;
pub mod pack;
mod tiny;
