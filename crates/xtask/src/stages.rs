//! Stages of a long run: each is timed beside its budget, none stops the others, and one line sums them up.

use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::counts::Counts;

/// How a stage ended.
pub(crate) enum Outcome {
    /// The stage is one check, and it holds.
    Passed,
    /// The stage ran tests of its own; with `failed` above zero it is red.
    Counted(Counts),
    /// The stage is one check, and it does not hold; the text says why in one line.
    Failed(String),
    /// The stage could not run; the text says why and what would run it.
    Skipped(String),
}

/// The stages so far.
#[derive(Default)]
pub(crate) struct Stages {
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    budget: Duration,
    wall: Duration,
    counts: Counts,
    remark: String,
}

impl Stages {
    /// Runs a stage and keeps its result. Its budget is printed, not enforced: a loaded machine is no failure.
    /// Returns whether the stage is free of failures and was not skipped.
    pub(crate) fn run(
        &mut self,
        name: &'static str,
        budget: Duration,
        stage: impl FnOnce() -> anyhow::Result<Outcome>,
    ) -> bool {
        eprintln!("\n=== {name} (budget {}) ===", minutes(budget));
        let start = Instant::now();
        let outcome = stage().unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        let wall = start.elapsed();
        let (counts, remark) = match outcome {
            Outcome::Passed => (Counts { passed: 1, ..Counts::default() }, String::new()),
            Outcome::Counted(counts) => (counts, String::new()),
            Outcome::Failed(why) => (Counts { failed: 1, ..Counts::default() }, why),
            Outcome::Skipped(why) => (Counts { skipped: 1, ..Counts::default() }, why),
        };
        let row = Row { name, budget, wall, counts, remark };
        eprintln!("--- {}", row.line());
        let clean = row.counts.failed == 0 && row.verdict() != "skipped";
        self.rows.push(row);
        clean
    }

    /// Prints every stage again and, as the last line of standard output, the sum. Returns whether nothing failed.
    pub(crate) fn finish(&self) -> bool {
        let mut sum = Counts::default();
        let mut wall = Duration::ZERO;
        let mut budget = Duration::ZERO;
        eprintln!("\n{:<12}{:>9}{:>9}  result", "stage", "wall", "budget");
        for row in &self.rows {
            eprintln!("{}", row.line());
            sum += row.counts;
            wall += row.wall;
            budget += row.budget;
        }
        eprintln!("{:<12}{:>9}{:>9}", "all", minutes(wall), minutes(budget));
        println!("{sum}");
        // A closed standard output loses only the line; the exit code still tells.
        let _closed = std::io::stdout().flush().is_err();
        sum.failed == 0
    }
}

impl Row {
    fn verdict(&self) -> &'static str {
        match self.counts {
            Counts { failed: 1.., .. } => "FAILED",
            Counts { passed: 0, skipped: 1.., .. } => "skipped",
            _ => "passed",
        }
    }

    fn line(&self) -> String {
        let mut line = format!(
            "{:<12}{:>9}{:>9}  {}",
            self.name,
            minutes(self.wall),
            minutes(self.budget),
            self.verdict()
        );
        if self.counts.passed + self.counts.failed + self.counts.skipped != 1 {
            line.push_str(&format!(" ({})", self.counts));
        }
        if self.wall > self.budget {
            line.push_str(", over budget");
        }
        if !self.remark.is_empty() {
            line.push_str(&format!(": {}", self.remark));
        }
        line
    }
}

/// Minutes, seconds and tenths: `2:05.4`.
pub(crate) fn minutes(duration: Duration) -> String {
    let tenths = duration.as_millis() / 100;
    format!("{}:{:02}.{}", tenths / 600, tenths / 10 % 60, tenths % 10)
}

/// Reads what [`minutes`] writes.
pub(crate) fn read_minutes(text: &str) -> Option<Duration> {
    let (minutes, rest) = text.split_once(':')?;
    let (seconds, tenths) = rest.split_once('.')?;
    let [minutes, seconds, tenths] = [minutes, seconds, tenths].map(|part| part.parse::<u64>().ok());
    Some(Duration::from_millis((minutes? * 600 + seconds? * 10 + tenths?) * 100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_summed_and_make_the_run_red() {
        let mut stages = Stages::default();
        let budget = Duration::from_secs(1);
        assert!(stages.run("one", budget, || Ok(Outcome::Passed)));
        assert!(!stages.run("two", budget, || Ok(Outcome::Skipped("tool is missing".into()))));
        assert!(stages.finish());
        let counts = Counts { passed: 2, failed: 1, skipped: 3 };
        assert!(!stages.run("three", budget, || Ok(Outcome::Counted(counts))));
        assert!(!stages.run("four", budget, || anyhow::bail!("broken")));
        assert!(!stages.finish());
        let verdicts: Vec<_> = stages.rows.iter().map(Row::verdict).collect();
        assert_eq!(verdicts, ["passed", "skipped", "FAILED", "FAILED"]);
    }

    #[test]
    fn durations_are_minutes_and_tenths_of_seconds() {
        assert_eq!(minutes(Duration::from_millis(125_460)), "2:05.4");
        assert_eq!(minutes(Duration::from_millis(70)), "0:00.0");
    }
}
