//! Dependencies between our crates point one way.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Finding;
use crate::process;
use crate::workspace::Workspace;

const PREFIX: &str = "lightbyte-";

/// What each crate may depend on, whether to build or only to test. A crate that is not here is red: where it stands
/// is a decision, and this is where it is written down.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("certificate", &[]),
    ("plan", &["api", "certificate"]),
    ("link", &[]),
    ("store", &["api", "plan"]),
    ("server", &["api", "plan", "store", "link", "guest", "vmm", "certificate"]),
    ("dns", &["api"]),
    ("vmm", &["api", "plan", "guest"]),
    ("worker", &["api", "plan", "vmm", "link", "guest"]),
    ("vsock", &[]),
    ("guest", &["api"]),
    ("image", &["guest"]),
    ("proxy", &["api", "certificate"]),
    ("lab", &["api", "link"]),
    ("sim", &["api", "plan", "store", "vmm"]),
    (
        "cli",
        &["api", "plan", "store", "server", "dns", "vmm", "worker", "lab", "link", "guest", "image", "vsock"],
    ),
    ("bench", &["api", "plan", "store", "link", "lab", "vmm", "worker", "dns"]),
    ("xtask", &[]),
];

/// Crates that would bring a clock, chance or a runtime within a planner's reach.
const IMPURE: &[&str] = &[
    "tokio",
    "async-std",
    "smol",
    "rand",
    "rand_core",
    "fastrand",
    "getrandom",
    "chrono",
    "time",
    "tracing",
    "log",
    "reqwest",
    "hyper",
];

/// One dependency as a manifest states it.
struct Edge {
    manifest: String,
    from: String,
    to: String,
    is_for_tests: bool,
}

/// Findings in the manifests of all our crates.
pub(super) fn check(workspace: &Workspace) -> Result<Vec<Finding>> {
    let mut cargo = workspace.cargo();
    cargo.args(["metadata", "--format-version", "1", "--no-deps"]);
    let metadata: Value =
        serde_json::from_str(&process::output(&mut cargo)?).context("read cargo metadata")?;
    let root = format!("{}/", workspace.root.display());
    let mut findings = Vec::new();
    for edge in edges(&metadata, &root) {
        if let Some(what) = forbidden(&edge) {
            let text = fs::read_to_string(workspace.root.join(&edge.manifest))
                .with_context(|| format!("read {}", edge.manifest))?;
            findings.push(Finding::new(&edge.manifest, line_naming(&text, &edge.to), what));
        }
    }
    findings.extend(unknown_crates(&metadata, &root));
    Ok(findings)
}

fn edges(metadata: &Value, root: &str) -> Vec<Edge> {
    let mut edges = Vec::new();
    for package in array(&metadata["packages"]) {
        for dependency in array(&package["dependencies"]) {
            edges.push(Edge {
                manifest: manifest(package, root),
                from: text(&package["name"]),
                to: text(&dependency["name"]),
                is_for_tests: dependency["kind"] == "dev",
            });
        }
    }
    edges
}

/// Why the dependency is forbidden, if it is.
fn forbidden(edge: &Edge) -> Option<String> {
    let from = edge.from.strip_prefix(PREFIX)?;
    if from == "plan" && !edge.is_for_tests && IMPURE.contains(&edge.to.as_str()) {
        return Some(format!(
            "plan depends on `{}`; planners are pure: no clock, chance, runtime or log",
            edge.to
        ));
    }
    let to = edge.to.strip_prefix(PREFIX)?;
    let (_, allowed) = MAY_DEPEND_ON.iter().find(|(name, _)| *name == from)?;
    // A crate that names itself does so to switch on features for its own tests.
    let is_itself = to == from && edge.is_for_tests;
    (!allowed.contains(&to) && !is_itself).then(|| {
        format!(
            "{from} depends on {to}; dependencies point one way (table in crates/xtask/src/tidy/crates.rs)"
        )
    })
}

fn unknown_crates(metadata: &Value, root: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in array(&metadata["packages"]) {
        let name = text(&package["name"]);
        let directory = name.strip_prefix(PREFIX).unwrap_or_default();
        let manifest = manifest(package, root);
        if manifest != format!("crates/{directory}/Cargo.toml") {
            findings.push(Finding::new(
                &manifest,
                1,
                format!("package `{name}`; packages are named lightbyte-<directory>"),
            ));
        } else if !MAY_DEPEND_ON.iter().any(|(known, _)| *known == directory) {
            let what = format!(
                "`{name}` has no line in the table of crates/xtask/src/tidy/crates.rs; its place is a decision"
            );
            findings.push(Finding::new(&manifest, 1, what));
        }
    }
    findings
}

fn manifest(package: &Value, root: &str) -> String {
    let path = text(&package["manifest_path"]);
    path.strip_prefix(root).map(str::to_owned).unwrap_or(path)
}

fn line_naming(manifest: &str, dependency: &str) -> usize {
    let names =
        |line: &str| line.strip_prefix(dependency).is_some_and(|rest| rest.starts_with(['.', ' ', '=']));
    manifest.lines().position(names).map_or(1, |index| index + 1)
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_against_the_direction_are_found() {
        let table = [
            ("lightbyte-plan", "lightbyte-api", false, true),
            ("lightbyte-api", "lightbyte-plan", false, false),
            ("lightbyte-vmm", "lightbyte-worker", false, false),
            ("lightbyte-worker", "lightbyte-store", true, false),
            ("lightbyte-sim", "lightbyte-worker", false, false),
            ("lightbyte-guest", "lightbyte-vmm", false, false),
            ("lightbyte-xtask", "lightbyte-api", false, false),
            ("lightbyte-store", "lightbyte-store", true, true),
            ("lightbyte-store", "lightbyte-store", false, false),
            ("lightbyte-store", "tokio", false, true),
            ("lightbyte-plan", "tokio", false, false),
            ("lightbyte-plan", "rand", false, false),
            ("lightbyte-plan", "chrono", false, false),
            ("lightbyte-plan", "rand", true, true),
        ];
        for (from, to, is_for_tests, is_fine) in table {
            let edge = Edge { manifest: String::new(), from: from.into(), to: to.into(), is_for_tests };
            assert_eq!(forbidden(&edge).is_none(), is_fine, "{from} -> {to}");
        }
    }

    #[test]
    fn packages_have_the_name_of_their_directory_and_a_line_in_the_table() {
        let table = [
            ("lightbyte-api", "api", 0),
            ("lightbyte-api", "apis", 1),
            ("lightbyte-new", "new", 1),
            ("other", "other", 1),
        ];
        for (name, directory, expected) in table {
            let manifest = format!("/w/crates/{directory}/Cargo.toml");
            let metadata = serde_json::json!({"packages": [{"name": name, "manifest_path": manifest, "dependencies": []}]});
            assert_eq!(unknown_crates(&metadata, "/w/").len(), expected, "{name} in {directory}");
        }
    }

    #[test]
    fn a_finding_points_at_the_line_of_the_dependency() {
        let manifest = "[dependencies]\ntokio-util = \"1\"\ntokio.workspace = true\n";
        assert_eq!(line_naming(manifest, "tokio"), 3);
    }
}
