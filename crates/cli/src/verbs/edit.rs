//! `lightbyte edit`: an object's manifest in the editor of the person, and back.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use lightbyte_api::ObjectRef;
use lightbyte_api::wire::Apply;
use serde_json::Value;

use crate::arguments::One;
use crate::cluster::{Cluster, manifest_of};
use crate::failure::{Code, Failure, code_of, describe};
use crate::manifests;
use crate::target;
use crate::terminal::print;
use crate::verbs::apply;
use crate::yaml;

pub(crate) async fn run(cluster: &Cluster, words: &One) -> Result<Code> {
    let object = cluster.resolve(target::read_single(&words.target)?).await?;
    let (read, version) =
        cluster.object_with_version(&object).await.with_context(|| format!("read `{object}`"))?;
    let before = manifest_of(&read);
    let file = write_file(&object, &yaml::write(&before)?)?;
    let result = edit(cluster, &object, &before, &version, &file).await;
    match result {
        Ok(line) => {
            drop(fs::remove_file(&file));
            print(&line)?;
            Ok(Code::Done)
        }
        Err(error) => {
            let description = describe(&error);
            let keep = format!("your text is kept: `lightbyte apply -f {}` tries again", file.display());
            let hint = description.hint.map_or_else(|| keep.clone(), |hint| format!("{hint}; {keep}"));
            let failure = Failure::new(code_of(&error), description.message).details(description.details);
            Err(failure.hint(hint).into())
        }
    }
}

async fn edit(
    cluster: &Cluster,
    object: &ObjectRef,
    before: &Value,
    version: &str,
    file: &Path,
) -> Result<String> {
    open_editor(file)?;
    let documents = manifests::read(&[file.to_owned()])?;
    if documents.len() == 1 && &documents[0].value == before {
        return Ok(format!("{object} unchanged"));
    }
    let objects = manifests::check(&documents)?;
    if objects != [object.clone()] {
        let message = format!("the text must be the one manifest of `{object}`");
        return Err(Failure::new(Code::Error, message).into());
    }
    let documents = documents.into_iter().map(|document| document.value).collect();
    let request = Apply { documents, create_only: false, dry_run: false };
    let applied =
        cluster.apply(&request, Some(version)).await.with_context(|| format!("change `{object}`"))?;
    Ok(applied.changes.iter().map(apply::summary).collect::<Vec<_>>().join("\n"))
}

fn write_file(object: &ObjectRef, text: &str) -> Result<PathBuf> {
    let name = format!("lightbyte-{}-{}-{}.yaml", object.kind, object.name, std::process::id());
    let path = std::env::temp_dir().join(name);
    let what = || format!("write `{}`", path.display());
    let mut options = fs::OpenOptions::new();
    // Only its owner reads it, and nothing that somebody else has put there is followed or overwritten.
    let mut file = options.write(true).create_new(true).mode(0o600).open(&path).with_context(what)?;
    file.write_all(text.as_bytes()).with_context(what)?;
    Ok(path)
}

/// `$VISUAL`, `$EDITOR`, or vi. Both may hold options, so a shell splits them, as everybody else does.
fn open_editor(file: &Path) -> Result<()> {
    let named = |name| std::env::var(name).ok().filter(|value: &String| !value.trim().is_empty());
    let editor = named("VISUAL").or_else(|| named("EDITOR")).unwrap_or_else(|| "vi".to_owned());
    let status = Command::new("sh")
        .arg("-c")
        .arg(format!("{editor} \"$1\""))
        .arg("sh")
        .arg(file)
        .status()
        .with_context(|| format!("start the editor `{editor}`"))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(Code::Error, format!("the editor `{editor}` ended with {status}; nothing was changed"))
        .into())
}
