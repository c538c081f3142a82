//! `lightbyte explain`: which kinds there are, and what their fields mean. It needs no cluster.

use anyhow::Result;
use lightbyte_api::{Kind, Manifest};
use serde_json::{Value, json};

use crate::arguments::Explain;
use crate::failure::{Code, Failure};
use crate::table;
use crate::target::read_kind;
use crate::terminal::print;

/// What a field means. Fields of list items stand under `[]`.
type Field = (&'static str, &'static str);

const VM: &[Field] = &[
    ("image", "the image that its root disk is cloned from; fixed for life"),
    ("cpus", "virtual CPUs, 1 to 32; fixed for life"),
    ("memory", "memory of the guest, 64MiB to 1TiB; fixed for life"),
    ("running", "whether it should run; stopped, it keeps its worker, disks and addresses"),
    ("on_worker_loss", "what happens when its worker is lost: wait"),
    ("disks", "its disks; today the root disk alone; fixed for life"),
    ("disks[].name", "its name within the VM; the first must be root"),
    ("disks[].size", "its size, at most 64TiB; as large as the image's when left out"),
    ("nics", "its network cards, at most 4; fixed for life"),
    ("nics[].network", "the network that it is on"),
    ("nics[].address", "the address it must have; the next free one when left out"),
];

const NETWORK: &[Field] = &[
    ("subnet", "the IPv4 subnet of the bridge; fixed for life"),
    ("gateway", "where guests send what is not in the subnet; nowhere when left out"),
    ("dns", "the name servers that guests are told, at most 3"),
    ("pool_first", "the first address that VMs may get; the subnet's second when left out"),
    ("pool_last", "the last address that VMs may get; the one before broadcast when left out"),
    ("bridge", "the Linux bridge that every worker has, at most 15 characters"),
];

const IMAGE: &[Field] = &[
    ("current", "the version that new VMs get; one of versions"),
    ("versions", "all registered versions, at most 32; `lightbyte import image` writes them"),
    ("versions[].version", "its name"),
    ("versions[].architecture", "as `uname -m` prints it"),
    ("versions[].kernel", "an uncompressed ELF kernel: {sha256, size}"),
    ("versions[].initrd", "an initial RAM file system, if it needs one: {sha256, size}"),
    ("versions[].command_line", "what the kernel is started with, at most 2048 bytes"),
    ("versions[].root", "the root file system: {sha256, size}"),
];

const WORKER: &[Field] =
    &[("cordoned", "no new VM is placed on it while this is true; those that run go on")];

const VOLUME: &[Field] = &[
    ("image", "the image that it is cloned from"),
    ("image_version", "the version of the image; fixed for life"),
    ("size", "its size, at most 64TiB"),
];

/// The fields of a kind, and the shortest specification that is complete: its defaults come from the API's own
/// reader. A kind without a line here is still listed.
fn fields(kind: Kind) -> (&'static [Field], Value) {
    match kind {
        Kind::Vm => (VM, json!({"image": "demo"})),
        Kind::Network => (NETWORK, json!({"subnet": "10.0.0.0/24"})),
        Kind::Worker => (WORKER, json!({})),
        Kind::Image => (IMAGE, Value::Null),
        Kind::Volume => (VOLUME, Value::Null),
    }
}

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
    let (fields, shortest) = fields(kind);
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
    let rows: Vec<Vec<String>> = fields
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
            let (fields, shortest) = fields(*kind);
            let Value::Object(defaults) = defaults(*kind, &shortest) else {
                assert!(shortest.is_null(), "the shortest {kind} is not complete");
                continue;
            };
            for field in defaults.keys() {
                assert!(fields.iter().any(|(path, _)| path == field), "{kind}.{field}");
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
            for (field, _) in fields(*kind).0 {
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
            "FIELD        DEFAULT  MEANING\nspec.memory  128MiB   memory of the guest, 64MiB to 1TiB; fixed for life\n",
        );
        check(Kind::Vm, Some("memroy"), "vm has no field `memroy`");
    }
}
