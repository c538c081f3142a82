//! A pseudo-terminal for a command.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::Context;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Size where the host says none.
const SIZE: (u16, u16) = (24, 80);

/// Gives `command` a new terminal as its input and outputs, and a session of its own. Returns the other end.
pub(crate) fn attach(command: &mut Command, rows: u16, columns: u16) -> anyhow::Result<File> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).context("open a terminal")?;
    grantpt(&master).context("grant it")?;
    unlockpt(&master).context("unlock it")?;
    let name = ptsname(&master, Vec::new()).context("name it")?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(name, flags, Mode::empty()).context("open its other end")?;
    resize(&master, rows, columns)?;
    command.stdin(duplicate(&slave)?).stdout(duplicate(&slave)?).stderr(Stdio::from(slave));
    lead_session(command);
    Ok(File::from(master))
}

fn duplicate(slave: &OwnedFd) -> anyhow::Result<Stdio> {
    slave.try_clone().map(Stdio::from).context("duplicate the terminal")
}

/// Changes a terminal's size; nought means the default.
pub(crate) fn resize(master: impl std::os::fd::AsFd, rows: u16, columns: u16) -> anyhow::Result<()> {
    let or = |value: u16, default| if value == 0 { default } else { value };
    let size = Winsize { ws_row: or(rows, SIZE.0), ws_col: or(columns, SIZE.1), ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).context("set the terminal's size")
}

/// Gives `command` a session of its own whose terminal is its standard input.
#[expect(
    unsafe_code,
    reason = "only between fork and exec can a child become leader of a session with a terminal"
)]
pub(crate) fn lead_session(command: &mut Command) {
    let lead = || {
        rustix::process::setsid()?;
        // Standard input is the terminal by now.
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        Ok(())
    };
    // SAFETY: the closure only makes two system calls: it neither allocates nor takes a lock that another thread of the
    // parent might have held at the fork.
    unsafe {
        command.pre_exec(lead);
    }
}
