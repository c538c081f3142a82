//! Whether this machine is fit to be a VM host, told before it is one: `lightbyte doctor`.
//!
//! ```text
//!   Wishes ──> read (looks, changes nothing) ──> Facts ──> judge (pure) ──> Report
//! ```
//!
//! What is read is true at this moment only. Nothing is changed and nothing is left behind: files that are tried out have
//! no name and go with their descriptor, and rules are tried in a network namespace that ends with its process.

pub mod facts;
mod judge;
mod read;

use std::path::PathBuf;

use lightbyte_api::ByteSize;
use serde::Serialize;

pub use self::judge::judge;

/// The machine processes that a host is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runner {
    /// Firecracker, and nothing else.
    Firecracker,
    /// QEMU, and nothing else.
    Qemu,
}

/// What the host is to be.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// Where the worker will keep its VMs. It need not be there yet.
    pub state: PathBuf,
    /// Where jails will be, if not in the state.
    pub jails: Option<PathBuf>,
    /// The bridge of the VMs' network.
    pub bridge: String,
    /// How VMs will run; whatever works when left out.
    pub runner: Option<Runner>,
    /// Firecracker: a path, or a name in `PATH`.
    pub firecracker: PathBuf,
    /// Its jailer; beside it or in `PATH` when left out.
    pub jailer: Option<PathBuf>,
    /// The room for disks below which a host is short of it.
    pub reserve: ByteSize,
}

/// How good one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and somebody should know.
    Warn,
    /// VMs will not run, or not last.
    Bad,
}

impl Verdict {
    /// The word that people read.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Bad => "bad",
        }
    }
}

/// What was found of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How good it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// Why it matters.
    pub why: &'static str,
    /// The next command, or what else to do; nothing where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What was found of everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst verdict.
    pub verdict: Verdict,
    /// One of each check, in an order that never changes.
    pub checks: Vec<Finding>,
}

impl Report {
    fn new(checks: Vec<Finding>) -> Report {
        let verdict = checks.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok);
        Report { verdict, checks }
    }

    /// How many have this verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|finding| finding.verdict == verdict).count()
    }
}

/// Looks at this machine. It takes a second or two, and blocks.
#[must_use]
pub fn examine(wishes: &Wishes) -> Report {
    Report::new(judge(wishes, &read::facts(wishes)))
}
