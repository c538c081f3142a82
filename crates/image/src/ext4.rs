//! Makes a root disk with `mke2fs -d`, and then the same bytes from the same files: `mke2fs` copies times (the change time
//! included, which nobody can set) and owners from the files it reads, so the inodes are set right afterwards.
//!
//! Source: `Documentation/filesystems/ext4` of Linux (super block, group descriptors, inode table).

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// Fixed, since a clone of the image keeps it anyway; nothing mounts by it.
const UUID: &str = "6c696768-7462-7974-6500-000000000001";

/// What a disk is to be.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Its size; the file has holes.
    pub bytes: u64,
    /// Size of its journal.
    pub journal_mib: u32,
    /// Whose its files are, and of when.
    pub inodes: Inodes,
}

/// Owners and times of files.
#[derive(Clone, Debug)]
pub enum Inodes {
    /// All are root's, and from the beginning of time.
    Nought,
    /// Times stay, except that nothing is younger than `youngest` (seconds since 1970). All are root's but `owned`: paths
    /// from the root with the numbers of user and group.
    Kept {
        /// The latest time.
        youngest: u32,
        /// Files of others.
        owned: Vec<(String, u64, u64)>,
    },
}

/// Makes a file system with the files below `tree`. Whoever runs this need not be root.
///
/// # Errors
/// If `mke2fs` or `debugfs` is missing or fails, with what it said.
pub fn make(path: &Path, tree: &Path, disk: &Disk) -> anyhow::Result<()> {
    let _ = fs::remove_file(path);
    fs::File::create(path).and_then(|file| file.set_len(disk.bytes)).context("create the disk")?;
    // No checksums of metadata and no 64-bit block numbers: both cost an emulated CPU at mount, and neither helps a disk
    // that is cloned from a checked file.
    let output = Command::new("mke2fs")
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-O",
            "^metadata_csum,^64bit",
            "-J",
            &format!("size={}", disk.journal_mib),
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
        .arg(path)
        .env("E2FSPROGS_FAKE_TIME", "1")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .context("start mke2fs (package e2fsprogs)")?;
    if !output.status.success() {
        bail!("mke2fs: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let youngest = match &disk.inodes {
        Inodes::Nought => 0,
        Inodes::Kept { youngest, .. } => *youngest,
    };
    own_and_clear(path, youngest).context("clear owners and times")?;
    match &disk.inodes {
        Inodes::Kept { owned, .. } if !owned.is_empty() => give_away(path, owned).context("set owners"),
        _ => Ok(()),
    }
}

/// Gives files to others than root.
fn give_away(disk: &Path, owned: &[(String, u64, u64)]) -> anyhow::Result<()> {
    let mut orders = String::new();
    for (path, user, group) in owned {
        ensure!(!path.contains(['"', '\n']), "a file named {path:?}");
        let _ = writeln!(orders, "sif \"{path}\" uid {user}\nsif \"{path}\" gid {group}");
    }
    let file = disk.with_extension("owners");
    fs::write(&file, orders).context("write the orders")?;
    let output = Command::new("debugfs")
        .args(["-w", "-f"])
        .arg(&file)
        .arg(disk)
        .env("E2FSPROGS_FAKE_TIME", "1")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .context("start debugfs (package e2fsprogs)")?;
    fs::remove_file(&file).context("remove the orders")?;
    // It succeeds whatever happens, and says its name and version on standard error.
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let complaint = said.lines().find(|line| !line.starts_with("debugfs ") && !line.trim().is_empty());
    match complaint {
        Some(complaint) => bail!("debugfs: {complaint}"),
        None if output.status.success() => Ok(()),
        None => bail!("debugfs failed"),
    }
}

/// Offsets in an inode of owner (low halves, then high halves) and of the finer parts of times, with their lengths.
const CLEARED: &[(usize, usize)] = &[(0x02, 2), (0x18, 2), (0x78, 4), (0x84, 20)];

/// Offset in an inode of the time of its last change of content.
const CHANGED_AT: usize = 0x10;

/// Offsets of its other times.
const OTHER_TIMES: &[usize] = &[0x08, 0x0c, 0x90];

fn own_and_clear(disk: &Path, youngest: u32) -> anyhow::Result<()> {
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
            let time = word(inode, CHANGED_AT).min(youngest).to_le_bytes();
            for at in OTHER_TIMES.iter().chain([&CHANGED_AT]) {
                inode[*at..at + 4].copy_from_slice(&time);
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
