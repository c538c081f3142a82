//! The way into a guest: which worker has it, and where that worker listens.

use lightbyte_api::{Kind, Name, ObjectRef, VmId};

use crate::planner::vm;
use crate::request::Refusal;
use crate::view::View;

/// Where the guest of a VM is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The VM.
    pub vm: VmId,
    /// The worker that has it.
    pub worker: Name,
    /// `host:port`, where the worker's agent listens.
    pub address: String,
}

/// Every worker that is alive, with where it listens.
#[must_use]
pub fn all_ways(view: &View) -> Vec<(Name, String)> {
    let alive = view.objects_of(Kind::Worker).filter_map(|object| {
        let worker = view.worker_id(object).filter(|worker| view.alive(*worker).is_some())?;
        Some((object.name.clone(), view.observed_worker(worker)?.address.clone()))
    });
    alive.filter(|(_, address)| !address.is_empty()).collect()
}

/// The way into the guest of `object`. Whether it runs is the worker's to say: it knows best.
///
/// # Errors
/// [`Refusal`] when it is no VM, is not placed, or its worker is away.
pub fn way_to(view: &View, object: &ObjectRef) -> Result<Way, Refusal> {
    if object.kind != Kind::Vm {
        return Err(Refusal::NotForKind { object: object.clone(), verb: "entered" });
    }
    let asked = view.asked(object).ok_or_else(|| Refusal::NotFound { object: object.clone() })?;
    let placement =
        vm::placement(view, object).ok_or_else(|| Refusal::NotPlaced { object: object.clone() })?;
    let worker = placement.worker_name.clone();
    let away = || Refusal::WorkerAway { object: object.clone(), worker: worker.clone() };
    view.alive(placement.worker).ok_or_else(away)?;
    let address = view.observed_worker(placement.worker).ok_or_else(away)?.address.clone();
    Ok(Way { vm: VmId::new(asked.meta.uid), worker, address })
}
