//! `lightbyte import certificate`: a chain and its key, from files to a secret.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use lightbyte_api::kinds::secret::CHAIN_BYTES_MAX;
use lightbyte_api::wire::Apply;
use lightbyte_api::{Kind, ObjectRef};
use serde_json::json;

use crate::arguments::ImportCertificate;
use crate::cluster::{Cluster, manifest_of};
use crate::failure::Code;
use crate::terminal::print;
use crate::verbs::apply;

pub(crate) async fn run(cluster: &Cluster, words: &ImportCertificate) -> Result<Code> {
    let spec = json!({ "chain": text(&words.chain)?, "key": text(&words.key)? });
    let object = ObjectRef::new(Kind::Secret, words.name.clone());
    let labels = match cluster.object_with_version(&object).await {
        Ok((found, _)) => manifest_of(&found).get("labels").cloned(),
        Err(error) if error.status() == Some(404) => None,
        Err(error) => return Err(error).with_context(|| format!("read `{object}`")),
    };
    let mut document = json!({ "kind": "secret", "name": words.name, "spec": spec });
    if let (Some(labels), Some(fields)) = (labels, document.as_object_mut()) {
        fields.insert("labels".to_owned(), labels);
    }
    let request = Apply { documents: vec![document], create_only: false, dry_run: false };
    let applied = cluster.apply(&request, None).await.with_context(|| format!("import {object}"))?;
    print(&applied.changes.iter().map(|changed| apply::summary(changed) + "\n").collect::<String>())?;
    Ok(Code::Done)
}

/// A file that is not too large to be what it should be.
fn text(path: &Path) -> Result<String> {
    let shown = path.display();
    let mut text = String::new();
    let file = File::open(path).with_context(|| format!("open `{shown}`"))?;
    let limit = u64::try_from(CHAIN_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_string(&mut text).with_context(|| format!("read `{shown}`"))?;
    Ok(text)
}
