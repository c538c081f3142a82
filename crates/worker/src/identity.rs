//! Who this worker is: a uid that it minted itself, kept in its state directory.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use lightbyte_api::{Uid, WorkerId};
use rustix::fs::{FlockOperation, flock};

const FILE: &str = "worker-uid";
/// Locked by the agent of this state directory, with the identity of its process in it.
const LOCK: &str = "agent.lock";
/// Changes with every boot of the kernel (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The state directory of an agent, which no other has as long as this is there.
#[derive(Debug)]
pub struct Taken {
    _lock: fs::File,
}

/// Takes the state directory: two agents would each undo what the other does. It is free again when the agent ends, however
/// it does (flock(2)).
///
/// # Errors
/// When another agent has it, which is named, or it cannot be written.
pub fn take(state: &Path) -> Result<Taken> {
    fs::create_dir_all(state).with_context(|| format!("create {}", state.display()))?;
    let path = state.join(LOCK);
    let opened = fs::File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut lock = opened.with_context(|| format!("open {}", path.display()))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let other = fs::read_to_string(&path).unwrap_or_default();
            let other = other.trim();
            let which = if other.is_empty() { String::new() } else { format!(" (process {other})") };
            bail!(
                "another agent{which} works with {}: a host has one; stop that one, or name another directory with --state",
                state.display()
            );
        }
        Err(error) => return Err(error).with_context(|| format!("lock {}", path.display())),
    }
    lock.set_len(0)
        .and_then(|()| lock.write_all(format!("{}\n", std::process::id()).as_bytes()))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(Taken { _lock: lock })
}

/// The uid in `state`; a new one is made on the first start. A file that cannot be read is an error, never a reason
/// for a new identity: the VMs of the old one are on this host.
///
/// # Errors
/// When the file is damaged, or the directory cannot be written.
pub fn load_or_make(state: &Path) -> Result<WorkerId> {
    fs::create_dir_all(state).with_context(|| format!("create {}", state.display()))?;
    let path = state.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(uid) => Ok(uid),
            Err(error) => bail!("{} is damaged: {error}", path.display()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let uid = WorkerId::new(Uid::from(fresh_uuid()));
            write_durably(&path, &format!("{uid}\n")).with_context(|| format!("write {}", path.display()))?;
            Ok(uid)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn fresh_uuid() -> uuid::Uuid {
    uuid::Uuid::now_v7()
}

/// Either the old content or the new is there after a crash, whole: a temporary name, fsync, rename, fsync.
fn write_durably(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(directory) => fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// The identity of this boot of the kernel.
///
/// # Errors
/// When `/proc` is not there.
pub fn boot_id() -> Result<String> {
    Ok(fs::read_to_string(BOOT_ID).with_context(|| format!("read {BOOT_ID}"))?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_told_of_the_first() {
        let state = std::env::temp_dir().join(format!("lightbyte-taken-{}", std::process::id()));
        let first = take(&state).unwrap();
        let refused = take(&state).unwrap_err().to_string();
        let expected =
            format!("another agent (process {}) works with {}", std::process::id(), state.display());
        assert!(refused.starts_with(&expected), "{refused}");
        drop(first);
        take(&state).unwrap();
        fs::remove_dir_all(&state).unwrap();
    }
}
