//! `why` and `stuck`: the reasons that decisions already carry, put into words.

use lightbyte_api::decided::Verdict;
use lightbyte_api::object::{Object, ObjectRef};
use lightbyte_api::{Choice, Key, Kind, Name, Spec, Timestamp, WaitingOn};
use serde::{Deserialize, Serialize};

use crate::planner::vm;
use crate::room;
use crate::scheduler;
use crate::status;
use crate::transaction::Write;
use crate::view::View;

/// How many verdicts an explanation shows when they are computed afresh.
pub const VERDICTS_SHOWN_MAX: usize = 50;

/// Why an object is as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The object.
    pub object: ObjectRef,
    /// Its state in one word.
    pub state: String,
    /// Whether it is as asked.
    pub ready: bool,
    /// What is decided and what it waits for, a sentence each.
    pub because: Vec<String>,
    /// What a person can do.
    pub hints: Vec<String>,
    /// What the scheduler thinks of the workers: as it was when the object was placed, or as it is now.
    pub verdicts: Vec<Verdict>,
    /// What would give it a place if it has none, the least first; each was tried out on a copy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<String>,
}

/// Explains `object`; `None` when there is none. `on`: with what one worker is to it now, whether it is there or not.
#[must_use]
pub fn why(view: &View, object: &ObjectRef, on: Option<&Name>) -> Option<Explanation> {
    let Object { status, .. } = status::object(view, object)?;
    let mut because: Vec<String> =
        status.waiting_on.iter().map(|waiting| format!("it waits: {}", waiting.on)).collect();
    because.extend(status.waiting_on.iter().flat_map(|waiting| reasons_of_member(view, &waiting.on)));
    let hints = status.waiting_on.iter().map(|waiting| waiting.on.hint()).collect();
    let stored = placed_because(view, object, &mut because);
    let verdicts = match on {
        Some(worker) => verdict_on(view, object, worker).into_iter().collect(),
        None => stored.unwrap_or_else(|| verdicts_now(view, object)),
    };
    // A group waits for what its member waits for.
    let homeless = status.waiting_on.iter().find_map(|waiting| match &waiting.on {
        WaitingOn::Member { member } => Some(member),
        _ => None,
    });
    let remedies = room::remedies(view, homeless.unwrap_or(object), on);
    if because.is_empty() {
        because.push(match (status.ready, view.contains(&Key::Decided(object.clone()))) {
            (true, _) => "it is as asked".to_owned(),
            (false, false)
                if matches!(object.kind, Kind::Vm | Kind::Volume | Kind::Snapshot)
                    && status.state == "pending" =>
            {
                "its controller has not looked at it yet".to_owned()
            }
            (false, _) => format!("nothing is decided against it; it is {}", status.state),
        });
    }
    Some(Explanation {
        object: object.clone(),
        state: status.state,
        ready: status.ready,
        because,
        hints,
        verdicts,
        remedies,
    })
}

/// What the member of a group waits for that the group waits for.
fn reasons_of_member(view: &View, on: &WaitingOn) -> Vec<String> {
    let WaitingOn::Member { member } = on else { return Vec::new() };
    let decided = view.decided(member);
    let waiting_on = decided.iter().flat_map(|decided| &decided.waiting_on);
    waiting_on.map(|waiting| format!("{member} waits: {}", waiting.on)).collect()
}

/// The stored decision of a placed VM.
fn placed_because(view: &View, object: &ObjectRef, because: &mut Vec<String>) -> Option<Vec<Verdict>> {
    let Choice::Vm(choice) = &view.decided(object)?.choice else { return None };
    let placement = choice.placement.as_ref()?;
    let decision = &placement.decision;
    because.push(format!(
        "it was placed on worker `{}`, the best of {} looked at, at revision {}",
        placement.worker_name, decision.workers, decision.revision
    ));
    because.extend(
        decision.refused.iter().map(|(reason, count)| format!("refused of them: {count} ({reason})")),
    );
    Some(decision.best.clone())
}

fn verdicts_now(view: &View, object: &ObjectRef) -> Vec<Verdict> {
    let Some(asked) = view.asked(object) else { return Vec::new() };
    let Spec::Vm(spec) = &asked.spec else { return Vec::new() };
    let Ok(need) = vm::need(view, &asked.meta, spec) else { return Vec::new() };
    let mut verdicts = scheduler::verdicts(view, &need);
    verdicts.truncate(VERDICTS_SHOWN_MAX);
    verdicts
}

/// What one worker is to a VM now; its own room there counts as free.
fn verdict_on(view: &View, object: &ObjectRef, worker: &Name) -> Option<Verdict> {
    let asked = view.asked(object)?;
    let Spec::Vm(spec) = &asked.spec else { return None };
    let need = vm::need(view, &asked.meta, spec).ok()?;
    let own = vm::placement(view, object);
    let own = own.and_then(|own| Some(Write::put(Key::WorkerLedger(own.worker), vm::freed(view, own)?)));
    scheduler::verdict_on(&view.fork(own), &need, worker)
}

/// Something that waits longer than is normal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stuck {
    /// The object.
    pub object: ObjectRef,
    /// What it waits for.
    pub waiting_on: WaitingOn,
    /// The same in words.
    pub because: String,
    /// Since when.
    pub since: Timestamp,
    /// What a person can do.
    pub hint: String,
}

/// Everything that waits longer than is normal, the longest wait first.
#[must_use]
pub fn stuck(view: &View, now: Timestamp) -> Vec<Stuck> {
    let mut stuck: Vec<Stuck> = view
        .objects()
        .filter_map(|object| Some((object, view.decided(object)?)))
        .flat_map(|(object, decided)| decided.waiting_on.iter().map(move |waiting| (object, waiting)))
        .filter(|(_, waiting)| status::deadline(waiting).is_some_and(|deadline| deadline <= now))
        .map(|(object, waiting)| Stuck {
            object: object.clone(),
            waiting_on: waiting.on.clone(),
            because: waiting.on.to_string(),
            since: waiting.since,
            hint: waiting.on.hint(),
        })
        .collect();
    stuck.sort_by_key(|stuck| stuck.since);
    stuck
}
