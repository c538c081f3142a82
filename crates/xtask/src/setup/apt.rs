//! Debian's package tools: look up, download, install.
//!
//! Root uses and refreshes the machine's package lists. Anyone else may read them; when they are missing or stale they
//! get lists of their own in the cache, which needs no privilege.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process;

/// The package tools with the lists that this user can refresh.
pub(super) struct Apt {
    is_root: bool,
    private: PathBuf,
    uses_private_lists: bool,
    is_fresh: bool,
}

impl Apt {
    /// `cache` is where lists of the user's own would go.
    pub(super) fn new(is_root: bool, cache: &Path) -> Self {
        Self { is_root, private: cache.join("apt"), uses_private_lists: false, is_fresh: false }
    }

    /// Installs packages; root only. The lists are refreshed first when a package is unknown, and afterwards, once,
    /// when the installation fails: then they name a version that the mirror has replaced.
    pub(super) fn install(&mut self, packages: &[&str]) -> Result<()> {
        let install = |apt: &Self| {
            let mut command = apt.command("apt-get");
            command
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["install", "--yes", "--no-install-recommends"])
                .args(packages);
            process::run(&mut command)
        };
        let are_known =
            packages.iter().all(|package| self.candidate(package).is_ok_and(|found| found.is_some()));
        if !are_known {
            self.refresh()?;
        }
        match install(self) {
            Err(_) if !self.is_fresh => {
                self.refresh()?;
                install(self)
            }
            result => result,
        }
    }

    /// Runs `deed`, which looks packages up or downloads them; if it fails, once more with fresh lists.
    pub(super) fn with_fresh_lists_if_needed<T>(&mut self, deed: impl Fn(&Self) -> Result<T>) -> Result<T> {
        match deed(self) {
            Err(_) if !self.is_fresh => {
                self.refresh()?;
                deed(self)
            }
            result => result,
        }
    }

    /// The version that would be installed, or nothing if the package is unknown.
    pub(super) fn candidate(&self, package: &str) -> Result<Option<String>> {
        let text = process::output(self.command("apt-cache").args(["policy", package]))?;
        Ok(candidate_in(&text))
    }

    /// The first dependency of `package` that begins with `prefix`: how the name of a versioned package is found.
    pub(super) fn dependency(&self, package: &str, prefix: &str) -> Result<Option<String>> {
        let text = process::output(self.command("apt-cache").args(["show", "--no-all-versions", package]))?;
        Ok(dependency_in(&text, prefix))
    }

    /// Downloads a package of exactly this version into `directory` and returns the file. apt checks it against the
    /// signed lists.
    pub(super) fn download(&self, package: &str, version: &str, directory: &Path) -> Result<PathBuf> {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let mut command = self.command("apt-get");
        command.current_dir(directory).args(["download", "-qq", &format!("{package}={version}")]);
        process::run(&mut command)?;
        let prefix = format!("{package}_");
        let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("list {}", directory.display()))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(&prefix) && name.ends_with(".deb") {
                return Ok(path);
            }
        }
        anyhow::bail!("apt-get downloaded no {package} into {}", directory.display())
    }

    fn refresh(&mut self) -> Result<()> {
        self.uses_private_lists = !self.is_root;
        if self.uses_private_lists {
            for directory in ["lists/partial", "cache/archives/partial"] {
                let directory = self.private.join(directory);
                fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
            }
        }
        process::run(self.command("apt-get").args(["update", "-q"]))?;
        self.is_fresh = true;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C");
        if self.is_root {
            // Otherwise apt complains that its unprivileged helper cannot write into our directory.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        if self.uses_private_lists {
            let lists = self.private.join("lists");
            let cache = self.private.join("cache");
            command
                .args(["-o", &format!("Dir::State::Lists={}", lists.display())])
                .args(["-o", &format!("Dir::Cache={}", cache.display())]);
        }
        command
    }
}

fn candidate_in(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

fn dependency_in(record: &str, prefix: &str) -> Option<String> {
    let line = record.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    line.split([',', '|'])
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidate_is_none_for_unknown_packages() {
        let table = [
            ("etcd-server:\n  Installed: (none)\n  Candidate: 3.4.23-4+b4\n", Some("3.4.23-4+b4")),
            ("x:\n  Installed: (none)\n  Candidate: (none)\n", None),
            ("", None),
        ];
        for (policy, expected) in table {
            assert_eq!(candidate_in(policy).as_deref(), expected, "{policy}");
        }
    }

    #[test]
    fn dependency_is_found_by_prefix() {
        let record = "Package: linux-image-cloud-amd64\nDepends: x (>= 1), linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n";
        let table = [
            ("linux-image-", Some("linux-image-6.1.0-56-cloud-amd64")),
            ("x", Some("x")),
            ("linux-headers-", None),
        ];
        for (prefix, expected) in table {
            assert_eq!(dependency_in(record, prefix).as_deref(), expected, "{prefix}");
        }
    }
}
