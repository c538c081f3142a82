//! Starts programs with descriptors of ours under numbers that they are told. One of the few modules with unsafe code.

use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Numbers that children see; far above what a program has at its start.
pub(crate) const CHILD_FD_FIRST: RawFd = 100;

/// Our own copies lie above those, so that handing over one never overwrites another.
const OWN_FD_FIRST: RawFd = 200;

/// Most descriptors that a [`carrier`] holds: a lock, and a VM's disks. The kernel takes 253 (unix(7)).
const CARRIED_MAX: usize = 64;

/// A socket that carries descriptors within it, and its other end. They are open as long as the socket is: a program that
/// gets it as its standard error keeps them to its end, whatever it closes and executes before, and needs to know
/// nothing of them. What it says can be read at the other end; when that has gone, its words get lost.
///
/// # Errors
/// If there are too many.
pub(crate) fn carrier(descriptors: &[OwnedFd]) -> io::Result<(OwnedFd, UnixStream)> {
    if descriptors.len() > CARRIED_MAX {
        let text = format!("at most {CARRIED_MAX} descriptors can be handed over");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let (carrier, other) = UnixStream::pair()?;
    let carried: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CARRIED_MAX))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    message.push(SendAncillaryMessage::ScmRights(&carried));
    // Descriptors travel with a byte; nobody ever reads it, and so they stay on their way.
    sendmsg(&other, &[IoSlice::new(b"!")], &mut message, SendFlags::empty())?;
    Ok((carrier.into(), other))
}

/// Lets the child lead a session of its own, never gain rights by executing something, and note its pid before it does
/// anything else: who finds it later knows which process holds what it was given.
#[expect(
    unsafe_code,
    reason = "only between fork and exec can a child note its pid before it does anything else"
)]
pub(crate) fn detach(command: &mut Command, note: OwnedFd) {
    let begin = move || {
        // As in `hand_over`.
        let _ = rustix::process::setsid();
        let mut text = [0; 16];
        let mut rest = &mut text[..];
        write!(rest, "{}", rustix::process::getpid().as_raw_nonzero())?;
        let left = rest.len();
        rustix::io::write(&note, &text[..text.len() - left])?;
        rustix::thread::set_no_new_privs(true)?;
        Ok(())
    };
    // SAFETY: the closure only makes system calls and writes to its stack; it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(begin);
    }
}

/// Lets the child lead a session of its own and have these descriptors as [`CHILD_FD_FIRST`] and following. Nobody else
/// inherits them: they stay close-on-exec in this process, so a program that another thread starts meanwhile does not
/// keep a tap or a lock alive.
pub(crate) fn inherit(command: &mut Command, descriptors: Vec<OwnedFd>) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read as _;
    use std::process::Stdio;

    use rustix::fs::{FlockOperation, flock};

    #[test]
    fn what_is_carried_is_held_until_the_process_ends() {
        let place = std::env::temp_dir().join(format!("lightbyte-spawn-{}", std::process::id()));
        std::fs::create_dir_all(&place).expect("make a directory");
        let (lock, note) = (place.join("lock"), place.join("pid"));
        let open = |path| {
            File::options().read(true).write(true).create(true).truncate(false).open(path).expect("open")
        };
        let is_free = || flock(open(&lock), FlockOperation::NonBlockingLockExclusive).is_ok();
        let held = open(&lock);
        flock(&held, FlockOperation::NonBlockingLockExclusive).expect("lock it");
        let (carrier, mut other) = carrier(&[held.into()]).expect("a carrier");
        let mut command = Command::new("sh");
        // It closes what it does not know, as a jailer does, and executes another program.
        command.args(["-c", "exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; echo said >&2; exec cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(carrier);
        detach(&mut command, open(&note).into());
        let mut child = command.spawn().expect("start a shell");
        drop(command);
        let mut said = [0; 5];
        other.read_exact(&mut said).expect("its words");
        assert_eq!(&said, b"said\n");
        drop(other);
        assert!(!is_free(), "a program that runs holds it");
        let pid: u32 = std::fs::read_to_string(&note).expect("a note").parse().expect("a pid");
        assert_eq!(pid, child.id());
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        child.kill().and_then(|()| child.wait()).expect("end it");
        assert!(is_free(), "one that has ended does not");
        std::fs::remove_dir_all(&place).expect("remove it");
    }

    #[test]
    fn too_many_are_refused() {
        let descriptor = || OwnedFd::from(File::open("/dev/null").expect("open"));
        let of = |count| carrier(&std::iter::repeat_with(descriptor).take(count).collect::<Vec<_>>()).is_ok();
        assert_eq!([0, 1, CARRIED_MAX, CARRIED_MAX + 1].map(of), [true, true, true, false]);
    }
}
