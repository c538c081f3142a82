//! Which load balancers may send requests to a VM: until none may, it is not stopped by us, and its address is nobody else's.
//!
//! A VM is out of rotation when its load balancer has decided so and every proxy has acknowledged that and has nothing in
//! flight to it any more (`planner/loadbalancer.rs` keeps the list). The time for that is bounded: by the load balancer, and where that
//! cannot decide, by the VM itself. Its address rests for as long as any proxy may still send there.

use imbl::OrdSet;
use lightbyte_api::kinds::loadbalancer::Choice as BalancerChoice;
use lightbyte_api::{Choice, Decided, Key, Kind, Name, ObjectRef, Span, Spec, Timestamp, Uid, WaitingOn};

use crate::planner::since;
use crate::view::{View, first_name};

/// How long a VM that is to stop waits for a load balancer beyond the time that this gives to requests: one that does not decide
/// keeps nobody for ever.
pub const UNDECIDED_MAX: Span = Span::from_secs(60);

/// (VM, load balancer): who is a member of which, or may still be sent to by its proxies.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Fronts(OrdSet<(Uid, Name)>);

impl Fronts {
    /// What was decided for the load balancer `object` is no more.
    pub(crate) fn remove(&mut self, object: &ObjectRef, decided: &Decided) {
        for uid in known(decided) {
            self.0.remove(&(uid, object.name.clone()));
        }
    }

    /// This was decided for the load balancer `object`.
    pub(crate) fn add(&mut self, object: &ObjectRef, decided: &Decided) {
        for uid in known(decided) {
            self.0.insert((uid, object.name.clone()));
        }
    }

    /// The load balancers that may send to a VM.
    pub(crate) fn of(&self, vm: Uid) -> impl Iterator<Item = &Name> {
        self.0
            .range((vm, first_name())..)
            .take_while(move |(uid, _)| *uid == vm)
            .map(|(_, balancer)| balancer)
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
pub(crate) fn hold(view: &View, vm: Uid, asked_at: Timestamp, now: Timestamp) -> Hold {
    let mut hold = Hold::default();
    for name in view.fronted_by(vm) {
        let balancer = ObjectRef::new(Kind::LoadBalancer, name.clone());
        hold.rests_on.push(Key::Decided(balancer.clone()));
        let Some(choice) = choice(view, &balancer) else { continue };
        // Its time is over, or nobody may send to it any more.
        let is_in = choice.members.iter().any(|member| member.uid == vm);
        if !is_in && choice.leaving.iter().all(|leaving| leaving.uid != vm || leaving.overdue) {
            continue;
        }
        let waits = WaitingOn::InRotation { loadbalancer: name.clone() };
        hold.wait(waits, drain(view, &balancer), since(asked_at, now));
    }
    // One that cannot be read may know it too.
    if let Some(Key::Decided(balancer)) = view.unreadable_decided(Kind::LoadBalancer) {
        let waits = WaitingOn::Unreadable { key: Key::Decided(balancer.clone()).to_string() };
        hold.wait(waits, drain(view, balancer), since(asked_at, now));
    }
    hold
}

impl Hold {
    /// Waits for what takes `drain` and some time to decide, of which some has passed.
    fn wait(&mut self, on: WaitingOn, drain: Span, passed: Span) {
        let left = drain.millis().saturating_add(UNDECIDED_MAX.millis()).saturating_sub(passed.millis());
        if left > 0 {
            self.left = self.left.max(Some(Span::from_millis(left)));
            self.waiting_on.get_or_insert(on);
        }
    }
}

/// Whom the addresses of a VM wait for that is no more: a proxy may still send to them.
pub(crate) fn holds_address(view: &View, vm: Uid) -> Option<WaitingOn> {
    let by = view.fronted_by(vm).next().map(|name| WaitingOn::InRotation { loadbalancer: name.clone() });
    // One that cannot be read may know it too.
    by.or_else(|| {
        let key = view.unreadable_decided(Kind::LoadBalancer)?;
        Some(WaitingOn::Unreadable { key: key.to_string() })
    })
}

/// How long a load balancer gives to requests in flight.
fn drain(view: &View, balancer: &ObjectRef) -> Span {
    match view.asked(balancer).map(|asked| &asked.spec) {
        Some(Spec::LoadBalancer(spec)) => spec.drain,
        _ => Span::default(),
    }
}
