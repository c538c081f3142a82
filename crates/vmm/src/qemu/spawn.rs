//! Starts programs with descriptors of ours under numbers that they are told. One of the few modules with unsafe code.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Numbers that children see; far above what a program has at its start.
pub(super) const CHILD_FD_FIRST: RawFd = 100;

/// Our own copies lie above those, so that handing over one never overwrites another.
const OWN_FD_FIRST: RawFd = 200;

/// Lets the child lead a session of its own and have these descriptors as [`CHILD_FD_FIRST`] and following. Nobody else
/// inherits them: they stay close-on-exec in this process, so a program that another thread starts meanwhile does not
/// keep a tap or a lock alive.
pub(super) fn inherit(command: &mut Command, descriptors: Vec<OwnedFd>) -> io::Result<()> {
    let mut copies = Vec::with_capacity(descriptors.len());
    for descriptor in descriptors {
        copies.push(rustix::io::fcntl_dupfd_cloexec(&descriptor, OWN_FD_FIRST)?);
    }
    hand_over(command, copies);
    Ok(())
}

#[expect(unsafe_code, reason = "only between fork and exec can a child get descriptors under given numbers")]
fn hand_over(command: &mut Command, copies: Vec<OwnedFd>) {
    let give = move || {
        // A session of its own: the VM outlives us and our terminal. It fails only for the leader of a group, which a
        // child that was just forked is not.
        let _ = rustix::process::setsid();
        for (number, copy) in (CHILD_FD_FIRST..).zip(&copies) {
            // SAFETY: dup2 is a system call without other effects in the child; the number is not owned by anything
            // there, since the child has not begun. It clears close-on-exec on the new number.
            let given = unsafe { libc_dup2(copy.as_raw_fd(), number) };
            if given < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls; it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(give);
    }
}

#[expect(unsafe_code, reason = "rustix's dup2 wants an owned target, which a number in a child is not")]
unsafe fn libc_dup2(from: RawFd, to: RawFd) -> RawFd {
    unsafe extern "C" {
        fn dup2(from: RawFd, to: RawFd) -> RawFd;
    }
    // SAFETY: as at the caller.
    unsafe { dup2(from, to) }
}
