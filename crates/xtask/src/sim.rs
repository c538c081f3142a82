//! `cargo xtask sim`: builds the simulator and runs it.
//!
//! What it prints and how it exits are the simulator's own; a seed and a commit replay everything.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::WrongWords;
use crate::process;
use crate::stages::Outcome;
use crate::workspace::{PROFILE, Workspace};

/// Package and binary of the simulator.
pub(crate) const PACKAGE: &str = "lightbyte-sim";

/// Seeds of a full test run: about a minute on two cores.
pub(crate) const SEEDS_FULL: u64 = 5_000;

/// Seeds of a quick test run: a few seconds.
pub(crate) const SEEDS_QUICK: u64 = 200;

/// What the simulator is asked to do.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Many { seeds: u64, from: u64 },
    One { seed: u64 },
}

/// `cargo xtask sim --seeds N [--from S]` and `cargo xtask sim --seed N`.
pub(crate) fn run(workspace: &Workspace, words: &[String]) -> Result<ExitCode> {
    let asked = asked(words)?;
    process::run(workspace.cargo().args(["build", "--package", PACKAGE, "--profile", PROFILE]))?;
    let mut command = simulator(workspace, &asked);
    let status = command.status().with_context(|| format!("start `{}`", process::line(&command)))?;
    // A simulator ended by a signal has no code; that is a failure too.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// The simulator as a stage of `test`, on seeds that differ from commit to commit. It has to be built.
pub(crate) fn stage(workspace: &Workspace, seeds: u64) -> Result<Outcome> {
    let asked = Asked::Many { seeds, from: first_seed(workspace) };
    let mut command = simulator(workspace, &asked);
    eprintln!("{}", process::line(&command));
    process::run(&mut command)?;
    Ok(Outcome::Passed)
}

fn simulator(workspace: &Workspace, asked: &Asked) -> Command {
    let mut command = Command::new(workspace.binary(PACKAGE));
    command.current_dir(&workspace.root);
    match asked {
        Asked::Many { seeds, from } => {
            command.args(["--seeds", &seeds.to_string(), "--from", &from.to_string()])
        }
        Asked::One { seed } => command.args(["--seed", &seed.to_string(), "--trace"]),
    };
    command
}

/// The first 32 bits of the commit's hash, so that every commit searches elsewhere and yet can be replayed. Zero where
/// there is no commit.
fn first_seed(workspace: &Workspace) -> u64 {
    let hash = process::output(workspace.git().args(["rev-parse", "HEAD"])).unwrap_or_default();
    hash.get(..8).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default()
}

fn asked(words: &[String]) -> Result<Asked> {
    let mut values = [("--seeds", None), ("--from", None), ("--seed", None)];
    for pair in words.chunks(2) {
        let [name, value] = pair else {
            return Err(WrongWords::error(format!("`{}` needs a number", pair.concat())));
        };
        let Some((_, place)) = values.iter_mut().find(|(known, _)| known == name) else {
            return Err(WrongWords::error(format!("unknown word `{name}`")));
        };
        let number =
            value.parse().map_err(|_| WrongWords::error(format!("`{value}` after `{name}` is no number")))?;
        *place = Some(number);
    }
    match values.map(|(_, value)| value) {
        [Some(seeds), from, None] => Ok(Asked::Many { seeds, from: from.unwrap_or_default() }),
        [None, None, Some(seed)] => Ok(Asked::One { seed }),
        _ => Err(WrongWords::error("give `--seeds N` with or without `--from S`, or `--seed N` alone")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_many_seeds_or_one() {
        let table = [
            ("--seeds 10", Some(Asked::Many { seeds: 10, from: 0 })),
            ("--from 7 --seeds 10", Some(Asked::Many { seeds: 10, from: 7 })),
            ("--seed 3", Some(Asked::One { seed: 3 })),
            ("", None),
            ("--seed", None),
            ("--seed 3 --seeds 4", None),
            ("--seed 3 --from 4", None),
            ("--from 4", None),
            ("--seeds ten", None),
            ("--fast 1", None),
        ];
        for (line, expected) in table {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            assert_eq!(asked(&words).ok(), expected, "{line}");
        }
    }
}
