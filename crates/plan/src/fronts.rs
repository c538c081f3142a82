//! Which load balancers may send requests to a VM: until none may, it is not stopped by us, and its address is nobody else's.
//!
//! A VM is out of rotation when its load balancer has decided so and every proxy has acknowledged that and has nothing in
//! flight to it any more (`planner/loadbalancer.rs` keeps the list). The time for that is bounded: by the load balancer, and where that
//! cannot decide, by the VM itself. Its address rests for as long as any proxy may still send there.

use std::net::{Ipv4Addr, Ipv6Addr};

use imbl::OrdSet;
use lightbyte_api::assigned::VirtualAddress;
use lightbyte_api::kinds::loadbalancer::{Choice as BalancerChoice, Member, Members};
use lightbyte_api::object::Asked;
use lightbyte_api::records::AddressClaim;
use lightbyte_api::{Choice, Decided, Key, Kind, Name, ObjectRef, Span, Spec, Timestamp, Uid, WaitingOn};

use crate::planner::{loadbalancer, since};
use crate::transaction::Write;
use crate::view::{View, first_name};

/// How long a VM that is to stop waits for a load balancer beyond the time that this gives to requests: one that does not decide
/// keeps nobody for ever.
pub const UNDECIDED_MAX: Span = Span::from_secs(60);

/// How long a proxy goes on after its name led to it for the last time: clients keep an answer for five seconds, resolvers hear
/// of a change much sooner, and a request takes its time.
pub const NAMES_KEPT: Span = Span::from_secs(8);

/// Which load balancers a VM may concern.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Fronts {
    /// (VM, load balancer): who is a member of which, or may still be sent to by its proxies.
    known: OrdSet<(Uid, Name)>,
    /// (words, load balancer): whom what its proxies do names, whether that is asked still or not.
    named: OrdSet<(Words, Name)>,
}

/// A word by which a pool names its members; of several labels the first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Words {
    Group(Name),
    Vm(Name),
    Label(String, String),
}

/// The virtual address of IPv6 that goes with that of IPv4, where the network says what its first half is.
#[must_use]
pub fn address6(view: &View, balancer: &ObjectRef, address: Ipv4Addr) -> Option<Ipv6Addr> {
    let Spec::LoadBalancer(spec) = &view.asked(balancer)?.spec else { return None };
    let network = ObjectRef::new(Kind::Network, spec.proxies.network.clone());
    match &view.asked(&network)?.spec {
        Spec::Network(network) => network.address6(address),
        _ => None,
    }
}

impl Fronts {
    /// What was decided for the load balancer `object` is no more.
    pub(crate) fn remove(&mut self, object: &ObjectRef, decided: &Decided) {
        for uid in known(decided) {
            self.known.remove(&(uid, object.name.clone()));
        }
        for words in named(decided) {
            self.named.remove(&(words, object.name.clone()));
        }
    }

    /// This was decided for the load balancer `object`.
    pub(crate) fn add(&mut self, object: &ObjectRef, decided: &Decided) {
        for uid in known(decided) {
            self.known.insert((uid, object.name.clone()));
        }
        for words in named(decided) {
            self.named.insert((words, object.name.clone()));
        }
    }

    /// The load balancers that may send to a VM.
    pub(crate) fn of(&self, vm: Uid) -> impl Iterator<Item = &Name> {
        let known = self.known.range((vm, first_name())..).take_while(move |(uid, _)| *uid == vm);
        known.map(|(_, balancer)| balancer)
    }

    /// The load balancers whose proxies do what may name a VM.
    pub(crate) fn naming(&self, vm: &ObjectRef, asked: &Asked) -> Vec<Name> {
        let group = asked.meta.group().map(|group| Words::Group(group.object.name.clone()));
        let labels = asked.meta.labels.iter().map(|(key, value)| Words::Label(key.clone(), value.clone()));
        let words = std::iter::once(Words::Vm(vm.name.clone())).chain(group).chain(labels);
        words.flat_map(|words| self.naming_by(&words)).collect()
    }

    fn naming_by(&self, words: &Words) -> Vec<Name> {
        let from = (words.clone(), first_name());
        self.named
            .range(from..)
            .take_while(|(found, _)| found == words)
            .map(|(_, name)| name.clone())
            .collect()
    }
}

fn named(decided: &Decided) -> Vec<Words> {
    let configurations = choice_in(decided).into_iter().flat_map(|choice| &choice.configurations);
    let pools = configurations.flat_map(|configuration| &configuration.serving.pools);
    pools.flat_map(|pool| words(&pool.members)).collect()
}

fn words(members: &Members) -> Vec<Words> {
    match members {
        Members::Group(group) => vec![Words::Group(group.clone())],
        Members::Vms(vms) => vms.iter().cloned().map(Words::Vm).collect(),
        Members::Labels(labels) => {
            let first = labels.iter().next();
            first.map(|(key, value)| Words::Label(key.clone(), value.clone())).into_iter().collect()
        }
    }
}

fn known(decided: &Decided) -> Vec<Uid> {
    choice_in(decided).map(|choice| choice.known().collect()).unwrap_or_default()
}

fn choice_in(decided: &Decided) -> Option<&BalancerChoice> {
    match &decided.choice {
        Choice::LoadBalancer(choice) => Some(choice),
        _ => None,
    }
}

/// What was decided for a load balancer.
#[must_use]
pub fn choice<'a>(view: &'a View, balancer: &ObjectRef) -> Option<&'a BalancerChoice> {
    choice_in(view.decided(balancer)?)
}

/// The virtual address that the card of a proxy is to have now, with the key that says so; nothing where it is no proxy, or that
/// cannot be read.
pub(crate) fn virtual_address(
    view: &View,
    object: &ObjectRef,
    vm: Uid,
) -> Option<(Option<VirtualAddress>, Key)> {
    let balancer = loadbalancer::balancer_of(view, object)?;
    let wanted =
        choice(view, &balancer).and_then(|choice| choice.virtual_address_of(vm, drain(view, &balancer)));
    let key = Key::Decided(balancer);
    view.unreadable(&key).is_none().then_some((wanted, key))
}

/// What stands against the end of a VM's machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Hold {
    /// Whom it waits for.
    pub(crate) waiting_on: Option<WaitingOn>,
    /// For how long at most.
    pub(crate) left: Option<Span>,
    /// What that rests on.
    pub(crate) rests_on: Vec<Key>,
}

/// What stands against the end of a VM's machine that was asked for at `asked_at`.
pub(crate) fn hold(view: &View, object: &ObjectRef, vm: Uid, asked_at: Timestamp, now: Timestamp) -> Hold {
    let mut hold = Hold::default();
    if let Some(balancer) = loadbalancer::balancer_of(view, object) {
        let held = choice(view, &balancer).and_then(|choice| choice.virtual_address.as_ref());
        if held.is_some_and(|held| held.holder == Some(vm)) {
            let waits = WaitingOn::VirtualAddress { loadbalancer: balancer.name.clone() };
            hold.wait(waits, with_time_to_decide(drain(view, &balancer)), since(asked_at, now));
        }
        hold.rests_on.push(Key::Decided(balancer));
        hold.wait(WaitingOn::Names, NAMES_KEPT, since(asked_at, now));
    }
    for name in view.fronted_by(vm) {
        let balancer = ObjectRef::new(Kind::LoadBalancer, name.clone());
        hold.rests_on.push(Key::Decided(balancer.clone()));
        let Some(choice) = choice(view, &balancer) else { continue };
        // Its time is over, or nobody may send to it any more.
        let is_in = choice.members.iter().any(|member| member.uid == vm);
        if !is_in && choice.leaving.iter().all(|leaving| leaving.member.uid != vm || leaving.overdue) {
            continue;
        }
        let waits = WaitingOn::InRotation { loadbalancer: name.clone() };
        hold.wait(waits, with_time_to_decide(drain(view, &balancer)), since(asked_at, now));
    }
    // One that cannot be read may know it too.
    if let Some(Key::Decided(balancer)) = view.unreadable_decided(Kind::LoadBalancer) {
        let waits = WaitingOn::Unreadable { key: Key::Decided(balancer.clone()).to_string() };
        hold.wait(waits, with_time_to_decide(drain(view, balancer)), since(asked_at, now));
    }
    hold
}

impl Hold {
    /// Waits for what takes so long, of which some has passed.
    fn wait(&mut self, on: WaitingOn, whole: Span, passed: Span) {
        let left = whole.millis().saturating_sub(passed.millis());
        if left > 0 {
            self.left = self.left.max(Some(Span::from_millis(left)));
            self.waiting_on.get_or_insert(on);
        }
    }
}

/// What becomes of the claim on the address of a VM that is no more: it is free, or rests with a load balancer, another one than
/// `but`, whose proxies may still send there.
pub(crate) fn release(view: &View, member: &Member, but: Option<&ObjectRef>) -> Write {
    let balancers = view.fronted_by(member.uid).map(|name| ObjectRef::new(Kind::LoadBalancer, name.clone()));
    let mut holders = balancers.filter(|balancer| Some(balancer) != but).filter_map(|balancer| {
        let decided = view.decided(&balancer)?;
        choice_in(decided)?.knows(member.uid, member.address).then_some((balancer, decided.uid))
    });
    let key = Key::Address(member.network.clone(), member.address);
    match holders.next() {
        Some((object, owner)) => Write::put(key, AddressClaim { owner, object, squatted: None }),
        None => Write::Delete(key),
    }
}

const fn with_time_to_decide(drain: Span) -> Span {
    Span::from_millis(drain.millis().saturating_add(UNDECIDED_MAX.millis()))
}

/// How long a load balancer gives to requests in flight.
fn drain(view: &View, balancer: &ObjectRef) -> Span {
    match view.asked(balancer).map(|asked| &asked.spec) {
        Some(Spec::LoadBalancer(spec)) => spec.drain,
        _ => Span::default(),
    }
}
