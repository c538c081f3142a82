//! Where a VM goes. Filters refuse, scores rank; each is a small function with a name that people see as a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use lightbyte_api::decided::{Decision, VERDICTS_KEPT, Verdict};
use lightbyte_api::kinds::vm::WorkerPort;
use lightbyte_api::observed::ObservedWorker;
use lightbyte_api::placing::WORKER_LABEL;
use lightbyte_api::records::WorkerLedger;
use lightbyte_api::{ByteSize, Kind, Name, ObjectRef, Spec, Uid, WorkerId};

use crate::view::View;

/// What a VM needs of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Virtual CPUs.
    pub cpus: u64,
    /// Memory.
    pub memory: ByteSize,
    /// Architecture of its image.
    pub architecture: String,
    /// The worker that its volumes are on.
    pub pinned: Option<WorkerId>,
    /// The ports of its worker that lead to it.
    pub ports: Vec<WorkerPort>,
    /// The group that it is a member of: members keep apart.
    pub group: Option<Uid>,
    /// Labels that a worker must have.
    pub on: BTreeMap<String, String>,
    /// Labels that a worker should have.
    pub prefer: BTreeMap<String, String>,
    /// The workers with a VM that it keeps apart from.
    pub apart_from: BTreeSet<WorkerId>,
}

impl Need {
    /// So much on a worker of that architecture, and nothing besides.
    #[must_use]
    pub fn of(cpus: u64, memory: ByteSize, architecture: &str) -> Need {
        Need {
            cpus,
            memory,
            architecture: architecture.to_owned(),
            pinned: None,
            ports: Vec::new(),
            group: None,
            on: BTreeMap::new(),
            prefer: BTreeMap::new(),
            apart_from: BTreeSet::new(),
        }
    }
}

/// A worker as the scheduler sees it.
pub struct Candidate<'a> {
    /// Its identity.
    pub id: WorkerId,
    /// Its object.
    pub object: &'a ObjectRef,
    labels: &'a BTreeMap<String, String>,
    cordoned: bool,
    draining: bool,
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

/// What is missing for a VM to be placed: the least of it, as some worker has all the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Ports of a worker that no other VM has.
    Ports,
    /// A worker with room that takes one more.
    Places,
    /// Room.
    Room,
    /// A worker with room without a VM that it keeps apart from.
    Distance,
    /// A worker with the labels that it asks for.
    Labels,
    /// A worker that may take it at all.
    Worker,
}

/// How many workers that could take a VM are scored before the best of them is chosen. They are visited by room, so
/// on equal machines the first is the best already; the others allow for a VM that fits one shape better.
pub const FITTING_SCORED_MAX: usize = 16;

/// Weight of one thousandth of free capacity in a score; the number of VMs breaks ties below it.
const SPREAD_WEIGHT: i64 = 1_000;
/// Weight of one label that it prefers: more than half of a worker's room.
const PREFERENCE_WEIGHT: i64 = 600 * SPREAD_WEIGHT;
/// Weight of one other member of the same group: more than all of a worker's room.
const MEMBER_WEIGHT: i64 = 2_000 * SPREAD_WEIGHT;

/// Chooses a worker for `need`, and says why.
#[must_use]
pub fn schedule(view: &View, need: &Need) -> Scheduled {
    let mut refused: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut best: Vec<(i64, Candidate<'_>)> = Vec::with_capacity(VERDICTS_KEPT + 1);
    let mut workers = 0;
    let mut fitting = 0;
    let mut is_found = false;
    for candidate in view.workers_by_room().filter_map(|name| candidate(view, name)) {
        if fitting == FITTING_SCORED_MAX {
            break;
        }
        workers += 1;
        if let Some(refusal) = refusal(&candidate, need) {
            *refused.entry(refusal).or_default() += 1;
            continue;
        }
        is_found = true;
        // Where something is preferred, only those that have it all are enough to stop.
        fitting += usize::from(need.prefer.iter().all(|label| candidate.has(label)));
        let score = reasons(view, &candidate, need).map(|reason| reason.score()).sum();
        // Equal scores keep the order by room and name, so that the same world gives the same choice.
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
    let was = |refusal: &str| refused.contains_key(refusal);
    // Refusals are looked for in the opposite order.
    let missing = [
        (PORT_TAKEN, Missing::Ports),
        (FULL, Missing::Places),
        (NO_ROOM, Missing::Room),
        (TOO_NEAR, Missing::Distance),
        (OTHER_LABELS, Missing::Labels),
    ];
    let missing = missing.into_iter().find(|(refusal, _)| was(refusal));
    let missing = missing.map_or(Missing::Worker, |(_, missing)| missing);
    let decision = Decision {
        revision: view.revision(),
        workers,
        best: best.iter().map(|(_, candidate)| verdict(view, candidate, need)).collect(),
        refused: refused.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect(),
    };
    Scheduled { worker, decision, missing }
}

/// What the scheduler thinks of every worker, in order of name: recomputed when somebody asks.
#[must_use]
pub fn verdicts(view: &View, need: &Need) -> Vec<Verdict> {
    candidates(view).map(|candidate| verdict(view, &candidate, need)).collect()
}

/// What the scheduler thinks of one worker; nothing if there is none of that name.
#[must_use]
pub fn verdict_on(view: &View, need: &Need, worker: &Name) -> Option<Verdict> {
    candidate(view, worker).map(|candidate| verdict(view, &candidate, need))
}

/// The CPUs and the memory that are free on a worker that may be given VMs.
#[must_use]
pub fn free(view: &View, worker: WorkerId) -> Option<(u64, ByteSize)> {
    let candidate = candidate(view, &view.object_of(worker.uid())?.name).filter(Candidate::is_open)?;
    let (observed, ledger) = (candidate.observed?, candidate.ledger?);
    Some((free_cpus(observed, ledger), ByteSize::from_bytes(free_memory(observed, ledger))))
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
        cordoned: spec.cordoned,
        draining: spec.draining,
        deleting: asked.meta.deleting_since.is_some(),
        alive: view.alive(id).is_some(),
        observed: view.observed_worker(id),
        ledger: view.worker_ledger(id),
    })
}

impl Candidate<'_> {
    /// Whether it has a label; its own name is one.
    fn has(&self, (key, value): (&String, &String)) -> bool {
        match key.as_str() {
            WORKER_LABEL => self.object.name.as_str() == value,
            key => self.labels.get(key) == Some(value),
        }
    }

    /// Whether it may be given VMs at all: these are the workers that [`View::workers_by_room`] visits.
    const fn is_open(&self) -> bool {
        let is_wanted = !self.cordoned && !self.draining && !self.deleting;
        self.alive && is_wanted && self.observed.is_some() && self.ledger.is_some()
    }
}

fn verdict(view: &View, candidate: &Candidate<'_>, need: &Need) -> Verdict {
    let worker = candidate.object.name.clone();
    match refusal(candidate, need) {
        Some(refusal) => {
            Verdict { worker, score: None, reasons: vec![explain_refusal(refusal, candidate, need)] }
        }
        None => {
            let reasons: Vec<Reason> = reasons(view, candidate, need).collect();
            Verdict {
                worker,
                score: Some(reasons.iter().map(Reason::score).sum()),
                reasons: reasons.iter().map(ToString::to_string).collect(),
            }
        }
    }
}

const NO_ROOM: &str = "too little room";
const FULL: &str = "as many VMs as it takes";
const VOLUMES_ELSEWHERE: &str = "its volumes are on another worker";
const PORT_TAKEN: &str = "a port of it is another VM's";
const OTHER_LABELS: &str = "without the labels that it asks for";
const TOO_NEAR: &str = "it has a VM that it keeps apart from";
const NO_LEDGER: &str = "no readable ledger";

/// Why `candidate` cannot take it: the class of the reason, which is what histograms count.
fn refusal(candidate: &Candidate<'_>, need: &Need) -> Option<&'static str> {
    if need.pinned.is_some_and(|worker| worker != candidate.id) {
        return Some(VOLUMES_ELSEWHERE);
    }
    let (Some(observed), true) = (candidate.observed, candidate.alive) else { return Some("away") };
    let Some(ledger) = candidate.ledger else { return Some(NO_LEDGER) };
    if candidate.deleting {
        Some("being deleted")
    } else if candidate.cordoned {
        Some("cordoned")
    } else if candidate.draining {
        Some("being drained")
    } else if observed.architecture != need.architecture {
        Some("other architecture")
    } else if !need.on.iter().all(|label| candidate.has(label)) {
        Some(OTHER_LABELS)
    } else if need.apart_from.contains(&candidate.id) {
        Some(TOO_NEAR)
    } else if free_cpus(observed, ledger) < need.cpus || free_memory(observed, ledger) < need.memory.bytes() {
        Some(NO_ROOM)
    } else if observed.vms_max.is_some_and(|vms_max| ledger.vms >= vms_max) {
        Some(FULL)
    } else if need.ports.iter().any(|port| ledger.ports.contains(port)) {
        Some(PORT_TAKEN)
    } else {
        None
    }
}

fn explain_refusal(refusal: &str, candidate: &Candidate<'_>, need: &Need) -> String {
    let (Some(observed), Some(ledger), NO_ROOM) = (candidate.observed, candidate.ledger, refusal) else {
        return refusal.to_owned();
    };
    let memory = ByteSize::from_bytes(free_memory(observed, ledger));
    let cpus = free_cpus(observed, ledger);
    format!(
        "{NO_ROOM}: {cpus} of {} CPUs and {memory} of {} free, needs {} and {}",
        observed.cpus, observed.memory, need.cpus, need.memory
    )
}

fn free_cpus(observed: &ObservedWorker, ledger: &WorkerLedger) -> u64 {
    observed.cpus.saturating_sub(ledger.cpus)
}

fn free_memory(observed: &ObservedWorker, ledger: &WorkerLedger) -> u64 {
    observed.memory.bytes().saturating_sub(ledger.memory.bytes())
}

/// What counts for a worker that can take it. Words are made for those few whose verdicts are kept.
enum Reason {
    /// So many members of its group are there.
    Apart(u64),
    /// It has so many of so many labels that are preferred.
    Preferred(usize, usize),
    /// So many thousandths of it are free afterwards.
    Spread(i64),
    /// So many VMs are there.
    Few(i64),
}

impl Reason {
    fn score(&self) -> i64 {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        match self {
            Reason::Apart(members) => -number(*members).saturating_mul(MEMBER_WEIGHT),
            Reason::Preferred(labels, _) => number(*labels as u64).saturating_mul(PREFERENCE_WEIGHT),
            Reason::Spread(free) => free * SPREAD_WEIGHT,
            Reason::Few(vms) => -vms,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Apart(members) => write!(f, "apart: members of its group there: {members}"),
            Reason::Preferred(labels, wanted) => write!(f, "preferred: {labels} of {wanted} labels"),
            Reason::Spread(free) => write!(f, "spread: {}.{} % free after it", free / 10, free % 10),
            Reason::Few(vms) => write!(f, "few: VMs there: {vms}"),
        }
    }
}

/// The reasons of a worker that can take it; their scores are added up.
fn reasons(view: &View, candidate: &Candidate<'_>, need: &Need) -> impl Iterator<Item = Reason> {
    let offer = candidate.observed.zip(candidate.ledger);
    let of_worker = offer.map(|(observed, ledger)| {
        let per_mille = |free: u64, used: u64, total: u64| {
            u128::from(free.saturating_sub(used)) * 1_000 / u128::from(total.max(1))
        };
        let cpus = per_mille(free_cpus(observed, ledger), need.cpus, observed.cpus);
        let memory = per_mille(free_memory(observed, ledger), need.memory.bytes(), observed.memory.bytes());
        let free = i64::try_from(cpus.min(memory)).unwrap_or(1_000);
        let vms = i64::try_from(ledger.vms.min(999)).unwrap_or(999);
        let members = need.group.map(|group| Reason::Apart(view.placed_of(group, candidate.id) as u64));
        let wanted = need.prefer.len();
        let preferred = (wanted > 0).then(|| {
            let has = need.prefer.iter().filter(|label| candidate.has(*label)).count();
            Reason::Preferred(has, wanted)
        });
        [members, preferred, Some(Reason::Spread(free)), Some(Reason::Few(vms))]
    });
    of_worker.into_iter().flatten().flatten()
}
