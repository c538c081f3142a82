//! `lightbyte scale`: how many members a group has.

use anyhow::Result;
use lightbyte_api::{Kind, ObjectRef};
use serde_json::json;

use crate::arguments::{Goal, Scale};
use crate::change::change_spec;
use crate::cluster::Cluster;
use crate::failure::{Code, Failure};
use crate::target::{self, Target};
use crate::waiting::{self, Wish};

pub(crate) async fn run(cluster: &Cluster, words: &Scale) -> Result<Code> {
    let group = match target::read_single(std::slice::from_ref(&words.group))? {
        Target::Named(name) => ObjectRef::new(Kind::ScaleGroup, name),
        target => cluster.resolve(target).await?,
    };
    if group.kind != Kind::ScaleGroup {
        let failure = Failure::usage(format!("{group} has no members"));
        return Err(failure.hint("only a scale group has a number of them: `lightbyte get groups`").into());
    }
    let changed = change_spec(cluster, &group, |spec| {
        let before = spec["replicas"].as_u64().unwrap_or(0);
        spec["replicas"] = json!(words.replicas.from(before));
        Ok(())
    });
    let changed = changed.await?;
    if !words.patience.no_wait {
        waiting::until(cluster, &Wish::of(&changed, Goal::Ready), words.patience.timeout).await?;
    }
    Ok(Code::Done)
}
