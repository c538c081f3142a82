//! `lightbyte delete`: asks first, and waits until nothing is left.

use anyhow::Result;
use lightbyte_api::ObjectRef;

use crate::arguments::{Delete, Goal};
use crate::cluster::Cluster;
use crate::failure::{self, Code, Failure};
use crate::manifests;
use crate::target;
use crate::terminal::{ask, can_ask, print, say, say_error};
use crate::waiting::{self, Wish};

pub(crate) async fn run(cluster: &Cluster, words: &Delete) -> Result<Code> {
    let objects = objects(cluster, words).await?;
    if !words.yes && !confirm(&objects)? {
        say("nothing was deleted");
        return Ok(Code::Error);
    }
    let from_files = !words.files.is_empty();
    let mut wishes = Vec::new();
    let mut code = Code::Done;
    for object in &objects {
        match cluster.delete(object).await {
            Ok(changed) => wishes.push(Wish::after(&changed, Goal::Deleted)),
            // Who hands over a file wants what is in it gone; what is gone already is as asked.
            Err(error) if error.status() == Some(404) && from_files => say(&format!("{object} is not there")),
            Err(error) => {
                // One that cannot be deleted keeps none of the others.
                let error = anyhow::Error::from(error).context(format!("delete `{object}`"));
                say_error(&failure::describe(&error));
                code = failure::code_of(&error);
            }
        }
    }
    if words.patience.no_wait {
        print(&wishes.iter().map(|wish| format!("{} deleting\n", wish.object)).collect::<String>())?;
        return Ok(code);
    }
    let deadline = tokio::time::Instant::now().checked_add(words.patience.timeout);
    for wish in &wishes {
        let left = deadline.map(|deadline| deadline.duration_since(tokio::time::Instant::now()));
        waiting::until(cluster, wish, left.unwrap_or(words.patience.timeout)).await?;
        print(&format!("{} deleted", wish.object))?;
    }
    Ok(code)
}

async fn objects(cluster: &Cluster, words: &Delete) -> Result<Vec<ObjectRef>> {
    let mut objects = Vec::new();
    if !words.files.is_empty() {
        objects = manifests::check(&manifests::read(&words.files)?)?;
        // What was made last may rest on what was made first.
        objects.reverse();
    }
    for target in target::read(&words.targets)? {
        objects.push(cluster.resolve(target).await?);
    }
    let mut seen = std::collections::BTreeSet::new();
    objects.retain(|object| seen.insert(object.clone()));
    Ok(objects)
}

/// Asks whether these are to be deleted.
///
/// # Errors
/// When nobody is here to be asked.
pub(crate) fn confirm(objects: &[ObjectRef]) -> Result<bool> {
    let list: Vec<String> = objects.iter().map(|object| format!("`{object}`")).collect();
    let list = list.join(", ");
    if can_ask() {
        return ask(&format!("delete {list}, and all data in it?"));
    }
    Err(Failure::usage(format!("{list} would be deleted, and nobody is here to be asked"))
        .hint("`--yes` deletes without asking")
        .into())
}
