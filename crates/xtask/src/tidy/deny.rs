//! Checks licences, banned crates and sources of all dependencies against `deny.toml`.
//!
//! cargo-deny does this better, but it takes three minutes of a processor to install on a fresh machine. So CI has this
//! on every run, and cargo-deny where it is installed; both read the same lists.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::spdx;
use super::{Finding, Source};
use crate::process;
use crate::workspace::Workspace;

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The lists of `deny.toml` that are read here.
#[derive(Default)]
struct Lists {
    licences: Vec<String>,
    banned: Vec<Banned>,
}

/// A crate that nothing may depend on, but those that cannot do without.
struct Banned {
    name: String,
    wrappers: Vec<String>,
}

/// Findings in `Cargo.lock` and in the licences of what is built for Linux.
pub(super) fn check(workspace: &Workspace, sources: &[Source]) -> Result<Vec<Finding>> {
    let text_of =
        |path: &str| sources.iter().find(|source| source.path == path).map(|source| source.text.as_str());
    let lists = lists(text_of("deny.toml").context("find deny.toml")?);
    let mut findings = Vec::new();
    if lists.licences.is_empty() || lists.banned.is_empty() {
        findings.push(Finding::new("deny.toml", 1, "its lists are not understood; nothing would be checked"));
    }
    findings.extend(locked(text_of("Cargo.lock").context("find Cargo.lock")?, &lists));
    let mut cargo = workspace.cargo();
    cargo.args(["metadata", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"]);
    let metadata: Value =
        serde_json::from_str(&process::output(&mut cargo)?).context("read cargo metadata")?;
    findings.extend(licensed(&metadata, &lists));
    Ok(findings)
}

/// Reads `allow = […]` of `[licenses]` and the crates of `deny = […]` of `[bans]`. Just enough TOML for that file.
fn lists(text: &str) -> Lists {
    let mut lists = Lists::default();
    let mut section = "";
    let mut key = "";
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.starts_with('[') && line.ends_with(']') && !line.contains('"') {
            section = line;
            key = "";
        } else if let Some((name, _)) = line.split_once(" = [").filter(|_| !line.starts_with('{')) {
            key = name;
        }
        match (section, key) {
            ("[licenses]", "allow") => lists.licences.extend(quoted(line).map(str::to_owned)),
            ("[bans]", "deny") => {
                let named = line.split_once("crate = ").and_then(|(_, rest)| quoted(rest).next());
                let wrappers = line.split_once("wrappers = [").and_then(|(_, rest)| rest.split(']').next());
                let wrappers: Vec<String> =
                    wrappers.map(|list| quoted(list).map(str::to_owned).collect()).unwrap_or_default();
                lists.banned.extend(named.map(|name| Banned { name: name.to_owned(), wrappers }));
            }
            _ => {}
        }
        if line.ends_with(']') {
            key = "";
        }
    }
    lists
}

fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('"').skip(1).step_by(2)
}

fn locked(lock: &str, lists: &Lists) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in lock.lines().enumerate() {
        let value = quoted(line).next().unwrap_or_default();
        let banned = lists.banned.iter().find(|banned| line.starts_with("name = ") && banned.name == value);
        if banned.is_some_and(|banned| !is_wrapped(lock, banned)) {
            findings.push(Finding::new(
                "Cargo.lock",
                index + 1,
                format!("`{value}`; deny.toml bans it and says why"),
            ));
        }
        if line.starts_with("source = ") && value != REGISTRY {
            let what = format!("source `{value}`; only crates.io, because other places vanish");
            findings.push(Finding::new("Cargo.lock", index + 1, what));
        }
    }
    findings
}

/// Whether only its wrappers depend on it.
fn is_wrapped(lock: &str, banned: &Banned) -> bool {
    let is_it =
        |line: &str| quoted(line).next().and_then(|value| value.split(' ').next()) == Some(&banned.name);
    let packages = lock.split("[[package]]");
    let mut users =
        packages.filter(|package| package.lines().any(|line| line.starts_with(' ') && is_it(line)));
    !banned.wrappers.is_empty()
        && users.all(|package| {
            let name = package.lines().find_map(|line| line.strip_prefix("name = ")).unwrap_or_default();
            banned.wrappers.iter().any(|wrapper| name.trim_matches('"') == wrapper)
        })
}

fn licensed(metadata: &Value, lists: &Lists) -> Vec<Finding> {
    let is_allowed = |licence: &str| lists.licences.iter().any(|allowed| allowed == licence);
    let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
    let mut findings = Vec::new();
    for package in packages {
        let licence = package["license"].as_str().unwrap_or("none stated");
        if !spdx::is_met(licence, &is_allowed) {
            let name = package["name"].as_str().unwrap_or_default();
            let what = format!("licence of `{name}` is `{licence}`, which deny.toml does not allow");
            findings.push(Finding::new("Cargo.lock", 1, what));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENY: &str = "[graph]\ntargets = [\"x\"]\n[licenses]\n# \"No\"\nallow = [\n  \"MIT\", # why\n  \"ISC\",\n]\nconfidence = 1\n\
        [bans]\nmultiple = \"allow\"\ndeny = [\n  { crate = \"openssl-sys\", reason = \"one provider\" },\n\
        { crate = \"yaml\", wrappers = [\"p\", \"q\"], reason = \"x\" },\n]\n[sources]\nallow-registry = [\"r\"]\n";

    #[test]
    fn lists_of_deny_toml_are_read() {
        let lists = lists(DENY);
        assert_eq!(lists.licences, ["MIT", "ISC"]);
        let banned: Vec<_> =
            lists.banned.iter().map(|banned| (banned.name.as_str(), banned.wrappers.join(","))).collect();
        assert_eq!(banned, [("openssl-sys", String::new()), ("yaml", "p,q".to_owned())]);
    }

    #[test]
    fn the_real_deny_toml_is_understood() {
        let lists = lists(include_str!("../../../../deny.toml"));
        for licence in ["MIT", "Apache-2.0", "Unicode-3.0"] {
            assert!(lists.licences.iter().any(|known| known == licence), "{licence}");
        }
        for name in ["aws-lc-sys", "openssl-sys", "serde_yaml", "serde_yml"] {
            assert!(lists.banned.iter().any(|known| known.name == name), "{name}");
        }
    }

    #[test]
    fn banned_crates_and_foreign_sources_are_found() {
        let table = [
            (
                "[[package]]\nname = \"serde\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\n",
                None,
            ),
            ("[[package]]\nname = \"openssl-sys\"\n", Some(2)),
            (
                "[[package]]\nname = \"yaml\"\n[[package]]\nname = \"p\"\ndependencies = [\n \"yaml 0.9.1\",\n]\n",
                None,
            ),
            (
                "[[package]]\nname = \"yaml\"\n[[package]]\nname = \"r\"\ndependencies = [\n \"yaml\",\n]\n",
                Some(2),
            ),
            (
                "[[package]]\nname = \"serde\"\nversion = \"1\"\nsource = \"git+https://example.org/x\"\n",
                Some(4),
            ),
        ];
        for (lock, expected) in table {
            let found = locked(lock, &lists(DENY)).first().map(|finding| finding.line);
            assert_eq!(found, expected, "{lock}");
        }
    }

    #[test]
    fn licences_that_are_not_allowed_are_found() {
        let table = [(Some("MIT OR GPL-3.0"), 0), (Some("GPL-3.0"), 1), (None, 1)];
        for (licence, expected) in table {
            let metadata = serde_json::json!({"packages": [{"name": "x", "license": licence}]});
            assert_eq!(licensed(&metadata, &lists(DENY)).len(), expected, "{licence:?}");
        }
    }
}
