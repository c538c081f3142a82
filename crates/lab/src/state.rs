//! The state directory of a lab: who holds it, what runs for it, and how an earlier run that was killed is cleared away.
//!
//! ```text
//! STATE/lock        held by the one supervisor for as long as it lives
//! STATE/rack.json   the lab, worked out
//! STATE/processes/  one file for each process that was started: pid and start time
//! STATE/control     the supervisor's socket
//! STATE/log/        one file for each process
//! STATE/n1/ …       what the hosts keep
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::namespaces;
use crate::rack::{Rack, run_directory};

/// How long a process may take to end after it was asked to.
const END_WITHIN: Duration = Duration::from_secs(5);
/// How often a process that was asked to end is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A state directory that this process holds.
pub struct State {
    /// Where.
    pub directory: PathBuf,
    /// Whether it goes with the lab.
    pub unnamed: bool,
    _lock: File,
}

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
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may hold anything, so fields are counted after the last one.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let is_zombie = fields.first() == Some(&"Z");
        (!is_zombie).then_some(())?;
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

impl State {
    /// Takes the directory for this process.
    ///
    /// # Errors
    /// When another supervisor holds it, or it cannot be made.
    pub fn take(directory: &Path, unnamed: bool) -> Result<State> {
        fs::create_dir_all(directory.join("processes"))
            .with_context(|| format!("create {}", directory.display()))?;
        fs::create_dir_all(directory.join("log"))?;
        let lock = File::create(directory.join("lock")).context("open the lock of the state directory")?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                bail!("a lab runs already with the state {}", directory.display())
            }
            Err(fs::TryLockError::Error(error)) => return Err(error).context("lock the state directory"),
        }
        Ok(State { directory: directory.to_owned(), unnamed, _lock: lock })
    }

    /// The rack of the last start with this state.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn rack(&self) -> Result<Option<Rack>> {
        match fs::read(self.directory.join("rack.json")) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).context("read rack.json")?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("read rack.json"),
        }
    }

    /// Keeps the rack for the next start.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_rack(&self, rack: &Rack) -> Result<()> {
        write_whole(&self.directory.join("rack.json"), &serde_json::to_vec_pretty(rack)?)
            .context("write rack.json")
    }

    /// Ends everything that an earlier run left, and forgets it.
    ///
    /// # Errors
    /// When something does not end.
    pub async fn clear_away(&self) -> Result<()> {
        let mut left = Vec::new();
        for entry in fs::read_dir(self.directory.join("processes"))? {
            let path = entry?.path();
            let noted =
                fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<ProcessId>(&bytes).ok());
            left.extend(noted.filter(|process| process.lives()).map(|process| (path.clone(), process)));
            fs::remove_file(&path)?;
        }
        for (_, process) in &left {
            process.signal(Signal::KILL);
        }
        if let Some(rack) = self.rack()?.filter(|rack| rack.lan.is_some()) {
            namespaces::down(&rack.hash).await?;
            let run = run_directory(&rack.hash);
            match fs::remove_dir_all(&run) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", run.display()));
                }
                _ => {}
            }
        }
        for (path, process) in left {
            tracing::info!(
                "ended {} of an earlier run",
                path.file_name().unwrap_or_default().to_string_lossy()
            );
            if !ends_within(process, END_WITHIN).await {
                bail!("process {} of an earlier run does not end", process.pid);
            }
        }
        Ok(())
    }

    /// Removes an unnamed state with everything in it.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn end(self) -> Result<()> {
        if self.unnamed {
            fs::remove_dir_all(&self.directory)
                .with_context(|| format!("remove {}", self.directory.display()))?;
        }
        Ok(())
    }
}

/// Notes in the state `directory` that a process was started.
///
/// # Errors
/// When it cannot be written.
pub fn note_process(directory: &Path, name: &str, process: ProcessId) -> Result<()> {
    let path = directory.join("processes").join(name);
    write_whole(&path, &serde_json::to_vec(&process)?).with_context(|| format!("write {}", path.display()))
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

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, bytes)?;
    fs::rename(temporary, path)
}

/// Where unnamed labs keep their state: a directory of its own for each.
///
/// # Errors
/// When there is no home directory.
pub fn unnamed_root() -> Result<PathBuf> {
    let from_environment =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root =
        from_environment("XDG_STATE_HOME").or_else(|| Some(from_environment("HOME")?.join(".local/state")));
    Ok(root
        .context("neither XDG_STATE_HOME nor HOME is set: name a directory with --state")?
        .join("lightbyte/dev"))
}

/// Clears away unnamed labs whose supervisor was killed.
pub async fn sweep_unnamed(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for directory in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()) {
        let Ok(state) = State::take(&directory, true) else { continue };
        let cleared = state.clear_away().await;
        if let Err(error) = cleared.and_then(|()| state.end()) {
            tracing::warn!("cannot clear away {}: {error:#}", directory.display());
        } else {
            tracing::info!("cleared away a lab that was killed: {}", directory.display());
        }
    }
}
