//! Makes a root disk with `mke2fs -d`, and then the same bytes from the same files: `mke2fs` copies times (the change time
//! included, which nobody can set) from the files it reads, so the inodes' times are set to nought afterwards.
//!
//! Source: `Documentation/filesystems/ext4` of Linux (super block, group descriptors, inode table).

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// Fixed, since a clone of the image keeps it anyway; nothing mounts by it.
const UUID: &str = "6c696768-7462-7974-6500-000000000001";

/// Makes a file system of `bytes` with the files below `tree`, all owned by root.
///
/// # Errors
/// If `mke2fs` is missing or fails, with what it said.
pub fn make(disk: &Path, tree: &Path, bytes: u64) -> anyhow::Result<()> {
    let _ = fs::remove_file(disk);
    fs::File::create(disk).and_then(|file| file.set_len(bytes)).context("create the disk")?;
    // No checksums of metadata and no 64-bit block numbers: both cost an emulated CPU at mount, and neither helps a disk
    // that is cloned from a checked file. A small journal, since a VM's root disk may be kept.
    let output = Command::new("mke2fs")
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-O",
            "^metadata_csum,^64bit",
            "-J",
            "size=4",
            "-m",
            "0",
            "-U",
            UUID,
        ])
        .args([
            "-E",
            &format!("hash_seed={UUID},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"),
            "-d",
        ])
        .arg(tree)
        .arg(disk)
        .env("E2FSPROGS_FAKE_TIME", "1")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .context("start mke2fs (package e2fsprogs)")?;
    if !output.status.success() {
        bail!("mke2fs: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    own_and_clear(disk).context("clear owners and times")
}

/// Offsets in an inode of owner (low halves, then high halves) and times, with their lengths.
const CLEARED: &[(usize, usize)] = &[(0x02, 2), (0x08, 12), (0x18, 2), (0x78, 4), (0x84, 20)];

fn own_and_clear(disk: &Path) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(disk).context("open the disk")?;
    let mut block = vec![0; 1024];
    file.seek(SeekFrom::Start(1024))?;
    file.read_exact(&mut block)?;
    ensure!(half(&block, 0x38) == 0xef53, "no ext4");
    let block_bytes = 1024_u64 << word(&block, 0x18);
    let (inodes, inodes_per_group) = (u64::from(word(&block, 0x00)), u64::from(word(&block, 0x28)));
    let inode_bytes = usize::from(half(&block, 0x58));
    ensure!(inodes_per_group > 0 && inode_bytes >= 0x98, "an unexpected layout");
    let descriptors = block_bytes * (u64::from(word(&block, 0x14)) + 1);
    for group in 0..inodes.div_ceil(inodes_per_group) {
        let mut descriptor = [0; 32];
        file.seek(SeekFrom::Start(descriptors + group * 32))?;
        file.read_exact(&mut descriptor)?;
        let table = u64::from(word(&descriptor, 8)) * block_bytes;
        let mut inodes = vec![0; usize::try_from(inodes_per_group)? * inode_bytes];
        file.seek(SeekFrom::Start(table))?;
        file.read_exact(&mut inodes)?;
        let mut changed = false;
        for inode in inodes.chunks_exact_mut(inode_bytes).filter(|inode| half(inode, 0) != 0) {
            for (at, length) in CLEARED {
                inode[*at..at + length].fill(0);
            }
            changed = true;
        }
        if changed {
            file.seek(SeekFrom::Start(table))?;
            file.write_all(&inodes)?;
        }
    }
    file.sync_all().context("sync the disk")
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}
