//! Where things are: the checkout, the target directory, the list of the project's own files.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process;

/// The profile in which tests, the simulator and the host binaries are built. One profile for all of them, because on
/// two cores compiling the dependencies twice is what costs most.
pub(crate) const PROFILE: &str = "ci";

/// Variables that `cargo run` sets for this program and that must not reach the cargo it starts: build scripts that
/// ask to be rerun when one of them changes would run on every change between `cargo xtask` and plain cargo.
const VARIABLES_OF_CARGO_RUN: &[&str] =
    &["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_NAME", "CARGO_CRATE_NAME"];

/// The checkout that this run is about.
pub(crate) struct Workspace {
    /// Directory of the workspace's `Cargo.toml`, absolute.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, absolute.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Finds the checkout from the manifest directory that cargo names at run time. The path that was compiled in is
    /// only the second choice: with a shared target directory it may be another checkout's.
    pub(crate) fn find() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .ancestors()
            .nth(2)
            .with_context(|| format!("{} is not in crates/ of a workspace", manifest.display()))?
            .to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(directory) => std::path::absolute(&directory)
                .with_context(|| format!("read CARGO_TARGET_DIR={}", directory.display()))?,
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// A cargo that runs in the checkout and builds into [`Workspace::target`].
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if VARIABLES_OF_CARGO_RUN.iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        command
    }

    /// Whether `cargo NAME` exists.
    pub(crate) fn has_cargo_command(&self, name: &str) -> bool {
        let mut command = self.cargo();
        command.args([name, "--version"]);
        process::succeeds(&mut command)
    }

    /// A binary built in [`PROFILE`].
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.target.join(PROFILE).join(name)
    }

    /// A git that looks at this checkout, whoever owns it: CI often runs as root on another user's files.
    pub(crate) fn git(&self) -> Command {
        let mut command = Command::new("git");
        command.current_dir(&self.root).args(["-c", "safe.directory=*"]);
        command
    }

    /// Files that belong to the project: tracked, or new and not ignored. Relative to the root, sorted, existing.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let mut command = self.git();
        command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let listing = process::output(&mut command)?;
        let mut files: Vec<PathBuf> = listing
            .split('\0')
            .filter(|name| !name.is_empty())
            .map(PathBuf::from)
            .filter(|path| self.root.join(path).is_file())
            .collect();
        files.sort();
        files.dedup();
        Ok(files)
    }
}

/// Finds a program in `PATH`, or in the directories for administrators, which are not in every user's `PATH`.
pub(crate) fn find_tool(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
