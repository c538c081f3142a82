//! What a worker decides: which assignment counts, what to report, and the next step on the host.
//!
//! ```text
//!   deliver(inventory | change)      reply(report)      observed(host facts)      failed(step)
//!              └───────────────┬──────────┴───────────────────┴───────────────────────┘
//!                              v
//!                       actions(now) ──> Report | Step          at most one of each in flight per object
//! ```
//!
//! The shell executes actions and hands back what came of them; the simulator does the same with the same code. The
//! order for every object is: **claim** (a report, guarded by the assignment that was seen), **save** the assignment
//! durably, act, report; and at the end remove everything, forget, and **withdraw** the report. So a controller that
//! sees no report knows that nothing of the object is on this host, and that nothing can come to be there: a late
//! claim would fail its guard.
//!
//! What counts is what is saved. Absence never acts: an assignment that is missing changes nothing.

pub mod address;
pub mod desk;
pub mod facts;
pub mod health;
pub mod parts;
pub mod probe;
pub mod proxy;
mod reported;
pub mod step;
pub mod vm;
pub mod volume;

use std::collections::BTreeMap;

use lightbyte_api::assigned::{Assigned, HostObject, Source};
use lightbyte_api::observed::{ORPHANS_REPORTED_MAX, Observed, Orphan};
use lightbyte_api::records::Epoch;
use lightbyte_api::{Kind, Span, Timestamp, VmId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::planner::later;

pub use desk::Desk;
pub use facts::{Facts, Fetched, Leaving, Saved, VmmState};
pub use proxy::Told;
pub use step::{Action, Reply, Report, Step};

/// How long no heartbeat of an agent was acknowledged that counts as cut off. A server of its own host may still speak to it.
pub const CUT_OFF_AFTER: Span = Span::from_secs(10);

/// How many disks are looked at that are each made from the next.
const SOURCES_MAX: usize = 64;

/// What a server delivers to a worker. Everything carries the epoch and the revision that it is true at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// The cluster's epoch.
    pub epoch: Epoch,
    /// The revision of the server's view.
    pub revision: u64,
    /// The news.
    pub news: News,
}

/// The news of a delivery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// Everything of this worker: the first of every stream.
    Inventory(Vec<Item>),
    /// One assignment is new or changed; or gone, if it is `None`.
    Change {
        /// Whose assignment.
        object: HostObject,
        /// The assignment with the revision of its last change.
        assigned: Option<Stamped<Assigned>>,
    },
    /// This is what the proxy in a VM of this worker is to be told.
    Topology {
        /// The VM.
        object: HostObject,
        /// What it is to be told.
        told: Told,
    },
    /// This worker's report on an object is stored at this revision; nought if none is stored. It knows that already of what
    /// it wrote itself, but not of a report that an earlier run sent and that came late.
    Reported {
        /// On which object.
        object: HostObject,
        /// The revision of its last change.
        mod_revision: u64,
    },
    /// Nothing but the revision: the view has moved on, and nothing of it concerned this worker.
    Progress,
}

/// One object of an inventory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Which object.
    pub object: HostObject,
    /// What is assigned.
    pub assigned: Option<Stamped<Assigned>>,
    /// What this worker reported last.
    pub observed: Option<Stamped<Observed>>,
    /// What the proxy in it is to be told, if it is a VM that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<Told>,
}

/// A value with the revision of its last change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stamped<T> {
    /// The revision.
    pub mod_revision: u64,
    /// The value.
    pub value: T,
}

/// Why a delivery is refused. The shell drops the stream and asks another server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// Another cluster, or an older epoch of this one.
    #[error(
        "the server speaks for epoch {epoch} of cluster {cluster}, which this worker has left or never was in"
    )]
    Epoch {
        /// The cluster.
        cluster: lightbyte_api::Uid,
        /// The epoch.
        epoch: u64,
    },
    /// The server's view is older than what this worker has seen.
    #[error("the server is at revision {revision}, this worker has seen {seen}")]
    Revision {
        /// The server's.
        revision: u64,
        /// This worker's.
        seen: u64,
    },
    /// A new epoch that does not begin with an inventory.
    #[error("a new epoch must begin with an inventory")]
    NoInventory,
}

/// The decisions of one worker's agent.
#[derive(Clone, Debug, Default)]
pub struct Agent {
    epoch: Option<Epoch>,
    /// The newest revision delivered.
    delivered: u64,
    /// The newest revision that a report of this worker made.
    written: u64,
    desks: BTreeMap<HostObject, Desk>,
    /// When a heartbeat was acknowledged last.
    acknowledged_at: Option<Timestamp>,
    /// What hinders fetches of parts, by their checksums.
    part_problems: BTreeMap<String, String>,
}

impl Agent {
    /// An agent that finds `facts` on its host: what was saved there by an earlier run, and what still runs.
    #[must_use]
    pub fn begin(facts: impl IntoIterator<Item = (HostObject, Facts)>) -> Agent {
        let desks = facts.into_iter().map(|(object, facts)| (object, Desk::found(object, facts))).collect();
        Agent { desks, ..Agent::default() }
    }

    /// The cluster and epoch that a server has spoken for, if any has.
    #[must_use]
    pub const fn epoch(&self) -> Option<&Epoch> {
        self.epoch.as_ref()
    }

    /// The revision that the next stream must begin at, at least; `None` for an agent that has just begun and
    /// remembers nothing: only an inventory that a linearizable read confirms will do for it.
    #[must_use]
    pub fn cursor(&self) -> Option<u64> {
        self.epoch.as_ref().map(|_| self.seen())
    }

    /// Every object that this worker knows of.
    pub fn desks(&self) -> impl Iterator<Item = (&HostObject, &Desk)> {
        self.desks.iter()
    }

    /// Whether the store knows of every object how it is since this agent began. Until then its reports are those of
    /// an earlier run, which may have lived before the host lost its power: a worker should not count as alive yet.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        self.epoch.is_some() && self.desks.values().all(Desk::is_told)
    }

    /// The desk of `object`.
    #[must_use]
    pub fn desk(&self, object: &HostObject) -> Option<&Desk> {
        self.desks.get(object)
    }

    /// Takes what a server delivers.
    ///
    /// # Errors
    /// [`Stale`] when it is older than what this worker has seen; nothing has changed then.
    pub fn deliver(&mut self, delivery: Delivery, now: Timestamp) -> Result<(), Stale> {
        self.admit(&delivery)?;
        self.epoch = Some(delivery.epoch);
        self.delivered = delivery.revision;
        match delivery.news {
            News::Inventory(items) => self.take_inventory(items, now),
            News::Change { object, assigned } => {
                self.desk_mut(object).assign(assigned, now);
            }
            News::Topology { object, told } => self.desk_mut(object).tell(told),
            News::Reported { object, mod_revision } => {
                self.desk_mut(object).note_stored(mod_revision, delivery.revision);
            }
            News::Progress => {}
        }
        self.desks.retain(|_, desk| !desk.is_empty());
        Ok(())
    }

    /// A heartbeat was acknowledged: the store has been reached, and this worker counts as alive.
    pub const fn acknowledged(&mut self, at: Timestamp) {
        self.acknowledged_at = Some(at);
    }

    /// The newest revision that this worker knows to exist.
    fn seen(&self) -> u64 {
        self.delivered.max(self.written)
    }

    fn admit(&self, delivery: &Delivery) -> Result<(), Stale> {
        let Delivery { epoch: Epoch { cluster, epoch }, revision, .. } = *delivery;
        let is_inventory = matches!(delivery.news, News::Inventory(_));
        match &self.epoch {
            Some(known) if known.cluster != cluster || epoch < known.epoch => {
                Err(Stale::Epoch { cluster, epoch })
            }
            Some(known) if known.epoch < epoch && !is_inventory => Err(Stale::NoInventory),
            // Only an inventory says what this worker has reported; a change that was on its way while a report was
            // made is no older for that.
            Some(known) if known.epoch == epoch && is_inventory && revision < self.seen() => {
                Err(Stale::Revision { revision, seen: self.seen() })
            }
            Some(known) if known.epoch == epoch && revision < self.delivered => {
                Err(Stale::Revision { revision, seen: self.delivered })
            }
            None if !is_inventory => Err(Stale::NoInventory),
            _ => Ok(()),
        }
    }

    fn take_inventory(&mut self, items: Vec<Item>, now: Timestamp) {
        let seen = self.delivered;
        let mut listed = BTreeMap::new();
        for Item { object, assigned, observed, told } in items {
            listed.insert(object, ());
            let desk = self.desk_mut(object);
            desk.assign(assigned, now);
            desk.adopt_report(observed, seen);
            told.into_iter().for_each(|told| desk.tell(told));
        }
        for (object, desk) in &mut self.desks {
            if !listed.contains_key(object) {
                desk.assign(None, now);
                desk.adopt_report(None, seen);
            }
        }
    }

    fn desk_mut(&mut self, object: HostObject) -> &mut Desk {
        self.desks.entry(object).or_insert_with(|| Desk::found(object, Facts::default()))
    }

    /// Takes the answer to a report. A worker has seen what it wrote itself: a server that has not is too old for it.
    pub fn reply(&mut self, object: HostObject, reply: Reply) {
        if let Reply::Accepted { revision } = &reply {
            self.written = self.written.max(*revision);
        }
        if let Some(desk) = self.desks.get_mut(&object) {
            desk.reply(reply);
        }
        self.desks.retain(|_, desk| !desk.is_empty());
    }

    /// Something has happened to `object` on the host without a step, such as the end of its machine process.
    pub fn look(&mut self, object: HostObject) {
        self.desk_mut(object).look();
    }

    /// Takes what the host shows of `object`. `step` is the step that ended, if one did.
    pub fn observed(&mut self, object: HostObject, facts: Facts, step: Option<&Step>, now: Timestamp) {
        self.desk_mut(object).observed(facts, step, now);
    }

    /// Takes the failure of a step, with what the host shows after it.
    pub fn failed(&mut self, object: HostObject, facts: Facts, problem: &str, now: Timestamp) {
        self.desk_mut(object).failed(facts, problem, now);
    }

    /// The guest of a VM has said that it is ready. `agent_at` is when its agent began to run.
    pub fn guest_ready(&mut self, object: HostObject, agent_at: Timestamp, now: Timestamp) {
        if let Some(desk) = self.desks.get_mut(&object) {
            desk.guest_ready(agent_at, now);
        }
    }

    /// The guest of a VM has said what hinders it; nothing if the text is empty.
    pub fn guest_problem(&mut self, object: HostObject, problem: &str) {
        if let Some(desk) = self.desks.get_mut(&object) {
            desk.guest_problem(problem);
        }
    }

    /// The guest of a VM has said how it is about to end its machine.
    pub fn guest_leaves(&mut self, object: HostObject, leaving: Leaving) {
        if let Some(desk) = self.desks.get_mut(&object) {
            desk.guest_leaves(leaving);
        }
    }

    /// A check of a VM's health has come to this.
    pub fn checked(&mut self, object: HostObject, outcome: health::Outcome, now: Timestamp) {
        if let Some(desk) = self.desks.get_mut(&object) {
            desk.checked(outcome, now);
        }
    }

    /// This came of telling or asking the proxy in a VM.
    pub fn answered(&mut self, object: HostObject, answer: proxy::Answer, now: Timestamp) {
        if let Some(desk) = self.desks.get_mut(&object) {
            desk.answered(answer, now);
        }
    }

    /// This came of telling the guest of a VM of its virtual address.
    pub fn addressed(&mut self, object: HostObject, told: address::Told, now: Timestamp) {
        if let Some(desk) = self.desks.get_mut(&object) {
            desk.addressed(told, now);
        }
    }

    /// What is on this host and nobody has assigned to it; nothing before a server has said what is. At most
    /// [`ORPHANS_REPORTED_MAX`].
    #[must_use]
    pub fn orphans(&self) -> Vec<Orphan> {
        let known = self.epoch.iter().flat_map(|_| &self.desks);
        known.filter_map(|(object, desk)| desk.orphan(*object)).take(ORPHANS_REPORTED_MAX).collect()
    }

    /// What is to be done now. Every returned action is in flight from here on: its outcome must be handed back.
    pub fn actions(&mut self, now: Timestamp) -> Vec<(HostObject, Action)> {
        self.forget_part_problems();
        let mut actions = Vec::new();
        for object in self.desks.keys().copied().collect::<Vec<_>>() {
            actions.extend(self.actions_of(object, now).into_iter().map(|action| (object, action)));
        }
        actions
    }

    /// The same for one object: for who knows that nothing has happened to the others.
    pub fn actions_of(&mut self, object: HostObject, now: Timestamp) -> Vec<Action> {
        let around = self.around(object, now);
        self.desks.get_mut(&object).map(|desk| desk.actions(around, now)).unwrap_or_default()
    }

    /// When [`Agent::actions`] should be called again although nothing happened.
    #[must_use]
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.desks.values().filter_map(Desk::next_wake).min()
    }

    /// What `object` must know of the other objects on this host.
    fn around(&self, object: HostObject, now: Timestamp) -> facts::Around {
        let Some(desk) = self.desks.get(&object) else { return facts::Around::default() };
        let volume_desk =
            |volume: VolumeId| self.desks.get(&HostObject { kind: Kind::Volume, uid: volume.uid() });
        let is = |volume: VolumeId, test: fn(&Facts) -> bool| {
            volume_desk(volume).is_some_and(|desk| test(desk.facts()))
        };
        let disks = desk.saved_vm().map(|vm| vm.disks.as_slice()).unwrap_or_default();
        let source = desk.saved_volume().and_then(|volume| match volume.source {
            Source::Disk(source) => Some(source),
            Source::Image(_) | Source::Blank(_) => None,
        });
        facts::Around {
            disks_present: disks.iter().all(|disk| is(disk.volume, volume::is_present)),
            lost: match object.kind {
                Kind::Vm if disks.iter().any(|disk| is(disk.volume, volume::is_lost)) => {
                    Some("one of its disks is gone from the worker")
                }
                Kind::Vm if disks.iter().any(|disk| self.is_source_lost(disk.volume)) => {
                    Some("one of its disks cannot be made: what it is made from is gone from the worker")
                }
                Kind::Volume if self.is_source_lost(VolumeId::new(object.uid)) => {
                    Some("what it is made from is gone from the worker")
                }
                _ => None,
            },
            used_by: match object.kind {
                Kind::Volume => self.users(VolumeId::new(object.uid), Machines::AsSaved),
                _ => Vec::new(),
            },
            maybe_used_by: match object.kind {
                Kind::Volume => self.users(VolumeId::new(object.uid), Machines::OldToo),
                _ => Vec::new(),
            },
            source_present: source.is_none_or(|source| is(source, volume::is_readable)),
            part_problem: self.part_problem(object),
            source_written_by: source.map(|source| self.users(source, Machines::Writers)).unwrap_or_default(),
            cut_off: self.acknowledged_at.is_none_or(|at| later(at, CUT_OFF_AFTER) <= now),
        }
    }

    /// Whether the volume is not there, and what it is to be made from never will be.
    fn is_source_lost(&self, volume: VolumeId) -> bool {
        let mut volume = volume;
        for _ in 0..SOURCES_MAX {
            let Some(desk) = self.desks.get(&HostObject { kind: Kind::Volume, uid: volume.uid() }) else {
                return false;
            };
            // What arrives is made elsewhere, of what is there.
            let saved = desk.facts().saved.as_ref();
            let is_made = desk.facts().disk.is_some()
                || saved.is_none_or(|saved| saved.created || volume::is_arriving(&saved.assigned));
            let source = desk.saved_volume().filter(|_| !is_made).map(|assigned| &assigned.source);
            let Some(Source::Disk(source)) = source else { return false };
            let source_desk = self.desks.get(&HostObject { kind: Kind::Volume, uid: source.uid() });
            // It was here when this one was assigned, and that was claimed since.
            if source_desk.is_none_or(|desk| desk.is_removed() || volume::is_lost(desk.facts())) {
                return true;
            }
            volume = *source;
        }
        false
    }

    /// The VMs with a machine, in any form, that uses the volume.
    fn users(&self, volume: VolumeId, machines: Machines) -> Vec<VmId> {
        let uses = |desk: &Desk| {
            let Some(vm) = desk.saved_vm() else { return false };
            // A machine that was started before its assignment changed may have other disks than are saved.
            let is_old = desk.facts().saved.as_ref().is_some_and(|saved| saved.started_shape < vm.shape);
            let is_named = |only_writers: bool| {
                vm.disks.iter().any(|disk| disk.volume == volume && !(only_writers && disk.read_only))
            };
            match machines {
                Machines::AsSaved => is_named(false),
                Machines::OldToo => is_old || is_named(false),
                Machines::Writers => is_old || is_named(true),
            }
        };
        let runs = |desk: &Desk| desk.facts().vmm != VmmState::Absent;
        let vms =
            self.desks.iter().filter(|(object, desk)| object.kind == Kind::Vm && runs(desk) && uses(desk));
        vms.map(|(object, _)| VmId::new(object.uid)).collect()
    }
}

/// Which machines count as users of a volume.
#[derive(Clone, Copy)]
enum Machines {
    /// Those whose saved assignment names it.
    AsSaved,
    /// Those too that were started before it changed, whatever they have: their driver knows.
    OldToo,
    /// The same, without those that only read.
    Writers,
}
