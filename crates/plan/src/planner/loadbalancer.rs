//! Load balancers: a group of proxies of its own, and all that these are told.
//!
//! ```text
//!   asked ──> trial: a new configuration is one proxy's first, then everybody's
//!               │   pools: who is asked for and serves; a pool that only health would empty keeps whom it had
//!               v
//!             one revision for every change ──> delivered to each proxy ──> its worker reports: acknowledged, busy with
//!               │
//!               v
//!             leaving: who was taken out stays known until no proxy can send to it (`fronts`)
//!               │ end asked
//!               v
//!             the end of the group is asked for ──> its VMs are gone ──> end
//! ```
//!
//! The virtual address, where one is asked for, is at one proxy at a time (`address`).
//!
//! Nobody is told to stop sending by being stopped: a VM whose end is asked for is taken out of every pool first, and its own
//! planner waits.

mod address;
mod pools;
mod trial;

use lightbyte_api::kinds::loadbalancer::{
    Choice as BalancerChoice, Leaving, Member, PROXY_SUFFIX, Proxy, Spec as BalancerSpec,
};
use lightbyte_api::kinds::scalegroup::{self as group_kind, Template};
use lightbyte_api::kinds::{SpecRules as _, vm};
use lightbyte_api::object::{Asked, Meta, Owner};
use lightbyte_api::observed::{ObservedProxy, ObservedVm};
use lightbyte_api::{Choice, Key, Kind, ObjectRef, Span, Spec, Uid, WaitingOn, WorkerId};

use super::vm::{observed_vm, placement};
use super::{Inputs, Plan, scalegroup, since};
use crate::fronts;
use crate::transaction::Write;
use crate::view::View;

pub use self::address::TAKEN_OVER_AFTER;

/// The label of every proxy, whose value is the name of its load balancer.
pub const PROXY_LABEL: &str = "loadbalancer";

/// Plans a load balancer.
#[must_use]
pub fn plan(view: &View, object: &ObjectRef, inputs: &Inputs) -> Plan {
    let Some(asked) = view.asked(object) else { return Plan::rest() };
    let Spec::LoadBalancer(spec) = &asked.spec else { return Plan::rest() };
    let Ok(group) = object.name.child(PROXY_SUFFIX) else {
        // Names that people give leave room for it.
        return Plan::wait(WaitingOn::Quarantined { problem: "its name leaves no room for its proxies'".to_owned() });
    };
    let group = ObjectRef::new(Kind::ScaleGroup, group);
    // One that cannot be read is no child in any index; it is there.
    let unreadable = view.unreadable(&Key::Asked(group.clone())).is_some().then(|| Key::Asked(group.clone()));
    if let Some(key) = unreadable.or_else(|| scalegroup::unreadable_member(view, &group).cloned()) {
        return Plan::wait(WaitingOn::Unreadable { key: key.to_string() });
    }
    Balancer { view, object, asked, spec, group, inputs }.plan()
}

struct Balancer<'a> {
    view: &'a View,
    object: &'a ObjectRef,
    asked: &'a Asked,
    spec: &'a BalancerSpec,
    /// The group of its proxies.
    group: ObjectRef,
    inputs: &'a Inputs,
}

impl Balancer<'_> {
    fn plan(&self) -> Plan {
        let before = fronts::choice(self.view, self.object).cloned().unwrap_or_default();
        let mut choice = before.clone();
        let mut plan = Plan::rest();
        let is_ending = self.asked.meta.deleting_since.is_some();
        if is_ending {
            self.end_group(&mut plan);
        } else {
            self.keep_group(&mut plan);
        }
        self.find_proxies(&mut choice);
        if is_ending && choice.proxies.is_empty() && plan.waiting_on.is_empty() {
            return self.end(&before);
        }
        if !is_ending {
            self.configure(&mut choice, &mut plan);
            choice.challenges = self.challenges();
        }
        self.fill(&mut choice, &mut plan);
        self.tell(&before, &mut choice);
        self.let_go(&mut choice, &mut plan);
        self.keep_address(&mut choice, &mut plan);
        if !is_ending {
            self.explain(&choice, &mut plan);
        }
        plan.choice = Some(Choice::LoadBalancer(choice));
        plan
    }

    /// Its end, once it has no proxies: what it has claimed goes with it.
    fn end(&self, before: &BalancerChoice) -> Plan {
        let known = || before.members.iter().chain(before.leaving.iter().map(|leaving| &leaving.member));
        let held = before.virtual_address.iter().map(|held| self.claim_key(held));
        let mut claims = known().map(|member| Key::Address(member.network.clone(), member.address)).chain(held);
        // What cannot be read may be its own.
        if let Some(key) = claims.find(|key| self.view.unreadable(key).is_some()) {
            return Plan::wait(WaitingOn::Unreadable { key: key.to_string() });
        }
        let held = before.virtual_address.iter().filter_map(|held| self.free_claim(held));
        let writes = known().filter_map(|member| self.free(member)).chain(held).collect();
        Plan { writes, ..Plan::end() }
    }

    // ------------------------------------------------------------------------------------------------- proxies

    /// The group that it owns, if there is one.
    fn own_group(&self) -> Option<&Asked> {
        let asked = self.view.asked(&self.group)?;
        let is_own = asked.meta.owner.as_ref().is_some_and(|owner| owner.uid == self.asked.meta.uid);
        is_own.then_some(asked.as_ref())
    }

    /// Asks for the group of proxies as it is to be.
    fn keep_group(&self, plan: &mut Plan) {
        let key = Key::Asked(self.group.clone());
        let wanted = Spec::ScaleGroup(self.group_spec());
        match self.view.asked(&self.group) {
            None => {
                let owner = Owner::new(self.object.clone(), self.asked.meta.uid);
                let meta = Meta::new(self.inputs.uid(0), Some(owner), Default::default(), self.inputs.now);
                plan.writes.push(Write::put(key, Asked { meta, spec: wanted }));
            }
            Some(_) if self.own_group().is_none() => plan.waiting_on.push(WaitingOn::InUse { by: self.group.clone() }),
            Some(asked) if asked.meta.deleting_since.is_some() => {
                plan.waiting_on.push(WaitingOn::Child { child: self.group.clone() });
            }
            Some(asked) if asked.spec != wanted => {
                let generation = asked.meta.generation + 1;
                let meta = Meta { generation, changed_at: self.inputs.now, ..asked.meta.clone() };
                plan.writes.push(Write::put(key, Asked { meta, spec: wanted }));
            }
            Some(_) => {}
        }
    }

    fn group_spec(&self) -> group_kind::Spec {
        let proxies = &self.spec.proxies;
        let vm = vm::Spec {
            cpus: proxies.cpus,
            memory: proxies.memory,
            nics: vec![vm::Nic { network: proxies.network.clone(), address: None }],
            ..vm::Spec::of_image(proxies.image.clone())
        };
        let labels = [(PROXY_LABEL.to_owned(), self.object.name.to_string())].into();
        group_kind::Spec {
            replicas: Some(proxies.replicas),
            autoscale: None,
            template: Template { labels, vm },
            update: group_kind::Update::default(),
            healing: group_kind::Healing::default(),
        }
    }

    fn end_group(&self, plan: &mut Plan) {
        let Some(group) = self.own_group() else { return };
        if group.meta.deleting_since.is_none() {
            let meta = Meta { deleting_since: Some(self.inputs.now), ..group.meta.clone() };
            plan.writes.push(Write::put(Key::Asked(self.group.clone()), Asked { meta, spec: group.spec.clone() }));
        }
        plan.waiting_on.push(WaitingOn::Child { child: self.group.clone() });
    }

    /// Notes proxies that have a worker, and forgets those whose VM is gone.
    fn find_proxies(&self, choice: &mut BalancerChoice) {
        choice.proxies.retain(|proxy| self.view.object_of(proxy.uid).is_some());
        let Some(group) = self.own_group() else { return };
        for child in self.view.children(group.meta.uid) {
            let (Some(asked), Some(placed)) = (self.view.asked(child), placement(self.view, child)) else { continue };
            let uid = asked.meta.uid;
            if choice.proxies.iter().all(|proxy| proxy.uid != uid) {
                choice.proxies.push(Proxy { uid, worker: placed.worker, from: choice.revision });
            }
        }
    }

    /// What the worker of a proxy says of it.
    fn report(&self, proxy: &Proxy) -> Option<&ObservedProxy> {
        report(self.view, proxy)
    }

    // ------------------------------------------------------------------------------------------------- its words

    /// Raises the revision if anything has changed that a proxy is told, and notes who is not in it any more.
    fn tell(&self, before: &BalancerChoice, choice: &mut BalancerChoice) {
        // After a restore proxies may know revisions that nobody here does.
        let seen = choice.proxies.iter().filter_map(|proxy| self.report(proxy)).map(|report| report.revision).max();
        let is_ahead = seen.is_some_and(|seen| seen > choice.revision);
        if told(before) == told(choice) && !is_ahead {
            return;
        }
        choice.revision = choice.revision.max(seen.unwrap_or(0)) + 1;
        let revision = choice.revision;
        if let Some(trial) = choice.trial.as_mut().filter(|trial| trial.revision == 0) {
            trial.revision = revision;
        }
        // Who was noted just now has been told nothing yet.
        let is_new = |proxy: &Proxy| before.proxies.iter().all(|old| old.uid != proxy.uid);
        choice.proxies.iter_mut().filter(|proxy| is_new(proxy)).for_each(|proxy| proxy.from = revision);
        let is_in = |uid: Uid| choice.members.iter().any(|member| member.uid == uid);
        choice.leaving.retain(|leaving| !is_in(leaving.member.uid));
        let gone = before.members.iter().filter(|member| !is_in(member.uid)).cloned();
        let since = self.inputs.now;
        choice.leaving.extend(gone.map(|member| Leaving { member, revision, since, overdue: false }));
    }

    /// Forgets those that no proxy can send to any more, and notes whose time is over.
    fn let_go(&self, choice: &mut BalancerChoice, plan: &mut Plan) {
        let BalancerChoice { leaving, proxies, .. } = choice;
        let (kept, gone) = std::mem::take(leaving)
            .into_iter()
            .partition::<Vec<Leaving>, _>(|leaving| proxies.iter().any(|proxy| may_send(self.view, proxy, leaving)));
        *leaving = kept;
        plan.writes.extend(gone.iter().filter_map(|leaving| self.free(&leaving.member)));
        if !gone.is_empty() {
            plan.rests_on.extend(proxies.iter().map(|proxy| Key::Observed(proxy.worker, proxy.host_object())));
        }
        for leaving in leaving.iter_mut().filter(|leaving| !leaving.overdue) {
            let left = self.spec.drain.millis().saturating_sub(since(leaving.since, self.inputs.now).millis());
            leaving.overdue = left == 0;
            if left > 0 {
                look_again(plan, Span::from_millis(left));
            }
        }
    }

    /// What becomes of an address that no proxy of this load balancer can send to any more, if it rests here: the VM that had it
    /// is no more.
    fn free(&self, member: &Member) -> Option<Write> {
        let claim = self.view.address_claim(&member.network, member.address)?;
        if claim.owner != self.asked.meta.uid {
            return None;
        }
        Some(fronts::release(self.view, member, Some(self.object)))
    }

    fn explain(&self, choice: &BalancerChoice, plan: &mut Plan) {
        let counts = scalegroup::counts(self.view, &self.group);
        let waits = WaitingOn::Proxies { group: self.group.clone() };
        if (counts.ready as u64) < self.spec.proxies.replicas && !plan.waiting_on.contains(&waits) {
            plan.waiting_on.push(waits);
        }
        let is_behind = |proxy: &&Proxy| self.report(proxy).is_some_and(|report| report.revision < choice.revision);
        let is_told = plan.waiting_on.iter().any(|on| matches!(on, WaitingOn::TrialFailed { .. }));
        let mut refusing = choice.proxies.iter().filter(|_| choice.trial.is_none() && !is_told).filter(is_behind);
        let refused = refusing.find_map(|proxy| self.report(proxy)?.refused.clone());
        plan.waiting_on.extend(refused.map(|refused| WaitingOn::TrialFailed { because: refused.because }));
        let behind = choice.proxies.iter().find(is_behind).and_then(|proxy| self.view.object_of(proxy.uid));
        plan.waiting_on.extend(behind.map(|proxy| WaitingOn::Acknowledgement { proxy: proxy.clone() }));
        let missing = self.spec.references().into_iter().find(|object| self.view.living(object).is_none());
        plan.waiting_on.extend(missing.map(|object| WaitingOn::Missing { object }));
        let accepted = choice.accepted.and_then(|number| choice.configuration(number));
        for pool in accepted.iter().flat_map(|accepted| &accepted.serving.pools) {
            let members = accepted.and_then(|accepted| accepted.pools.get(&pool.name));
            if members.is_none_or(Vec::is_empty) {
                plan.waiting_on.push(WaitingOn::NoBackends { pool: pool.name.clone() });
            }
        }
    }
}

/// What the worker of a proxy says of its VM.
#[must_use]
pub fn observed<'a>(view: &'a View, proxy: &Proxy) -> Option<&'a ObservedVm> {
    observed_vm(view, proxy.worker, proxy.host_object())
}

/// What the worker of a proxy says of it.
#[must_use]
pub fn report<'a>(view: &'a View, proxy: &Proxy) -> Option<&'a ObservedProxy> {
    observed(view, proxy)?.proxy.as_ref()
}

/// Whether the proxy may still send to who left: it knew it, and has not said that this is over.
#[must_use]
pub fn may_send(view: &View, proxy: &Proxy, leaving: &Leaving) -> bool {
    proxy.from < leaving.revision
        && report(view, proxy).is_none_or(|report| {
            report.revision < leaving.revision || report.is_busy_with(leaving.member.uid)
        })
}

/// The load balancer whose proxy a VM is.
#[must_use]
pub fn balancer_of(view: &View, vm: &ObjectRef) -> Option<ObjectRef> {
    let owner = view.asked(view.group_of(vm)?)?.meta.owner.as_ref()?;
    (owner.object.kind == Kind::LoadBalancer).then(|| owner.object.clone())
}

/// The VMs of the proxies of the load balancer `object`.
#[must_use]
pub fn proxies(view: &View, object: &ObjectRef) -> Vec<ObjectRef> {
    let choice = fronts::choice(view, object);
    let proxies = choice.into_iter().flat_map(|choice| &choice.proxies);
    proxies.filter_map(|proxy| view.object_of(proxy.uid).cloned()).collect()
}

/// The workers that have a proxy of the load balancer `object`.
pub fn workers_of(view: &View, object: &ObjectRef) -> Vec<WorkerId> {
    let choice = fronts::choice(view, object);
    choice.into_iter().flat_map(|choice| &choice.proxies).map(|proxy| proxy.worker).collect()
}

fn look_again(plan: &mut Plan, pause: Span) {
    plan.again = Some(plan.again.map_or(pause, |again| again.min(pause)));
}

/// All that what proxies are told is made from, but for the revision.
fn told(choice: &BalancerChoice) -> impl PartialEq {
    let trial = choice.trial.as_ref().map(|trial| (trial.number, trial.proxy));
    (&choice.configurations, choice.accepted, trial, &choice.members, &choice.challenges)
}
