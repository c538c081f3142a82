//! Words for groups and for the workers that they are on.

use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Patience, read_time};

#[derive(Debug, Args)]
pub(crate) struct Scale {
    /// The group
    #[arg(value_name = "GROUP")]
    pub(crate) group: String,
    /// How many members it is to have; +N and -N count from what it has now
    #[arg(value_name = "[+|-]N", allow_hyphen_values = true)]
    pub(crate) replicas: Replicas,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

/// A number of members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replicas {
    /// So many.
    To(u64),
    /// So many more.
    More(u64),
    /// So many fewer.
    Fewer(u64),
}

impl Replicas {
    /// The number, from the one before.
    pub(crate) const fn from(self, before: u64) -> u64 {
        match self {
            Replicas::To(replicas) => replicas,
            Replicas::More(more) => before.saturating_add(more),
            Replicas::Fewer(fewer) => before.saturating_sub(fewer),
        }
    }
}

impl FromStr for Replicas {
    type Err = String;
    fn from_str(text: &str) -> Result<Replicas, String> {
        let number = |digits: &str| {
            digits.parse().map_err(|_| format!("`{text}` is not a number such as 5, +2 or -1"))
        };
        match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(more), _) => number(more).map(Replicas::More),
            (_, Some(fewer)) => number(fewer).map(Replicas::Fewer),
            (None, None) => number(text).map(Replicas::To),
        }
    }
}

/// What is done with the update of a group.
#[derive(Debug, Subcommand)]
pub(crate) enum Rollout {
    /// Shows how far it is: the group, its members, and what it waits for
    Status(OneGroup),
    /// Lists the versions of the group's template
    History(OneGroup),
    /// Shows in which fields two versions differ; exit code 2 when they do
    #[command(
        after_help = "Examples:\n  lightbyte rollout diff group/web\n  lightbyte rollout diff web --from 2 --to 4"
    )]
    Diff(RolloutDiff),
    /// Stops it where it is
    Pause(OneGroup),
    /// Goes on with it, and waits
    Resume(RolloutOn),
    /// Says that its canaries are good: all members follow; waits
    Promote(RolloutOn),
    /// Goes back to the last version that worked, or to another; waits
    Undo(RolloutUndo),
}

#[derive(Debug, Args)]
pub(crate) struct OneGroup {
    /// The group
    #[arg(value_name = "GROUP")]
    pub(crate) group: String,
}

#[derive(Debug, Args)]
pub(crate) struct RolloutDiff {
    /// The group
    #[arg(value_name = "GROUP")]
    pub(crate) group: String,
    /// The first version; the last that worked when left out, or the one before the second
    #[arg(long, value_name = "N")]
    pub(crate) from: Option<u64>,
    /// The second version; the one that is wanted when left out
    #[arg(long, value_name = "N")]
    pub(crate) to: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct RolloutOn {
    /// The group
    #[arg(value_name = "GROUP")]
    pub(crate) group: String,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

#[derive(Debug, Args)]
pub(crate) struct RolloutUndo {
    /// The group
    #[arg(value_name = "GROUP")]
    pub(crate) group: String,
    /// The number of the version; `lightbyte rollout history` lists them
    #[arg(long, value_name = "N")]
    pub(crate) to: Option<u64>,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

#[derive(Debug, Args)]
pub(crate) struct OneWorker {
    /// The worker
    #[arg(value_name = "WORKER", required = true)]
    pub(crate) target: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// The worker
    #[arg(value_name = "WORKER", required = true)]
    pub(crate) target: Vec<String>,
    /// Returns at once; `lightbyte wait` waits later
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// How long to wait; the drain goes on after that
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = read_time)]
    pub(crate) timeout: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_members_is_one_or_a_difference() {
        let check = |text: &str, before: u64, expect: Option<u64>| {
            let found = text.parse::<Replicas>().ok().map(|replicas| replicas.from(before));
            assert_eq!(found, expect, "{text}");
        };
        check("5", 3, Some(5));
        check("+2", 3, Some(5));
        check("-2", 3, Some(1));
        check("-9", 3, Some(0));
        check("0", 3, Some(0));
        for text in ["", "+", "-", "x", "1.5", "--1", "+-1"] {
            check(text, 3, None);
        }
    }
}
