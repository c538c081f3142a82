//! The program `nft`, which alone knows how the kernel wants its rules.

use std::io::{self, Read as _, Write as _};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;

use super::system;
use crate::driver::DriverError;

pub(super) const NFT: &str = "nft";

/// How long `nft` may take. It takes milliseconds; the kernel makes it wait while others change rules.
const NFT_MAX: Duration = Duration::from_secs(10);

/// Most of its words that go into an error.
const WORDS_BYTES_MAX: u64 = 4096;

/// Most of a list that is read: some hundred VMs with every rule that they may have.
const LIST_BYTES_MAX: u64 = 64 << 20;

/// What `nft` says of a table that is not there (`ENOENT`).
pub(super) const NO_TABLE: &str = "No such file or directory";

/// Carries out a script, whole or not at all.
pub(super) fn run(program: &str, script: &str) -> Result<(), DriverError> {
    if script.is_empty() {
        return Ok(());
    }
    let mut command = Command::new(program);
    command.args(["-f", "-"]).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => DriverError::Refused(format!(
            "`{program}` is not on this host, and without it a VM could send from any address"
        )),
        _ => system(format!("start {program}"))(error),
    })?;
    // One that ended before it read says why; its end is what counts.
    let _ = child.stdin.take().map(|mut input| input.write_all(script.as_bytes()));
    let words = child.stderr.take();
    if !has_ended(&child).map_err(system(format!("wait for {program}")))? {
        let _ = child.kill();
        let _ = child.wait();
        return Err(DriverError::Refused(format!("{program} has no end after {} s", NFT_MAX.as_secs())));
    }
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(DriverError::Refused(format!("{program} refuses: {}", first_line(words)))),
        Err(error) => Err(system(format!("wait for {program}"))(error)),
    }
}

/// Waits for the child's end, and says whether it came in time.
fn has_ended(child: &Child) -> io::Result<bool> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let wait = Timespec::try_from(NFT_MAX).map_err(io::Error::other)?;
    loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&wait)) {
            Ok(ended) => return Ok(ended > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn first_line(words: Option<ChildStderr>) -> String {
    let mut text = String::new();
    let _ = words.map(|words| words.take(WORDS_BYTES_MAX).read_to_string(&mut text));
    text.lines().next().unwrap_or("it said nothing").to_owned()
}

/// A table, or a set of one, as `nft -j` prints it; nothing if there is none.
///
/// # Errors
/// [`DriverError::Refused`] when `nft` is missing, or its answer makes no sense.
pub(super) fn list(what: &[&str]) -> Result<Value, DriverError> {
    let mut command = Command::new(NFT);
    command.args(["-j", "list"]).args(what).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(system(format!("start {NFT}")))?;
    let mut text = Vec::new();
    let read = child.stdout.take().map(|output| output.take(LIST_BYTES_MAX).read_to_end(&mut text));
    let status = child.wait().map_err(system(format!("wait for {NFT}")))?;
    read.transpose().map_err(system(format!("read from {NFT}")))?;
    // It tells of one that is not there as of any other error.
    if !status.success() {
        return Ok(Value::Null);
    }
    let bad =
        |error: serde_json::Error| DriverError::Refused(format!("{NFT} lists what is no JSON: {error}"));
    serde_json::from_slice(&text).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_nft_is_told_so() {
        let outcome = run("no-such-nft", "a script").expect_err("no such program");
        assert!(matches!(outcome, DriverError::Refused(_)), "{outcome:?}");
        assert!(outcome.to_string().starts_with("`no-such-nft` is not on this host"), "{outcome}");
        let refused = run("false", "a script").expect_err("it fails");
        assert_eq!(refused.to_string(), "false refuses: it said nothing");
    }
}
