//! Writes small files that have no name, so that nothing of them is left whatever happens.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, ioctl_ficlone, openat};
use rustix::io::Errno;

use super::super::facts::{Trial, Tried};

/// Flushes that a median is of.
const FLUSHES: usize = 32;
/// How long all flushes of one kind may take; a slow disk gets fewer.
const FLUSHES_MAX: Duration = Duration::from_secs(3);
/// What is written before each flush: a block of most file systems, about a record.
const BLOCK_BYTES: usize = 4096;

/// Tries out the file system of a directory.
///
/// # Errors
/// When nothing can be written there.
pub(super) fn try_out(directory: &Path) -> io::Result<Trial> {
    let fixed = nameless(directory)?;
    for block in 0..FLUSHES {
        write(&fixed, block)?;
    }
    fixed.sync_all()?;
    let flush_fixed = flush(&fixed)?;
    let flush_growing = flush(&nameless(directory)?)?;
    // Last: a file that shares its blocks is written elsewhere from then on.
    let shares = share(&fixed, directory)?;
    Ok(Trial { shares, flush_fixed, flush_growing })
}

/// A file without a name. Where the file system makes none, one whose name is gone before it is used.
fn nameless(directory: &Path) -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    match openat(CWD, directory, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
        Ok(file) => Ok(file.into()),
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
            let path = directory.join(format!(".lightbyte-doctor-{}", std::process::id()));
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

fn write(file: &File, block: usize) -> io::Result<()> {
    // Not nought, which some file systems would not store.
    file.write_all_at(&[0x5a; BLOCK_BYTES], (block * BLOCK_BYTES) as u64)
}

fn share(from: &File, directory: &Path) -> io::Result<Tried> {
    let to = nameless(directory)?;
    Ok(match ioctl_ficlone(&to, from) {
        Ok(()) => Tried::Works,
        Err(error) => Tried::Fails(io::Error::from(error).to_string()),
    })
}

/// Writes block after block, flushes each, and takes the median of the flushes.
fn flush(file: &File) -> io::Result<Duration> {
    let begin = Instant::now();
    let mut times = Vec::with_capacity(FLUSHES);
    for block in 0..FLUSHES {
        write(file, block)?;
        let before = Instant::now();
        file.sync_data()?;
        times.push(before.elapsed());
        if begin.elapsed() >= FLUSHES_MAX {
            break;
        }
    }
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}
