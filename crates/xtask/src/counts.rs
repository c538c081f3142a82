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

/// What a line says if it is a summary of nextest (`Summary [ 0.1s] 3 tests run: 2 passed (1 slow), 1 failed, 4 skipped`)
/// or of libtest (`test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s`).
pub(crate) fn summary(line: &str) -> Option<Counts> {
    let line = line.trim_start();
    let results = if let Some(rest) = line.strip_prefix("Summary [") {
        rest.split_once(" run:")?.1
    } else {
        line.strip_prefix("test result:")?.split_once(". ")?.1
    };
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
    Some(counts)
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

    #[test]
    fn summaries_of_both_runners_are_understood() {
        let table = [
            ("     Summary [   0.021s] 12 tests run: 12 passed, 0 skipped", Some((12, 0, 0))),
            ("Summary [ 0.5s] 1 test run: 1 passed, 2 skipped", Some((1, 0, 2))),
            (
                "Summary [ 3.4s] 10/12 tests run: 7 passed (1 slow, 2 leaky), 2 failed, 1 timed out, 3 skipped",
                Some((7, 3, 3)),
            ),
            ("Summary [ 3.4s] 2 tests run: 1 passed, 1 exec failed, 0 skipped", Some((1, 1, 0))),
            ("Summary [   0.000s] 0 tests run: 0 passed, 0 skipped", Some((0, 0, 0))),
            (
                "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 9 filtered out; finished in 0.00s",
                Some((3, 0, 1)),
            ),
            (
                "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
                Some((3, 2, 0)),
            ),
            ("test summary::is_not::a_summary ... ok", None),
            ("a Summary [ of something else", None),
        ];
        for (line, expected) in table {
            let expected = expected.map(|(passed, failed, skipped)| Counts { passed, failed, skipped });
            assert_eq!(summary(line), expected, "{line}");
        }
    }
}
