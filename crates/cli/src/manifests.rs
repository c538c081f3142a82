//! Manifests in files: YAML or JSON, one or many, from directories and standard input.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lightbyte_api::manifest::DOCUMENTS_MAX;
use lightbyte_api::reader::Problem;
use lightbyte_api::{Manifest, ObjectRef};
use serde_json::Value;

use crate::failure::{Code, Failure};
use crate::yaml;

/// A document and where it came from.
#[derive(Debug)]
pub(crate) struct Document {
    /// Such as `vm.yaml`, or `vms.yaml, document 2`.
    pub(crate) place: String,
    pub(crate) value: Value,
}

/// What servers add to an object, which `apply` takes back without complaint.
const ADDED_BY_SERVERS: [&str; 4] = ["uid", "generation", "owner", "status"];

/// Every document of all files, in their order; those of a directory in the order of names.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for path in paths {
        for (name, text) in texts(path)? {
            documents.extend(documents_of(&name, &text)?);
        }
    }
    if documents.is_empty() {
        return Err(Failure::new(Code::Error, "there is no manifest in these files").into());
    }
    if documents.len() > DOCUMENTS_MAX {
        let message = format!("there are {} manifests, at most {DOCUMENTS_MAX} go together", documents.len());
        return Err(Failure::new(Code::Error, message).hint("apply them in parts").into());
    }
    Ok(documents)
}

fn texts(path: &Path) -> Result<Vec<(String, String)>> {
    if path == Path::new("-") {
        return Ok(vec![("standard input".to_owned(), read_text(io::stdin().lock())?)]);
    }
    let name = path.display().to_string();
    let what = || format!("read `{name}`");
    if !fs::metadata(path).with_context(what)?.is_dir() {
        let text = read_text(fs::File::open(path).with_context(what)?).with_context(what)?;
        return Ok(vec![(name, text)]);
    }
    let mut files: Vec<PathBuf> = fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .with_context(what)?;
    files.retain(|file| is_manifest(file));
    files.sort();
    let texts = files.iter().map(|file| texts(file)).collect::<Result<Vec<_>>>()?;
    Ok(texts.into_iter().flatten().collect())
}

fn is_manifest(file: &Path) -> bool {
    let is_one =
        |extension: &std::ffi::OsStr| ["yaml", "yml", "json"].iter().any(|known| extension == *known);
    file.extension().is_some_and(is_one) && file.is_file()
}

fn read_text(source: impl io::Read) -> Result<String> {
    let mut text = String::new();
    source.take(yaml::TEXT_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > yaml::TEXT_BYTES_MAX {
        let message = format!("it has more than {} MiB", yaml::TEXT_BYTES_MAX >> 20);
        return Err(Failure::new(Code::Error, message).into());
    }
    Ok(text)
}

fn documents_of(name: &str, text: &str) -> Result<Vec<Document>> {
    let values = yaml::read_documents(text).with_context(|| format!("read `{name}`"))?;
    let values: Vec<Value> = values.into_iter().flat_map(items_of).map(asked_only).collect();
    let count = values.len();
    let place = |index: usize| match count {
        1 => name.to_owned(),
        _ => format!("{name}, document {}", index + 1),
    };
    Ok(values.into_iter().enumerate().map(|(index, value)| Document { place: place(index), value }).collect())
}

/// The objects of a list as `get -o json` prints it; anything else is itself.
fn items_of(value: Value) -> Vec<Value> {
    match value {
        Value::Object(mut fields)
            if fields.len() == 1 && fields.get("items").is_some_and(Value::is_array) =>
        {
            match fields.remove("items") {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            }
        }
        other => vec![other],
    }
}

/// What `get` printed, without what is not asked. A manifest that a person wrote has none of it and stays as it is.
fn asked_only(mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value
        && fields.contains_key("uid")
        && fields.contains_key("status")
    {
        for added in ADDED_BY_SERVERS {
            fields.shift_remove(added);
        }
    }
    value
}

/// The objects that the documents speak of; every problem of every document at once when one is not good.
pub(crate) fn check(documents: &[Document]) -> Result<Vec<ObjectRef>, Failure> {
    let mut objects = Vec::new();
    let mut problems = Vec::new();
    for document in documents {
        match Manifest::read(&document.value) {
            Ok(manifest) => objects.push(manifest.object()),
            Err(found) => problems.extend(found.iter().map(|problem| describe(document, problem))),
        }
    }
    if problems.is_empty() {
        return Ok(objects);
    }
    let count = problems.len();
    let what = if count == 1 { "a problem".to_owned() } else { format!("{count} problems") };
    Err(Failure::new(Code::Error, format!("the manifests have {what}; nothing was changed"))
        .details(problems)
        .hint("`lightbyte explain KIND` tells which fields there are"))
}

fn describe(document: &Document, problem: &Problem) -> String {
    format!("{}: {problem}", document.place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_get_prints_can_be_applied() {
        let check = |text: &str, expect: Value| {
            let documents = documents_of("a.yaml", text).unwrap();
            let found: Vec<Value> = documents.into_iter().map(|document| document.value).collect();
            assert_eq!(Value::Array(found), expect, "{text}");
        };
        let printed = json!({"kind": "vm", "name": "a", "uid": "u", "generation": 3, "labels": {}, "owner": null,
            "spec": {"image": "demo"}, "status": {"state": "running"}});
        let asked = json!({"kind": "vm", "name": "a", "labels": {}, "spec": {"image": "demo"}});
        check(&printed.to_string(), json!([asked]));
        check(&json!({"items": [printed, printed]}).to_string(), json!([asked, asked]));
        check("kind: vm\nuid: 3\n", json!([{"kind": "vm", "uid": 3}]));
    }

    #[test]
    fn problems_name_the_file_and_the_document() {
        let text = "kind: vm\nname: a\nspec: {image: demo}\n---\nkind: vn\nname: b\n---\nkind: vm\nname: c\n";
        let documents = documents_of("vms.yaml", text).unwrap();
        let failure = check(&documents).unwrap_err();
        assert_eq!(
            failure.details,
            [
                "vms.yaml, document 2: kind: `vn` is not a kind of object (did you mean `vm`?)",
                "vms.yaml, document 3: spec.image: is missing",
            ]
        );
        assert_eq!(check(&documents[..1]).unwrap()[0].to_string(), "vm/a");
    }

    /// The files that the guide shows must be good as they stand.
    #[test]
    fn every_example_is_a_good_manifest() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
        let documents = read(&[examples]).unwrap();
        let objects = check(&documents).unwrap_or_else(|failure| panic!("{failure}: {:#?}", failure.details));
        assert!(objects.len() > 10, "{objects:?}");
    }
}
