//! `cargo xtask bench`: builds the benchmarks and what they measure, and runs them.
//!
//! What they print and how they exit are their own. They are no part of `test`: speed on a machine that does other
//! things is no pass or failure.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::setup::{self, Consent, Scope};
use crate::workspace::{PROFILE, Workspace};
use crate::{images, process};

/// Built together, so that features are united as they are for `dev`: the dependencies are those that it has built.
const PACKAGES: &[&str] = &["lightbyte-cli", "lightbyte-proxy", "lightbyte-bench"];

const BINARY: &str = "lightbyte-bench";

/// The bench that boots real VMs, which is the only one to need more than a compiler and etcd.
const WITH_VMS: &str = "boot";

/// The bench that measures the proxy as it is shipped, which takes minutes to build.
const WITH_SHIPPED_PROXY: &str = "requests";

/// Options whose next word is a value, and no name of a bench.
const WITH_VALUES: &[&str] = &["--runs", "--nodes", "--json"];

/// The profile of everything else, but as shipped: without the assertions of our own code. A profile of its own would
/// compile all dependencies once more; they have no assertions in this one, so only our crates are compiled anew.
const AS_SHIPPED: &[&str] = &["profile.ci.debug-assertions=false", "profile.ci.overflow-checks=false"];

/// `cargo xtask bench [--yes] [NAME…] …`: everything but `--yes` goes to the benchmarks.
pub(crate) fn run(workspace: &Workspace, words: &[String]) -> Result<ExitCode> {
    let (flags, theirs): (Vec<&str>, Vec<&str>) =
        words.iter().map(String::as_str).partition(|word| *word == "--yes");
    let names = names(&theirs);
    let scope = if is_wanted(&names, WITH_VMS) { Scope::Everything } else { Scope::WithoutVms };
    let cache = setup::ensure(scope, Consent::from_flags(&flags))?;
    let mut build = workspace.cargo();
    build.args(["build", "--profile", PROFILE]);
    build.args(PACKAGES.iter().flat_map(|package| ["--package", *package]));
    build.args(AS_SHIPPED.iter().flat_map(|setting| ["--config", *setting]));
    process::run(&mut build)?;
    if scope == Scope::Everything {
        images::ensure(workspace, &cache)?;
    }
    let mut command = Command::new(workspace.binary(BINARY));
    if is_wanted(&names, WITH_SHIPPED_PROXY) {
        command.env("LIGHTBYTE_SHIPPED_PROXY", images::build_shipped_proxy(workspace, &cache)?);
    }
    command.args(theirs).env("LIGHTBYTE_ETCD", cache.etcd()).env("LIGHTBYTE_CACHE", &cache.directory);
    let status = command.status().with_context(|| format!("start `{}`", process::line(&command)))?;
    // One that was ended by a signal has no code; that is a failure too.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

fn names<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let mut names = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match WITH_VALUES.contains(word) {
            true => drop(words.next()),
            false => names.push(*word),
        }
    }
    names
}

/// All benches run when none is named.
fn is_wanted(names: &[&str], bench: &str) -> bool {
    names.is_empty() || names.contains(&bench)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_boots_need_vms() {
        let table = [
            ("", true),
            ("--runs 3 --json boot", true),
            ("placement boot", true),
            ("placement", false),
            ("dispatch --nodes 3", false),
        ];
        for (line, expected) in table {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(is_wanted(&names(&words), WITH_VMS), expected, "{line}");
        }
    }
}
