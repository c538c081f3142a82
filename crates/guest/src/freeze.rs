//! Holds file systems still while the host copies the disks below them.
//!
//! ```text
//! free ──freeze──> frozen ──thaw, or the time is over, or the agent begins anew──> free
//! ```
//!
//! While they are frozen whoever writes waits in the kernel, the agent too if it did: nothing here writes or prints
//! between the two.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::mounted;

/// `FIFREEZE` and `FITHAW` (linux/fs.h): `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`.
const FREEZE: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<i32>(b'X', 119);
const THAW: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<i32>(b'X', 120);

/// File systems that are frozen. A thread of its own thaws them in time, whatever the rest of the agent waits for; it does
/// so as well when this is dropped.
pub(crate) struct Frozen {
    pub(crate) count: u32,
    /// Whose it is.
    pub(crate) token: String,
    /// Asks for the end.
    end: Sender<()>,
    /// How many were thawed.
    thawed: Receiver<u32>,
}

impl Frozen {
    /// Whether the time is over already.
    pub(crate) fn is_over(&self) -> bool {
        // What the thread has said is lost by that, and was no news to anybody.
        !matches!(self.thawed.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty))
    }

    /// Thaws; how many were still frozen. Waits for the disks.
    pub(crate) fn thaw(self) -> u32 {
        let is_in_time = self.end.send(()).is_ok();
        let thawed = self.thawed.recv().unwrap_or(0);
        if is_in_time { thawed } else { 0 }
    }
}

/// Writes everything and freezes: data first, the root last. Waits for the disks.
///
/// # Errors
/// If one cannot be frozen, or a disk that is named has no file system that could be; then none is.
pub(crate) fn freeze(time: Duration, token: String, disks: &[u16]) -> Result<Frozen> {
    rustix::fs::sync();
    let mut found = mounted::file_systems();
    for disk in disks {
        let device = mounted::device_of(*disk).with_context(|| format!("there is no disk {disk}"))?;
        if !found.iter().any(|found| found.device == device) {
            bail!("disk {disk} is not mounted as ext4 or xfs, so it cannot be held still");
        }
    }
    found.retain(|found| !found.is_read_only);
    found.reverse();
    let (end, asked) = channel();
    let (say, thawed) = channel();
    let (frozen, is_frozen) = channel::<io::Result<u32>>();
    // The clock runs before the first is frozen.
    let hold = move || {
        let mut held = Vec::new();
        let all: io::Result<()> = found.iter().try_for_each(|found| {
            let directory = File::open(&found.path)?;
            change::<FREEZE>(&directory)?;
            held.push(directory);
            Ok(())
        });
        let count = u32::try_from(held.len()).unwrap_or(u32::MAX);
        let has_failed = all.is_err();
        let told = frozen.send(all.map(|()| count));
        if !has_failed && told.is_ok() {
            // An end of the other side is one, too.
            let (Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)) =
                asked.recv_timeout(time);
        }
        // From here on nobody is in time.
        drop(asked);
        // The root first: programs are on it.
        let done = held.iter().rev().filter(|directory| change::<THAW>(directory).is_ok()).count();
        let _ = say.send(u32::try_from(done).unwrap_or(u32::MAX));
    };
    std::thread::Builder::new().name("freeze".to_owned()).spawn(hold).context("start a thread")?;
    match is_frozen.recv() {
        Ok(Ok(count)) => Ok(Frozen { count, token, end, thawed }),
        Ok(Err(error)) => Err(anyhow::Error::new(error).context("freeze a file system")),
        Err(_) => bail!("the thread that freezes has died"),
    }
}

/// Thaws whatever is frozen: an agent that died may have left it so.
pub(crate) fn thaw_all() {
    for found in mounted::file_systems() {
        // It says that it was not frozen, which is how it should be.
        let _ = File::open(Path::new(&found.path)).map(|directory| change::<THAW>(&directory));
    }
}

#[expect(unsafe_code, reason = "FIFREEZE and FITHAW have no safe form")]
fn change<const OPCODE: rustix::ioctl::Opcode>(directory: &File) -> io::Result<()> {
    let mut unused = 0_i32;
    // SAFETY: the kernel reads and writes nothing through the argument of these two (fs/ioctl.c); an int is what their
    // numbers promise.
    unsafe {
        let updater = rustix::ioctl::Updater::<OPCODE, i32>::new(&mut unused);
        Ok(rustix::ioctl::ioctl(directory, updater)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_linux() {
        assert_eq!((FREEZE, THAW), (0xc004_5877, 0xc004_5878));
    }

    #[test]
    fn the_end_of_the_time_is_noticed_and_a_thaw_after_it_counts_nothing() {
        let (end, asked) = channel();
        let (say, thawed) = channel();
        let frozen = Frozen { count: 2, token: String::new(), end, thawed };
        assert!(!frozen.is_over());
        drop(asked);
        say.send(2).unwrap();
        assert_eq!(frozen.thaw(), 0);
    }
}
