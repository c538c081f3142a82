//! Rules for every text file: length, and no postponed work.

use super::{Finding, Source, line_of, words};

/// A file longer than this has more than one subject, and nobody reads it whole.
const LINES_MAX: usize = 800;

/// Kinds of files that people write.
const WRITTEN: &[&str] = &["rs", "ts", "svelte", "nix", "sh", "md"];

/// Put together so that this file does not find itself.
const POSTPONED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME")];

/// Findings in one file.
pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let lines = source.text.lines().count();
    if source.has_extension(WRITTEN) && lines > LINES_MAX {
        let what =
            format!("{lines} lines; at most {LINES_MAX}, because a longer file has more than one subject");
        findings.push(Finding::new(&source.path, lines, what));
    }
    if !is_generated(&source.path) {
        for word in POSTPONED {
            for byte in words(&source.text, word) {
                let what =
                    format!("`{word}`; work that is left over is an issue, not a comment nobody reads again");
                findings.push(Finding::new(&source.path, line_of(&source.text, byte), what));
            }
        }
    }
    findings
}

fn is_generated(path: &str) -> bool {
    path.starts_with("LICENSE") || path.ends_with(".lock") || path.ends_with("package-lock.json")
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    #[test]
    fn long_files_and_postponed_work_are_found() {
        let postponed = format!("a\n// {}: later\n", POSTPONED[0]);
        let table = [
            ("crates/a/src/lib.rs", "x\n".repeat(LINES_MAX), 0),
            ("crates/a/src/lib.rs", "x\n".repeat(LINES_MAX + 1), 1),
            ("docs/a.md", "x\n".repeat(LINES_MAX + 1), 1),
            ("Cargo.lock", "x\n".repeat(LINES_MAX + 1), 0),
            ("crates/a/src/lib.rs", postponed.clone(), 1),
            (".ci/run", postponed.clone(), 1),
            ("a.toml", format!("# {}\n", POSTPONED[1]), 1),
            ("LICENSE-X", postponed, 0),
            ("a.rs", format!("{}S are words", POSTPONED[0]), 0),
        ];
        for (path, text, expected) in table {
            let findings = check(&source(path, &text));
            assert_eq!(findings.len(), expected, "{path}: {findings:?}");
        }
        let findings = check(&source("a.rs", &format!("a\n// {}", POSTPONED[1])));
        assert_eq!(findings.first().map(|finding| finding.line), Some(2));
    }
}
