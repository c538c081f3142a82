//! `lightbyte start`, `stop`, `restart`.

use anyhow::{Context as _, Result};

use crate::arguments::{Goal, Power};
use crate::cluster::Cluster;
use crate::failure::Code;
use crate::target;
use crate::terminal::say;
use crate::waiting::{self, Wish, crash_loop};

pub(crate) async fn run(cluster: &Cluster, words: &Power, verb: &str) -> Result<Code> {
    let object = target::read_vm(&words.target)?;
    let before = cluster.object(&object).await.with_context(|| format!("look at `{object}`"))?;
    let changed = cluster.act(&object, verb).await.with_context(|| format!("{verb} `{object}`"))?;
    if words.patience.no_wait {
        say(&format!("{object}: {verb} asked"));
        return Ok(Code::Done);
    }
    let goal = if verb == "stop" { Goal::Stopped } else { Goal::Ready };
    let old_crash = crash_loop(&before).map(|waiting| waiting.since);
    let wish = Wish { old_crash, ..Wish::after(&changed, goal) };
    waiting::until(cluster, &wish, words.patience.timeout).await?;
    Ok(Code::Done)
}
