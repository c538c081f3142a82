//! `lightbyte protect`, `unprotect`.

use anyhow::{Context as _, Result};

use crate::arguments::One;
use crate::cluster::Cluster;
use crate::failure::Code;
use crate::target;
use crate::terminal::print;

pub(crate) async fn run(cluster: &Cluster, words: &One, protected: bool) -> Result<Code> {
    let object = cluster.resolve(target::read_single(&words.target)?).await?;
    let verb = if protected { "protect" } else { "unprotect" };
    cluster.act(&object, verb).await.with_context(|| format!("{verb} `{object}`"))?;
    print(&format!("{object} {verb}ed"))?;
    Ok(Code::Done)
}
