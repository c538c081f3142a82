//! Makes file systems as large as their disks. A VM's disk is a clone of the image's, which may be smaller, and a disk may
//! become larger while its VM runs.

use std::fs::File;
use std::io;
use std::path::Path;

use lightbyte_guest::protocol::Grown;

use crate::boot::read_limited;
use crate::mounted;

/// A sector of sysfs (`block/<disk>/size`).
const SECTOR_BYTES: u64 = 512;
/// A number and its line end.
const NUMBER_BYTES_MAX: u64 = 32;

/// What is less is not worth it, and may be the rest of a disk that no group of blocks fits in: one group of 32,768
/// blocks of 1 KiB, ext4's smallest, has as many bytes as this.
const GAIN_BYTES_MIN: u64 = 8 << 20;

/// `EXT4_IOC_RESIZE_FS` (linux/ext4.h): `_IOW('f', 16, __u64)`.
const RESIZE: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<u64>(b'f', 16);

/// Grows all mounted ext4 file systems. That goes on while others use them, so nobody has to wait for it.
pub(crate) fn grow() -> Grown {
    let mut grown = Grown::default();
    for found in mounted::file_systems().iter().filter(|found| found.kind == "ext4" && !found.is_read_only) {
        match grow_one(found) {
            Ok(0) => {}
            Ok(bytes) => {
                let name = if found.path == "/" { "the root file system" } else { &found.path };
                println!("lightbyte-guest: {name} has {} MiB more", bytes >> 20);
                grown.bytes += bytes;
            }
            // The guest has less room than it could have, which is no reason not to run.
            Err(error) => {
                println!("lightbyte-guest: grow {}: {error}", found.path);
                grown.error = format!("{}: {error}", found.path);
            }
        }
    }
    grown
}

/// How many bytes it has more than before.
fn grow_one(found: &mounted::FileSystem) -> io::Result<u64> {
    let place = format!("/sys/dev/block/{}/size", found.device);
    let Ok(sectors) = read_limited(Path::new(&place), NUMBER_BYTES_MAX)?.trim().parse::<u64>() else {
        return Err(io::Error::other("the disk's size is no number"));
    };
    let directory = File::open(&found.path)?;
    let now = rustix::fs::fstatvfs(&directory)?;
    let blocks = blocks_of(sectors.saturating_mul(SECTOR_BYTES), now.f_frsize, now.f_blocks);
    match blocks {
        Some(blocks) => {
            resize(&directory, blocks)?;
            Ok(rustix::fs::fstatvfs(&directory)?.f_blocks.saturating_sub(now.f_blocks) * now.f_frsize)
        }
        None => Ok(0),
    }
}

/// How many blocks a file system on a disk of so many bytes can have; nothing if that is hardly more than it has. What
/// it uses for itself is not counted among its blocks (statvfs(3)), so it seems smaller than it is.
fn blocks_of(disk_bytes: u64, block_bytes: u64, blocks_now: u64) -> Option<u64> {
    let blocks = disk_bytes.checked_div(block_bytes)?;
    let gain_blocks_min = (blocks / 8).max(GAIN_BYTES_MIN / block_bytes);
    (blocks > blocks_now.saturating_add(gain_blocks_min)).then_some(blocks)
}

#[expect(unsafe_code, reason = "EXT4_IOC_RESIZE_FS has no safe form")]
fn resize(directory: &File, blocks: u64) -> io::Result<()> {
    // SAFETY: the call reads one `__u64`, the number of blocks, which is what the setter holds. Another file system
    // than ext4 knows no such call and says so (ENOTTY, ioctl(2)).
    unsafe {
        let setter = rustix::ioctl::Setter::<RESIZE, u64>::new(blocks);
        Ok(rustix::ioctl::ioctl(directory, setter)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clearly_larger_disk_is_grown_into() {
        const MIB: u64 = 1 << 20;
        let table = [
            (64, 60, None),
            (64, 64, None),
            (68, 60, None),
            (128, 60, Some(128)),
            (1024, 60, Some(1024)),
            (1024, 980, None),
            (0, 60, None),
        ];
        for (disk, now, expected) in table {
            assert_eq!(
                blocks_of(disk * MIB, 4096, now * MIB / 4096),
                expected.map(|mib: u64| mib * MIB / 4096),
                "{disk} MiB, {now} MiB now"
            );
        }
        assert_eq!(blocks_of(MIB, 0, 1), None);
    }
}
