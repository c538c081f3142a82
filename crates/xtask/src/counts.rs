//! Reads how many tests passed from what `cargo nextest` and `cargo test` print for people.
//!
//! Both have machine formats too, but those of nextest are experimental and those of libtest need a nightly compiler;
//! the summary lines have been the same for years. A runner that fails without a readable summary counts as one failure.

use std::ops::AddAssign;

/// Results of one or more test runners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Who prints the summary.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Runner {
    /// `Summary [ 0.1s] 3 tests run: 2 passed (1 slow), 1 failed, 4 skipped`, once, at the end. Above it stands what
    /// failed tests have printed, which includes summaries of libtest.
    Nextest,
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s`, for each binary.
    CargoTest,
}

impl Runner {
    /// Takes a line into account if it is a summary, and says whether it was.
    pub(crate) fn read(self, line: &str, counts: &mut Counts) -> bool {
        let line = line.trim_start();
        let results = match self {
            Self::Nextest => line.strip_prefix("Summary [").and_then(|rest| rest.split_once(" run:")),
            Self::CargoTest => line.strip_prefix("test result:").and_then(|rest| rest.split_once(". ")),
        };
        let Some((_, results)) = results else { return false };
        match self {
            Self::Nextest => *counts = parse(results),
            Self::CargoTest => *counts += parse(results),
        }
        true
    }
}

fn parse(results: &str) -> Counts {
    let mut counts = Counts::default();
    for part in without_brackets(results).split([',', ';']) {
        let Some((number, word)) = part.trim().split_once(' ') else { continue };
        let Ok(number) = number.parse::<u64>() else { continue };
        match word.trim() {
            "passed" => counts.passed += number,
            "skipped" | "ignored" => counts.skipped += number,
            "failed" | "timed out" | "exec failed" => counts.failed += number,
            _ => {}
        }
    }
    counts
}

fn without_brackets(text: &str) -> String {
    let mut depth = 0_u32;
    text.chars()
        .filter(|character| {
            match character {
                '(' => depth += 1,
                ')' => {
                    depth = depth.saturating_sub(1);
                    return false;
                }
                _ => {}
            }
            depth == 0
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runner, lines, and then how many passed, failed and were skipped.
    type Case = (Runner, &'static [&'static str], (u64, u64, u64));

    #[test]
    fn summaries_are_understood_and_only_those_of_the_runner_count() {
        const NEXTEST: &str = "     Summary [   0.021s] 12 tests run: 12 passed, 0 skipped";
        const LIBTEST: &str = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 9 filtered out; finished in 0.00s";
        let table: [Case; 8] = [
            (Runner::Nextest, &[NEXTEST], (12, 0, 0)),
            (Runner::Nextest, &["Summary [ 0.5s] 1 test run: 1 passed, 2 skipped"], (1, 0, 2)),
            (
                Runner::Nextest,
                &[
                    "Summary [ 3.4s] 10/12 tests run: 7 passed (1 slow, 2 leaky), 2 failed, 1 timed out, 3 skipped",
                ],
                (7, 3, 3),
            ),
            (
                Runner::Nextest,
                &["Summary [ 3.4s] 2 tests run: 1 passed, 1 exec failed, 0 skipped"],
                (1, 1, 0),
            ),
            (Runner::Nextest, &[LIBTEST, NEXTEST, LIBTEST], (12, 0, 0)),
            (Runner::CargoTest, &[LIBTEST, NEXTEST, LIBTEST], (6, 4, 2)),
            (
                Runner::CargoTest,
                &["test counts::is_not ... ok", "a test result: of something else. 3 passed"],
                (0, 0, 0),
            ),
            (Runner::Nextest, &["a Summary [ of something else run: 3 passed"], (0, 0, 0)),
        ];
        for (runner, lines, (passed, failed, skipped)) in table {
            let mut counts = Counts::default();
            let understood = lines.iter().filter(|line| runner.read(line, &mut counts)).count();
            assert_eq!(counts, Counts { passed, failed, skipped }, "{runner:?}: {lines:?}");
            assert_eq!(understood > 0, passed > 0, "{runner:?}: {lines:?}");
        }
    }
}
