//! `cargo xtask test`: every check that CI makes, in stages, each with its wall time beside its budget.
//!
//! The order is from cheap to dear, so that a typing mistake is told in seconds. A failing stage does not stop the
//! rest: one run tells everything.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::counts::{Counts, Runner};
use crate::images::Speed;
use crate::setup::{self, Cache, Consent, Scope};
use crate::stages::{Outcome, Stages};
use crate::workspace::{PROFILE, Workspace};
use crate::{flags, images, planted, process, sim, tidy};

/// What is built once and shared by tests, simulator and host binaries. The same words in every command, because cargo
/// unites the features of what is named together, and other features would mean compiling dependencies again.
const EVERYTHING: &[&str] = &["--workspace", "--lib", "--bins", "--tests"];

/// `cargo xtask test [--quick] [--yes]`.
pub(crate) fn run(workspace: &Workspace, words: &[String]) -> Result<ExitCode> {
    let flags = flags(words, &["--quick", "--yes"])?;
    let is_quick = flags.contains(&"--quick");
    let consent = Consent::from_flags(&flags);
    let mut run = Run { workspace, cache: None };
    let mut stages = Stages::default();

    stages.run("set-up", seconds(180), || run.set_up(consent));
    stages.run("fmt", seconds(10), || command_succeeds(workspace.cargo().args(["fmt", "--all", "--check"])));
    stages.run("tidy", seconds(10), || tidy::stage(workspace));
    stages.run("deny", seconds(20), || deny(workspace));
    stages.run("clippy", seconds(420), || run.clippy());
    let is_built = stages.run("build", seconds(420), || run.build());
    stages.run("images", seconds(360), || run.images(is_built, consent));
    stages.run("tests", seconds(480), || run.tests(is_built));
    stages.run("doc tests", seconds(60), || run.doc_tests(is_built));
    let seeds = if is_quick { sim::SEEDS_QUICK } else { sim::SEEDS_FULL };
    stages.run("sim", seconds(90), || match is_built {
        true => sim::stage(workspace, seeds),
        false => Ok(not_built()),
    });
    if !is_quick {
        stages.run("planted", seconds(300), || match is_built {
            true => planted::stage(workspace),
            false => Ok(not_built()),
        });
    }

    let clean = stages.finish();
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

struct Run<'a> {
    workspace: &'a Workspace,
    cache: Option<Cache>,
}

impl Run<'_> {
    fn set_up(&mut self, consent: Consent) -> Result<Outcome> {
        self.cache = Some(setup::ensure(Scope::Everything, consent)?);
        Ok(Outcome::Passed)
    }

    /// A cargo whose tests find what the set-up has downloaded.
    fn cargo(&self) -> std::process::Command {
        let mut cargo = self.workspace.cargo();
        if let Some(cache) = &self.cache {
            cargo.env("LIGHTBYTE_ETCD", cache.etcd());
            cargo.env("LIGHTBYTE_CACHE", &cache.directory);
            cargo.env("LIGHTBYTE_IMAGES", cache.directory.join("images"));
            cargo.env("LIGHTBYTE_VSOCK", format!("{} vsock", self.workspace.binary("lightbyte").display()));
        }
        cargo
    }

    /// In the profile of the build, so that build scripts and procedural macros are compiled once for both.
    fn clippy(&self) -> Result<Outcome> {
        let mut cargo = self.cargo();
        cargo.args(["clippy", "--workspace", "--all-targets", "--profile", PROFILE, "--keep-going"]);
        command_succeeds(cargo.args(["--", "-D", "warnings"]))
    }

    /// A stage of its own, so that times of tests do not contain compiling.
    fn build(&self) -> Result<Outcome> {
        command_succeeds(self.cargo().arg("build").args(EVERYTHING).args([
            "--profile",
            PROFILE,
            "--keep-going",
        ]))
    }

    /// What real VMs boot from. Without it their tests say so, and are counted as skipped.
    fn images(&self, is_built: bool, consent: Consent) -> Result<Outcome> {
        match &self.cache {
            Some(cache) if is_built => {
                images::ensure(self.workspace, cache)?;
                images::ensure_proxy(self.workspace, cache, Speed::OfBuilding)?;
                images::ensure_debian(self.workspace, cache, consent)?;
                Ok(Outcome::Passed)
            }
            _ => Ok(not_built()),
        }
    }

    fn tests(&self, is_built: bool) -> Result<Outcome> {
        if !is_built {
            return Ok(not_built());
        }
        let mut cargo = self.cargo();
        let runner = if self.workspace.has_cargo_command("nextest") {
            cargo.args(["nextest", "run", "--no-fail-fast", "--no-tests=pass", "--cargo-profile", PROFILE]);
            Runner::Nextest
        } else {
            eprintln!("cargo-nextest is not installed, so cargo test runs the tests");
            cargo.args(["test", "--no-fail-fast", "--profile", PROFILE]);
            Runner::CargoTest
        };
        // A test that cannot run here passes for the runner; it tells the truth in this file.
        let skipped = self.workspace.target.join("skipped-tests");
        if let Err(error) = std::fs::write(&skipped, "") {
            bail!("empty {}: {error}", skipped.display());
        }
        cargo.env("LIGHTBYTE_SKIPPED", &skipped);
        let outcome = count_tests(cargo.args(EVERYTHING), runner)?;
        let told = std::fs::read_to_string(&skipped).unwrap_or_default();
        told.lines().for_each(|line| eprintln!("{line}"));
        Ok(subtract_skipped(outcome, told.lines().count() as u64))
    }

    fn doc_tests(&self, is_built: bool) -> Result<Outcome> {
        if !is_built {
            return Ok(not_built());
        }
        let mut cargo = self.cargo();
        count_tests(
            cargo.args(["test", "--workspace", "--doc", "--no-fail-fast", "--profile", PROFILE]),
            Runner::CargoTest,
        )
    }
}

/// What a runner counted, with the tests that said that they could not run.
fn subtract_skipped(outcome: Outcome, skipped: u64) -> Outcome {
    match outcome {
        Outcome::Counted(counts) => Outcome::Counted(Counts {
            passed: counts.passed.saturating_sub(skipped),
            skipped: counts.skipped + skipped,
            ..counts
        }),
        other => other,
    }
}

fn not_built() -> Outcome {
    Outcome::Skipped("the build failed; mend it and run this again".into())
}

/// Advisories are left out: they live in a repository that CI cannot reach.
fn deny(workspace: &Workspace) -> Result<Outcome> {
    if !workspace.has_cargo_command("deny") {
        return Ok(Outcome::Skipped(
            "cargo-deny is not installed (tidy has checked licences, bans and sources); \
             `cargo install cargo-deny --locked` makes it run"
                .into(),
        ));
    }
    // It wants the sources of every platform, and the builds have only brought those of this one.
    process::run(workspace.cargo().args(["fetch", "--quiet"]))?;
    let mut cargo = workspace.cargo();
    command_succeeds(cargo.args(["deny", "--offline", "check", "licenses", "bans", "sources"]))
}

fn command_succeeds(command: &mut std::process::Command) -> Result<Outcome> {
    process::run(command)?;
    Ok(Outcome::Passed)
}

/// Runs a test runner and sums what it says. A runner that fails without naming a failure counts as one.
fn count_tests(command: &mut std::process::Command, runner: Runner) -> Result<Outcome> {
    let mut counts = Counts::default();
    let mut has_summary = false;
    let status = process::stream(command, |line| {
        has_summary |= runner.read(line, &mut counts);
    })?;
    if !status.success() && counts.failed == 0 {
        if counts == Counts::default() {
            bail!("`{}` failed ({status})", process::line(command));
        }
        counts.failed = 1;
    }
    if status.success() && !has_summary {
        bail!("`{}` printed no summary that is understood", process::line(command));
    }
    Ok(Outcome::Counted(counts))
}
