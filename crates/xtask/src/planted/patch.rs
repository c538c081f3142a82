//! A planted bug: a patch whose first lines say what it breaks and how that has to be noticed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// What has to turn red.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RedBy {
    /// The simulator within this many seeds, counted from 0.
    Sim { seeds: u64 },
    /// Tests of a package whose name contains `filter`.
    Test { filter: String, package: String },
}

impl std::fmt::Display for RedBy {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sim { seeds } => write!(formatter, "{seeds} seeds"),
            Self::Test { filter, .. } => write!(formatter, "test {filter}"),
        }
    }
}

/// One `crates/sim/planted/*.patch`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Patch {
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// The invariant that the bug breaks.
    pub(super) guards: String,
    pub(super) red_by: RedBy,
    /// Text that the red run has to print, or alternatives parted by ` | `: which of a bug's symptoms is met first is a
    /// matter of seeds. Red for another reason is not caught.
    pub(super) says: String,
}

/// All patches of a directory, sorted by name. A patch with missing headers is an error.
pub(super) fn read_all(directory: &Path) -> Result<Vec<Patch>> {
    let mut patches = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", directory.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            patches
                .push(parse(&path, &text).with_context(|| format!("read the head of {}", path.display()))?);
        }
    }
    patches.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(patches)
}

fn parse(path: &Path, text: &str) -> Result<Patch> {
    let header = |name: &str| {
        let prefix = format!("# {name}:");
        text.lines()
            .take_while(|line| line.starts_with('#'))
            .find_map(|line| line.strip_prefix(&prefix))
            .map(str::trim)
    };
    let required = |name: &str| {
        header(name).filter(|value| !value.is_empty()).with_context(|| format!("find a line `# {name}: …`"))
    };
    let red_by = match required("red by")? {
        "sim" => RedBy::Sim { seeds: required("seeds")?.parse().context("read the number of seeds")? },
        other => {
            let words: Vec<&str> = other.split_whitespace().collect();
            let ["test", filter, "-p", package] = words.as_slice() else {
                bail!("`# red by:` is `sim` or `test NAME -p PACKAGE`, not `{other}`");
            };
            RedBy::Test { filter: (*filter).to_owned(), package: (*package).to_owned() }
        }
    };
    Ok(Patch {
        name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        path: path.to_path_buf(),
        guards: required("guards")?.to_owned(),
        red_by,
        says: required("says")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_and_none_may_be_missing() {
        let sim = RedBy::Sim { seeds: 50 };
        let test = RedBy::Test { filter: "guards".into(), package: "lightbyte-plan".into() };
        let table = [
            ("# guards: rule 3\n# red by: sim\n# seeds: 50\n# says: over capacity\n--- a/x\n", Some(sim)),
            ("# guards: rule 3\n# red by: test guards -p lightbyte-plan\n# says: left\n", Some(test)),
            ("# guards: rule 3\n# red by: sim\n# says: over capacity\n", None),
            ("# guards: rule 3\n# red by: sim\n# seeds: many\n# says: over capacity\n", None),
            ("# guards: rule 3\n# red by: luck\n# seeds: 5\n# says: over capacity\n", None),
            ("# guards:\n# red by: sim\n# seeds: 5\n# says: over capacity\n", None),
            ("# guards: rule 3\n# red by: sim\n# seeds: 5\n--- a/x\n# says: over capacity\n", None),
        ];
        for (text, expected) in table {
            let parsed = parse(Path::new("a/b.patch"), text).ok().map(|patch| patch.red_by);
            assert_eq!(parsed, expected, "{text}");
        }
    }
}
