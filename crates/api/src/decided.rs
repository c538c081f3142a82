//! What a controller decided, with its reasons.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::kinds::Choice;
use crate::name::Name;
use crate::uid::Uid;
use crate::waiting::Waiting;

/// How many verdicts a decision keeps; the others are recomputed when asked.
pub const VERDICTS_KEPT: usize = 5;

/// Written under `decided/` by the kind's controller and by nobody else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The object's uid: a decision never outlives its object.
    pub uid: Uid,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_on: Vec<Waiting>,
    /// Since when it waits for nothing, after it has waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_rest_since: Option<Timestamp>,
    /// What was chosen.
    pub choice: Choice,
}

/// Why one worker was chosen among all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The revision of the view that it was made on; `--at` rebuilds that view.
    pub revision: u64,
    /// How many workers were looked at.
    pub workers: u64,
    /// The best verdicts, the chosen first, at most [`VERDICTS_KEPT`].
    pub best: Vec<Verdict>,
    /// How many of those were refused, by reason.
    pub refused: Vec<(String, u64)>,
}

/// What the scheduler thinks of one worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The worker.
    pub worker: Name,
    /// The sum of its scores; more is better. `None` when it was refused.
    pub score: Option<i64>,
    /// The reason of each score, or of the refusal.
    pub reasons: Vec<String>,
}
