//! `lightbyte wait`: until what is asked now is reached.

use anyhow::{Context as _, Result};

use crate::arguments::{Goal, Wait};
use crate::cluster::Cluster;
use crate::failure::Code;
use crate::target::{self, Target};
use crate::waiting::{self, Wish};

pub(crate) async fn run(cluster: &Cluster, words: &Wait) -> Result<Code> {
    let target = target::read_single(&words.target)?;
    let is_named = matches!(target, Target::Object(_));
    let object = cluster.resolve(target).await?;
    let now = match cluster.object(&object).await {
        Ok(now) => now,
        Err(error) if error.status() == Some(404) && is_named && words.goal == Goal::Deleted => {
            return Ok(Code::Done);
        }
        Err(error) => return Err(error).with_context(|| format!("look at `{object}`")),
    };
    waiting::until(cluster, &Wish::of(&now, words.goal), words.timeout).await?;
    Ok(Code::Done)
}
