//! `lightbyte import image NAME --from FILE`: the image is made in a directory that goes with this command, and then is one
//! like any other.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lightbyte_api::Name;
use lightbyte_image::foreign::{self, Foreign};

use crate::arguments::ImportImage;
use crate::failure::Failure;
use crate::terminal::say;

/// The image whose agent and kernel are taken when none is named.
const BASE: &str = "demo";

/// The directory of an image that was made, until it is dropped.
pub(super) struct Made(PathBuf);

impl Made {
    pub(super) fn directory(&self) -> &Path {
        &self.0
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // What cannot be removed lies where temporary files lie.
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn make(words: &ImportImage, from: &Path) -> Result<Made> {
    let name: Name = words.image.to_string_lossy().parse().map_err(|error| {
        Failure::usage(format!("`{}` is not a name for an image: {error}", words.image.display()))
            .hint("`lightbyte import image NAME --from FILE`")
    })?;
    let base =
        words.base.clone().or_else(base).context("find an image with the agent: name one with --base")?;
    let made = Made(std::env::temp_dir().join(format!("lightbyte-import-{}", std::process::id())));
    // Only for us: what is in it becomes a root disk.
    let directory = DirBuilder::new().mode(0o700).create(made.directory());
    directory.with_context(|| format!("create `{}`", made.directory().display()))?;
    say(&format!("making image/{name} from {}", from.display()));
    let foreign = Foreign { name: name.to_string(), from: from.to_owned(), base };
    foreign::make(&foreign, made.directory())
        .with_context(|| format!("make an image from `{}`", from.display()))?;
    Ok(made)
}

/// Where the set-up has put the demo image.
fn base() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || {
        variable("LIGHTBYTE_CACHE")
            .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("lightbyte")))
            .or_else(|| Some(variable("HOME")?.join(".cache/lightbyte")))
    };
    Some(variable("LIGHTBYTE_IMAGES").or_else(|| Some(cache()?.join("images")))?.join(BASE))
}
