//! What people and workers ask of the API, as guarded transactions. The server only carries them out.
//!
//! Each function looks at a view and answers with what to write, or with a refusal that says what, why and what to
//! do. A server whose view is older than the store meets a conflict, and asks again with a newer view.

use lightbyte_api::assigned::HostObject;
use lightbyte_api::kinds::worker;
use lightbyte_api::object::{Asked, Meta};
use lightbyte_api::observed::{Observed, ObservedWorker, VmPhase};
use lightbyte_api::records::{Alive, WorkerLedger};
use lightbyte_api::{Key, Kind, Manifest, Name, ObjectRef, Spec, Timestamp, Uid, WorkerId};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

mod deletion;
mod rollout;

pub use self::deletion::{delete, protect};
pub use self::rollout::rollout;
use crate::agent::Report;
use crate::planner;
use crate::transaction::{Transaction, Write};
use crate::view::View;

/// Why a request is refused. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such object.
    #[error("{object} does not exist")]
    NotFound {
        /// The object.
        object: ObjectRef,
    },
    /// There is one already.
    #[error("{object} exists already")]
    Exists {
        /// The object.
        object: ObjectRef,
    },
    /// It is being deleted, and nothing else can be asked of it.
    #[error("{object} is being deleted")]
    Deleting {
        /// The object.
        object: ObjectRef,
    },
    /// It was changed since the caller read it.
    #[error("{object} was changed by somebody else: it is at revision {found}, you read {expected}")]
    Changed {
        /// The object.
        object: ObjectRef,
        /// The revision that the caller read.
        expected: u64,
        /// The revision that it has.
        found: u64,
    },
    /// Its owner alone may change it.
    #[error("{object} belongs to {owner}, which alone may change it")]
    Owned {
        /// The object.
        object: ObjectRef,
        /// Its owner.
        owner: ObjectRef,
    },
    /// A field that keeps its value.
    #[error("`{field}` of {object} cannot be changed: {reason}")]
    Frozen {
        /// The object.
        object: ObjectRef,
        /// The field.
        field: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// It says of itself that it is to stay.
    #[error("{object} is protected")]
    Protected {
        /// The object.
        object: ObjectRef,
    },
    /// Nothing but a person would end it.
    #[error("{object} cannot be protected: only volumes, snapshots and members of groups can")]
    NotProtectable {
        /// The object.
        object: ObjectRef,
    },
    /// Its copies would go with it.
    #[error("{object} has copies, which would go with it")]
    HasCopies {
        /// The object.
        object: ObjectRef,
    },
    /// Objects of this kind are not made by people.
    #[error("{object} cannot be created: {reason}")]
    NotByPeople {
        /// The object.
        object: ObjectRef,
        /// Who makes them.
        reason: &'static str,
    },
    /// The verb makes no sense for the kind.
    #[error("{object} cannot be {verb}: only VMs can")]
    NotForKind {
        /// The object.
        object: ObjectRef,
        /// The verb, as a participle.
        verb: &'static str,
    },
    /// Only groups are rolled forward.
    #[error("{object} has no versions: only scale groups do")]
    NotAGroup {
        /// The object.
        object: ObjectRef,
    },
    /// There is nothing that this could be done to.
    #[error("this cannot be done to {object}: {reason}")]
    NoRollout {
        /// The group.
        object: ObjectRef,
        /// Why.
        reason: &'static str,
    },
    /// Nobody was found to squat the address.
    #[error("{address} of {network} is not squatted")]
    NotSquatted {
        /// The network.
        network: ObjectRef,
        /// The address.
        address: Ipv4Addr,
    },
    /// It should not run, so it cannot be started again.
    #[error("{object} is stopped, so there is nothing to restart")]
    Stopped {
        /// The object.
        object: ObjectRef,
    },
    /// It has no worker yet.
    #[error("{object} is not on any worker yet")]
    NotPlaced {
        /// The object.
        object: ObjectRef,
    },
    /// The worker that has it is away.
    #[error("worker `{worker}`, which has {object}, is away")]
    WorkerAway {
        /// The object.
        object: ObjectRef,
        /// The worker.
        worker: Name,
    },
    /// Another worker has the name.
    #[error("the name `{name}` belongs to the worker {uid}")]
    WorkerName {
        /// The name.
        name: Name,
        /// Whose it is.
        uid: Uid,
    },
    /// The same worker is alive elsewhere.
    #[error("worker `{name}` is alive in another boot of a machine; only one may be")]
    SecondInstance {
        /// The worker.
        name: Name,
    },
    /// No such worker is registered.
    #[error("worker {worker} is not registered")]
    UnknownWorker {
        /// The worker.
        worker: WorkerId,
    },
    /// A stored value cannot be read by this version, so nothing is written over it.
    #[error("the stored value `{key}` cannot be read by this version, and is left alone")]
    Unreadable {
        /// Its key.
        key: String,
    },
    /// A report that does not fit the worker's assignments.
    #[error("the report is not one that this worker may make: {reason}")]
    BadReport {
        /// Why.
        reason: &'static str,
    },
}

impl Refusal {
    /// What the caller can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Refusal::NotFound { object } => format!("`lightbyte get {}` lists what there is", object.kind),
            Refusal::Exists { object } => {
                format!("`lightbyte apply` changes it, `lightbyte delete {object}` removes it")
            }
            Refusal::Deleting { object } => {
                format!("`lightbyte wait {object} --for deleted`, then try again")
            }
            Refusal::Changed { object, .. } => {
                format!("`lightbyte get {object} -o yaml` shows it as it is now")
            }
            Refusal::NotSquatted { network, .. } => {
                format!("`lightbyte describe {network}` lists the addresses that are")
            }
            Refusal::NoRollout { object, .. } => {
                format!("`lightbyte rollout history {object}` lists its versions")
            }
            Refusal::Stopped { object } => format!("`lightbyte start {object}` starts it"),
            Refusal::NotPlaced { object } => format!("`lightbyte why {object}` says what it waits for"),
            Refusal::WorkerAway { worker, .. } => format!("`lightbyte why worker/{worker}` says more"),
            Refusal::Protected { object } => {
                format!("`lightbyte unprotect {object}` first")
            }
            Refusal::HasCopies { object } => format!(
                "make a volume of the one that you want to keep; then `copies: {{keep: 0}}` by `lightbyte edit {object}` lets them go"
            ),
            Refusal::Owned { owner, .. } => format!("change or delete {owner}"),
            Refusal::WorkerName { name, .. } => {
                format!("choose another name, or `lightbyte delete worker/{name}`")
            }
            Refusal::SecondInstance { .. } => {
                "stop the other agent; after a reboot this ends by itself".to_owned()
            }
            Refusal::Unreadable { .. } => "upgrade this server".to_owned(),
            Refusal::Frozen { .. }
            | Refusal::NotByPeople { .. }
            | Refusal::NotForKind { .. }
            | Refusal::NotAGroup { .. }
            | Refusal::NotProtectable { .. }
            | Refusal::UnknownWorker { .. }
            | Refusal::BadReport { .. } => return None,
        })
    }
}

/// What is true of a request besides its content.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The time, on the server's clock.
    pub now: Timestamp,
    /// A uid that nobody else has.
    pub uid: Uid,
    /// The revision of `asked` that the caller read (`If-Match`), if it said so.
    pub if_match: Option<u64>,
}

/// What a request does.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// A new object.
    Create(Transaction),
    /// A change of an object.
    Change(Transaction),
    /// Nothing: what is asked for is there already.
    Nothing,
}

impl Outcome {
    /// The transaction to commit, if there is one.
    #[must_use]
    pub fn transaction(self) -> Option<Transaction> {
        match self {
            Outcome::Create(transaction) | Outcome::Change(transaction) => Some(transaction),
            Outcome::Nothing => None,
        }
    }
}

/// Makes the object of `manifest`, which must not exist.
///
/// # Errors
/// [`Refusal::Exists`], [`Refusal::NotByPeople`].
pub fn create(view: &View, manifest: &Manifest, context: &Context) -> Result<Outcome, Refusal> {
    let object = manifest.object();
    match living(view, &object, context) {
        Err(Refusal::NotFound { .. }) => create_fresh(view, manifest, context),
        Ok(_) | Err(Refusal::Deleting { .. }) => Err(Refusal::Exists { object }),
        Err(refusal) => Err(refusal),
    }
}

/// Makes the object of `manifest`, or changes it to be so.
///
/// # Errors
/// [`Refusal`], when it may not be changed so.
pub fn apply(view: &View, manifest: &Manifest, context: &Context) -> Result<Outcome, Refusal> {
    let object = manifest.object();
    match living(view, &object, context) {
        Err(Refusal::NotFound { .. }) => create_fresh(view, manifest, context),
        Err(refusal) => Err(refusal),
        Ok(asked) => change(view, &object, asked, manifest.labels.clone(), manifest.spec.clone(), context),
    }
}

/// Asks for a VM to run or to stop.
///
/// # Errors
/// [`Refusal`], when there is no such VM or it may not be changed.
pub fn set_running(
    view: &View,
    object: &ObjectRef,
    running: bool,
    context: &Context,
) -> Result<Outcome, Refusal> {
    let asked = living(view, object, context)?;
    let Spec::Vm(spec) = &asked.spec else {
        return Err(Refusal::NotForKind {
            object: object.clone(),
            verb: if running { "started" } else { "stopped" },
        });
    };
    // One that stays off is to be started whatever its worker has heard meanwhile: that is to ask once more.
    if running && is_off(view, object, asked) {
        not_owned(object, asked)?;
        let meta = Meta {
            restarts_asked: asked.meta.restarts_asked + 1,
            generation: asked.meta.generation + 1,
            changed_at: context.now,
            ..asked.meta.clone()
        };
        let spec = Spec::Vm(lightbyte_api::kinds::vm::Spec { running, ..spec.clone() });
        return Ok(write_asked(view, object, Asked { meta, spec }));
    }
    let spec = Spec::Vm(lightbyte_api::kinds::vm::Spec { running, ..spec.clone() });
    change(view, object, asked, asked.meta.labels.clone(), spec, context)
}

/// Whether the VM ended by itself and stays off.
fn is_off(view: &View, object: &ObjectRef, asked: &Asked) -> bool {
    let host_object = HostObject { kind: Kind::Vm, uid: asked.meta.uid };
    let worker = planner::worker_of(view, object);
    let observed = worker.and_then(|worker| planner::vm::observed_vm(view, worker, host_object));
    observed.is_some_and(|observed| {
        observed.phase == VmPhase::Off && observed.restarts_done == asked.meta.restarts_asked
    })
}

/// Asks for a VM to be stopped and started.
///
/// # Errors
/// [`Refusal`], when there is no such VM or it may not be changed.
pub fn restart(view: &View, object: &ObjectRef, context: &Context) -> Result<Outcome, Refusal> {
    let asked = living(view, object, context)?;
    not_owned(object, asked)?;
    match &asked.spec {
        Spec::Vm(spec) if spec.running => {}
        Spec::Vm(_) => return Err(Refusal::Stopped { object: object.clone() }),
        _ => return Err(Refusal::NotForKind { object: object.clone(), verb: "restarted" }),
    }
    let meta = Meta {
        restarts_asked: asked.meta.restarts_asked + 1,
        generation: asked.meta.generation + 1,
        changed_at: context.now,
        ..asked.meta.clone()
    };
    Ok(write_asked(view, object, Asked { meta, spec: asked.spec.clone() }))
}

/// Lets `address` of `network` be tried again: a person says that whoever squatted it does no more. One that a VM waits
/// for is probed again at once.
///
/// # Errors
/// [`Refusal::NotSquatted`], or that there is no such network.
pub fn release_address(
    view: &View,
    network: &ObjectRef,
    address: Ipv4Addr,
    context: &Context,
) -> Result<Outcome, Refusal> {
    if network.kind != Kind::Network || view.asked(network).is_none() {
        return Err(Refusal::NotFound { object: network.clone() });
    }
    let key = Key::Address(network.name.clone(), address);
    if view.unreadable(&key).is_some() {
        return Err(Refusal::Unreadable { key: key.to_string() });
    }
    let not_squatted = || Refusal::NotSquatted { network: network.clone(), address };
    let claim = view.address_claim(&network.name, address).ok_or_else(not_squatted)?;
    if claim.squatted.is_some() {
        return Ok(Outcome::Change(Transaction::on(view, [Key::Epoch], [Write::Delete(key)])));
    }
    // Held by a VM that cannot start with it: asked to start anew, its worker probes anew.
    let asked = view.asked(&claim.object).filter(|asked| asked.meta.uid == claim.owner);
    let asked = asked.ok_or_else(not_squatted)?;
    let host_object = HostObject { kind: Kind::Vm, uid: claim.owner };
    let worker = planner::worker_of(view, &claim.object);
    let observed = worker.and_then(|worker| planner::vm::observed_vm(view, worker, host_object));
    let waits =
        observed.is_some_and(|observed| observed.squatters.iter().any(|found| found.address == address));
    if !waits {
        return Err(not_squatted());
    }
    let meta = Meta {
        restarts_asked: asked.meta.restarts_asked + 1,
        generation: asked.meta.generation + 1,
        changed_at: context.now,
        ..asked.meta.clone()
    };
    Ok(write_asked(view, &claim.object, Asked { meta, spec: asked.spec.clone() }))
}

fn living<'a>(view: &'a View, object: &ObjectRef, context: &Context) -> Result<&'a Asked, Refusal> {
    let key = Key::Asked(object.clone());
    let found = view.mod_revision(&key);
    if let Some(expected) = context.if_match.filter(|expected| *expected != found) {
        return Err(Refusal::Changed { object: object.clone(), expected, found });
    }
    if view.unreadable(&key).is_some() {
        return Err(Refusal::Unreadable { key: key.to_string() });
    }
    let asked = view.asked(object).ok_or_else(|| Refusal::NotFound { object: object.clone() })?;
    match asked.meta.deleting_since {
        Some(_) => Err(Refusal::Deleting { object: object.clone() }),
        None => Ok(asked),
    }
}

fn not_owned(object: &ObjectRef, asked: &Asked) -> Result<(), Refusal> {
    match &asked.meta.owner {
        Some(owner) => Err(Refusal::Owned { object: object.clone(), owner: owner.object.clone() }),
        None => Ok(()),
    }
}

fn create_fresh(view: &View, manifest: &Manifest, context: &Context) -> Result<Outcome, Refusal> {
    let object = manifest.object();
    let reason = match object.kind {
        Kind::Worker => Some("workers register themselves when their agent starts"),
        _ => None,
    };
    if let Some(reason) = reason {
        return Err(Refusal::NotByPeople { object, reason });
    }
    let meta = Meta::new(context.uid, None, manifest.labels.clone(), context.now);
    let asked = Asked { meta, spec: manifest.spec.clone() };
    let write = Write::put(Key::Asked(object), asked);
    Ok(Outcome::Create(Transaction::on(view, [Key::Epoch], [write])))
}

fn change(
    view: &View,
    object: &ObjectRef,
    asked: &Asked,
    labels: BTreeMap<String, String>,
    spec: Spec,
    context: &Context,
) -> Result<Outcome, Refusal> {
    if asked.spec == spec && asked.meta.labels == labels {
        return Ok(Outcome::Nothing);
    }
    not_owned(object, asked)?;
    if let Some((field, reason)) = asked.spec.frozen_field(&spec) {
        return Err(Refusal::Frozen { object: object.clone(), field, reason });
    }
    let raised = u64::from(asked.spec != spec);
    let meta = Meta {
        generation: asked.meta.generation + raised,
        changed_at: context.now,
        labels,
        rollout: rollout::after(asked, &spec),
        ..asked.meta.clone()
    };
    Ok(write_asked(view, object, Asked { meta, spec }))
}

fn write_asked(view: &View, object: &ObjectRef, asked: Asked) -> Outcome {
    Outcome::Change(Transaction::on(view, [Key::Epoch], [Write::put(Key::Asked(object.clone()), asked)]))
}

// ------------------------------------------------------------------------------------------------------- workers

/// Registers a worker, or takes what it says of itself now.
///
/// # Errors
/// [`Refusal`], when the name is another worker's, or the worker is alive elsewhere or being deleted.
pub fn register(
    view: &View,
    worker: WorkerId,
    said: &ObservedWorker,
    now: Timestamp,
) -> Result<Outcome, Refusal> {
    let object = ObjectRef::new(Kind::Worker, said.name.clone());
    let observed_key = Key::Observed(worker, HostObject { kind: Kind::Worker, uid: worker.uid() });
    if view.alive(worker).is_some_and(|alive| alive.boot_id != said.boot_id) {
        return Err(Refusal::SecondInstance { name: said.name.clone() });
    }
    let asked_key = Key::Asked(object.clone());
    if view.unreadable(&asked_key).is_some() {
        return Err(Refusal::Unreadable { key: asked_key.to_string() });
    }
    let report = Write::put(observed_key, Observed::Worker(said.clone()));
    let Some(asked) = view.asked(&object) else {
        if let Some(other) = view.object_of(worker.uid()) {
            return Err(Refusal::WorkerName { name: other.name.clone(), uid: worker.uid() });
        }
        let meta = Meta::new(worker.uid(), None, BTreeMap::new(), now);
        let asked = Asked { meta, spec: Spec::Worker(worker::Spec::default()) };
        let ledger = Write::put(Key::WorkerLedger(worker), WorkerLedger::default());
        let writes = [Write::put(asked_key, asked), ledger, report];
        return Ok(Outcome::Create(Transaction::on(view, [Key::Epoch], writes)));
    };
    if asked.meta.uid != worker.uid() {
        return Err(Refusal::WorkerName { name: said.name.clone(), uid: asked.meta.uid });
    }
    if asked.meta.deleting_since.is_some() {
        return Err(Refusal::Deleting { object });
    }
    if view.observed_worker(worker) == Some(said) {
        return Ok(Outcome::Nothing);
    }
    Ok(Outcome::Change(Transaction::on(view, [Key::Epoch, asked_key], [report])))
}

/// Begins a worker's life: the key that its lease keeps.
///
/// # Errors
/// [`Refusal`], when the worker is not registered, or is alive in another boot.
pub fn begin_life(view: &View, worker: WorkerId, boot_id: &str, now: Timestamp) -> Result<Outcome, Refusal> {
    let object = view.object_of(worker.uid()).ok_or(Refusal::UnknownWorker { worker })?;
    let asked = view.asked(object).ok_or(Refusal::UnknownWorker { worker })?;
    if asked.meta.deleting_since.is_some() {
        return Err(Refusal::Deleting { object: object.clone() });
    }
    match view.alive(worker) {
        Some(alive) if alive.boot_id == boot_id => Ok(Outcome::Nothing),
        Some(_) => Err(Refusal::SecondInstance { name: object.name.clone() }),
        None => {
            let alive = Alive { worker, boot_id: boot_id.to_owned(), since: now };
            let rests_on = [Key::Epoch, Key::Asked(object.clone())];
            Ok(Outcome::Change(Transaction::on(view, rests_on, [Write::put(Key::Alive(worker), alive)])))
        }
    }
}

/// Stores a worker's report. What it compares is what the worker said that it knows, not what this view shows.
///
/// # Errors
/// [`Refusal::BadReport`] when it is not of the form that a worker may send.
pub fn report(view: &View, worker: WorkerId, report: &Report) -> Result<Outcome, Refusal> {
    let bad = |reason| Err(Refusal::BadReport { reason });
    let object = report.object;
    if !matches!(object.kind, Kind::Vm | Kind::Volume) {
        return bad("only VMs and volumes are reported this way");
    }
    if report.observed.as_ref().is_some_and(|observed| observed.kind() != object.kind) {
        return bad("it speaks of another kind than its key");
    }
    let is_claim = report.own_revision == 0;
    if is_claim
        && (report.observed.is_none() || report.assigned_revision.is_none_or(|revision| revision == 0))
    {
        return bad("a first report must name the assignment that it was made for");
    }
    let key = Key::Observed(worker, object);
    let write = match &report.observed {
        Some(observed) => Write::put(key.clone(), observed.clone()),
        None => Write::Delete(key.clone()),
    };
    let mut transaction = Transaction::on(view, [Key::Epoch], [write]);
    transaction.guards.insert(key, report.own_revision);
    if let Some(revision) = report.assigned_revision.filter(|_| is_claim) {
        transaction.guards.insert(Key::Assigned(worker, object), revision);
    }
    Ok(Outcome::Change(transaction))
}
