//! Where everything of a run is: one directory, which the next run of this user clears away if this one is killed.
//!
//! One bench at a time: two would measure each other.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// The directory, held by this process.
pub(crate) struct Bed {
    directory: PathBuf,
    _lock: File,
}

impl Bed {
    /// Takes the directory and clears away what an earlier run has left there, its lab included.
    ///
    /// # Errors
    /// When another bench runs, or something cannot be removed.
    pub(crate) fn take() -> Result<Self> {
        // Short, because a socket's path has at most 107 bytes (unix(7)). The disks of both sides of a boot are in it, and
        // so on one file system.
        Self::at(std::env::temp_dir().join("lightbyte-bench"))
    }

    /// The same, at another place.
    ///
    /// # Errors
    /// As [`Bed::take`].
    pub(crate) fn at(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let lock = directory.join("lock");
        let lock = File::create(&lock).with_context(|| format!("create {}", lock.display()))?;
        lock.try_lock().context("another bench is at work")?;
        let bed = Self { directory, _lock: lock };
        bed.clear_away()?;
        Ok(bed)
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A new directory in it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn make(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    /// The state of the lab.
    pub(crate) fn lab(&self) -> PathBuf {
        self.path("lab")
    }

    /// A `lightbyte` command with its own contexts: the person's stay as they are.
    pub(crate) fn lightbyte(&self) -> Result<Command> {
        let mut command = Command::new(lightbyte()?);
        command.env("XDG_CONFIG_HOME", self.path("config")).env_remove("LIGHTBYTE_API").stdin(Stdio::null());
        Ok(command)
    }

    fn clear_away(&self) -> Result<()> {
        self.delete_lab()?;
        for entry in fs::read_dir(&self.directory).context("look into the bench's directory")?.flatten() {
            let path = entry.path();
            let removed = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false if entry.file_name() == "lock" => Ok(()),
                false => fs::remove_file(&path),
            };
            removed.with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Ends the lab, if there is one, with everything in it.
    ///
    /// # Errors
    /// When it does not end.
    pub(crate) fn delete_lab(&self) -> Result<()> {
        if self.lab().join("rack.json").exists() {
            run(self.lightbyte()?.args(["dev", "delete", "--state"]).arg(self.lab()))?;
        }
        Ok(())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Err(error) = self.clear_away() {
            eprintln!("warning: something is left in {}: {error:#}", self.directory.display());
        }
    }
}

/// The `lightbyte` that was built with this program, beside it.
///
/// # Errors
/// When it is not there.
pub(crate) fn lightbyte() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    // Unit tests are one directory further down.
    let places = own.ancestors().skip(1).take(2).map(|directory| directory.join("lightbyte"));
    let found = places.into_iter().find(|place| place.is_file());
    found.with_context(|| {
        format!("there is no `lightbyte` beside {}; `cargo xtask bench` builds both", own.display())
    })
}

/// The set-up's cache.
pub(crate) fn cache() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("LIGHTBYTE_CACHE")
        .or_else(|| Some(from("XDG_CACHE_HOME")?.join("lightbyte")))
        .or_else(|| Some(from("HOME")?.join(".cache/lightbyte")))
}

/// etcd's program, where the set-up has put it.
pub(crate) fn etcd() -> Option<PathBuf> {
    let named = std::env::var_os("LIGHTBYTE_ETCD").map(PathBuf::from);
    named.or_else(|| Some(cache()?.join("etcd/usr/bin/etcd"))).filter(|path| path.is_file())
}

/// What a program that must succeed prints.
///
/// # Errors
/// When it cannot be started or fails; with what it said.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let output = command.output().with_context(|| format!("start {}", Path::new(&program).display()))?;
    if !output.status.success() {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} {} failed ({}): {}", program.display(), words.join(" "), output.status, said.trim());
    }
    String::from_utf8(output.stdout).context("read what it printed")
}

/// Says why a test cannot run: on standard error, and as a line of the file that `LIGHTBYTE_SKIPPED` names.
#[cfg(test)]
pub(crate) fn skip(test: &str, why: &str) {
    use std::io::Write as _;
    let line = format!("skipped: {test}: {why}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("LIGHTBYTE_SKIPPED") {
        let file = File::options().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("append to the file");
    }
}
