//! Rules for the documentation: what it points at exists.

use super::{Finding, Source, line_of};
use crate::VERBS;

/// Findings in one file; none if it is not Markdown. `exists` is asked about paths relative to the workspace.
pub(super) fn check(source: &Source, exists: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    if !source.has_extension(&["md"]) {
        return Vec::new();
    }
    let mut findings = links(source, exists);
    for (byte, verb) in named_after(&source.text, "cargo xtask ") {
        let is_word = verb.chars().all(|character| character.is_ascii_lowercase());
        if is_word && !verb.is_empty() && !VERBS.iter().any(|known| known.name == verb) {
            let what = format!("`cargo xtask {verb}` does not exist; a reader would try it");
            findings.push(Finding::new(&source.path, line_of(&source.text, byte), what));
        }
    }
    for (byte, rest) in named_after(&source.text, "crates/") {
        // A pattern is checked as far as it is a plain path.
        let pattern_from = rest.find(['*', '<', '{']).unwrap_or(rest.len());
        let plain = &rest[..pattern_from];
        let plain = if pattern_from < rest.len() {
            plain.rsplit_once('/').map_or("", |(parent, _)| parent)
        } else {
            plain
        };
        let path = format!("crates/{}", plain.trim_end_matches(['.', '/', '-']));
        let is_part_of_longer = byte > 0 && source.text.as_bytes()[byte - 1].is_ascii_alphanumeric();
        if !is_part_of_longer && !exists(path.trim_end_matches('/')) {
            let what = format!("`{path}` does not exist; the map has to match the land");
            findings.push(Finding::new(&source.path, line_of(&source.text, byte), what));
        }
    }
    findings
}

/// What follows each occurrence of `before`, up to the first character that cannot be part of a name or path.
fn named_after<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = (usize, &'a str)> + 'a {
    text.match_indices(before).map(|(start, _)| {
        let rest = &text[start + before.len()..];
        let is_part = |character: char| character.is_ascii_alphanumeric() || "_-./*<>{},".contains(character);
        let end = rest.find(|character| !is_part(character)).unwrap_or(rest.len());
        (start, rest[..end].trim_end_matches([',', '.']))
    })
}

/// Relative links `[text](path)` and `[name]: path`. Anchors are not followed.
fn links(source: &Source, exists: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut is_in_fence = false;
    for (index, line) in source.text.lines().enumerate() {
        if line.trim_start().starts_with("```") || line.trim_start().starts_with("~~~") {
            is_in_fence = !is_in_fence;
            continue;
        }
        if is_in_fence {
            continue;
        }
        for target in targets(&without_code(line)) {
            let path = target.split(['#', '?']).next().unwrap_or_default();
            let is_elsewhere = target.contains("://") || target.starts_with("mailto:") || path.is_empty();
            let resolved = resolve(&source.path, path);
            if !is_elsewhere && !resolved.as_deref().is_some_and(exists) {
                let what = format!("the link to `{target}` leads nowhere; readers follow links");
                findings.push(Finding::new(&source.path, index + 1, what));
            }
        }
    }
    findings
}

fn targets(line: &str) -> Vec<String> {
    let mut targets = Vec::new();
    for (start, _) in line.match_indices("](") {
        let rest = &line[start + 2..];
        if let Some(end) = rest.find(')') {
            targets.push(&rest[..end]);
        }
    }
    if let Some((_, target)) = line.split_once("]: ").filter(|_| line.starts_with('[')) {
        targets.push(target);
    }
    // A title in quotes may follow the target.
    let first_word = |target: &str| {
        target.split_whitespace().next().unwrap_or_default().trim_matches(['<', '>']).to_owned()
    };
    targets.into_iter().map(first_word).collect()
}

/// Blanks `code` inside a line.
fn without_code(line: &str) -> String {
    let parts: Vec<&str> = line.split('`').collect();
    parts.iter().step_by(2).copied().collect::<Vec<_>>().join(" ")
}

/// The path relative to the workspace that a link in the file `from` means; nothing if it leads out of the workspace.
fn resolve(from: &str, link: &str) -> Option<String> {
    if let Some(absolute) = link.strip_prefix('/') {
        return Some(absolute.to_owned());
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    #[test]
    fn what_does_not_exist_is_found() {
        let there =
            ["crates", "crates/plan", "crates/plan/src/view.rs", "docs/guide/a.md", "README.md", "docs"];
        let exists = |path: &str| there.contains(&path);
        let table: [(&str, &str, &[usize]); 20] = [
            ("docs/b.md", "see [a](guide/a.md) and [b](guide/b.md)", &[1]),
            ("docs/b.md", "[up](../README.md#top) [out](../../x) [here](#a) [web](https://x.y/z)", &[1]),
            ("docs/b.md", "x\n![picture](guide/picture.svg)", &[2]),
            ("docs/b.md", "[a]: guide/a.md\n[b]: guide/none.md \"title\"", &[2]),
            ("docs/b.md", "```\n[b](none.md)\n```\n`[b](none.md)`", &[]),
            ("README.md", "[d](docs/) [e](<docs/guide/a.md>)", &[]),
            ("README.md", "    cargo xtask test --quick\n    cargo xtask fly", &[2]),
            ("README.md", "run `cargo xtask tidy`, then `cargo xtask VERB`.", &[]),
            ("README.md", "cargo xtask test.", &[]),
            ("README.md", "`cargo xtask nothing-such`", &[]),
            ("README.md", "`crates/plan/src/view.rs:12` and crates/plan.", &[]),
            ("README.md", "`crates/plan/src/gone.rs`", &[1]),
            ("README.md", "\n\ncrates/gone/", &[3]),
            ("README.md", "`crates/plan/*.rs` `crates/<dir>` `crates/plan/src/{a,b}.rs`", &[1]),
            ("README.md", "`crates/*/Cargo.toml`", &[]),
            ("README.md", "https://crates/x mycrates/y", &[1]),
            ("README.md", "crates/", &[]),
            ("a.rs", "// crates/gone", &[]),
            ("README.md", "", &[]),
            ("README.md", "[x](docs/guide/a.md \"title\")", &[]),
        ];
        for (path, text, expected) in table {
            let findings = check(&source(path, text), &exists);
            let mut lines: Vec<usize> = findings.iter().map(|finding| finding.line).collect();
            lines.sort_unstable();
            assert_eq!(lines, expected, "{path}: {text}: {findings:?}");
        }
    }
}
