//! Brings what building, testing and running need onto the machine.
//!
//! Two kinds of things are kept apart on purpose. Compilers and emulators are installed as Debian packages, after
//! asking. etcd, busybox and the guest kernel are only downloaded and unpacked into a cache of the user's: installed,
//! the etcd package would start a daemon and the kernel package would enter the boot menu.
//!
//! Nothing here asks the network when nothing is missing, and a run that is killed at any point leaves either nothing
//! or something whole: see [`downloads`].

mod apt;
mod downloads;
pub(crate) mod mirror;
mod packages;

use std::env;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use self::apt::Apt;
use self::downloads::Download;
use self::packages::Package;
use crate::flags;
use crate::workspace::{Workspace, find_tool};

/// Who says yes to changes of the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consent {
    /// The person at the terminal; without a terminal nobody, and what is missing is an error.
    Ask,
    /// `--yes` was on the command line.
    Given,
}

impl Consent {
    /// [`Consent::Given`] when `--yes` is among the words.
    pub(crate) fn from_flags(flags: &[&str]) -> Self {
        if flags.contains(&"--yes") { Self::Given } else { Self::Ask }
    }
}

/// How much is needed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// To build, and to run clusters whose VMs are fakes.
    WithoutVms,
    /// To run real VMs as well.
    Everything,
    /// To make a Debian in a directory, and nothing else.
    BareDebian,
}

impl Scope {
    fn covers(self, other: Self) -> bool {
        match self {
            Self::WithoutVms | Self::BareDebian => other == self,
            Self::Everything => other != Self::BareDebian,
        }
    }
}

/// Where the downloaded things are.
pub(crate) struct Cache {
    /// `LIGHTBYTE_CACHE`, or `lightbyte` in the user's cache directory; absolute.
    pub(crate) directory: PathBuf,
}

impl Cache {
    fn find() -> Result<Self> {
        let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let directory = absolute("LIGHTBYTE_CACHE")
            .or_else(|| absolute("XDG_CACHE_HOME").map(|path| path.join("lightbyte")))
            .or_else(|| absolute("HOME").map(|path| path.join(".cache/lightbyte")))
            .context("HOME is not set; name a directory in LIGHTBYTE_CACHE")?;
        Ok(Self { directory })
    }

    /// The etcd server that tests and the lab start. `LIGHTBYTE_ETCD` overrides the downloaded one.
    pub(crate) fn etcd(&self) -> PathBuf {
        env::var_os("LIGHTBYTE_ETCD").map_or_else(|| self.directory.join("etcd/usr/bin/etcd"), PathBuf::from)
    }
}

/// `cargo xtask setup`: the set-up alone.
pub(crate) fn run(_: &Workspace, words: &[String]) -> Result<ExitCode> {
    let flags = flags(words, &["--yes"])?;
    let cache = ensure(Scope::Everything, Consent::from_flags(&flags))?;
    println!("everything is there; downloads are in {}", cache.directory.display());
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that everything is there, or says in one error what the person has to do.
///
/// Takes milliseconds and no network when nothing is missing.
pub(crate) fn ensure(scope: Scope, consent: Consent) -> Result<Cache> {
    let cache = Cache::find()?;
    let is_debian = is_debian();
    let packages = packages::missing(scope);
    let downloads = downloads::missing(&cache.directory, scope, is_debian);
    if packages.is_empty() && downloads.is_empty() {
        return Ok(cache);
    }
    if !is_debian {
        bail!("{}", for_other_distributions(&packages, &downloads, &cache.directory));
    }
    let is_root = is_root()?;
    if !packages.is_empty() && !is_root {
        bail!("packages are missing; install them and run this again:\n  sudo {}", install_line(&packages));
    }
    agree(consent, &packages, &downloads, &cache.directory)?;
    let mut apt = Apt::new(is_root, &cache.directory);
    if !packages.is_empty() {
        install(&mut apt, &packages, scope)?;
    }
    if !downloads.is_empty() {
        downloads::fetch(&mut apt, &cache.directory, scope)?;
    }
    Ok(cache)
}

fn install(apt: &mut Apt, packages: &[&Package], scope: Scope) -> Result<()> {
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    apt.install(&names)?;
    let still: Vec<String> = packages::missing(scope).iter().map(ToString::to_string).collect();
    if !still.is_empty() {
        bail!("apt succeeded, yet this is still missing: {}", still.join("; "));
    }
    Ok(())
}

/// Shows what would be done and gets a yes, or fails.
fn agree(consent: Consent, packages: &[&Package], downloads: &[&Download], cache: &Path) -> Result<()> {
    let mut deeds = Vec::new();
    if !packages.is_empty() {
        deeds.push(format!("  {}", install_line(packages)));
    }
    if !downloads.is_empty() {
        deeds.push(format!("  download {} into {}", names_of(downloads), cache.display()));
    }
    let deeds = deeds.join("\n");
    if consent == Consent::Given {
        eprintln!("setting up:\n{deeds}");
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        bail!("this has to be done first; run again with --yes to let it happen:\n{deeds}");
    }
    eprint!("lightbyte needs:\n{deeds}\nGo ahead? [Y/n] ");
    io::stderr().flush().context("ask on the terminal")?;
    let mut answer = String::new();
    let length = io::stdin().lock().read_line(&mut answer).context("read the answer")?;
    let answer = answer.trim();
    if length > 0
        && (answer.is_empty() || answer.eq_ignore_ascii_case("y") || answer.eq_ignore_ascii_case("yes"))
    {
        return Ok(());
    }
    bail!("set-up was declined")
}

fn install_line(packages: &[&Package]) -> String {
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    format!("apt-get install --no-install-recommends {}", names.join(" "))
}

fn names_of(downloads: &[&Download]) -> String {
    let names: Vec<&str> = downloads.iter().flat_map(|download| download.packages).copied().collect();
    names.join(", ")
}

fn for_other_distributions(packages: &[&Package], downloads: &[&Download], cache: &Path) -> String {
    let mut text = String::from("this is not Debian or one of its children; please bring:");
    for package in packages {
        text.push_str(&format!("\n  {package}"));
    }
    for download in downloads {
        text.push_str(&format!("\n  {}: {}", cache.join(download.directory).display(), download.about));
    }
    text
}

/// Whether Debian's tools are there to ask.
fn is_debian() -> bool {
    ["apt-get", "apt-cache", "dpkg-deb"].iter().all(|tool| find_tool(tool).is_some())
}

/// The owner of a process's directory in /proc is its effective user.
fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(Path::new("/proc/self").metadata().context("read /proc/self")?.uid() == 0)
}
