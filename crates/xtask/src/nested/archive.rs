//! An initial file system in the kernel's own format: a "newc" cpio archive
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

/// Modes of what is archived.
const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// What has been archived so far.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory. Its parents have to be there.
    pub(super) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, b"");
    }

    /// Adds a file that may be executed.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, PROGRAM, content);
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, b"");
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let lengths = [content.len(), 0, 0, 0, 0, path.len() + 1, 0];
        let numbers = [self.entries, mode, 0, 0, 1, 0].into_iter().map(|number| format!("{number:08x}"));
        let lengths = lengths.into_iter().map(|length| format!("{length:08x}"));
        self.bytes.extend_from_slice(b"070701");
        numbers.chain(lengths).for_each(|number| self.bytes.extend_from_slice(number.as_bytes()));
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_the_end_is_marked() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.file("bin/a", b"12345");
        let bytes = archive.finish();
        let text = String::from_utf8(bytes.clone()).expect("text");
        assert_eq!(bytes.len() % 4, 0);
        let heads: Vec<usize> = text.match_indices("070701").map(|(place, _)| place).collect();
        assert_eq!(heads.len(), 3);
        assert!(heads.iter().all(|place| place % 4 == 0), "{heads:?}");
        // Mode and size of the file (fields 2 and 7 of 13), then its name with the nought and its content.
        let file = &text[heads[1] + 6..];
        assert_eq!((&file[8..16], &file[48..56]), ("000081ed", "00000005"));
        assert!(file[104..].starts_with("bin/a\0"), "{file}");
        assert!(text.ends_with("TRAILER!!!\0\0\0\0") || text.contains("TRAILER!!!\0"), "{text}");
    }
}
