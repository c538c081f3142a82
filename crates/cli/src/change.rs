//! Changing what is asked of one object, for verbs that change one thing of it.

use anyhow::{Context as _, Result};
use lightbyte_api::object::{Object, ObjectRef};
use lightbyte_api::wire::Apply;
use serde_json::Value;

use crate::cluster::{Cluster, manifest_of};
use crate::failure::{Code, Failure};
use crate::terminal::print;
use crate::verbs::apply;

/// How often a change is made anew because somebody else changed the object meanwhile.
const TRIES_MAX: usize = 5;

/// The manifest of the object as it would be with its specification changed, and the version that was read.
pub(crate) async fn manifest_with(
    cluster: &Cluster,
    object: &ObjectRef,
    change: impl Fn(&mut Value) -> Result<(), Failure>,
) -> Result<(Value, String)> {
    let (read, version) =
        cluster.object_with_version(object).await.with_context(|| format!("read `{object}`"))?;
    let mut document = manifest_of(&read);
    change(&mut document["spec"])?;
    Ok((document, version))
}

/// Reads the object, changes its specification and writes it back, anew when somebody else was faster.
pub(crate) async fn change_spec(
    cluster: &Cluster,
    object: &ObjectRef,
    change: impl Fn(&mut Value) -> Result<(), Failure>,
) -> Result<Object> {
    for tried in 1.. {
        let (document, version) = manifest_with(cluster, object, &change).await?;
        let request = Apply { documents: vec![document], create_only: false, dry_run: false };
        match cluster.apply(&request, Some(&version)).await {
            Ok(applied) => {
                applied.changes.iter().try_for_each(|change| print(&apply::summary(change)))?;
                return cluster.object(object).await.with_context(|| format!("read `{object}`"));
            }
            Err(error) if error.status() == Some(412) && tried < TRIES_MAX => {}
            Err(error) => return Err(error).with_context(|| format!("change `{object}`")),
        }
    }
    Err(Failure::new(Code::Conflict, format!("others change {object} all the time")).into())
}
