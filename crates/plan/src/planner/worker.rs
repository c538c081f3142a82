//! Workers: they register themselves, so nothing is chosen for them. It is decided when one that is away counts as lost, and what
//! hinders one that is drained. One that is to go waits until nothing is assigned to it and its agent has stopped.

use lightbyte_api::assigned::HostObject;
use lightbyte_api::kinds::worker::{Choice as WorkerChoice, Spec as WorkerSpec};
use lightbyte_api::object::Asked;
use lightbyte_api::{Choice, Key, Kind, ObjectRef, Span, Spec, WaitingOn, WorkerId};

use super::{Inputs, Plan, STALE_PAUSE, scalegroup, since};
use crate::transaction::Write;
use crate::view::View;

/// How long a worker must have been away to count as lost. Its lease has ended before, and its agent may be restarted
/// meanwhile.
pub const LOST_AFTER: Span = Span::from_secs(30);
/// The share of workers, in hundredths, that may be away at once for any to count as lost; one always may. More at once
/// look like a fault of what is between us and them.
pub const AWAY_PERCENT_MAX: usize = 30;
/// How many things that stay are named as what hinders a drain.
const STAYING_NAMED_MAX: usize = 8;

/// Plans a worker.
#[must_use]
pub fn plan(view: &View, object: &ObjectRef, inputs: &Inputs) -> Plan {
    let Some(asked) = view.asked(object) else { return Plan::rest() };
    let Spec::Worker(spec) = &asked.spec else { return Plan::rest() };
    let worker = WorkerId::new(asked.meta.uid);
    let mut plan = match asked.meta.deleting_since {
        Some(_) => tear_down(view, object, asked, worker),
        None => Plan { waiting_on: what_stays(view, spec, worker), ..Plan::rest() },
    };
    if !plan.ends {
        judge_absence(view, object, worker, inputs, &mut plan);
    }
    plan
}

/// Decides whether it counts as lost. One that nothing is assigned to is missed by nobody.
fn judge_absence(view: &View, object: &ObjectRef, worker: WorkerId, inputs: &Inputs, plan: &mut Plan) {
    let before = choice(view, object);
    let is_away = !view.contains(&Key::Alive(worker)) && view.assigned_to(worker).next().is_some();
    let after = match before.away_since.filter(|_| is_away) {
        None if !is_away => WorkerChoice::default(),
        _ if before.lost => before.clone(),
        // When the others come back it has as much time as they had: what kept them away may just have ended.
        _ if too_many_are_away(view) => {
            plan.waiting_on.push(WaitingOn::LossBrake);
            WorkerChoice::default()
        }
        None => WorkerChoice { away_since: Some(inputs.now), lost: false },
        Some(away_since) => {
            let left = LOST_AFTER.millis().saturating_sub(since(away_since, inputs.now).millis());
            let is_lost = left == 0 && inputs.view_is_fresh();
            plan.again = (!is_lost).then(|| Span::from_millis(left).max(STALE_PAUSE));
            WorkerChoice { away_since: Some(away_since), lost: is_lost }
        }
    };
    if after.away_since.is_some() && plan.again.is_none() && !after.lost {
        plan.again = Some(LOST_AFTER);
    }
    if after != before {
        plan.rests_on.push(Key::Alive(worker));
        plan.choice = Some(Choice::Worker(after));
    }
}

/// What was decided about a worker.
#[must_use]
pub fn choice(view: &View, worker: &ObjectRef) -> WorkerChoice {
    match view.decided(worker).map(|decided| &decided.choice) {
        Some(Choice::Worker(choice)) => choice.clone(),
        _ => WorkerChoice::default(),
    }
}

/// Whether so many workers are away at once that none of them is to be taken for lost. Those that nothing is placed on
/// by somebody's wish do not count.
fn too_many_are_away(view: &View) -> bool {
    let counted = view.objects_of(Kind::Worker).filter_map(|object| {
        let asked = view.living(object)?;
        matches!(&asked.spec, Spec::Worker(spec) if spec.is_open()).then(|| WorkerId::new(asked.meta.uid))
    });
    let (all, away) = counted.fold((0_usize, 0_usize), |(all, away), worker| {
        (all + 1, away + usize::from(view.alive(worker).is_none()))
    });
    away > (all * AWAY_PERCENT_MAX / 100).max(1)
}

/// What is still on a worker that is drained: the first that leaves, and what does not.
pub(crate) fn what_stays(view: &View, spec: &WorkerSpec, worker: WorkerId) -> Vec<WaitingOn> {
    if !spec.draining {
        return Vec::new();
    }
    let mut leaving = None;
    let mut staying = Vec::new();
    for on_host in view.assigned_to(worker) {
        let object = view.object_of(on_host.uid);
        let Some((object, asked)) = object.and_then(|object| Some((object, view.asked(object)?))) else {
            // What it is cannot be read; that it is there can.
            let key = Key::Assigned(worker, on_host).to_string();
            return vec![WaitingOn::Unreadable { key }];
        };
        let owner = asked.meta.owner.as_ref().map(|owner| owner.object.kind);
        let leaves = scalegroup::is_made_again(asked) || asked.meta.deleting_since.is_some();
        match (object.kind, owner) {
            (Kind::Vm, _) if leaves => leaving = leaving.or_else(|| Some(object.clone())),
            // A VM's own disk goes with it, and what is being deleted goes by itself.
            (Kind::Volume, Some(_)) => {}
            _ if leaves => leaving = leaving.or_else(|| Some(object.clone())),
            _ => staying.push(object.clone()),
        }
    }
    // By name, as people read it; assignments are in the order of uids.
    staying.sort();
    let staying = staying.into_iter().take(STAYING_NAMED_MAX).map(|object| WaitingOn::Staying { object });
    leaving.map(|vm| WaitingOn::Leaving { vm }).into_iter().chain(staying).collect()
}

fn tear_down(view: &View, object: &ObjectRef, asked: &Asked, worker: WorkerId) -> Plan {
    if let Some(host_object) = view.assigned_to(worker).next() {
        let user = view.object_of(host_object.uid).cloned();
        return Plan::wait(match user {
            Some(by) => WaitingOn::InUse { by },
            None => WaitingOn::Unreadable { key: Key::Assigned(worker, host_object).to_string() },
        });
    }
    if view.contains(&Key::Alive(worker)) {
        return Plan::wait(WaitingOn::WorkerAlive { worker: object.name.clone() });
    }
    // Placements guard what is asked of the worker, and so every one is in this view or fails.
    let itself = HostObject { kind: Kind::Worker, uid: asked.meta.uid };
    let writes = [Key::WorkerLedger(worker), Key::Observed(worker, itself)]
        .into_iter()
        .filter(|key| view.contains(key))
        .map(Write::Delete)
        .collect();
    Plan { writes, rests_on: vec![Key::Alive(worker)], ..Plan::end() }
}
