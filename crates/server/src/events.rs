//! What happened to objects, as far as this server has seen it since it started.
//!
//! A bounded ring in memory for each object. It is lost with the process, and two servers may have seen different
//! things; the durable ring, with a root of its own in the store, comes later and will keep this form.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lightbyte_api::records::Squatted;
use lightbyte_api::{Kind, Name, ObjectRef, Spec, Timestamp, WaitingOn};
use lightbyte_plan::planner::scalegroup;
use lightbyte_plan::{View, status};
use serde::Serialize;
use tokio::time::{Duration, sleep};

use crate::follower::Subscription;
use crate::{Server, affected, clock, last_words};

/// How many events are kept of one object: the story of a boot or two, and the last words of a member.
pub(crate) const EVENTS_PER_OBJECT_MAX: usize = 48;
/// How many objects that are gone are remembered.
pub(crate) const GONE_OBJECTS_MAX: usize = 1_000;
/// The pause before a lost place in the stream of changes is taken again.
const AGAIN_PAUSE: Duration = Duration::from_millis(100);

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Event {
    /// When this server saw it.
    pub(crate) at: Timestamp,
    /// The revision of the view that showed it.
    pub(crate) revision: u64,
    /// To which object.
    pub(crate) object: ObjectRef,
    /// What: `created`, `state`, `waiting`, `resolved`, `scaled`, `console`, `address`, `squatted`, `released` or `gone`.
    pub(crate) what: &'static str,
    /// The same in words.
    pub(crate) message: String,
}

/// The rings of all objects.
#[derive(Default)]
pub(crate) struct Events(Mutex<Rings>);

#[derive(Default)]
struct Rings {
    /// How each living object was seen last.
    last: BTreeMap<ObjectRef, Look>,
    rings: BTreeMap<ObjectRef, VecDeque<Event>>,
    gone: VecDeque<ObjectRef>,
}

/// What of an object makes an event when it changes.
#[derive(Clone, PartialEq)]
struct Look {
    state: String,
    waiting_on: BTreeSet<WaitingOn>,
    /// How many members a group is to have, and why, when it says so itself.
    size: Option<(u64, String)>,
    /// A VM's addresses.
    addresses: Vec<String>,
    /// A network's addresses that others have, in words.
    squatted: BTreeSet<String>,
}

impl Events {
    /// The events of one object, oldest first.
    pub(crate) fn of(&self, object: &ObjectRef) -> Vec<Event> {
        self.rings().rings.get(object).map(|ring| ring.iter().cloned().collect()).unwrap_or_default()
    }

    /// The newest `count` events of all objects, oldest first.
    pub(crate) fn newest(&self, count: usize) -> Vec<Event> {
        let mut events: Vec<Event> = self.rings().rings.values().flatten().cloned().collect();
        events.sort_by_key(|event| (event.revision, event.at));
        events.split_off(events.len().saturating_sub(count))
    }

    fn rings(&self) -> MutexGuard<'_, Rings> {
        // A panic inside would lose at most one event.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins with `view`: what is there already did not happen now.
    fn begin(&self, view: &View) {
        let mut rings = self.rings();
        let is_first = rings.last.is_empty() && rings.rings.is_empty();
        let known: BTreeSet<ObjectRef> = view.objects().cloned().chain(rings.last.keys().cloned()).collect();
        for object in known {
            match look(view, &object) {
                Some(look) if is_first => {
                    rings.last.insert(object, look);
                }
                look => rings.note(view.revision(), &object, look.as_ref()),
            }
        }
    }

    /// A member of a group said this last on its console.
    pub(crate) fn said(&self, group: &ObjectRef, revision: u64, member: &Name, lines: &[String]) {
        let mut rings = self.rings();
        let at = clock::now();
        for line in lines {
            let message = format!("{member} said: {line}");
            rings.push(Event { at, revision, object: group.clone(), what: "console", message });
        }
    }

    fn take(&self, before: &View, after: &View, keys: &[lightbyte_api::Key]) {
        let objects = affected::objects(before, after, keys);
        let mut rings = self.rings();
        for object in objects {
            rings.note(after.revision(), &object, look(after, &object).as_ref());
        }
    }
}

impl Rings {
    fn push(&mut self, event: Event) {
        let ring = self.rings.entry(event.object.clone()).or_default();
        ring.push_back(event);
        while ring.len() > EVENTS_PER_OBJECT_MAX {
            ring.pop_front();
        }
    }

    fn note(&mut self, revision: u64, object: &ObjectRef, look: Option<&Look>) {
        let before = match look {
            Some(look) => self.last.insert(object.clone(), look.clone()),
            None => self.last.remove(object),
        };
        let told = told(before.as_ref(), look);
        if told.is_empty() {
            return;
        }
        let at = clock::now();
        for (what, message) in told {
            self.push(Event { at, revision, object: object.clone(), what, message });
        }
        if look.is_none() {
            self.gone.push_back(object.clone());
        }
        while self.gone.len() > GONE_OBJECTS_MAX {
            let forgotten = self.gone.pop_front().filter(|object| !self.last.contains_key(object));
            forgotten.map(|object| self.rings.remove(&object));
        }
    }
}

/// What to say about the way from one look to the next.
fn told(before: Option<&Look>, after: Option<&Look>) -> Vec<(&'static str, String)> {
    let nothing = BTreeSet::new();
    let mut told = Vec::new();
    match (before, after) {
        (None, None) => return told,
        (None, Some(after)) => told.push(("created", format!("it was asked for and is {}", after.state))),
        (Some(_), None) => told.push(("gone", "nothing of it is left".to_owned())),
        (Some(before), Some(after)) if before.state != after.state => {
            told.push(("state", format!("it was {} and is {}", before.state, after.state)));
        }
        (Some(_), Some(_)) => {}
    }
    let waited = before.map_or(&nothing, |look| &look.waiting_on);
    let waits = after.map_or(&nothing, |look| &look.waiting_on);
    told.extend(waits.difference(waited).map(|on| ("waiting", format!("it waits: {on}"))));
    if let (Some(before), Some(after)) = (before, after) {
        if let (Some((count_before, _)), Some((count, because))) = (&before.size, &after.size)
            && count_before != count
        {
            let because = if because.is_empty() { String::new() } else { format!(": {because}") };
            told.push(("scaled", format!("its size is to be {count} and was {count_before}{because}")));
        }
        // One that a DHCP server gives comes and goes with the machine: another in its place is what counts.
        let is_exchanged = before.addresses.len() == after.addresses.len();
        if is_exchanged && before.addresses != after.addresses {
            let (old, new) = (before.addresses.join(", "), after.addresses.join(", "));
            told.push(("address", format!("it had {old} and has {new}")));
        }
        let news = after.squatted.difference(&before.squatted);
        told.extend(news.map(|squatted| ("squatted", squatted.clone())));
        let gone = before.squatted.difference(&after.squatted);
        told.extend(gone.map(|squatted| ("released", format!("not so any more: {squatted}"))));
    }
    if after.is_some() {
        told.extend(waited.difference(waits).map(|on| ("resolved", format!("it waits no more: {on}"))));
    }
    told
}

fn look(view: &View, object: &ObjectRef) -> Option<Look> {
    // Every change of the store is looked at: only what is needed is made.
    let status = status::brief(view, object)?;
    // Room and addresses in use are no events of the worker or the network.
    let waiting_on = match object.kind {
        Kind::Image => BTreeSet::new(),
        _ => status.waiting_on.iter().cloned().map(|waiting| waiting.on).collect(),
    };
    let addresses = if object.kind == Kind::Vm { status::addresses(view, object) } else { Vec::new() };
    Some(Look {
        size: size(view, object),
        addresses,
        squatted: squatted(view, object),
        state: status.state,
        waiting_on,
    })
}

/// How many members a group is to have, and why, where it says so itself.
fn size(view: &View, object: &ObjectRef) -> Option<(u64, String)> {
    let Spec::ScaleGroup(spec) = &view.asked(object)?.spec else { return None };
    let scaling = scalegroup::choice(view, object).and_then(|choice| choice.scaling.as_ref());
    let because = scaling.filter(|_| spec.autoscale.is_some()).map(|scaling| scaling.because.clone());
    Some((scalegroup::replicas(view, object, spec), because.unwrap_or_default()))
}

/// Who has a network's addresses, in the words of whoever waits for them.
fn squatted(view: &View, network: &ObjectRef) -> BTreeSet<String> {
    if network.kind != Kind::Network {
        return BTreeSet::new();
    }
    let told = |address| {
        let Squatted { mac, worker, .. } = view.address_claim(&network.name, address)?.squatted.clone()?;
        Some(WaitingOn::Squatted { network: network.name.clone(), address, mac, worker }.to_string())
    };
    view.claimed_addresses(&network.name).filter_map(told).take(status::SQUATTED_SHOWN_MAX).collect()
}

/// Writes down what happens, until it is dropped.
pub(crate) async fn record(server: Arc<Server>) {
    loop {
        if let Some(Subscription { mut view, mut news }) = server.follower.subscribe() {
            server.events.begin(&view);
            server.times.note(clock::now(), view.revision());
            while let Some(news) = news.recv().await {
                server.events.take(&view, &news.view, &news.changed);
                last_words::note(&server, &view, &news);
                view = news.view;
                server.times.note(clock::now(), view.revision());
            }
        }
        sleep(AGAIN_PAUSE).await;
    }
}
