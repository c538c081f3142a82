//! Where a VM goes. Filters refuse (`refusals`), scores rank (`reasons`); each is a small function with a name that people see
//! as a reason. Members of a group are spread (`crowds`).

mod crowds;
pub mod preemption;
mod reasons;
mod refusals;

use std::collections::{BTreeMap, BTreeSet};

use lightbyte_api::decided::{Decision, VERDICTS_KEPT, Verdict};
use lightbyte_api::kinds::vm::WorkerPort;
use lightbyte_api::kinds::worker;
use lightbyte_api::observed::ObservedWorker;
use lightbyte_api::placing::{Match, Matches, WORKER_LABEL};
use lightbyte_api::records::{Promise, WorkerLedger};
use lightbyte_api::{ByteSize, Kind, Name, ObjectRef, Spec, Uid, WorkerId};

pub use self::crowds::{Crowd, Crowds};
use self::reasons::Reason;
pub use self::refusals::Missing;
use self::refusals::{explain, refusal};
use crate::view::View;

/// What a VM needs of a worker, and what it would rather have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Who needs it: what is promised to it is free for it alone.
    pub uid: Option<Uid>,
    /// How much it matters.
    pub priority: u64,
    /// Virtual CPUs.
    pub cpus: u64,
    /// Memory.
    pub memory: ByteSize,
    /// Architecture of its image.
    pub architecture: String,
    /// Its own labels: some workers are only for VMs that have some.
    pub labels: BTreeMap<String, String>,
    /// The worker that its volumes are on.
    pub pinned: Option<WorkerId>,
    /// The ports of its worker that lead to it.
    pub ports: Vec<WorkerPort>,
    /// The group that it is a member of: members are spread.
    pub group: Option<Uid>,
    /// What labels of its worker must be.
    pub on: Matches,
    /// The labels of VMs that it is to be near to.
    pub near: BTreeMap<String, String>,
    /// The workers with such a VM; anywhere without.
    pub near_to: Option<BTreeSet<WorkerId>>,
    /// The workers with a VM that it keeps apart from.
    pub apart_from: BTreeSet<WorkerId>,
    /// What it would rather have.
    pub wishes: Wishes,
}

/// What a VM would rather have, where there is a choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// What labels of its worker should be.
    pub on: Matches,
    /// The workers with a VM that it would be near to.
    pub near_to: Option<BTreeSet<WorkerId>>,
    /// The workers with a VM that it would be apart from.
    pub apart_from: BTreeSet<WorkerId>,
    /// The workers on which members of its group failed lately.
    pub failed_on: BTreeSet<WorkerId>,
    /// The parts of its image, by the names that workers have for them.
    pub parts: Vec<String>,
}

impl Need {
    /// So much on a worker of that architecture, and nothing besides.
    #[must_use]
    pub fn of(cpus: u64, memory: ByteSize, architecture: &str) -> Need {
        Need {
            uid: None,
            priority: 0,
            cpus,
            memory,
            architecture: architecture.to_owned(),
            labels: BTreeMap::new(),
            pinned: None,
            ports: Vec::new(),
            group: None,
            on: BTreeMap::new(),
            near: BTreeMap::new(),
            near_to: None,
            apart_from: BTreeSet::new(),
            wishes: Wishes::default(),
        }
    }
}

/// A worker as the scheduler sees it.
struct Candidate<'a> {
    id: WorkerId,
    object: &'a ObjectRef,
    labels: &'a BTreeMap<String, String>,
    spec: &'a worker::Spec,
    deleting: bool,
    alive: bool,
    observed: Option<&'a ObservedWorker>,
    ledger: Option<&'a WorkerLedger>,
}

/// The outcome: a worker with the reasons, or the reasons why there is none.
pub struct Scheduled {
    /// The chosen worker.
    pub worker: Option<(WorkerId, Name)>,
    /// Why.
    pub decision: Decision,
    /// What it waits for if there is none.
    pub missing: Missing,
}

/// How many workers that could take a VM, and have all that it would rather have, are scored before the best is chosen. They are
/// visited by room, so on equal machines the first is the best already; the others allow for a VM that fits one shape better.
pub const FITTING_SCORED_MAX: usize = 16;

/// Chooses a worker for `need`, and says why.
#[must_use]
pub fn schedule(view: &View, need: &Need) -> Scheduled {
    let mut refused: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut best: Vec<(i64, Candidate<'_>)> = Vec::with_capacity(VERDICTS_KEPT + 1);
    let crowds = Crowds::of(view, need.group);
    let mut workers = 0;
    let mut fitting = 0;
    let mut is_found = false;
    for candidate in crowds.emptiest_first().filter_map(|name| candidate(view, name)) {
        if fitting == FITTING_SCORED_MAX {
            break;
        }
        workers += 1;
        if let Some(refusal) = refusal(&candidate, need) {
            *refused.entry(refusal).or_default() += 1;
            continue;
        }
        is_found = true;
        fitting += usize::from(reasons::has_all_wishes(&candidate, &need.wishes));
        let score = reasons::of(&crowds, &candidate, need).map(|reason| reason.score()).sum();
        // Equal scores keep the order in which they are visited, so that the same world gives the same choice.
        let place = best.iter().position(|(other, _)| *other < score).unwrap_or(best.len());
        best.insert(place, (score, candidate));
        best.truncate(VERDICTS_KEPT);
    }
    if !is_found {
        // Nobody can take it: the others are counted too, so that the reasons are complete.
        let others = candidates(view).filter(|candidate| !candidate.is_open());
        for refusal in others.filter_map(|candidate| refusal(&candidate, need)) {
            workers += 1;
            *refused.entry(refusal).or_default() += 1;
        }
    }
    let worker = best.first().map(|(_, chosen)| (chosen.id, chosen.object.name.clone()));
    let missing = Missing::of(&refused);
    let decision = Decision {
        revision: view.revision(),
        workers,
        best: best.iter().map(|(_, candidate)| verdict(&crowds, candidate, need)).collect(),
        refused: refused.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect(),
    };
    Scheduled { worker, decision, missing }
}

/// What the scheduler thinks of every worker, in order of name: recomputed when somebody asks.
#[must_use]
pub fn verdicts(view: &View, need: &Need) -> Vec<Verdict> {
    let crowds = Crowds::of(view, need.group);
    candidates(view).map(|candidate| verdict(&crowds, &candidate, need)).collect()
}

/// What the scheduler thinks of one worker; nothing if there is none of that name.
#[must_use]
pub fn verdict_on(view: &View, need: &Need, worker: &Name) -> Option<Verdict> {
    candidate(view, worker).map(|candidate| verdict(&Crowds::of(view, need.group), &candidate, need))
}

/// The CPUs and the memory that are free on a worker that may be given VMs.
#[must_use]
pub fn free(view: &View, worker: WorkerId) -> Option<(u64, ByteSize)> {
    let candidate = candidate(view, &view.object_of(worker.uid())?.name).filter(Candidate::is_open)?;
    let (observed, ledger) = (candidate.observed?, candidate.ledger?);
    let free = Free::of(observed, ledger, ledger.promised.as_ref());
    Some((free.cpus, free.memory))
}

fn candidates(view: &View) -> impl Iterator<Item = Candidate<'_>> {
    view.objects_of(Kind::Worker).filter_map(|object| candidate(view, &object.name))
}

fn candidate<'a>(view: &'a View, name: &Name) -> Option<Candidate<'a>> {
    let asked = view.asked(&ObjectRef::new(Kind::Worker, name.clone()))?;
    let Spec::Worker(spec) = &asked.spec else { return None };
    let id = WorkerId::new(asked.meta.uid);
    Some(Candidate {
        id,
        object: view.object_of(asked.meta.uid)?,
        labels: &asked.meta.labels,
        spec,
        deleting: asked.meta.deleting_since.is_some(),
        alive: view.alive(id).is_some(),
        observed: view.observed_worker(id),
        ledger: view.worker_ledger(id),
    })
}

impl Candidate<'_> {
    /// Whether a label is as it is wanted; its own name is one.
    fn has(&self, (key, wanted): (&String, &Match)) -> bool {
        wanted.holds_for(match key.as_str() {
            WORKER_LABEL => Some(self.object.name.as_str()),
            key => self.labels.get(key).map(String::as_str),
        })
    }

    /// Whether it may be given VMs at all: these are the workers that [`View::workers_by_room`] visits.
    const fn is_open(&self) -> bool {
        let is_wanted = self.spec.is_open() && !self.deleting;
        self.alive && is_wanted && self.observed.is_some() && self.ledger.is_some()
    }
}

fn verdict(crowds: &Crowds<'_>, candidate: &Candidate<'_>, need: &Need) -> Verdict {
    let worker = candidate.object.name.clone();
    match refusal(candidate, need) {
        Some(refusal) => Verdict { worker, score: None, reasons: vec![explain(refusal, candidate, need)] },
        None => {
            let reasons: Vec<Reason> = reasons::of(crowds, candidate, need).collect();
            Verdict {
                worker,
                score: Some(reasons.iter().map(Reason::score).sum()),
                reasons: reasons.iter().map(ToString::to_string).collect(),
            }
        }
    }
}

/// What is left of a worker.
#[derive(Clone, Copy)]
struct Free {
    cpus: u64,
    memory: ByteSize,
    /// How many more VMs it takes.
    vms: u64,
}

impl Free {
    /// Of what it offers, without what is given away, and without what is `kept`.
    fn of(observed: &ObservedWorker, ledger: &WorkerLedger, kept: Option<&Promise>) -> Free {
        let (cpus, memory) = kept.map_or((0, 0), |promise| (promise.cpus, promise.memory.bytes()));
        let memory = observed.memory.bytes().saturating_sub(ledger.memory.bytes()).saturating_sub(memory);
        let vms = observed.vms_max.map_or(u64::MAX, |vms_max| vms_max.saturating_sub(ledger.vms));
        Free {
            cpus: observed.cpus.saturating_sub(ledger.cpus).saturating_sub(cpus),
            memory: ByteSize::from_bytes(memory),
            vms: vms.saturating_sub(u64::from(kept.is_some())),
        }
    }

    /// The same for `need`: what is promised to it is free for it, and what is promised to less is for more.
    fn to(need: &Need, observed: &ObservedWorker, ledger: &WorkerLedger) -> Free {
        let is_kept = |promise: &&Promise| Some(promise.vm) != need.uid && promise.priority >= need.priority;
        Free::of(observed, ledger, ledger.promised.as_ref().filter(is_kept))
    }

    fn has_room(&self, need: &Need) -> bool {
        self.cpus >= need.cpus && self.memory >= need.memory
    }
}
