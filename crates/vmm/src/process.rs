//! Processes that are not our children any more: found by pid and start time, held by a pidfd.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Flock, FlockType, Pid, PidfdFlags, Signal, fcntl_getlk, pidfd_open, pidfd_send_signal,
};
use serde::{Deserialize, Serialize};

use crate::driver::DriverError;
use crate::room::{refuse, system};

/// How long a killed process may take to go. Longer means stuck in the kernel: an error, not a wait.
pub(crate) const KILL_MAX: Duration = Duration::from_secs(10);

/// Names a process for as long as this machine is up: a pid alone is given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Its pid in our namespace.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since boot (proc(5), `stat`, field 22).
    pub(crate) start_ticks: u64,
}

impl Identity {
    /// The identity of a living process; nothing for one that has gone or is a zombie.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start_ticks) = parse_stat(&stat)?;
        (state != 'Z' && state != 'X').then_some(Self { pid, start_ticks })
    }

    /// Whether it still runs.
    pub(crate) fn alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Takes hold of it; nothing if it has gone.
    pub(crate) fn open(&self) -> Option<Held> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // The pid may have changed hands before it was opened, not after.
        self.alive().then_some(Held { pidfd })
    }
}

/// The name in parentheses may itself hold spaces and parentheses, so it is read from its end.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_ascii_whitespace();
    let state = words.next()?.chars().next()?;
    Some((state, words.nth(18)?.parse().ok()?))
}

/// A process that cannot be mistaken for another.
#[derive(Debug)]
pub(crate) struct Held {
    pidfd: OwnedFd,
}

impl Held {
    /// Sends a signal; one that has ended needs none.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits until it has ended; false if it has not within `wait`.
    ///
    /// # Errors
    /// If the kernel refuses to wait.
    pub(crate) fn wait(&self, wait: Duration) -> io::Result<bool> {
        let wait = Timespec::try_from(wait).map_err(io::Error::other)?;
        loop {
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&wait)) {
                Ok(ended) => return Ok(ended > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The descriptor, which becomes readable when the process ends (pidfd_open(2)).
    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }
}

/// Waits for a process that was killed.
///
/// # Errors
/// If it is still there after [`KILL_MAX`].
pub(crate) fn wait_for_end(process: &Held, what: &str) -> Result<(), DriverError> {
    match process.wait(KILL_MAX) {
        Ok(true) => Ok(()),
        Ok(false) => refuse(format!("{what} does not die")),
        Err(error) => Err(system(format!("wait for {what}"))(error)),
    }
}

/// Who holds the lock on a pid file: QEMU does so as long as it lives, and the kernel names its pid.
pub(crate) fn lock_holder(pid_file: &Path) -> Option<Identity> {
    let file = File::options().read(true).write(true).open(pid_file).ok()?;
    let holder = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)).ok()??;
    Identity::of(holder.pid?.as_raw_nonzero().get())
}

/// A living process that has this word on its command line. It looks at every process, so it is not for every day.
///
/// # Errors
/// If the list of processes cannot be read.
pub(crate) fn named(word: &OsStr) -> io::Result<Option<Held>> {
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that ends meanwhile is none.
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if words.split(|byte| *byte == 0).any(|found| found == word.as_bytes())
            && let Some(held) = Identity::of(pid).and_then(|process| process.open())
        {
            return Ok(Some(held));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_with_any_name_are_read() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        for name in ["qemu", "a b", "evil) Z 1 2", ")("] {
            assert_eq!(parse_stat(&format!("7 ({name}) {rest}")), Some(('S', 4711)), "{name}");
        }
        assert_eq!(parse_stat("7 (qemu) S 1"), None);
    }

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_pid() {
        let own = i32::try_from(std::process::id()).ok().and_then(Identity::of).expect("we run");
        assert!(own.alive());
        assert!(own.open().is_some());
        assert!(!Identity { start_ticks: own.start_ticks + 1, ..own }.alive());
    }
}
