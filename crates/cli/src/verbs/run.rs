//! `lightbyte run IMAGE`: a VM, waited for, and its address.

use std::hash::{BuildHasher as _, RandomState};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lightbyte_api::first_boot::FIRST_BOOT_BYTES_MAX;
use lightbyte_api::object::{Object, ObjectRef};
use lightbyte_api::wire::{Apply, Changed};
use lightbyte_api::{Kind, Name};
use serde_json::{Map, Value, json};

use crate::arguments::disks::RunVolume;
use crate::arguments::{Goal, Run};
use crate::cluster::Cluster;
use crate::failure::{Code, Failure};
use crate::terminal::{print, say};
use crate::waiting::{self, Wish};

/// How many names are made up before giving up: each is free with a chance of nearly 1.
const NAMES_TRIED_MAX: usize = 5;
/// An image of ours that is made only when somebody asks for it.
const MADE_ON_REQUEST: &str = "debian";

pub(crate) async fn run(cluster: &Cluster, words: &Run) -> Result<Code> {
    let image = ObjectRef::new(Kind::Image, words.image.clone());
    // Objects may name what is not there yet; a person who types a name that does not exist wants to know now.
    let found = cluster.object(&image).await;
    if words.image.as_str() == MADE_ON_REQUEST
        && found.as_ref().is_err_and(|error| error.status() == Some(404))
    {
        return Err(Failure::new(Code::NotFound, format!("the cluster has no image `{MADE_ON_REQUEST}`"))
            .hint(format!(
                "`cargo xtask images {MADE_ON_REQUEST}` makes it, and the next `lightbyte dev` has it; \
                 `lightbyte import image DIR` brings it into a cluster that runs"
            ))
            .into());
    }
    found.with_context(|| format!("look for `{image}`"))?;
    let first_boot = first_boot(words)?;
    let changed = create(cluster, words, &first_boot).await?;
    if words.patience.no_wait {
        print(&changed.object.to_string())?;
        return Ok(Code::Done);
    }
    let wish = Wish::after(&changed, Goal::Ready);
    let vm = waiting::until(cluster, &wish, words.patience.timeout).await?;
    let address = vm.as_ref().and_then(first_address);
    print(&address.unwrap_or_else(|| changed.object.to_string()))?;
    Ok(Code::Done)
}

async fn create(cluster: &Cluster, words: &Run, first_boot: &Value) -> Result<Changed> {
    for tried in 1.. {
        let name = words.name.as_ref().map_or_else(|| made_up_name(&words.image), Name::to_string);
        let apply =
            Apply { documents: documents(words, first_boot, &name), create_only: true, dry_run: false };
        match cluster.apply(&apply, None).await {
            Ok(applied) => {
                // The VM stands behind its volumes.
                let changed = applied.changes.into_iter().next_back();
                return changed.ok_or_else(|| Failure::new(Code::Error, "the server made nothing").into());
            }
            Err(error)
                if error.status() == Some(409)
                    && words.name.is_none()
                    && tried < NAMES_TRIED_MAX
                    && error.to_string().contains(&format!("vm/{name} ")) =>
            {
                say(&format!("the name `{name}` is taken; trying another"));
            }
            Err(error) => return Err(error).with_context(|| format!("create `vm/{name}`")),
        }
    }
    Err(Failure::new(Code::Conflict, "no free name was found").hint("choose one with `--name`").into())
}

/// The image's name and four characters that nobody else is likely to have.
fn made_up_name(image: &Name) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnopqrstuvwxyz2345678";
    // The standard library seeds each of these from the system's randomness.
    let mut bits = RandomState::new().hash_one(std::process::id());
    let mut name = format!("{image}-");
    for _ in 0..4 {
        name.push(char::from(LETTERS[(bits % 32) as usize]));
        bits /= 32;
    }
    name
}

/// Only what was said: the server fills in the defaults, and reports what is wrong.
fn manifest(words: &Run, first_boot: &Value, name: &str) -> Value {
    let mut spec = Map::new();
    spec.insert("image".to_owned(), json!(words.image));
    let fields = [
        ("cpus", words.cpus.map(Value::from)),
        ("memory", words.memory.map(|memory| json!(memory))),
        ("placement", placement(words)),
        ("disks", disks(words)),
        ("nics", nic(words)),
        ("first_boot", (!first_boot.is_null()).then(|| first_boot.clone())),
    ];
    for (field, value) in fields {
        if let Some(value) = value {
            spec.insert(field.to_owned(), value);
        }
    }
    let labels: Map<String, Value> =
        words.labels.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect();
    json!({"kind": "vm", "name": name, "labels": labels, "spec": spec})
}

/// What is done at the first boot, from the files that were named; null when there is nothing.
fn first_boot(words: &Run) -> Result<Value> {
    let read = |path: &PathBuf| read_text(path).with_context(|| format!("read `{}`", path.display()));
    let mut keys = Vec::new();
    for path in &words.ssh_keys {
        let text = read(path)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        keys.extend(lines.map(str::to_owned));
    }
    let script = words.script.as_ref().map(read).transpose()?;
    let mut first_boot = Map::new();
    if !keys.is_empty() {
        first_boot.insert("ssh_keys".to_owned(), json!(keys));
    }
    if let Some(script) = script {
        first_boot.insert("script".to_owned(), json!(script));
    }
    Ok(if first_boot.is_empty() { Value::Null } else { Value::Object(first_boot) })
}

/// A text of at most as many bytes as a first boot may have, so that a device is no end of it.
fn read_text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let most = FIRST_BOOT_BYTES_MAX as u64 + 1;
    std::fs::File::open(path)?.take(most).read_to_string(&mut text)?;
    Ok(text)
}

/// The volumes that are to be made, and the VM.
fn documents(words: &Run, first_boot: &Value, name: &str) -> Vec<Value> {
    let volume = |volume: &RunVolume| {
        let size = volume.size?;
        Some(json!({"kind": "volume", "name": volume.name, "spec": {"size": size}}))
    };
    words.volumes.iter().filter_map(volume).chain([manifest(words, first_boot, name)]).collect()
}

fn disks(words: &Run) -> Option<Value> {
    if words.disk.is_none() && words.volumes.is_empty() {
        return None;
    }
    let root = match words.disk {
        Some(size) => json!({"name": "root", "size": size}),
        None => json!({"name": "root"}),
    };
    let volumes = words.volumes.iter().map(|volume| json!({"volume": volume.name, "mount": volume.mount}));
    Some(std::iter::once(root).chain(volumes).collect())
}

/// Which workers it may go to, if that was said.
fn placement(words: &Run) -> Option<Value> {
    let on = words.on.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str())));
    let on: Map<String, Value> = on.collect();
    (!on.is_empty()).then(|| json!({ "on": on }))
}

fn nic(words: &Run) -> Option<Value> {
    let mut nic = Map::new();
    if let Some(network) = &words.network {
        nic.insert("network".to_owned(), json!(network));
    }
    if let Some(address) = words.address {
        nic.insert("address".to_owned(), json!(address));
    }
    (!nic.is_empty()).then(|| json!([nic]))
}

/// The first address, without the length of its network's prefix: what `curl` takes.
fn first_address(vm: &Object) -> Option<String> {
    let first = vm.status.more.get("addresses")?.as_array()?.first()?.as_str()?;
    Some(first.split('/').next().unwrap_or(first).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    use crate::arguments::{Arguments, Verb};

    fn words(text: &str) -> Run {
        match Arguments::try_parse_from(format!("lightbyte run {text}").split(' ')).unwrap().verb {
            Verb::Run(words) => words,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_become_a_manifest_that_is_good() {
        let check = |text: &str, expect: Value| {
            let manifest = manifest(&words(text), &Value::Null, "a");
            assert_eq!(manifest["spec"], expect, "{text}");
            assert!(lightbyte_api::Manifest::read(&manifest).is_ok(), "{text}");
        };
        check("demo", json!({"image": "demo"}));
        check(
            "demo --cpus 2 --memory 256mib --disk 2GiB",
            json!({"image": "demo", "cpus": 2, "memory": "256MiB", "disks": [{"name": "root", "size": "2GiB"}]}),
        );
        check(
            "demo --network lan --address 10.0.0.9",
            json!({"image": "demo", "nics": [{"network": "lan", "address": "10.0.0.9"}]}),
        );
        check(
            "demo --volume data:1GiB --volume logs:/var/log",
            json!({"image": "demo", "disks": [
                {"name": "root"}, {"volume": "data", "mount": "/mnt/data"}, {"volume": "logs", "mount": "/var/log"},
            ]}),
        );
        let made = documents(&words("demo --volume data:1GiB --volume logs"), &Value::Null, "a");
        assert_eq!(made[0], json!({"kind": "volume", "name": "data", "spec": {"size": "1GiB"}}));
        assert_eq!(made.len(), 2);
        check(
            "demo --on n2 --on zone=a",
            json!({"image": "demo", "placement": {"on": {"worker": "n2", "zone": "a"}}}),
        );
        check("demo --address 10.0.0.9", json!({"image": "demo", "nics": [{"address": "10.0.0.9"}]}));
        assert_eq!(
            manifest(&words("demo --label a=b --label c=d"), &Value::Null, "a")["labels"],
            json!({"a": "b", "c": "d"})
        );
    }

    #[test]
    fn made_up_names_are_names_and_differ() {
        let image = Name::new("demo").unwrap();
        let names: std::collections::BTreeSet<String> = (0..20).map(|_| made_up_name(&image)).collect();
        assert!(names.len() > 15, "{names:?}");
        assert!(names.iter().all(|name| Name::new(name).is_ok() && name.len() == 9), "{names:?}");
    }
}
