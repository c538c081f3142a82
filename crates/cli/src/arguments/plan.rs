//! Words for asking what a change would do.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use lightbyte_api::Name;

use super::groups::Replicas;
use super::reading::read_past;

pub(super) const HELP: &str = "\
The steps are those of the deciders themselves, run on a copy, with workers to whom everything succeeds.
Examples:
  lightbyte plan -f web.yaml
  lightbyte plan scale group/web 8
  lightbyte plan drain worker/n2
  lightbyte plan rollout promote web
  lightbyte plan move volume/data n2
  lightbyte plan lose worker/n2
  lightbyte plan lose worker/n2 --at 10m
  lightbyte plan -f web.yaml -o json > plan.json && lightbyte apply --plan plan.json";

#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(subcommand)]
    pub(crate) supposition: Option<Supposition>,
    /// What `apply` would do: a manifest, a directory of them, or - for standard input; may be given several times
    #[arg(short = 'f', long = "file", value_name = "FILE", num_args = 1..)]
    pub(crate) files: Vec<PathBuf>,
    /// What it would have done then: a revision, a time such as 2026-11-27T18:00:00Z, or how long ago, such as 10m
    #[arg(long, value_name = "WHEN", value_parser = read_past, global = true)]
    pub(crate) at: Option<String>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = PlanForm::Table, global = true)]
    pub(crate) output: PlanForm,
}

/// How a plan is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlanForm {
    /// Its steps in a table
    Table,
    /// The changes and what the server said, for `apply --plan`
    Json,
}

/// How an update would be steered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlanStep {
    Pause,
    Resume,
    Promote,
    Undo,
}

/// What is supposed.
#[derive(Debug, Subcommand)]
pub(crate) enum Supposition {
    /// What `scale` would do
    Scale {
        /// The group
        #[arg(value_name = "GROUP")]
        group: String,
        /// How many members it is to have; +N and -N count from what it has now
        #[arg(value_name = "[+|-]N", allow_hyphen_values = true)]
        replicas: Replicas,
    },
    /// What `drain` would do
    Drain {
        /// The worker
        #[arg(value_name = "WORKER", required = true)]
        target: Vec<String>,
    },
    /// What `delete` would do
    Delete {
        /// The objects
        #[arg(value_name = "KIND/NAME", required = true)]
        targets: Vec<String>,
    },
    /// What `move` would do
    Move {
        /// The volume or snapshot
        #[arg(value_name = "KIND/NAME")]
        target: String,
        /// The worker that it is to be on
        #[arg(value_name = "WORKER")]
        worker: Name,
    },
    /// What `rollout pause`, `resume`, `promote` or `undo` would do
    Rollout {
        /// What is asked of the update
        #[arg(value_enum)]
        step: PlanStep,
        /// The group
        #[arg(value_name = "GROUP")]
        group: String,
        /// The version that `undo` goes back to; the last one that worked when left out
        #[arg(long, value_name = "VERSION")]
        to: Option<u64>,
    },
    /// What would happen if a worker went away and did not come back
    Lose {
        /// The worker
        #[arg(value_name = "WORKER", required = true)]
        target: Vec<String>,
    },
}
