//! `cargo xtask tidy`: rules of this repository that neither the compiler nor clippy knows.
//!
//! Each rule is a function from text to findings, so that its tests can show it something bad. Rules are few and cheap;
//! a rule that has to be worked around is taken out.

mod crates;
mod deny;
mod docs;
mod rust;
mod sources;
mod spdx;

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::flags;
use crate::stages::Outcome;
use crate::workspace::Workspace;

/// Something forbidden, and where.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    /// Counted from 1.
    line: usize,
    /// What, and why it is forbidden.
    what: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// A text file of the project.
struct Source {
    /// Relative to the workspace, with `/`.
    path: String,
    text: String,
}

impl Source {
    fn has_extension(&self, extensions: &[&str]) -> bool {
        let extension = Path::new(&self.path).extension().and_then(std::ffi::OsStr::to_str);
        extension.is_some_and(|extension| extensions.contains(&extension))
    }
}

/// `cargo xtask tidy`.
pub(crate) fn run(workspace: &Workspace, words: &[String]) -> Result<ExitCode> {
    flags(words, &[])?;
    Ok(match stage(workspace)? {
        Outcome::Failed(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    })
}

/// Tidy as a stage of `test`: prints every finding.
pub(crate) fn stage(workspace: &Workspace) -> Result<Outcome> {
    let sources = read(workspace)?;
    let mut findings = Vec::new();
    for source in &sources {
        findings.extend(sources::check(source));
        findings.extend(rust::check(source));
        findings.extend(docs::check(source, &|path| workspace.root.join(path).exists()));
    }
    findings.extend(rust::check_allowed_list(&sources));
    findings.extend(crates::check(workspace)?);
    findings.extend(deny::check(workspace, &sources)?);
    findings.sort();
    for finding in &findings {
        eprintln!("{finding}");
    }
    Ok(match findings.len() {
        0 => Outcome::Passed,
        1 => Outcome::Failed("one finding, printed above".into()),
        number => Outcome::Failed(format!("{number} findings, printed above")),
    })
}

/// Files that are not UTF-8 are no text and have no rules.
fn read(workspace: &Workspace) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in workspace.files()? {
        let place = workspace.root.join(&path);
        let bytes = fs::read(&place).with_context(|| format!("read {}", place.display()))?;
        if let Ok(text) = String::from_utf8(bytes) {
            sources.push(Source { path: path.to_string_lossy().into_owned(), text });
        }
    }
    Ok(sources)
}

/// The number of the line, counted from 1, in which a byte stands.
fn line_of(text: &str, byte: usize) -> usize {
    text.bytes().take(byte).filter(|byte| *byte == b'\n').count() + 1
}

/// Byte positions at which `word` stands alone, not as a part of a longer name.
fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_name = |character: char| character.is_alphanumeric() || character == '_';
    text.match_indices(word).filter_map(move |(start, _)| {
        let before = text.get(..start)?.chars().next_back();
        let after = text.get(start + word.len()..)?.chars().next();
        let begins = !before.is_some_and(is_name) || !word.starts_with(is_name);
        let ends = !after.is_some_and(is_name) || !word.ends_with(is_name);
        (begins && ends).then_some(start)
    })
}

#[cfg(test)]
fn source(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_whole() {
        let table =
            [("HashMap", 1), ("MyHashMap HashMaps", 0), ("a::HashMap<K>, HashMap", 2), ("hash_HashMap", 0)];
        for (text, expected) in table {
            assert_eq!(words(text, "HashMap").count(), expected, "{text}");
        }
    }

    #[test]
    fn a_finding_reads_path_line_what() {
        assert_eq!(Finding::new("a/b.rs", line_of("x\ny\nz", 4), "bad").to_string(), "a/b.rs:3: bad");
    }
}
