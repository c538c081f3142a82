//! `cargo xtask dev`: from a clone to a running cluster on this machine.
//!
//! It brings what is missing, builds the `lightbyte` binary, puts it where people's shells find it, and hands over to
//! `lightbyte dev`, which knows everything else. Words are passed on as they are.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::images::{self, Speed};
use crate::process;
use crate::setup::{self, Consent, Scope};
use crate::stages::{minutes, read_minutes};
use crate::workspace::{PROFILE, Workspace};

/// A phase that is quicker is not told: nobody has waited.
const TOLD_FROM: Duration = Duration::from_secs(1);

/// What stands between a phase's name and its time; `fresh` reads it.
const TOOK: &str = " took ";

const PACKAGE: &str = "lightbyte-cli";
const BINARY: &str = "lightbyte";

/// `cargo xtask dev [--yes] …`: everything but a leading `--yes` goes to `lightbyte dev`.
pub(crate) fn run(workspace: &Workspace, words: &[String]) -> Result<ExitCode> {
    let (consent, theirs) = match words.split_first() {
        Some((first, rest)) if first == "--yes" => (Consent::Given, rest),
        _ => (Consent::Ask, words),
    };
    let cache = phase("set-up", || setup::ensure(scope(theirs), consent))?;
    phase("build", || {
        process::run(workspace.cargo().args(["build", "--package", PACKAGE, "--profile", PROFILE]))
    })?;
    if scope(theirs) == Scope::Everything {
        phase("images", || {
            images::ensure(workspace, &cache)?;
            images::ensure_proxy(workspace, &cache, Speed::OfBuilding)
        })?;
    }
    let binary = workspace.binary(BINARY);
    match link(&binary, &bin_directory()?) {
        Ok(link) => eprintln!("the lightbyte command is {}", link.display()),
        Err(error) => eprintln!("warning: {error:#}; the lightbyte command is {}", binary.display()),
    }
    let mut command = Command::new(&binary);
    command.arg("dev").args(theirs);
    command.env("LIGHTBYTE_ETCD", cache.etcd()).env("LIGHTBYTE_CACHE", &cache.directory);
    // Replaces this process, so that Ctrl-C and signals reach the cluster directly. It returns only if that failed.
    let error = command.exec();
    Err(error).with_context(|| format!("start {}", binary.display()))
}

/// Does what is to be done and says how long it took, if a person had to wait for it.
fn phase<T>(name: &str, deed: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let done = deed()?;
    let wall = begun.elapsed();
    if wall >= TOLD_FROM {
        eprintln!("{name}{TOOK}{}", minutes(wall));
    }
    Ok(done)
}

/// The phase that a line tells of, with its time.
pub(crate) fn read_phase(line: &str) -> Option<(&str, Duration)> {
    let (name, time) = line.split_once(TOOK)?;
    Some((name, read_minutes(time)?))
}

/// Fake VMs need no emulator, kernel or network tools, and so no root to install them.
fn scope(words: &[String]) -> Scope {
    let is_pair = words.windows(2).any(|pair| pair == ["--vmm", "fake"]);
    if is_pair || words.iter().any(|word| word == "--vmm=fake") {
        Scope::WithoutVms
    } else {
        Scope::Everything
    }
}

/// Where cargo installs programs, which is in `PATH` wherever Rust was installed by rustup.
fn bin_directory() -> Result<PathBuf> {
    let home = env::var_os("CARGO_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    home.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
        .map(|cargo| cargo.join("bin"))
        .context("HOME is not set")
}

/// Puts a symbolic link to `binary` into `directory` and returns its path. Replaces only a link to a file of the same
/// name, which is one that an earlier run or another checkout has made; anything else is somebody else's.
fn link(binary: &Path, directory: &Path) -> Result<PathBuf> {
    let link = directory.join(BINARY);
    match fs::read_link(&link) {
        Ok(target) if target == binary => return Ok(link),
        Ok(target) if target.ends_with(Path::new(PROFILE).join(BINARY)) => {}
        Ok(_) => anyhow::bail!("{} is a link of somebody else's", link.display()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(_) => anyhow::bail!("{} is no link, so it is left alone", link.display()),
    }
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let temporary = directory.join(format!(".{BINARY}-{}", std::process::id()));
    symlink(binary, &temporary)
        .and_then(|()| fs::rename(&temporary, &link))
        .with_context(|| format!("link {}", link.display()))?;
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fake_vms_need_less() {
        let table = [
            ("--vmm fake", true),
            ("--nodes 1 --vmm=fake", true),
            ("--vmm qemu", false),
            ("fake --vmm", false),
        ];
        for (line, expected) in table {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            assert_eq!(scope(&words) == Scope::WithoutVms, expected, "{line}");
        }
    }

    #[test]
    fn a_phase_is_told_and_read() {
        let line = format!("set-up{TOOK}{}", minutes(Duration::from_millis(61_200)));
        assert_eq!(line, "set-up took 1:01.2");
        assert_eq!(read_phase(&line), Some(("set-up", Duration::from_millis(61_200))));
        assert_eq!(read_phase("it took a while"), None);
        assert_eq!(read_phase("   Compiling serde v1.0.0"), None);
    }

    #[test]
    fn only_our_own_link_is_replaced() {
        let directory = env::temp_dir().join(format!("lightbyte-dev-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("create");
        let place = directory.join(BINARY);
        let binary = Path::new("/w/target/ci/lightbyte");

        assert_eq!(link(binary, &directory).expect("nothing is there"), place);
        assert_eq!(link(binary, &directory).expect("it is there"), place);
        let other = Path::new("/v/target/ci/lightbyte");
        link(other, &directory).expect("an older link is ours");
        assert_eq!(fs::read_link(&place).expect("link"), other);

        fs::remove_file(&place).expect("remove");
        symlink("/usr/bin/lightbyte", &place).expect("link");
        link(binary, &directory).expect_err("somebody else's link");
        fs::remove_file(&place).expect("remove");
        fs::write(&place, "a program").expect("write");
        link(binary, &directory).expect_err("a program");
        assert_eq!(fs::read_to_string(&place).expect("read"), "a program");
        fs::remove_dir_all(&directory).expect("remove");
    }
}
