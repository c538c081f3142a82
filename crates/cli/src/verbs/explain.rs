//! `lightbyte explain`: which kinds there are, and what their fields mean. It needs no cluster.

use anyhow::Result;
use lightbyte_api::{Kind, Manifest};
use serde_json::{Value, json};

use crate::arguments::Explain;
use crate::failure::{Code, Failure};
use crate::table;
use crate::target::read_kind;
use crate::terminal::print;

pub(crate) fn run(words: &Explain) -> Result<Code> {
    let text = match &words.path {
        None => kinds(),
        Some(path) => {
            let (word, field) =
                path.split_once('.').map_or((path.as_str(), None), |(kind, rest)| (kind, Some(rest)));
            explain(read_kind(word)?, field)?
        }
    };
    print(&text)?;
    Ok(Code::Done)
}

fn kinds() -> String {
    let head = ["KIND", "SHORT", "WHAT IT IS"].map(str::to_owned).to_vec();
    let row = |kind: &Kind| [kind.word(), kind.short(), kind.about()].map(str::to_owned).to_vec();
    table::lay_out(&std::iter::once(head).chain(Kind::ALL.iter().map(row)).collect::<Vec<_>>())
}

fn explain(kind: Kind, below: Option<&str>) -> Result<String, Failure> {
    let shortest = kind.shortest().unwrap_or_default();
    let below =
        below.map(|field| field.strip_prefix("spec.").unwrap_or(field)).filter(|field| *field != "spec");
    let is_shown = |path: &str| match below {
        None => true,
        Some(below) => {
            let path = path.replace("[]", "");
            path == below || path.strip_prefix(below).is_some_and(|rest| rest.starts_with('.'))
        }
    };
    let defaults = defaults(kind, &shortest);
    let head = ["FIELD", "DEFAULT", "MEANING"].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = kind
        .fields()
        .iter()
        .filter(|(path, _)| is_shown(path))
        .map(|(path, meaning)| {
            vec![format!("spec.{path}"), default_of(&defaults, &shortest, path), (*meaning).to_owned()]
        })
        .collect();
    if rows.is_empty() && below.is_some() {
        let message = format!("{kind} has no field `{}`", below.unwrap_or_default());
        return Err(Failure::usage(message).hint(format!("`lightbyte explain {kind}` lists its fields")));
    }
    let about = format!("{kind}: {}\n\n", kind.about());
    Ok(about + &table::lay_out(&std::iter::once(head).chain(rows).collect::<Vec<_>>()))
}

fn defaults(kind: Kind, shortest: &Value) -> Value {
    let manifest = json!({"kind": kind, "name": "a", "spec": shortest});
    Manifest::read(&manifest).ok().and_then(|manifest| manifest.spec.to_json().ok()).unwrap_or_default()
}

fn default_of(defaults: &Value, shortest: &Value, path: &str) -> String {
    let pointer = format!("/{}", path.replace("[]", "/0").replace('.', "/"));
    match (defaults.pointer(&pointer), shortest.pointer(&pointer)) {
        (Some(Value::Null) | None, _) | (_, Some(_)) => table::NOTHING.to_owned(),
        (Some(value), None) => table::plain(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_specification_has_its_meaning() {
        for kind in Kind::ALL {
            let Some(shortest) = kind.shortest() else { continue };
            let Value::Object(defaults) = defaults(*kind, &shortest) else {
                panic!("the shortest {kind} is not complete");
            };
            for field in defaults.keys() {
                assert!(kind.fields().iter().any(|(path, _)| path == field), "{kind}.{field}");
            }
        }
    }

    #[test]
    fn the_guide_names_every_field() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/manifests.md");
        let guide = std::fs::read_to_string(path).unwrap();
        for kind in Kind::ALL {
            let (_, section) =
                guide.split_once(&format!("\n## {kind}\n")).unwrap_or_else(|| panic!("{kind}"));
            let section = section.split("\n## ").next().unwrap_or_default();
            for (field, _) in kind.fields() {
                assert!(
                    section.contains(&format!("| `{field}` |")),
                    "docs/guide/manifests.md: {kind}.{field}"
                );
            }
        }
    }

    #[test]
    fn defaults_come_from_the_reader() {
        let check = |kind: Kind, below: Option<&str>, expect: &str| {
            let text = explain(kind, below).unwrap_or_else(|failure| failure.to_string());
            let text = text.split_once("\n\n").map_or(text.as_str(), |(_, table)| table);
            assert_eq!(text, expect);
        };
        check(
            Kind::Vm,
            Some("nics"),
            "FIELD                DEFAULT                  MEANING\n\
             spec.nics            [{\"network\":\"default\"}]  its network cards, at most 4; fixed for life\n\
             spec.nics[].network  default                  the network that it is on\n\
             spec.nics[].address  -                        the address it must have; the next free one when left out\n",
        );
        check(
            Kind::Vm,
            Some("spec.memory"),
            "FIELD        DEFAULT  MEANING\nspec.memory  128MiB   memory of the guest, 64MiB to 1TiB; a change takes effect when the VM starts next\n",
        );
        check(Kind::Vm, Some("memroy"), "vm has no field `memroy`");
    }
}
