//! Makes the root file system as large as its disk. A VM's disk is a clone of the image's, which may be smaller.

use std::fs::File;
use std::io;

use crate::boot::read_limited;

/// Where the kernel says how many sectors of 512 bytes the root disk has (sysfs, `block/<disk>/size`).
const DISK_SECTORS: &str = "/sys/class/block/vda/size";
const SECTOR_BYTES: u64 = 512;
/// A number and its line end.
const NUMBER_BYTES_MAX: u64 = 32;

/// What is less is not worth it, and may be the rest of a disk that no group of blocks fits in: one group of 32,768
/// blocks of 1 KiB, ext4's smallest, has as many bytes as this.
const GAIN_BYTES_MIN: u64 = 8 << 20;

/// `EXT4_IOC_RESIZE_FS` (linux/ext4.h): `_IOW('f', 16, __u64)`.
const RESIZE: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<u64>(b'f', 16);

/// Grows the mounted root file system. It goes on while others use it, so nobody has to wait for this.
pub(crate) fn grow() {
    match grow_root() {
        Ok(0) => {}
        Ok(bytes) => println!("lightbyte-guest: the root file system has {} MiB more", bytes >> 20),
        // The guest has less room than it could have, which is no reason not to run.
        Err(error) => println!("lightbyte-guest: grow the root file system: {error}"),
    }
}

/// How many bytes it has more than before.
fn grow_root() -> io::Result<u64> {
    let sectors: u64 = match read_limited(DISK_SECTORS.as_ref(), NUMBER_BYTES_MAX)?.trim().parse() {
        Ok(sectors) => sectors,
        Err(_) => return Err(io::Error::other("the disk's size is no number")),
    };
    let root = File::open("/")?;
    let now = rustix::fs::fstatvfs(&root)?;
    let blocks = blocks_of(sectors.saturating_mul(SECTOR_BYTES), now.f_frsize, now.f_blocks);
    match blocks {
        Some(blocks) => {
            resize(&root, blocks)?;
            Ok(rustix::fs::fstatvfs(&root)?.f_blocks.saturating_sub(now.f_blocks) * now.f_frsize)
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
fn resize(root: &File, blocks: u64) -> io::Result<()> {
    // SAFETY: the call reads one `__u64`, the number of blocks, which is what the setter holds. Another file system
    // than ext4 knows no such call and says so (ENOTTY, ioctl(2)).
    unsafe {
        let setter = rustix::ioctl::Setter::<RESIZE, u64>::new(blocks);
        Ok(rustix::ioctl::ioctl(root, setter)?)
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
