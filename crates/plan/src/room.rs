//! Whether there is room: when a worker is lost (N-1), and what would make some for a VM that waits.
//!
//! Both try it out: the shipped placing on forks of the view, where something is otherwise than it is.

use std::collections::BTreeMap;
use std::iter::once_with;

use lightbyte_api::kinds::vm::Placement;
use lightbyte_api::kinds::worker;
use lightbyte_api::object::Asked;
use lightbyte_api::records::{Alive, WorkerLedger};
use lightbyte_api::wire::Loss;
use lightbyte_api::{ByteSize, Key, Kind, Name, ObjectRef, Spec, Uid, WorkerId};

use crate::planner::{scalegroup, vm};
use crate::scheduler;
use crate::transaction::Write;
use crate::view::View;

/// How many VMs are tried out for one answer on losses.
pub const LOSS_TRIALS_MAX: usize = 2_000;
/// How many ways to make room are told.
pub const REMEDIES_MAX: usize = 4;
/// How many workers are tried out of those that are closed, that are away, and that lack some room.
const WORKERS_TRIED_MAX: usize = 16;
/// How many VMs are looked at whose going would make room.
const LEAVING_TRIED_MAX: usize = 100;

/// What the loss of workers would do to groups.
#[derive(Clone, Debug, Default)]
pub struct Losses {
    /// One for each worker that has VMs, in order of name.
    pub tried: Vec<Loss>,
    /// How many workers were left out: more than [`LOSS_TRIALS_MAX`] VMs would have been tried out.
    pub untried: u64,
}

/// What the loss of each worker that is alive would do to groups.
#[must_use]
pub fn losses(view: &View) -> Losses {
    let mut losses = Losses::default();
    let mut left = LOSS_TRIALS_MAX;
    for object in view.objects_of(Kind::Worker) {
        let worker = view.worker_id(object).filter(|worker| view.alive(*worker).is_some());
        let Some(worker) = worker else { continue };
        match loss(view, object, worker, &mut left) {
            Some(loss) if loss.members + loss.alone > 0 => losses.tried.push(loss),
            Some(_) => {}
            None => losses.untried += 1,
        }
    }
    losses
}

/// The loss that would leave more members without a place than it would have `before`; the worst of them, if there is one.
#[must_use]
pub fn worsened(before: &Losses, after: &Losses) -> Option<Loss> {
    let known = |worker: &Name| {
        before.tried.iter().find(|loss| loss.worker == *worker).map_or(0, |loss| loss.homeless)
    };
    let worse = after.tried.iter().filter(|loss| loss.homeless > known(&loss.worker));
    worse.max_by_key(|loss| loss.homeless).cloned()
}

/// Nothing when more VMs would be tried out than are `left`.
fn loss(view: &View, object: &ObjectRef, worker: WorkerId, left: &mut usize) -> Option<Loss> {
    let vms = view.assigned_to(worker).filter(|on_host| on_host.kind == Kind::Vm);
    let vms = vms.filter_map(|on_host| view.living(view.object_of(on_host.uid)?));
    let (mut members, alone): (Vec<_>, Vec<_>) = vms.partition(|asked| scalegroup::is_made_again(asked));
    // A group that has more than it is to have, because they are protected, misses these many less.
    let mut spare = BTreeMap::new();
    members.retain(|member| {
        let Some(group) = member.meta.group() else { return false };
        let left = spare.entry(group.uid).or_insert_with(|| scalegroup::more_than_asked(view, &group.object));
        let is_missed = *left == 0;
        *left = left.saturating_sub(1);
        is_missed
    });
    *left = left.checked_sub(members.len())?;
    let mut fork = view.fork([Write::Delete(Key::Alive(worker))]);
    let mut homeless = 0;
    let mut because = None;
    for (member, number) in members.iter().zip(0..) {
        let trial = unused(view, number);
        match vm::try_another(&fork, member, &trial, trial_uid(number)) {
            Ok((_, writes)) => fork.write(writes, crate::view::PENDING),
            Err(waits) => {
                homeless += 1;
                because.get_or_insert_with(|| waits.to_string());
            }
        }
    }
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    Some(Loss {
        worker: object.name.clone(),
        members: count(members.len()),
        homeless,
        because,
        alone: count(alone.len()),
    })
}

/// A name that nobody has.
fn unused(view: &View, number: u64) -> ObjectRef {
    let of = |text: String| Name::new(&text).unwrap_or_else(|_| unreachable!("a short name"));
    let names = (0_u64..).map(|again| ObjectRef::new(Kind::Vm, of(format!("trial-{number}-{again}"))));
    let is_unused = |object: &ObjectRef| !view.contains(&Key::Asked(object.clone()));
    names.into_iter().find(is_unused).unwrap_or_else(|| unreachable!("there are more numbers than objects"))
}

/// Uids of trials: no uid of version 7 (RFC 9562) is that small.
const fn trial_uid(number: u64) -> Uid {
    Uid::from_bits((number as u128 + 1) << 32)
}

// ---------------------------------------------------------------------------------------------------------- remedies

/// What would give a place to a VM that has none, the least first; each was tried out on a fork. `on`: there alone.
#[must_use]
pub fn remedies(view: &View, object: &ObjectRef, on: Option<&Name>) -> Vec<String> {
    let Some(asked) = view.living(object).filter(|_| vm::placement(view, object).is_none()) else {
        return Vec::new();
    };
    let Spec::Vm(spec) = &asked.spec else { return Vec::new() };
    let Ok(need) = vm::need(view, &asked.meta, spec) else { return Vec::new() };
    let trial = Trial { view, asked, on };
    if trial.has_place(view) {
        return Vec::new();
    }
    let closed = trial.workers().filter_map(|object| Some((object, trial.closed(object)?)));
    let reopened = closed.take(WORKERS_TRIED_MAX).filter_map(|(object, asked)| trial.reopen(object, asked));
    let away = trial.workers().filter_map(|object| Some((object, trial.away(object)?)));
    let returned =
        away.take(WORKERS_TRIED_MAX).filter_map(|(object, worker)| trial.come_back(object, worker));
    // None is looked for that is not told.
    let freed = once_with(|| trial.free(need.cpus, need.memory)).flatten();
    let left = once_with(|| trial.let_one_go(need.cpus, need.memory)).flatten();
    let less = once_with(|| trial.ask_for_less(spec)).flatten();
    reopened.chain(returned).chain(freed).chain(left).chain(less).take(REMEDIES_MAX).collect()
}

/// A VM that waits, and the view that it waits in.
struct Trial<'a> {
    view: &'a View,
    asked: &'a Asked,
    /// The worker that is asked about, if one is.
    on: Option<&'a Name>,
}

impl Trial<'_> {
    fn workers(&self) -> impl Iterator<Item = &ObjectRef> {
        let is_meant = |object: &&ObjectRef| self.on.is_none_or(|on| object.name == *on);
        self.view.objects_of(Kind::Worker).filter(is_meant)
    }

    /// Whether the VM has a place in `fork`; on the worker that is asked about, whether that may take it.
    fn has_place(&self, fork: &View) -> bool {
        let Ok((worker, _)) = vm::try_another(fork, self.asked, &unused(self.view, 0), trial_uid(0)) else {
            return false;
        };
        let Some(on) = self.on.filter(|on| **on != worker) else { return true };
        let Spec::Vm(spec) = &self.asked.spec else { return false };
        let need = vm::need(fork, &self.asked.meta, spec);
        let verdict = need.ok().and_then(|need| scheduler::verdict_on(fork, &need, on));
        verdict.is_some_and(|verdict| verdict.score.is_some())
    }

    /// The same with one value otherwise.
    fn has_place_with(&self, write: Write) -> bool {
        self.has_place(&self.view.fork([write]))
    }

    /// What is asked of a worker on which nothing is placed by somebody's wish.
    fn closed(&self, object: &ObjectRef) -> Option<&Asked> {
        let asked = self.view.living(object)?;
        matches!(&asked.spec, Spec::Worker(spec) if !spec.is_open()).then_some(asked.as_ref())
    }

    fn reopen(&self, object: &ObjectRef, asked: &Asked) -> Option<String> {
        let Spec::Worker(spec) = &asked.spec else { return None };
        let verbs = [(spec.draining, "undrain"), (spec.cordoned, "uncordon")];
        let verbs =
            verbs.iter().filter(|(is_so, _)| *is_so).map(|(_, verb)| format!("`lightbyte {verb} {object}`"));
        let verbs: Vec<String> = verbs.collect();
        let open = worker::Spec { cordoned: false, draining: false, ..spec.clone() };
        let open = Asked { meta: asked.meta.clone(), spec: Spec::Worker(open) };
        self.has_place_with(Write::put(Key::Asked(object.clone()), open)).then(|| verbs.join(" and "))
    }

    /// The identity of a worker that is not alive.
    fn away(&self, object: &ObjectRef) -> Option<WorkerId> {
        self.view.worker_id(object).filter(|worker| self.view.alive(*worker).is_none())
    }

    fn come_back(&self, object: &ObjectRef, worker: WorkerId) -> Option<String> {
        let boot_id = self.view.observed_worker(worker)?.boot_id.clone();
        let alive = Alive { worker, boot_id, since: self.asked.meta.changed_at };
        let helps = self.has_place_with(Write::put(Key::Alive(worker), alive));
        helps.then(|| format!("start worker `{}` again", object.name))
    }

    /// The worker that lacks least, and what it lacks.
    fn free(&self, cpus: u64, memory: ByteSize) -> Option<String> {
        let lacking = self.workers().filter_map(|object| {
            let worker = self.view.worker_id(object)?;
            let (free_cpus, free_memory) = scheduler::free(self.view, worker)?;
            let lack = (cpus.saturating_sub(free_cpus), memory.bytes().saturating_sub(free_memory.bytes()));
            let ledger = self.view.worker_ledger(worker)?;
            let less = WorkerLedger {
                cpus: ledger.cpus.checked_sub(lack.0)?,
                memory: ByteSize::from_bytes(ledger.memory.bytes().checked_sub(lack.1)?),
                ..ledger.clone()
            };
            (lack != (0, 0)).then_some((lack, &object.name, Write::put(Key::WorkerLedger(worker), less)))
        });
        let mut lacking: Vec<_> = lacking.collect();
        lacking.sort_by_key(|(lack, worker, _)| (*lack, *worker));
        let mut tried = lacking.into_iter().take(WORKERS_TRIED_MAX);
        let ((cpus, bytes), worker, _) = tried.find(|(_, _, write)| self.has_place_with(write.clone()))?;
        let cpus = (cpus > 0).then(|| format!("{cpus} {}", if cpus == 1 { "CPU" } else { "CPUs" }));
        let memory = (bytes > 0).then(|| format!("{} of memory", ByteSize::from_bytes(bytes)));
        let lack: Vec<String> = cpus.into_iter().chain(memory).collect();
        Some(format!("free {} on worker `{worker}`", lack.join(" and ")))
    }

    /// The smallest VM whose going would do.
    fn let_one_go(&self, cpus: u64, memory: ByteSize) -> Option<String> {
        let would_do = |placement: &Placement| {
            let free = scheduler::free(self.view, placement.worker);
            free.is_some_and(|(free_cpus, free_memory)| {
                free_cpus + placement.cpus >= cpus
                    && free_memory.bytes() + placement.memory.bytes() >= memory.bytes()
            })
        };
        let vms = self.view.objects_of(Kind::Vm);
        let vms = vms.filter_map(|object| Some((object, vm::placement(self.view, object)?)));
        let mut vms: Vec<_> = vms.filter(|(_, placement)| would_do(placement)).collect();
        vms.sort_by_key(|(object, placement)| (placement.memory, placement.cpus, *object));
        let (object, placement) = vms.into_iter().take(LEAVING_TRIED_MAX).find(|(_, placement)| {
            let ledger = vm::freed(self.view, placement);
            ledger.is_some_and(|ledger| {
                self.has_place_with(Write::put(Key::WorkerLedger(placement.worker), ledger))
            })
        })?;
        let worker = &placement.worker_name;
        Some(match self.view.group_of(object) {
            Some(group) => format!("scale {group} down until {object} is gone from worker `{worker}`"),
            None => format!("`lightbyte delete {object}`, which leaves its room on worker `{worker}`"),
        })
    }

    /// The largest VM of its kind that there is room for.
    fn ask_for_less(&self, spec: &lightbyte_api::kinds::vm::Spec) -> Option<String> {
        let open =
            self.workers().filter_map(|object| scheduler::free(self.view, self.view.worker_id(object)?));
        let rooms = open.filter(|(cpus, memory)| *cpus > 0 && memory.bytes() > 0);
        let mut rooms: Vec<_> =
            rooms.map(|(cpus, memory)| (memory.min(spec.memory), cpus.min(spec.cpus))).collect();
        rooms.sort_unstable_by(|one, other| other.cmp(one));
        rooms.dedup();
        // To ask for the same again is no remedy.
        rooms.retain(|room| *room != (spec.memory, spec.cpus));
        rooms.truncate(WORKERS_TRIED_MAX);
        let (memory, cpus) = rooms.into_iter().find(|(memory, cpus)| {
            let spec = lightbyte_api::kinds::vm::Spec { memory: *memory, cpus: *cpus, ..spec.clone() };
            let asked = Asked { meta: self.asked.meta.clone(), spec: Spec::Vm(spec) };
            Trial { view: self.view, asked: &asked, on: self.on }.has_place(self.view)
        })?;
        Some(format!("ask for {cpus} {} and {memory} at most", if cpus == 1 { "CPU" } else { "CPUs" }))
    }
}
