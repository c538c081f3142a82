//! The view: everything that the store holds, at one revision, as persistent maps.
//!
//! A clone costs a few reference counts, so every decision can own its snapshot, and a fork ("what if") is a clone
//! with writes applied. Keys are ordered as they are grouped, so most indexes are ranges of the one map; the others
//! below are kept as entries come and go.
//!
//! Invariants:
//! - A key that is in the store is in the view, readable or not. An unreadable value is never skipped: what depends
//!   on it is frozen by the reconciler.
//! - The indexes say the same as the entries (`View::check`, which the simulator runs).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use lightbyte_api::assigned::{Assigned, HostObject};
use lightbyte_api::envelope::Unknown;
use lightbyte_api::object::{Asked, ObjectRef};
use lightbyte_api::observed::{Observed, ObservedWorker};
use lightbyte_api::placing::has_all;
use lightbyte_api::records::{AddressClaim, Alive, Record, WorkerLedger};
use lightbyte_api::{Choice, Decided, Key, Kind, Name, Spec, Uid, WorkerId};

use crate::fronts::Fronts;
use crate::labels::Labels;
use crate::places::{Place, Places};
use crate::runs::Runs;
use crate::transaction::Write;

/// The revision of an entry that was written by a transaction whose revision is not known yet.
pub const PENDING: u64 = u64::MAX;

/// A snapshot of the store.
#[derive(Clone, Default)]
pub struct View {
    revision: u64,
    entries: OrdMap<Key, Entry>,
    /// Objects by uid: reports and assignments carry uids.
    objects: OrdMap<Uid, ObjectRef>,
    /// (named object, object that names it): whom a change of the first concerns.
    references: OrdSet<(ObjectRef, ObjectRef)>,
    /// (owner's uid, child).
    children: OrdSet<(Uid, ObjectRef)>,
    /// Workers that may be given VMs.
    places: Places,
    /// Addresses that are claimed.
    claimed: Runs,
    /// Labels of VMs, and whose firewall names them.
    labels: Labels,
    /// (owner, worker, VM): where the members of a group are.
    placed: OrdSet<(Uid, WorkerId, Uid)>,
    /// Which load balancers may send requests to a VM.
    fronts: Fronts,
    /// Keys that cannot be read.
    unreadable: OrdSet<Key>,
    /// Keys of a layout that this version does not know. They are counted, and nothing else.
    foreign: OrdMap<Arc<str>, u64>,
}

/// One stored value with the revision of its last change.
#[derive(Clone)]
struct Entry {
    mod_revision: u64,
    content: Content,
}

#[derive(Clone)]
enum Content {
    Record(Record, Unknown),
    Unreadable(Arc<str>),
}

/// A change of one key as the store tells it.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The key, without the root.
    pub key: &'a str,
    /// The revision of the change.
    pub mod_revision: u64,
    /// The stored bytes; `None` when the key was deleted.
    pub value: Option<&'a [u8]>,
}

impl View {
    /// The revision that this is a snapshot of.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Builds the view of a full list at `revision`.
    #[must_use]
    pub fn of_listing<'a>(revision: u64, entries: impl IntoIterator<Item = Change<'a>>) -> View {
        let mut view = View::default();
        view.apply(revision, entries);
        view
    }

    /// Moves the view to `revision` with all changes since its own, and tells which keys changed.
    pub fn apply<'a>(&mut self, revision: u64, changes: impl IntoIterator<Item = Change<'a>>) -> Vec<Key> {
        let keys = changes.into_iter().filter_map(|change| self.apply_one(change)).collect();
        self.revision = self.revision.max(revision);
        keys
    }

    fn apply_one(&mut self, change: Change<'_>) -> Option<Key> {
        let Ok(key) = change.key.parse::<Key>() else {
            match change.value {
                Some(_) => self.foreign.insert(change.key.into(), change.mod_revision),
                None => self.foreign.remove(change.key),
            };
            return None;
        };
        let entry = change.value.map(|bytes| Entry {
            mod_revision: change.mod_revision,
            content: match Record::decode(&key, bytes) {
                Ok((record, unknown)) => Content::Record(record, unknown),
                Err(error) => Content::Unreadable(error.to_string().into()),
            },
        });
        self.set(key.clone(), entry);
        Some(key)
    }

    /// Applies writes of our own before the store has told of them. `mod_revision` is theirs, or [`PENDING`].
    pub fn write(&mut self, writes: impl IntoIterator<Item = Write>, mod_revision: u64) {
        for write in writes {
            match write {
                Write::Put(key, record) => {
                    let unknown = self.unknown(&key);
                    self.set(key, Some(Entry { mod_revision, content: Content::Record(record, unknown) }));
                }
                Write::Delete(key) => self.set(key, None),
            }
        }
    }

    /// A copy with `writes` applied, for asking what would be.
    #[must_use]
    pub fn fork(&self, writes: impl IntoIterator<Item = Write>) -> View {
        let mut fork = self.clone();
        fork.write(writes, PENDING);
        fork
    }

    fn set(&mut self, key: Key, entry: Option<Entry>) {
        let indexed = |entry: &Entry| match &entry.content {
            Content::Record(Record::Asked(asked), _) => Some(Arc::clone(asked)),
            Content::Record(..) | Content::Unreadable(_) => None,
        };
        let after = entry.as_ref().and_then(indexed);
        match &entry {
            Some(Entry { content: Content::Unreadable(_), .. }) => self.unreadable.insert(key.clone()),
            _ => self.unreadable.remove(&key),
        };
        let replaced = match entry {
            Some(entry) => self.entries.insert(key.clone(), entry),
            None => self.entries.remove(&key),
        };
        if let Key::Decided(object) | Key::Asked(object) = &key
            && object.kind == Kind::Vm
        {
            self.index_placed(object, replaced.as_ref());
        }
        if let Key::Decided(object) = &key
            && object.kind == Kind::LoadBalancer
        {
            self.index_front(object, replaced.as_ref());
        }
        let before = replaced.as_ref().and_then(indexed);
        let is_there = self.entries.contains_key(&key);
        match key {
            Key::Asked(object) => {
                let uids =
                    [&before, &after].into_iter().flatten().map(|asked| asked.meta.uid).collect::<Vec<_>>();
                if let Some(before) = before {
                    self.unindex(&object, &before);
                }
                if let Some(after) = after {
                    self.index(object.clone(), &after);
                }
                if object.kind == Kind::Worker {
                    uids.into_iter().for_each(|uid| self.index_room(WorkerId::new(uid)));
                }
            }
            // Readable or not: what holds it cannot be told, and so it is held.
            Key::Address(network, address) if is_there => self.claimed.add(&network, address),
            Key::Address(network, address) => self.claimed.remove(&network, address),
            Key::WorkerLedger(worker) | Key::Alive(worker) => self.index_room(worker),
            Key::Observed(worker, object) if object.kind == Kind::Worker => self.index_room(worker),
            _ => {}
        }
    }

    fn index_room(&mut self, worker: WorkerId) {
        let stands = self.room(worker);
        self.places.set(worker, stands);
    }

    /// Notes where a member of a group is, when what is asked of it or decided for it has changed from `replaced`.
    fn index_placed(&mut self, object: &ObjectRef, replaced: Option<&Entry>) {
        let (asked, decided) = (self.asked(object).cloned(), self.decided(object).cloned());
        let (asked_before, decided_before) = match replaced.map(|entry| &entry.content) {
            Some(Content::Record(Record::Asked(asked), _)) => (Some(Arc::clone(asked)), decided.clone()),
            Some(Content::Record(Record::Decided(decided), _)) => (asked.clone(), Some(Arc::clone(decided))),
            _ => (None, None),
        };
        if let Some(stood) = placed_at(asked_before.as_deref(), decided_before.as_deref()) {
            self.placed.remove(&stood);
        }
        if let Some(stands) = placed_at(asked.as_deref(), decided.as_deref()) {
            self.placed.insert(stands);
        }
    }

    /// Notes whom a load balancer may send requests to, when what is decided for it has changed from `replaced`.
    fn index_front(&mut self, object: &ObjectRef, replaced: Option<&Entry>) {
        if let Some(Content::Record(Record::Decided(before), _)) = replaced.map(|entry| &entry.content) {
            self.fronts.remove(object, before);
        }
        if let Some(after) = self.decided(object).cloned() {
            self.fronts.add(object, &after);
        }
    }

    /// Where a worker is that may be given VMs, and how full; `None` for one that may not.
    fn room(&self, worker: WorkerId) -> Option<(Place, (u64, Name))> {
        let object = self.objects.get(&worker.uid())?;
        let asked = self.living(object)?;
        let Spec::Worker(spec) = &asked.spec else { return None };
        let (observed, ledger) = (self.observed_worker(worker)?, self.worker_ledger(worker)?);
        let may = spec.is_open() && self.alive(worker).is_some();
        may.then(|| (Place::of(&asked.meta.labels), (fullness(observed, ledger), object.name.clone())))
    }

    fn index(&mut self, object: ObjectRef, asked: &Asked) {
        for referenced in asked.spec.references() {
            self.references.insert((referenced, object.clone()));
        }
        self.labels.add(&object, asked);
        if let Some(owner) = &asked.meta.owner {
            self.children.insert((owner.uid, object.clone()));
        }
        self.objects.insert(asked.meta.uid, object);
    }

    fn unindex(&mut self, object: &ObjectRef, asked: &Asked) {
        for referenced in asked.spec.references() {
            self.references.remove(&(referenced, object.clone()));
        }
        self.labels.remove(object, asked);
        if let Some(owner) = &asked.meta.owner {
            self.children.remove(&(owner.uid, object.clone()));
        }
        self.objects.remove(&asked.meta.uid);
    }

    // ------------------------------------------------------------------------------------------------ reading

    /// The revision of the key's last change; 0 when it is absent. This is what a guard compares.
    #[must_use]
    pub fn mod_revision(&self, key: &Key) -> u64 {
        self.entries.get(key).map_or(0, |entry| entry.mod_revision)
    }

    /// Whether the key is there, readable or not.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    /// Why the key's value cannot be read, if it is there and cannot.
    #[must_use]
    pub fn unreadable(&self, key: &Key) -> Option<&str> {
        match &self.entries.get(key)?.content {
            Content::Unreadable(reason) => Some(reason),
            Content::Record(..) => None,
        }
    }

    /// All keys that cannot be read, and those of an unknown layout.
    pub fn unreadable_keys(&self) -> impl Iterator<Item = String> {
        self.unreadable.iter().map(ToString::to_string).chain(self.foreign.keys().map(ToString::to_string))
    }

    /// What is asked of an object that this version cannot read.
    pub fn unreadable_asked(&self) -> impl Iterator<Item = &Key> {
        self.unreadable.iter().take_while(|key| matches!(key, Key::Asked(_)))
    }

    /// The value of the key, when it is there and readable.
    #[must_use]
    pub fn record(&self, key: &Key) -> Option<&Record> {
        match &self.entries.get(key)?.content {
            Content::Record(record, _) => Some(record),
            Content::Unreadable(_) => None,
        }
    }

    /// What of the key's value this version does not know; kept when the value is written again.
    #[must_use]
    pub fn unknown(&self, key: &Key) -> Unknown {
        match self.entries.get(key).map(|entry| &entry.content) {
            Some(Content::Record(_, unknown)) => unknown.clone(),
            _ => None,
        }
    }

    /// Every key with the revision of its last change, in order.
    pub fn keys(&self) -> impl Iterator<Item = (&Key, u64)> {
        self.entries.iter().map(|(key, entry)| (key, entry.mod_revision))
    }

    /// What is asked of `object`.
    #[must_use]
    pub fn asked(&self, object: &ObjectRef) -> Option<&Arc<Asked>> {
        match self.record(&Key::Asked(object.clone()))? {
            Record::Asked(asked) => Some(asked),
            _ => None,
        }
    }

    /// What is asked of `object`, unless its end is asked for.
    #[must_use]
    pub fn living(&self, object: &ObjectRef) -> Option<&Arc<Asked>> {
        self.asked(object).filter(|asked| asked.meta.deleting_since.is_none())
    }

    /// What was decided for `object`.
    #[must_use]
    pub fn decided(&self, object: &ObjectRef) -> Option<&Arc<Decided>> {
        match self.record(&Key::Decided(object.clone()))? {
            Record::Decided(decided) => Some(decided),
            _ => None,
        }
    }

    /// What `worker` is to do with `object`.
    #[must_use]
    pub fn assigned(&self, worker: WorkerId, object: HostObject) -> Option<&Arc<Assigned>> {
        match self.record(&Key::Assigned(worker, object))? {
            Record::Assigned(assigned) => Some(assigned),
            _ => None,
        }
    }

    /// What `worker` says of `object`.
    #[must_use]
    pub fn observed(&self, worker: WorkerId, object: HostObject) -> Option<&Arc<Observed>> {
        match self.record(&Key::Observed(worker, object))? {
            Record::Observed(observed) => Some(observed),
            _ => None,
        }
    }

    /// What `worker` says of itself.
    #[must_use]
    pub fn observed_worker(&self, worker: WorkerId) -> Option<&ObservedWorker> {
        match self.observed(worker, HostObject { kind: Kind::Worker, uid: worker.uid() })?.as_ref() {
            Observed::Worker(observed) => Some(observed),
            Observed::Vm(_) | Observed::Volume(_) => None,
        }
    }

    /// The ledger of `worker`, which its registration made. An absent one is not an empty one: it would free what
    /// was counted.
    #[must_use]
    pub fn worker_ledger(&self, worker: WorkerId) -> Option<&WorkerLedger> {
        match self.record(&Key::WorkerLedger(worker))? {
            Record::WorkerLedger(ledger) => Some(ledger),
            _ => None,
        }
    }

    /// The liveness of `worker`.
    #[must_use]
    pub fn alive(&self, worker: WorkerId) -> Option<&Alive> {
        match self.record(&Key::Alive(worker))? {
            Record::Alive(alive) => Some(alive),
            _ => None,
        }
    }

    /// Who holds the address.
    #[must_use]
    pub fn address_claim(&self, network: &Name, address: Ipv4Addr) -> Option<&AddressClaim> {
        match self.record(&Key::Address(network.clone(), address))? {
            Record::AddressClaim(claim) => Some(claim),
            _ => None,
        }
    }

    // ------------------------------------------------------------------------------------------------ indexes

    /// The living or dying object with this uid.
    #[must_use]
    pub fn object_of(&self, uid: Uid) -> Option<&ObjectRef> {
        self.objects.get(&uid)
    }

    /// Every object that is asked for, readable or not, in order of kind and name.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectRef> {
        self.range(Key::Asked(ObjectRef::new(Kind::ALL[0], first_name()))).map_while(|(key, _)| match key {
            Key::Asked(object) => Some(object),
            _ => None,
        })
    }

    /// Every object of one kind, in order of name.
    pub fn objects_of(&self, kind: Kind) -> impl Iterator<Item = &ObjectRef> {
        self.range(Key::Asked(ObjectRef::new(kind, first_name()))).map_while(move |(key, _)| match key {
            Key::Asked(object) if object.kind == kind => Some(object),
            _ => None,
        })
    }

    /// The workers that may be given VMs, the one with the most room first; equal ones in order of name.
    pub fn workers_by_room(&self) -> impl Iterator<Item = &Name> {
        self.places.all().map(|(_, name)| name)
    }

    /// The places in which there are workers that may be given VMs, in order.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.places.places()
    }

    /// The workers in one place that may be given VMs, with how full they are in thousandths, the one with the most room first.
    pub fn workers_in<'a>(&'a self, place: &'a Place) -> impl Iterator<Item = &'a (u64, Name)> {
        self.places.in_place(place)
    }

    /// Where a worker is, whether it may be given VMs or not.
    #[must_use]
    pub fn place_of(&self, worker: WorkerId) -> Place {
        let asked = self.object_of(worker.uid()).and_then(|object| self.asked(object));
        asked.map(|asked| Place::of(&asked.meta.labels)).unwrap_or_default()
    }

    /// The first address of `network` from `from` on that nobody holds; `None` past the last of all.
    #[must_use]
    pub fn unclaimed_from(&self, network: &Name, from: Ipv4Addr) -> Option<Ipv4Addr> {
        self.claimed.first_gap(network, from)
    }

    /// The objects that name `object` in their specification.
    pub fn referrers<'a>(&'a self, object: &'a ObjectRef) -> impl Iterator<Item = &'a ObjectRef> {
        let from = (object.clone(), ObjectRef::new(Kind::ALL[0], first_name()));
        self.references
            .range(from..)
            .take_while(move |(named, _)| named == object)
            .map(|(_, referrer)| referrer)
    }

    /// The living VMs that have all of `labels`, in order of name.
    pub fn vms_with<'a>(
        &'a self,
        labels: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = (ObjectRef, &'a Asked)> {
        self.vms_having(labels).filter(|(_, asked)| asked.meta.deleting_since.is_none())
    }

    /// The same with those whose end is asked for: they may run still.
    pub fn vms_having<'a>(
        &'a self,
        labels: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = (ObjectRef, &'a Asked)> {
        let candidates = self.labels.candidates(labels);
        candidates.filter_map(move |vm| {
            let asked = self.asked(&vm).filter(|asked| has_all(&asked.meta.labels, labels))?;
            Some((vm, asked.as_ref()))
        })
    }

    /// The VMs whose firewall or placement, and the load balancers whose pools, may name a VM with `labels`.
    pub fn naming_labels(&self, labels: &BTreeMap<String, String>) -> impl Iterator<Item = ObjectRef> {
        self.labels.watchers(labels)
    }

    /// The VMs whose firewall or placement, and the load balancers whose pools, may name `object` by its labels.
    pub fn named_by_labels(&self, object: &ObjectRef) -> impl Iterator<Item = ObjectRef> {
        let labels = self.asked(object).filter(|_| object.kind == Kind::Vm).map(|asked| &asked.meta.labels);
        labels.into_iter().flat_map(|labels| self.labels.watchers(labels))
    }

    /// The objects that `owner` made.
    pub fn children(&self, owner: Uid) -> impl Iterator<Item = &ObjectRef> {
        let from = (owner, ObjectRef::new(Kind::ALL[0], first_name()));
        self.children.range(from..).take_while(move |(uid, _)| *uid == owner).map(|(_, child)| child)
    }

    /// The group that `object` is a member of.
    #[must_use]
    pub fn group_of(&self, object: &ObjectRef) -> Option<&ObjectRef> {
        self.asked(object)?.meta.group().map(|group| &group.object)
    }

    /// How many VMs of `owner` are on `worker`.
    #[must_use]
    pub fn placed_of(&self, owner: Uid, worker: WorkerId) -> usize {
        let from = (owner, worker, Uid::from_bits(0));
        self.placed.range(from..).take_while(|(found, on, _)| (*found, *on) == (owner, worker)).count()
    }

    /// The load balancers that a VM is a member of, or whose proxies may still send to it.
    pub fn fronted_by(&self, vm: Uid) -> impl Iterator<Item = &Name> {
        self.fronts.of(vm)
    }

    /// The load balancers whose proxies do what may name the VM `object`, whether that is asked still or not.
    pub(crate) fn fronts_naming(&self, object: &ObjectRef, asked: &Asked) -> Vec<Name> {
        self.fronts.naming(object, asked)
    }

    /// What is decided for one of `kind` and that this version cannot read.
    #[must_use]
    pub fn unreadable_decided(&self, kind: Kind) -> Option<&Key> {
        let from = Key::Decided(ObjectRef::new(kind, first_name()));
        let is_meant = |key: &&Key| matches!(key, Key::Decided(object) if object.kind == kind);
        self.unreadable.range(from..).next().filter(is_meant)
    }

    /// The workers that members of `owner` are on, one for each member.
    pub fn workers_of(&self, owner: Uid) -> impl Iterator<Item = WorkerId> {
        let from = (owner, WorkerId::new(Uid::from_bits(0)), Uid::from_bits(0));
        self.placed.range(from..).take_while(move |(found, ..)| *found == owner).map(|(_, worker, _)| *worker)
    }

    /// Everything assigned to `worker`, readable or not.
    pub fn assigned_to(&self, worker: WorkerId) -> impl Iterator<Item = HostObject> {
        let first = HostObject { kind: Kind::ALL[0], uid: Uid::from_bits(0) };
        self.range(Key::Assigned(worker, first)).map_while(move |(key, _)| match key {
            Key::Assigned(found, object) if *found == worker => Some(*object),
            _ => None,
        })
    }

    /// Everything that `worker` reports, readable or not.
    pub fn observed_by(&self, worker: WorkerId) -> impl Iterator<Item = HostObject> {
        let first = HostObject { kind: Kind::ALL[0], uid: Uid::from_bits(0) };
        self.range(Key::Observed(worker, first)).map_while(move |(key, _)| match key {
            Key::Observed(found, object) if *found == worker => Some(*object),
            _ => None,
        })
    }

    /// The addresses of `network` that are taken, in order, readable or not.
    pub fn claimed_addresses(&self, network: &Name) -> impl Iterator<Item = Ipv4Addr> {
        let network = network.clone();
        self.range(Key::Address(network.clone(), Ipv4Addr::UNSPECIFIED)).map_while(
            move |(key, _)| match key {
                Key::Address(found, address) if *found == network => Some(*address),
                _ => None,
            },
        )
    }

    /// The uid of the worker `object`, when it is asked for.
    #[must_use]
    pub fn worker_id(&self, object: &ObjectRef) -> Option<WorkerId> {
        let asked = self.asked(object)?;
        matches!(asked.spec, Spec::Worker(_)).then(|| WorkerId::new(asked.meta.uid))
    }

    fn range(&self, from: Key) -> impl Iterator<Item = (&Key, &Entry)> {
        self.entries.range(from..)
    }

    /// Compares the indexes with the entries that they are made from.
    ///
    /// # Errors
    /// The name of the index that differs.
    pub fn check(&self) -> Result<(), &'static str> {
        let mut fresh = View::default();
        for (key, entry) in &self.entries {
            fresh.set(key.clone(), Some(entry.clone()));
        }
        let same = [
            (self.objects == fresh.objects, "objects by uid"),
            (self.references == fresh.references, "references"),
            (self.children == fresh.children, "children"),
            (self.places == fresh.places, "workers by room"),
            (self.claimed == fresh.claimed, "claimed addresses"),
            (self.labels == fresh.labels, "labels"),
            (self.placed == fresh.placed, "placed members"),
            (self.fronts == fresh.fronts, "members of load balancers"),
            (self.unreadable == fresh.unreadable, "unreadable keys"),
        ];
        same.into_iter().find(|(same, _)| !same).map_or(Ok(()), |(_, index)| Err(index))
    }
}

/// Where an owned VM stands in the index of placed members.
fn placed_at(asked: Option<&Asked>, decided: Option<&Decided>) -> Option<(Uid, WorkerId, Uid)> {
    let (asked, Choice::Vm(choice)) = (asked?, &decided?.choice) else { return None };
    Some((asked.meta.owner.as_ref()?.uid, choice.placement.as_ref()?.worker, asked.meta.uid))
}

/// The fuller of a worker's processors and memory, in thousandths.
fn fullness(observed: &ObservedWorker, ledger: &WorkerLedger) -> u64 {
    let per_mille = |used: u64, total: u64| used.saturating_mul(1_000).checked_div(total).unwrap_or(u64::MAX);
    per_mille(ledger.cpus, observed.cpus)
        .max(per_mille(ledger.memory.bytes() >> 10, observed.memory.bytes() >> 10))
}

/// A name that sorts before every name.
pub(crate) fn first_name() -> Name {
    static FIRST: std::sync::OnceLock<Name> = std::sync::OnceLock::new();
    // `a` is the least name: names begin with a letter, and a prefix sorts first.
    FIRST.get_or_init(|| Name::new("a").unwrap_or_else(|_| unreachable!("`a` is a name"))).clone()
}
