//! Writes an initramfs: a cpio archive in the "newc" form, uncompressed (unpacking in an emulated CPU would cost more than
//! reading). Source: `Documentation/driver-api/early-userspace/buffer-format.rst` of Linux.

use std::io::{self, Write};

/// Longest name that the kernel takes (`PATH_MAX`).
const NAME_BYTES_MAX: usize = 4095;

/// An archive that grows by entries. Owner is root and times are nought, so that the same entries give the same bytes.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory; parents come first.
    ///
    /// # Errors
    /// If the name is too long.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, 0o040_755, (0, 0), &[])
    }

    /// Adds a file with these permissions.
    ///
    /// # Errors
    /// If the name is too long, or the content has 4 GiB or more.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, 0o100_000 | permissions, (0, 0), content)
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// If the name is too long.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, 0o020_600, (major, minor), &[])
    }

    /// The whole archive.
    ///
    /// # Errors
    /// Never with entries that were accepted.
    pub fn finish(mut self) -> io::Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        if name.len() > NAME_BYTES_MAX {
            return Err(io::Error::other("the name is too long"));
        }
        self.entries += 1;
        let inode = self.entries;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            write!(self.bytes, "{field:08X}")?;
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.directory("dev").expect("a short name");
        archive.file("init", 0o755, b"abc").expect("a short name");
        archive.device("dev/console", 5, 1).expect("a short name");
        let bytes = archive.finish().expect("a short archive");
        let text = String::from_utf8_lossy(&bytes).replace('\0', ".");
        let expected = concat!(
            "07070100000001000041ED000000000000000000000002000000000000000000000000000000000000000000000000",
            "0000000400000000dev...",
            "07070100000002000081ED000000000000000000000001000000000000000300000000000000000000000000000000",
            "0000000500000000init.",
        );
        assert_eq!(text.len() % 4, 0);
        assert!(text.starts_with(&expected[..94]), "{text}");
        assert!(text.contains("dev/console") && text.contains("TRAILER!!!") && text.contains("abc."));
    }
}
