//! `cargo xtask planted`: proves that the tests would notice.
//!
//! Each `crates/sim/planted/*.patch` is a bug of a kind that has been seen in systems like this one. It is applied to a
//! copy of the project, and then the simulator, or the test it names, has to turn red, for the reason it names:
//!
//! ```text
//! # guards: the invariant that the bug breaks
//! # red by: sim                      or: test NAME -p PACKAGE
//! # seeds: 200                       (sim) how many seeds it may take
//! # says: text that the red run prints, or several of which it prints one, parted by ` | `
//! ```
//!
//! Red are: a bug that stays unnoticed, one noticed by accident, one that no longer applies or compiles, and a copy
//! that is red before anything was planted.

mod patch;
mod tree;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use self::patch::{Patch, RedBy};
use self::tree::Tree;
use crate::counts::Counts;
use crate::stages::Outcome;
use crate::workspace::{PROFILE, Workspace};
use crate::{WrongWords, process, sim};

/// A planted bug may make a run endless. It is stopped after this many seconds and counts as unnoticed.
const RUN_SECONDS_MAX: &str = "240";

/// What is read of a run's output: the reason stands at its end or near its start, and never this far in.
const OUTPUT_BYTES_MAX: u64 = 64 << 20;

/// `cargo xtask planted`.
pub(crate) fn run(workspace: &Workspace, words: &[String]) -> Result<ExitCode> {
    if let Some(word) = words.iter().find(|word| word.starts_with('-')) {
        return Err(WrongWords::error(format!("unknown word `{word}`")));
    }
    Ok(match some(workspace, words)? {
        Outcome::Counted(Counts { failed: 0, .. }) => ExitCode::SUCCESS,
        Outcome::Skipped(why) => {
            eprintln!("nothing to do: {why}");
            ExitCode::SUCCESS
        }
        _ => ExitCode::FAILURE,
    })
}

/// The planted bugs as a stage of `test`; each counts as one.
pub(crate) fn stage(workspace: &Workspace) -> Result<Outcome> {
    some(workspace, &[])
}

/// The planted bugs whose names begin with one of `prefixes`; without any, all.
fn some(workspace: &Workspace, prefixes: &[String]) -> Result<Outcome> {
    let mut patches = patch::read_all(&workspace.root.join("crates/sim/planted"))?;
    if let Some(prefix) =
        prefixes.iter().find(|prefix| patches.iter().all(|patch| !patch.name.starts_with(*prefix)))
    {
        return Err(WrongWords::error(format!("no patch in crates/sim/planted begins with `{prefix}`")));
    }
    patches
        .retain(|patch| prefixes.is_empty() || prefixes.iter().any(|prefix| patch.name.starts_with(prefix)));
    if patches.is_empty() {
        return Ok(Outcome::Skipped("crates/sim/planted holds no patch".into()));
    }
    let nursery = Nursery::open(workspace)?;
    nursery.prepare(&patches)?;
    let mut counts = Counts::default();
    let mut table = row("patch", "invariant", "seconds", "verdict");
    for patch in &patches {
        let start = Instant::now();
        let verdict = nursery.plant(patch).and_then(|noticed| nursery.is_green_without(patch, noticed));
        let seconds = format!("{:.1}", start.elapsed().as_secs_f64());
        let verdict = match verdict {
            Ok(how) => {
                counts.passed += 1;
                how
            }
            Err(error) => {
                counts.failed += 1;
                eprintln!("{}: {error:#}", patch.name);
                format!("NOT CAUGHT: {}", error.to_string().lines().next().unwrap_or_default())
            }
        };
        let row = row(&patch.name, &patch.guards, &seconds, &verdict);
        eprint!("{row}");
        table.push_str(&row);
    }
    eprintln!("\n{table}");
    Ok(Outcome::Counted(counts))
}

fn row(patch: &str, invariant: &str, seconds: &str, verdict: &str) -> String {
    format!("{patch:<36} {invariant:<44} {seconds:>8}  {verdict}\n")
}

/// The place where bugs are planted.
struct Nursery<'a> {
    workspace: &'a Workspace,
    directory: PathBuf,
    /// Held while we work here: two runs at once would plant bugs in each other's copy.
    _lock: File,
}

/// What noticed a bug.
#[derive(Clone, Copy)]
enum Noticed {
    ByTest,
    /// From this seed on, so many seeds: one that is named, or all where it is the sum of them that is red.
    BySeeds {
        from: u64,
        seeds: u64,
    },
}

/// How a run of the simulator or a test ended.
enum Ended {
    Green,
    Red { output: String },
}

impl<'a> Nursery<'a> {
    fn open(workspace: &'a Workspace) -> Result<Self> {
        let directory = workspace.target.join("planted");
        fs::create_dir_all(directory.join("tree"))
            .with_context(|| format!("create {}", directory.display()))?;
        let lock = directory.join("lock");
        let lock = File::create(&lock).with_context(|| format!("create {}", lock.display()))?;
        lock.lock().context("wait for another run of planted")?;
        let nursery = Self { workspace, directory, _lock: lock };
        // Of an earlier run, and so of other sources.
        match fs::remove_file(nursery.sound_simulator()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("remove the simulator of an earlier run")
            }
            _ => Ok(nursery),
        }
    }

    fn tree(&self) -> Result<Tree> {
        Tree::restore(self.workspace, self.directory.join("tree"))
    }

    /// Builds what has no bug, keeps its simulator, and runs the tests that patches name: with any of them red before
    /// anything was planted, red would prove nothing.
    fn prepare(&self, patches: &[Patch]) -> Result<()> {
        let tree = self.tree()?;
        let mut tests = BTreeSet::new();
        for patch in patches {
            match &patch.red_by {
                red_by @ RedBy::Sim { .. } if !self.sound_simulator().exists() => {
                    self.build(&tree, red_by).context("build the copy without any bug")?;
                    fs::copy(self.simulator(), self.sound_simulator())
                        .context("keep the simulator without any bug")?;
                }
                RedBy::Sim { .. } => {}
                red_by @ RedBy::Test { .. } => {
                    tests.insert(red_by);
                }
            }
        }
        for red_by in tests {
            self.build(&tree, red_by).context("build the copy without any bug")?;
            if let Ended::Red { output } = self.run(&tree, red_by, "unpatched")? {
                bail!("the copy is red without any bug ({red_by}):\n{}", end_of(&output));
            }
        }
        Ok(())
    }

    /// That the seeds at which the bug was noticed are green without it; tests were looked at before.
    fn is_green_without(&self, patch: &Patch, noticed: Noticed) -> Result<String> {
        let Noticed::BySeeds { from, seeds } = noticed else {
            return Ok(format!("red by {}", patch.red_by));
        };
        let mut command = Command::new(self.sound_simulator());
        command.args(["--seeds", &seeds.to_string(), "--from", &from.to_string()]);
        match ended(&mut command, &self.directory.join("unpatched.log"))? {
            Ended::Green if seeds == 1 => Ok(format!("red at seed {from} of {}", patch.red_by)),
            Ended::Green => Ok(format!("red by all of {}", patch.red_by)),
            Ended::Red { output } => bail!(
                "seed {from} and those after it, {seeds} in all, are red without the bug too:\n{}",
                end_of(&output)
            ),
        }
    }

    /// How the bug was noticed; an error if it was not, or not for its reason.
    fn plant(&self, patch: &Patch) -> Result<Noticed> {
        let tree = self.tree()?;
        let noticed = self.notice(&tree, patch);
        // Also after an error: the copy never keeps a bug.
        self.tree()?;
        noticed
    }

    fn notice(&self, tree: &Tree, patch: &Patch) -> Result<Noticed> {
        tree.apply(&patch.path).context("broken: it no longer applies")?;
        self.build(tree, &patch.red_by).context("broken: it no longer compiles")?;
        match self.run(tree, &patch.red_by, &patch.name)? {
            Ended::Green => bail!("not noticed by {}", patch.red_by),
            Ended::Red { output } if patch.says.split(" | ").any(|says| output.contains(says)) => {
                match &patch.red_by {
                    RedBy::Test { .. } => Ok(Noticed::ByTest),
                    RedBy::Sim { seeds } => Ok(match first_seed(&output) {
                        Some(seed) => Noticed::BySeeds { from: seed, seeds: 1 },
                        None => Noticed::BySeeds { from: 0, seeds: *seeds },
                    }),
                }
            }
            Ended::Red { output } => {
                let cause =
                    anyhow::anyhow!("its output does not contain `{}`:\n{}", patch.says, end_of(&output));
                Err(cause.context("red for another reason"))
            }
        }
    }

    fn build(&self, tree: &Tree, red_by: &RedBy) -> Result<()> {
        let mut cargo = self.cargo(tree);
        match red_by {
            RedBy::Sim { .. } => cargo.args(["build", "--quiet", "--package", sim::PACKAGE]),
            RedBy::Test { package, .. } => cargo.args(["test", "--quiet", "--no-run", "--package", package]),
        };
        process::run(cargo.args(["--profile", PROFILE]))
    }

    fn run(&self, tree: &Tree, red_by: &RedBy, name: &str) -> Result<Ended> {
        let log = self.directory.join(format!("{name}.log"));
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", RUN_SECONDS_MAX]);
        match red_by {
            RedBy::Sim { seeds } => {
                command.arg(self.simulator());
                command.args(["--seeds", &seeds.to_string(), "--from", "0"]);
            }
            RedBy::Test { filter, package } => {
                let cargo = self.cargo(tree);
                command.arg(cargo.get_program()).args([
                    "test",
                    "--profile",
                    PROFILE,
                    "--package",
                    package,
                    filter,
                ]);
                for (variable, value) in cargo.get_envs() {
                    match value {
                        Some(value) => command.env(variable, value),
                        None => command.env_remove(variable),
                    };
                }
            }
        }
        ended(command.current_dir(&tree.root), &log)
    }

    fn target(&self) -> PathBuf {
        self.directory.join("target")
    }

    fn simulator(&self) -> PathBuf {
        self.target().join(PROFILE).join(sim::PACKAGE)
    }

    /// The simulator without any bug.
    fn sound_simulator(&self) -> PathBuf {
        self.directory.join("sound-simulator")
    }

    /// A target directory of its own, because cargo names what it builds by the path within the workspace: in a shared
    /// one, a bug's objects would pass for the real ones.
    fn cargo(&self, tree: &Tree) -> Command {
        let mut cargo = self.workspace.cargo();
        cargo.current_dir(&tree.root).env("CARGO_TARGET_DIR", self.target());
        cargo
    }
}

/// Exit code of `timeout` when the time is over.
const TIMED_OUT: i32 = 124;

fn ended(command: &mut Command, log: &Path) -> Result<Ended> {
    let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let errors = file.try_clone().with_context(|| format!("open {}", log.display()))?;
    let status = command
        .stdout(file)
        .stderr(errors)
        .status()
        .with_context(|| format!("start `{}`", process::line(command)))?;
    match status.code() {
        Some(0) => return Ok(Ended::Green),
        Some(TIMED_OUT) => bail!("it did not end within {RUN_SECONDS_MAX} s; see {}", log.display()),
        Some(125..=127) => bail!("`{}` could not be started; see {}", process::line(command), log.display()),
        _ => {}
    }
    let mut output = Vec::new();
    File::open(log)
        .and_then(|file| file.take(OUTPUT_BYTES_MAX).read_to_end(&mut output))
        .with_context(|| format!("read {}", log.display()))?;
    Ok(Ended::Red { output: String::from_utf8_lossy(&output).into_owned() })
}

/// The first seed that the simulator names.
fn first_seed(output: &str) -> Option<u64> {
    output.match_indices("seed ").find_map(|(start, word)| {
        let rest = &output[start + word.len()..];
        let end = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse().ok()
    })
}

/// The last lines of an output, for a person.
fn end_of(output: &str) -> String {
    const LINES_MAX: usize = 15;
    let lines: Vec<&str> = output.lines().collect();
    lines[lines.len().saturating_sub(LINES_MAX)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_seed_named_is_found() {
        let table = [
            ("seed 17: two copies\nseed 3", Some(17)),
            ("10 seeds; red at seed 4.", Some(4)),
            ("all green", None),
        ];
        for (output, expected) in table {
            assert_eq!(first_seed(output), expected, "{output}");
        }
    }

    #[test]
    fn an_exit_is_green_red_or_an_error() {
        let directory = std::env::temp_dir().join(format!("lightbyte-planted-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("create");
        let table = [
            ("exit 0", "green"),
            ("echo why; exit 3", "red why\n"),
            ("exit 124", "error"),
            ("exit 127", "error"),
        ];
        for (script, expected) in table {
            let ended = match ended(Command::new("sh").args(["-c", script]), &directory.join("log")) {
                Ok(Ended::Green) => "green".to_owned(),
                Ok(Ended::Red { output }) => format!("red {output}"),
                Err(_) => "error".to_owned(),
            };
            assert_eq!(ended, expected, "{script}");
        }
        fs::remove_dir_all(&directory).expect("remove");
    }
}
