//! Takes one file out of an initramfs of ours (cpio in the form `newc`; `Documentation/driver-api/early-userspace` of Linux).

use anyhow::{Context, Result, bail, ensure};

const HEAD_BYTES: usize = 110;

/// The content of the file of that name.
pub(crate) fn file<'a>(archive: &'a [u8], name: &str) -> Result<&'a [u8]> {
    let mut at = 0_usize;
    loop {
        let head = archive
            .get(at..)
            .and_then(|rest| rest.get(..HEAD_BYTES))
            .context("the initramfs is cut short")?;
        ensure!(head.starts_with(b"070701"), "the initramfs is no cpio archive that is not compressed");
        let field = |index: usize| {
            let text = std::str::from_utf8(&head[6 + index * 8..14 + index * 8]).unwrap_or_default();
            usize::from_str_radix(text, 16).context("the initramfs is damaged")
        };
        let (size, name_size) = (field(6)?, field(11)?);
        let begin = at + HEAD_BYTES;
        let found = begin.checked_add(name_size).and_then(|end| archive.get(begin..end));
        let found = found.context("the initramfs is cut short")?;
        let content = (begin + name_size).next_multiple_of(4);
        let bytes = content.checked_add(size).and_then(|end| archive.get(content..end));
        let bytes = bytes.context("the initramfs is cut short")?;
        match found.strip_suffix(&[0]) {
            Some(found) if found == name.as_bytes() => return Ok(bytes),
            Some(b"TRAILER!!!") => bail!("the initramfs has no file `{name}`"),
            _ => at = (content + size).next_multiple_of(4),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::Archive;

    #[test]
    fn a_file_is_found_and_damage_is_an_error() {
        let mut archive = Archive::default();
        archive.directory("dev").unwrap();
        archive.file("init", 0o755, b"the agent").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(file(&bytes, "init").unwrap(), b"the agent");
        assert!(file(&bytes, "other").is_err());
        for cut in 0..bytes.len() {
            assert!(file(&bytes[..cut], "other").is_err(), "{cut}");
        }
    }
}
