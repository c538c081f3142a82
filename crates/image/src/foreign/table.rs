//! Where the file systems of a disk are: a GPT, an MBR, or one file system over the whole disk.
//!
//! Sources: UEFI specification 2.10, section 5.3 (GPT); `Documentation/filesystems/ext4/super.rst` of Linux (ext4). The disk
//! is a stranger's: every number is checked against its length, and partitions are counted.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context, Result, ensure};

const SECTOR_BYTES: u64 = 512;
/// Most partitions that are looked at: what a GPT has room for in its usual size.
const PARTITIONS_MAX: usize = 128;
/// Largest entry of a GPT; usual are 128 bytes.
const GPT_ENTRY_BYTES_MAX: u32 = 4_096;
/// Type of an MBR's only partition that says that there is a GPT.
const PROTECTIVE: u8 = 0xee;

/// A part of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Its first byte.
    pub(crate) begin: u64,
    /// Its length in bytes.
    pub(crate) length: u64,
}

/// The places of a disk where a file system may be: its partitions, or the whole of it.
pub(crate) fn extents(disk: &File) -> Result<Vec<Extent>> {
    let length = disk.metadata().context("look at the disk")?.len();
    let whole = Extent { begin: 0, length };
    if kind(disk, whole)?.is_some() {
        return Ok(vec![whole]);
    }
    let mut boot = [0; 512];
    ensure!(length >= 512 && disk.read_exact_at(&mut boot, 0).is_ok(), "the disk has no room for anything");
    ensure!(
        boot[510..] == [0x55, 0xaa],
        "the disk has neither a partition table nor a file system that is known here"
    );
    let entries: Vec<&[u8]> = boot[446..510].chunks_exact(16).collect();
    let found = match entries.iter().any(|entry| entry[4] == PROTECTIVE) {
        true => gpt(disk).context("read the GPT")?,
        false => entries
            .iter()
            .filter(|entry| entry[4] != 0)
            .map(|entry| of_sectors(word(entry, 8).into(), word(entry, 12).into()))
            .collect(),
    };
    let inside = |extent: &Extent| {
        extent.length > 0 && extent.begin.checked_add(extent.length).is_some_and(|end| end <= length)
    };
    Ok(found.into_iter().filter(inside).collect())
}

fn gpt(disk: &File) -> Result<Vec<Extent>> {
    let mut head = [0; 92];
    disk.read_exact_at(&mut head, SECTOR_BYTES).context("read its head")?;
    ensure!(&head[..8] == b"EFI PART", "it is damaged: its signature is missing");
    let (first, count, size) = (long(&head, 72), word(&head, 80), word(&head, 84));
    ensure!((128..=GPT_ENTRY_BYTES_MAX).contains(&size), "it is damaged: entries of {size} bytes");
    let count = usize::try_from(count).unwrap_or(usize::MAX).min(PARTITIONS_MAX);
    let mut found = Vec::new();
    for index in 0..count as u64 {
        let mut entry = [0; 128];
        let at = first.checked_mul(SECTOR_BYTES).and_then(|begin| begin.checked_add(index * u64::from(size)));
        disk.read_exact_at(&mut entry, at.context("its entries lie nowhere")?).context("read an entry")?;
        let (begin, last) = (long(&entry, 32), long(&entry, 40));
        if entry[..16] != [0; 16] && begin <= last {
            found.push(of_sectors(begin, last - begin + 1));
        }
    }
    Ok(found)
}

/// What does not fit into numbers is behind the end of every disk, and so nowhere.
fn of_sectors(first: u64, count: u64) -> Extent {
    Extent { begin: first.saturating_mul(SECTOR_BYTES), length: count.saturating_mul(SECTOR_BYTES) }
}

/// What file system it is, by its magic number; nothing if none that is known.
pub(crate) fn kind(disk: &File, extent: Extent) -> Result<Option<&'static str>> {
    let has = |at: u64, magic: &[u8]| {
        let mut found = vec![0; magic.len()];
        let is_there = at + (magic.len() as u64) <= extent.length;
        is_there && disk.read_exact_at(&mut found, extent.begin + at).is_ok() && found == magic
    };
    Ok(match () {
        () if has(1024 + 0x38, &[0x53, 0xef]) => Some("ext4"),
        () if has(0, b"XFSB") => Some("xfs"),
        () if has(0x1_0040, b"_BHRfS_M") => Some("btrfs"),
        () if has(0, b"hsqs") => Some("squashfs"),
        () if has(0, b"LUKS\xba\xbe") => Some("an encrypted volume (LUKS)"),
        () if has(512, b"LABELONE") => Some("a volume of LVM"),
        () => None,
    })
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, write: &[(u64, &[u8])]) -> File {
        let path = std::env::temp_dir().join(format!("lightbyte-table-{name}-{}", std::process::id()));
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.set_len(4 << 20).unwrap();
        for (at, bytes) in write {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    const EXT4: &[u8] = &[0x53, 0xef];

    #[test]
    fn partitions_are_found_and_what_lies_outside_is_not() {
        let extent = |begin, length| Extent { begin, length };
        let check = |name: &str, write: &[(u64, &[u8])], expect: Option<Vec<Extent>>| {
            assert_eq!(extents(&disk(name, write)).ok(), expect, "{name}");
        };
        check("bare", &[(1024 + 0x38, EXT4)], Some(vec![extent(0, 4 << 20)]));
        check("nothing", &[], None);
        let mut mbr = vec![0; 512];
        mbr[510..].copy_from_slice(&[0x55, 0xaa]);
        // One partition, and one that ends behind the disk.
        for (index, (first, count)) in [(2_048_u32, 1_024_u32), (4_096, 1 << 30)].into_iter().enumerate() {
            let at = 446 + index * 16;
            mbr[at + 4] = 0x83;
            mbr[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
            mbr[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
        }
        check("mbr", &[(0, &mbr)], Some(vec![extent(1 << 20, 1 << 19)]));
        let mut protective = vec![0; 512];
        protective[450] = PROTECTIVE;
        protective[510..].copy_from_slice(&[0x55, 0xaa]);
        check("no gpt", &[(0, &protective)], None);
        let mut head = vec![0; 92];
        head[..8].copy_from_slice(b"EFI PART");
        head[72] = 2;
        head[80..84].copy_from_slice(&u32::MAX.to_le_bytes());
        head[84..88].copy_from_slice(&128_u32.to_le_bytes());
        let mut entry = vec![0; 128];
        entry[0] = 1;
        entry[32..40].copy_from_slice(&2_048_u64.to_le_bytes());
        entry[40..48].copy_from_slice(&3_071_u64.to_le_bytes());
        let mut nowhere = entry.clone();
        nowhere[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        let gpt: &[(u64, &[u8])] = &[(0, &protective), (512, &head), (1024, &entry), (1152, &nowhere)];
        check("gpt", gpt, Some(vec![extent(1 << 20, 1 << 19)]));
    }

    #[test]
    fn other_file_systems_are_named() {
        let whole = |disk: &File| Extent { begin: 0, length: disk.metadata().unwrap().len() };
        for (at, magic, name) in [(0, &b"XFSB"[..], "xfs"), (0x1_0040, b"_BHRfS_M", "btrfs")] {
            let disk = disk(name, &[(at, magic)]);
            assert_eq!(kind(&disk, whole(&disk)).unwrap(), Some(name));
        }
    }
}
