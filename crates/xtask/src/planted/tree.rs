//! The copy of the project in which bugs are planted.
//!
//! It stays at one path between runs, and files are written only when their content differs: cargo goes by the time of
//! change, so planting a bug compiles what the bug touches and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::workspace::Workspace;

/// The copy.
pub(super) struct Tree {
    /// Where the copy is.
    pub(super) root: PathBuf,
}

impl Tree {
    /// Makes the copy equal to the project's files, by content; what is not the project's goes.
    pub(super) fn restore(workspace: &Workspace, root: PathBuf) -> Result<Self> {
        let files = workspace.files()?;
        for file in &files {
            let from = workspace.root.join(file);
            let content = fs::read(&from).with_context(|| format!("read {}", from.display()))?;
            write_if_different(&root.join(file), &content)?;
        }
        let wanted: BTreeSet<PathBuf> = files.iter().map(|file| root.join(file)).collect();
        remove_others(&root, &wanted)?;
        Ok(Self { root })
    }

    /// Applies a patch; an error says why it does not apply.
    pub(super) fn apply(&self, patch: &Path) -> Result<()> {
        let mut git = Command::new("git");
        // Without the ceiling, git would take a repository around the target directory for the one to patch, and
        // leave out, silently, every file that is not in it.
        let ceiling = self.root.parent().unwrap_or(&self.root);
        git.current_dir(&self.root)
            .env("GIT_CEILING_DIRECTORIES", ceiling)
            .args(["apply", "--verbose"])
            .arg(patch);
        let before = self.state()?;
        process::output(&mut git)?;
        if self.state()? == before {
            bail!("the patch changes nothing");
        }
        Ok(())
    }

    /// Lengths and times of all files: enough to see that something was written.
    fn state(&self) -> Result<Vec<(PathBuf, u64, Option<std::time::SystemTime>)>> {
        let mut state = Vec::new();
        visit(&self.root, &mut |path| {
            let metadata = path.metadata().with_context(|| format!("look at {}", path.display()))?;
            state.push((path.to_path_buf(), metadata.len(), metadata.modified().ok()));
            Ok(())
        })?;
        state.sort();
        Ok(state)
    }
}

fn write_if_different(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}

fn remove_others(root: &Path, wanted: &BTreeSet<PathBuf>) -> Result<()> {
    visit(root, &mut |path| {
        if !wanted.contains(path) {
            fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(())
    })
}

fn visit(directory: &Path, act: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", directory.display()))?;
        let kind = entry.file_type().with_context(|| format!("look at {}", entry.path().display()))?;
        if kind.is_dir() {
            visit(&entry.path(), act)?;
        } else {
            act(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_only_when_their_content_differs_and_strangers_go() {
        let root = std::env::temp_dir().join(format!("lightbyte-tree-{}", std::process::id()));
        let file = root.join("a/b.rs");
        let stranger = root.join("a/stranger.rs");
        write_if_different(&file, b"one").expect("write");
        let written = file.metadata().and_then(|metadata| metadata.modified()).expect("time");
        write_if_different(&file, b"one").expect("write nothing");
        assert_eq!(file.metadata().and_then(|metadata| metadata.modified()).expect("time"), written);
        write_if_different(&stranger, b"x").expect("write");
        remove_others(&root, &BTreeSet::from([file.clone()])).expect("remove");
        assert!(file.exists() && !stranger.exists());
        fs::remove_dir_all(&root).expect("remove");
    }
}
