//! `lightbyte create`, `attach`, `detach`, `grow`, `move`: volumes and snapshots.

use anyhow::{Context as _, Result};
use lightbyte_api::kinds::vm::ROOT_DISK;
use lightbyte_api::object::{Object, ObjectRef};
use lightbyte_api::wire::Apply;
use lightbyte_api::{ByteSize, Kind};
use serde_json::{Map, Value, json};

use crate::arguments::disks::{Attach, Create, Detach, Filesystem, Grow, Growth, Move};
use crate::arguments::{Goal, Patience};
use crate::change::change_spec;
use crate::cluster::Cluster;
use crate::failure::{Code, Failure};
use crate::target::{self, Target};
use crate::terminal::{print, say};
use crate::verbs::apply;
use crate::waiting::{self, Wish};

pub(crate) async fn create(cluster: &Cluster, words: &Create) -> Result<Code> {
    let Target::Object(object) = target::read_single(&words.target)? else {
        let failure = Failure::usage("a new object needs its kind");
        return Err(failure.hint("name it as `volume/NAME` or `snapshot/NAME`").into());
    };
    let document = manifest(&object, words)?;
    if let Some(from) = &words.from {
        // A manifest may come before what it names. Who says it in a command has mistaken the name.
        let from = cluster.resolve(target::read_single(std::slice::from_ref(from))?).await?;
        cluster.object(&from).await.with_context(|| format!("create `{object}`"))?;
    }
    let request = Apply { documents: vec![document], create_only: true, dry_run: false };
    let applied = cluster.apply(&request, None).await.with_context(|| format!("create `{object}`"))?;
    applied.changes.iter().try_for_each(|change| print(&apply::summary(change)))?;
    let Some(changed) = applied.changes.first().filter(|_| !words.patience.no_wait) else {
        return Ok(Code::Done);
    };
    let made = waiting::until(cluster, &Wish::after(changed, Goal::Ready), words.patience.timeout).await?;
    if made.is_some_and(|made| made.status.state == "unused") {
        say(&format!("{object} is made beside the first VM that it is attached to"));
    }
    Ok(Code::Done)
}

/// Only what was said: the server fills in the defaults, and reports what is wrong.
fn manifest(object: &ObjectRef, words: &Create) -> Result<Value, Failure> {
    let from = words.from.as_deref().map(str::parse::<ObjectRef>);
    let from = from.transpose().map_err(|error| Failure::usage(format!("--from: {error}")))?;
    let mut spec = Map::new();
    let mut set = |field: &str, value: Option<Value>| {
        if let Some(value) = value {
            spec.insert(field.to_owned(), value);
        }
    };
    match (object.kind, from) {
        (Kind::Volume, None) => {}
        (Kind::Volume, Some(from)) if matches!(from.kind, Kind::Image | Kind::Snapshot) => {
            set(from.kind.word(), Some(json!(from.name)));
        }
        (Kind::Snapshot, Some(from)) if from.kind == Kind::Volume => set("volume", Some(json!(from.name))),
        (Kind::Volume, Some(from)) => {
            let hint = "a volume is made from a snapshot or an image; `lightbyte create snapshot/NAME --from volume/…` first";
            return Err(Failure::usage(format!("a volume cannot be made from {from}")).hint(hint));
        }
        (Kind::Snapshot, _) => {
            return Err(Failure::usage("a snapshot is of a volume").hint("add `--from volume/NAME`"));
        }
        (kind, _) => {
            let message = format!("`create` makes volumes and snapshots, not a {kind}");
            return Err(Failure::usage(message).hint("write a manifest, and `lightbyte apply -f` it"));
        }
    }
    set("size", words.size.map(|size| json!(size)));
    set("worker", words.worker.as_ref().map(|worker| json!(worker)));
    set(
        "filesystem",
        words.filesystem.map(|filesystem| match filesystem {
            Filesystem::Ext4 => json!("ext4"),
            Filesystem::None => json!("none"),
        }),
    );
    set("protected", words.protected.then_some(Value::Bool(true)));
    Ok(json!({"kind": object.kind, "name": object.name, "spec": spec}))
}

pub(crate) async fn attach(cluster: &Cluster, words: &Attach) -> Result<Code> {
    let volume = one(cluster, &words.volume, Kind::Volume).await?;
    let vm = one(cluster, &words.vm, Kind::Vm).await?;
    let mut disk = json!({"volume": volume.name, "read_only": words.read_only});
    if let (Some(mount), Value::Object(disk)) = (&words.mount, &mut disk) {
        disk.insert("mount".to_owned(), json!(mount));
    }
    let change = |spec: &mut Value| {
        let disks = disks_of(spec)?;
        if disks.iter().any(|disk| disk["volume"] == json!(volume.name)) {
            return Err(Failure::new(Code::Conflict, format!("{vm} has {volume} already")));
        }
        disks.push(disk.clone());
        Ok(())
    };
    change_machine(cluster, &vm, change, words.restart, words.patience).await
}

pub(crate) async fn detach(cluster: &Cluster, words: &Detach) -> Result<Code> {
    let volume = one(cluster, &words.volume, Kind::Volume).await?;
    let vm = one(cluster, &words.vm, Kind::Vm).await?;
    let change = |spec: &mut Value| {
        let disks = disks_of(spec)?;
        let before = disks.len();
        disks.retain(|disk| disk["volume"] != json!(volume.name));
        if disks.len() == before {
            return Err(Failure::new(Code::Error, format!("{vm} does not have {volume}")));
        }
        Ok(())
    };
    change_machine(cluster, &vm, change, words.restart, words.patience).await
}

/// Something that may be moved to another worker.
///
/// # Errors
/// When it is of another kind.
pub(crate) async fn read_movable(cluster: &Cluster, word: &str) -> Result<ObjectRef> {
    let object = cluster.resolve(target::read_single(&[word.to_owned()])?).await?;
    match object.kind {
        Kind::Volume | Kind::Snapshot => Ok(object),
        kind => {
            let failure = Failure::usage(format!("a {kind} does not move"));
            Err(failure.hint("name a volume or a snapshot").into())
        }
    }
}

pub(crate) async fn r#move(cluster: &Cluster, words: &Move) -> Result<Code> {
    let object = read_movable(cluster, &words.target).await?;
    let change = |spec: &mut Value| {
        spec["worker"] = json!(words.worker);
        Ok(())
    };
    let changed = change_spec(cluster, &object, change).await?;
    if !words.patience.no_wait {
        waiting::until(cluster, &Wish::of(&changed, Goal::Ready), words.patience.timeout).await?;
    }
    Ok(Code::Done)
}

pub(crate) async fn grow(cluster: &Cluster, words: &Grow) -> Result<Code> {
    let object = cluster.resolve(target::read_single(std::slice::from_ref(&words.target))?).await?;
    let size_of = |size: Option<&Value>| -> Result<ByteSize, Failure> {
        let known = size.and_then(|size| serde_json::from_value::<ByteSize>(size.clone()).ok());
        match (words.size, known) {
            (Growth::To(size), _) => Ok(size),
            (Growth::By(more), Some(size)) => {
                Ok(ByteSize::from_bytes(size.bytes().saturating_add(more.bytes())))
            }
            (Growth::By(_), None) => {
                let failure = Failure::usage(format!("how large {object} is, is not written in it"));
                Err(failure.hint("name the new size instead of how much more"))
            }
        }
    };
    let change = |spec: &mut Value| {
        let holder = match object.kind {
            Kind::Vm => {
                disks_of(spec)?.first_mut().ok_or_else(|| Failure::new(Code::Error, "it has no disk"))?
            }
            _ => spec,
        };
        holder["size"] = json!(size_of(holder.get("size"))?);
        Ok(())
    };
    if !matches!(object.kind, Kind::Vm | Kind::Volume) {
        let failure = Failure::usage(format!("a {} does not grow", object.kind));
        return Err(failure.hint("name a volume, or a VM whose root disk is to grow").into());
    }
    let changed = change_spec(cluster, &object, change).await?;
    if words.patience.no_wait {
        return Ok(Code::Done);
    }
    waiting::until(cluster, &Wish::of(&changed, goal_of(&changed)), words.patience.timeout).await?;
    if let (Kind::Vm, Ok(name)) = (object.kind, object.name.child(ROOT_DISK)) {
        // The root disk is a volume of its own, which was changed before the VM counts as it was asked.
        let root = cluster.object(&ObjectRef::new(Kind::Volume, name)).await?;
        waiting::until(cluster, &Wish::of(&root, Goal::Ready), words.patience.timeout).await?;
    }
    Ok(Code::Done)
}

/// What counts as done for an object that is as it was asked to be.
fn goal_of(object: &Object) -> Goal {
    if object.spec["running"] == json!(false) { Goal::Stopped } else { Goal::Ready }
}

fn disks_of(spec: &mut Value) -> Result<&mut Vec<Value>, Failure> {
    let disks = spec.get_mut("disks").and_then(Value::as_array_mut);
    disks.ok_or_else(|| Failure::new(Code::Error, "the server shows no disks of the VM"))
}

async fn one(cluster: &Cluster, word: &str, kind: Kind) -> Result<ObjectRef> {
    let word = if word.contains('/') { word.to_owned() } else { format!("{kind}/{word}") };
    let object = cluster.resolve(target::read_single(std::slice::from_ref(&word))?).await?;
    if object.kind == kind {
        return Ok(object);
    }
    Err(Failure::usage(format!("{object} is not a {kind}")).into())
}

/// Changes what a VM's machine is made of, which it is from its next start on.
async fn change_machine(
    cluster: &Cluster,
    vm: &ObjectRef,
    change: impl Fn(&mut Value) -> Result<(), Failure>,
    restart: bool,
    patience: Patience,
) -> Result<Code> {
    let changed = change_spec(cluster, vm, change).await?;
    if restart && changed.spec["running"] != json!(false) {
        let restarted = cluster.act(vm, "restart").await.with_context(|| format!("restart `{vm}`"))?;
        if !patience.no_wait {
            waiting::until(cluster, &Wish::after(&restarted, Goal::Ready), patience.timeout).await?;
        }
        return Ok(Code::Done);
    }
    if !patience.no_wait {
        // The planner may have to say that it cannot be.
        let wish = Wish::of(&changed, goal_of(&changed));
        let settled = waiting::until(cluster, &wish, patience.timeout).await?;
        if settled.is_some_and(|vm| vm.status.more.get("restart_to_apply") == Some(&Value::Bool(true))) {
            say(&format!("it takes effect when {vm} starts next: `lightbyte restart {vm}`"));
        }
    }
    Ok(Code::Done)
}
