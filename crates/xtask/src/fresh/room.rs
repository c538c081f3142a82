//! A room of its own for everything that a run does: namespaces whose processes and mounts end with this process.
//!
//! ```text
//!   this process ──lifeline (a pipe)──> keeper: process 1 of the room, waits for the pipe's end
//!        └──nsenter──> mmdebstrap, mount, chroot TREE …: everything else in the room
//! ```
//!
//! However this process ends, by Ctrl-C or by `kill -9`, the pipe closes, the keeper ends, and with process 1 of a PID
//! namespace the kernel ends all others in it. Its mounts are private, so they go too. Nothing is left for a later run
//! but files.
//!
//! The network is the machine's own: set-up has to reach the registries, which another network namespace could only do
//! through address translation that we would have to set up, and take away, in the machine's firewall. The lab makes
//! network namespaces for its hosts in any case, and those end with the room.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// What the keeper runs. `read` ends at the end of the pipe; nobody ever writes to it.
const KEEPER: &str = "echo ready; while read -r _; do :; done";

/// Namespaces that are left out of the room: the network (see above), users (root is needed), control groups (the
/// machine's are used as they are) and time.
const NAMESPACES: &[&str] = &["--mount", "--pid", "--uts", "--ipc"];

/// The room. It ends, with everything in it, when this is dropped or this process ends.
pub(super) struct Room {
    keeper: Child,
    lifeline: Option<ChildStdin>,
    /// The keeper's process number outside of the room.
    first: u32,
}

impl Room {
    /// Opens a room. Needs root.
    pub(super) fn open() -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(NAMESPACES).args(["--fork", "--kill-child", "--mount-proc", "--propagation", "private"]);
        command.args(["sh", "-c", KEEPER]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut keeper = command.spawn().context("start `unshare`")?;
        let lifeline = keeper.stdin.take();
        let mut room = Self { keeper, lifeline, first: 0 };
        let mut line = String::new();
        let stdout = room.keeper.stdout.take().context("read from the keeper")?;
        BufReader::new(stdout).read_line(&mut line).context("read from the keeper")?;
        if line.trim() != "ready" {
            bail!("`unshare` made no namespaces; are you root?");
        }
        let pid = room.keeper.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.context("find process 1 of the room")?;
        room.first = children.trim().parse().context("find process 1 of the room")?;
        Ok(room)
    }

    /// A program in the room, on the machine's own files. Its directory is `/`.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.first.to_string()).args(NAMESPACES).args(["--", program]);
        command
    }

    /// How many processes the room holds besides its keeper.
    pub(super) fn processes(&self) -> Result<usize> {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(&self.first.to_string()).context("find the room")?;
        let entries = fs::read_dir("/proc").context("list processes")?;
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let pids = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        let in_room = pids.filter(|pid| namespace(pid).as_ref() == Some(&own)).count();
        Ok(in_room.saturating_sub(1))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        // Afterwards nothing in the room runs any more. An error would mean that somebody else has waited for it.
        let _ended = self.keeper.wait().is_ok();
    }
}
