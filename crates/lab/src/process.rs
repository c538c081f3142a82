//! Processes that are not our children: told apart by more than their numbers, and found again by a mark.
//!
//! Whatever a lab starts carries the lab's mark in its environment, and passes it on to what it starts itself, the
//! machines of VMs included. The supervisor may therefore be killed at any moment: the next one finds all that was left
//! by looking, and needs no list that could be half written or name a process that is somebody else's by now.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// The variable that holds the mark.
pub(crate) const MARK_VARIABLE: &str = "LIGHTBYTE_LAB";
/// How long processes may take to be gone after they were killed.
pub(crate) const END_WITHIN: Duration = Duration::from_secs(5);
/// How often a process that was asked to end is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How much of an environment is searched for the mark: the kernel's usual limit for arguments and environment.
const ENVIRONMENT_BYTES_MAX: u64 = 2 << 20;

/// A process by more than its number, which the kernel uses again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it began, in clock ticks since the kernel's start (proc(5), field 22 of `stat`).
    pub started: u64,
}

impl ProcessId {
    /// The process that has this number now; `None` when there is none.
    #[must_use]
    pub fn of(pid: i32) -> Option<ProcessId> {
        ProcessId::read(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Reads the line of `stat`.
    fn read(pid: i32, stat: &str) -> Option<ProcessId> {
        // The name stands in parentheses and may hold anything, so fields are counted after the last one.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let threads: u32 = fields.get(17)?.parse().ok()?;
        // Its first thread may be gone while others are still about to close what they all share, its sockets among it.
        let is_gone = fields.first() == Some(&"Z") && threads <= 1;
        (!is_gone).then_some(())?;
        Some(ProcessId { pid, started: fields.get(19)?.parse().ok()? })
    }

    /// Whether it still lives.
    #[must_use]
    pub fn lives(self) -> bool {
        ProcessId::of(self.pid) == Some(self)
    }

    /// Sends a signal, if it still lives.
    pub fn signal(self, signal: Signal) {
        if let (true, Some(pid)) = (self.lives(), Pid::from_raw(self.pid)) {
            // It may end at this very moment, which is what was wanted.
            let _ = kill_process(pid, signal);
        }
    }
}

/// Every process of this user that carries the mark. Those of others may carry it as a trap, and are theirs.
#[must_use]
pub fn marked(mark: &str) -> Vec<ProcessId> {
    let wanted = format!("{MARK_VARIABLE}={mark}");
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    // The process is identified before its mark is read: one that takes its number in between has another start.
    let user_id = rustix::process::geteuid().as_raw();
    let found = pids.filter_map(ProcessId::of).filter(|process| {
        let is_ours =
            fs::metadata(format!("/proc/{}", process.pid)).is_ok_and(|found| found.uid() == user_id);
        if !is_ours {
            return false;
        }
        let mut environment = Vec::new();
        let file = File::open(format!("/proc/{}/environ", process.pid));
        let read = file.and_then(|file| file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut environment));
        read.is_ok() && environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
    });
    found.collect()
}

/// Kills what `list` finds, again and again until it finds nothing: what is killed may just have started another. Gives
/// back how many were met.
///
/// # Errors
/// When `list` fails, or something does not end.
pub async fn kill_until_none(list: impl Fn() -> Result<Vec<ProcessId>>) -> Result<usize> {
    let deadline = tokio::time::Instant::now() + END_WITHIN;
    let mut met = 0;
    loop {
        let found = list()?;
        let Some(one) = found.first() else { return Ok(met) };
        if tokio::time::Instant::now() >= deadline {
            bail!("process {} does not end", one.pid);
        }
        met += found.len();
        found.iter().for_each(|process| process.signal(Signal::KILL));
        for process in found {
            ends_within(process, deadline.duration_since(tokio::time::Instant::now())).await;
        }
    }
}

/// Waits for the end of a process that is not our child.
pub async fn ends_within(process: ProcessId, time: Duration) -> bool {
    let deadline = tokio::time::Instant::now() + time;
    while process.lives() {
        if tokio::time::Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that has been executed already, so that its environment is its own.
    fn start(mark: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", "echo begun; read forever"]).env(MARK_VARIABLE, mark);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
        let mut begun = [0; 6];
        child.stdout.as_mut().expect("its output").read_exact(&mut begun).expect("it says that it runs");
        child
    }

    #[test]
    fn a_process_is_gone_when_its_last_thread_is() {
        let check = |name: &str, state: &str, threads: u32, expected: Option<u64>| {
            let stat =
                format!("7 ({name}) {state} 1 7 7 0 -1 4194304 5 0 0 0 1 2 0 0 20 0 {threads} 0 4711 0 0\n");
            assert_eq!(ProcessId::read(7, &stat).map(|process| process.started), expected, "{stat}");
        };
        check("etcd", "S", 9, Some(4711));
        check("a) Z 1 (b", "R", 1, Some(4711));
        check("etcd", "Z", 9, Some(4711));
        check("etcd", "Z", 1, None);
        check("etcd", "Z", 0, None);
    }

    #[tokio::test]
    async fn what_carries_the_mark_is_ended_and_nothing_else() {
        let mark = format!("test-{}", std::process::id());
        let mut ours = start(&mark);
        let mut other = start(&format!("{mark}0"));
        assert_eq!(kill_until_none(|| Ok(marked(&mark))).await.expect("it ends"), 1);
        assert!(!ours.wait().expect("it has ended").success());
        assert!(other.try_wait().expect("it can be looked at").is_none());
        other.kill().expect("it can be ended");
        other.wait().expect("it ends");
    }
}
