//! `lightbyte cordon`, `uncordon`, `drain`, `undrain`: workers that are to be left alone, or emptied.

use anyhow::Result;
use lightbyte_api::object::Object;
use lightbyte_api::{Kind, ObjectRef, WaitingOn};
use serde_json::json;

use crate::arguments::{Drain, Goal, OneWorker};
use crate::change::change_spec;
use crate::cluster::Cluster;
use crate::failure::{Code, Failure};
use crate::target::{self, Target};
use crate::terminal::say;
use crate::waiting::{self, Wish};

/// What is asked of a worker at once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Maintenance {
    Cordon,
    Uncordon,
    Undrain,
}

pub(crate) async fn run(cluster: &Cluster, words: &OneWorker, what: Maintenance) -> Result<Code> {
    let worker = read_worker(cluster, &words.target).await?;
    let (field, value) = match what {
        Maintenance::Cordon => ("cordoned", true),
        Maintenance::Uncordon => ("cordoned", false),
        Maintenance::Undrain => ("draining", false),
    };
    let changed = change_spec(cluster, &worker, |spec| {
        spec[field] = json!(value);
        Ok(())
    });
    let changed = changed.await?;
    // The two are apart, and people who lift one may wonder at the other.
    let closed = [("cordoned", "uncordon"), ("draining", "undrain")];
    for (field, verb) in closed.into_iter().filter(|(other, _)| !value && *other != field) {
        if changed.spec[field] == json!(true) {
            say(&format!("{worker} is still {field}: `lightbyte {verb} {worker}` ends that"));
        }
    }
    Ok(Code::Done)
}

pub(crate) async fn drain(cluster: &Cluster, words: &Drain) -> Result<Code> {
    let worker = read_worker(cluster, &words.target).await?;
    let changed = change_spec(cluster, &worker, |spec| {
        spec["draining"] = json!(true);
        Ok(())
    });
    let changed = changed.await?;
    if words.no_wait {
        return Ok(Code::Done);
    }
    waiting::until(cluster, &Wish::of(&changed, Goal::Ready), words.timeout).await?;
    Ok(Code::Done)
}

/// Why a drain does not come to its end by itself, once nothing moves any more.
pub(crate) fn blocked(worker: &ObjectRef, now: &Object) -> Option<Failure> {
    let waiting_on = &now.status.waiting_on;
    let staying = waiting_on.iter().filter_map(|waiting| match &waiting.on {
        WaitingOn::Staying { object } => Some(object.to_string()),
        _ => None,
    });
    let staying: Vec<String> = staying.collect();
    if now.kind != Kind::Worker || staying.is_empty() || staying.len() < waiting_on.len() {
        return None;
    }
    let hint = format!(
        "move or delete them, or `lightbyte undrain {worker}`; it stays closed to new VMs until then"
    );
    let failure = Failure::new(
        Code::Differs,
        format!("`{worker}` is not empty: some things do not leave by themselves"),
    );
    Some(failure.details(staying).hint(hint))
}

pub(crate) async fn read_worker(cluster: &Cluster, words: &[String]) -> Result<ObjectRef> {
    let worker = match target::read_single(words)? {
        Target::Named(name) => ObjectRef::new(Kind::Worker, name),
        target => cluster.resolve(target).await?,
    };
    if worker.kind == Kind::Worker {
        return Ok(worker);
    }
    Err(Failure::usage(format!("{worker} is not a worker")).hint("`lightbyte get workers` lists them").into())
}
