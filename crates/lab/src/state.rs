//! The state directory of a lab: who holds it, and how an earlier run that was killed is cleared away.
//!
//! ```text
//! STATE/lock        held by the one supervisor for as long as it lives
//! STATE/rack.json   the lab, worked out
//! STATE/processes/  one file for each process that was started: pid and start time, for people who look
//! STATE/control     the supervisor's socket
//! STATE/log/        one file for each process
//! STATE/n1/ …       what the hosts keep
//! ```

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::namespaces;
use crate::process::{self, ProcessId};
use crate::rack::{Rack, hash_of, run_directory};

/// The longest path of a state directory: that of the control socket below it has at most 107 bytes (unix(7)).
const PATH_BYTES_MAX: usize = 107 - "/control".len();

/// A state directory that this process holds.
pub struct State {
    /// Where.
    pub directory: PathBuf,
    /// Whether it goes with the lab.
    pub unnamed: bool,
    /// What every process of the lab carries in its environment.
    mark: String,
    lock: File,
}

impl State {
    /// Takes the directory for this process.
    ///
    /// # Errors
    /// When another supervisor holds it, or it cannot be made.
    pub fn take(directory: &Path, unnamed: bool) -> Result<State> {
        let shown = directory.display();
        ensure!(
            directory.as_os_str().len() <= PATH_BYTES_MAX,
            "the path {shown} is too long for the state of a lab: sockets lie below it, so it may have at most \
             {PATH_BYTES_MAX} bytes"
        );
        fs::create_dir_all(directory.join("processes")).with_context(|| format!("create {shown}"))?;
        fs::create_dir_all(directory.join("log")).with_context(|| format!("create {shown}/log"))?;
        let lock = File::create(directory.join("lock")).context("open the lock of the state directory")?;
        match lock.try_lock() {
            Ok(()) => State::handed(directory, unnamed, lock),
            Err(fs::TryLockError::WouldBlock) => {
                bail!("a lab runs already with the state {shown}; `lightbyte dev stop` stops it")
            }
            Err(fs::TryLockError::Error(error)) => Err(error).context("lock the state directory"),
        }
    }

    /// The directory that another process has taken and handed over with its lock.
    ///
    /// # Errors
    /// When it is not there any more.
    pub fn handed(directory: &Path, unnamed: bool, lock: File) -> Result<State> {
        let identity = fs::metadata(directory).with_context(|| format!("look at {}", directory.display()))?;
        // With the directory's own identity: a container may have another one at the same path, and its processes are
        // seen from outside.
        let mark = format!("{}-{:x}-{:x}", hash_of(directory), identity.dev(), identity.ino());
        Ok(State { directory: directory.to_owned(), unnamed, mark, lock })
    }

    /// What holds the directory, for the process that is handed it.
    #[must_use]
    pub const fn lock(&self) -> &File {
        &self.lock
    }

    /// What every process of this lab carries in its environment.
    #[must_use]
    pub fn mark(&self) -> &str {
        &self.mark
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

    /// Ends everything that runs for this state and removes what it has made on the machine, whoever has started it:
    /// this process, or an earlier one that was killed.
    ///
    /// # Errors
    /// When something does not end.
    pub async fn clear_away(&self) -> Result<()> {
        let ended = process::kill_until_none(|| Ok(process::marked(&self.mark))).await;
        let ended = ended.context("end what an earlier run has left")?;
        if ended > 0 {
            tracing::info!("ended {ended} processes of this lab");
        }
        for entry in fs::read_dir(self.directory.join("processes"))? {
            let path = entry?.path();
            // One that dies has given back its memory, and its mark with it, before its sockets: it is found no more, and
            // still has the lab's ports. What cannot be read names nobody.
            let noted = fs::read(&path).ok().and_then(|noted| serde_json::from_slice(&noted).ok());
            if let Some(process) = noted {
                process::ends_within(process, process::END_WITHIN).await;
            }
            fs::remove_file(path)?;
        }
        // A rack that cannot be read may have had namespaces, and must not keep anybody from deleting the lab.
        let has_lan = self.rack().map_or(true, |rack| rack.is_some_and(|rack| rack.lan.is_some()));
        if !has_lan || !is_root() {
            // A lab of an ordinary user had its namespaces inside another one, and they have gone with its processes.
            return Ok(());
        }
        let hash = hash_of(&self.directory);
        namespaces::down(&hash).await?;
        let run = run_directory(&hash);
        match fs::remove_dir_all(&run) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", run.display()))
            }
            _ => Ok(()),
        }
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

/// Whether this process may make namespaces: it is root on the machine, or in a user namespace of its own.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Notes in the state `directory` that a process was started.
///
/// # Errors
/// When it cannot be written.
pub fn note_process(directory: &Path, name: &str, process: ProcessId) -> Result<()> {
    let path = directory.join("processes").join(name);
    write_whole(&path, &serde_json::to_vec(&process)?).with_context(|| format!("write {}", path.display()))
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // On a full disk half a file would take room for nothing.
        let _ = fs::remove_file(temporary);
    }
    written
}

/// Makes the key that the servers seal private keys with, unless an earlier start has: what it sealed lies in their store.
///
/// # Errors
/// When it cannot be written.
pub fn make_sealing_key(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let mut bytes = [0_u8; 32];
    File::open("/dev/urandom")
        .and_then(|mut chance| chance.read_exact(&mut bytes))
        .context("read /dev/urandom")?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    // Its owner's alone from the first moment, and whole under its name.
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let file = File::options().write(true).create_new(true).mode(0o600).open(&new);
    file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("write {}", path.display()))
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

/// Clears away the unnamed labs below `root` whose supervisor was killed. Until what it returns is dropped, nobody else
/// does: between making a directory and locking it, a lab that starts would be taken for a dead one.
///
/// # Errors
/// When nobody can be kept from it.
pub async fn sweep_unnamed(root: &Path) -> Result<File> {
    fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
    let turn = File::create(root.join("lock")).context("open the lock of unnamed labs")?;
    turn.lock().context("wait for another lab that starts")?;
    let entries = fs::read_dir(root).with_context(|| format!("list {}", root.display()))?;
    for directory in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()) {
        let Ok(state) = State::take(&directory, true) else { continue };
        let cleared = state.clear_away().await;
        if let Err(error) = cleared.and_then(|()| state.end()) {
            tracing::warn!("cannot clear away {}: {error:#}", directory.display());
        } else {
            tracing::info!("cleared away a lab that was killed: {}", directory.display());
        }
    }
    Ok(turn)
}
