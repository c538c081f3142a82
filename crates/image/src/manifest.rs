//! `manifest.json`: what an image consists of.

use serde::{Deserialize, Serialize};

/// One file of an image, beside its manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Name in the image's directory.
    pub file: String,
    /// SHA-256 of its content, in hexadecimal digits.
    pub sha256: String,
    /// Its size (a disk's file may have holes).
    pub bytes: u64,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// What people call it.
    pub name: String,
    /// Twelve hexadecimal digits of the hash of its parts.
    pub version: String,
    /// `x86_64`.
    pub architecture: String,
    /// An uncompressed ELF kernel.
    pub kernel: Part,
    /// An uncompressed initramfs, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Part>,
    /// Arguments of the kernel that belong to the image; the host adds those that belong to the machine.
    pub command_line: String,
    /// The root disk.
    pub root: Part,
    /// Version of the guest agent inside.
    pub agent_version: String,
    /// When it was built; not part of the version.
    pub built_at: jiff::Timestamp,
}

impl Manifest {
    /// All files of the image but the manifest itself.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        [&self.kernel, &self.root].into_iter().chain(&self.initrd)
    }
}
