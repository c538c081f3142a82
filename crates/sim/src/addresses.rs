//! Virtual addresses: what must hold of who has one. A worker that has been away for long may still let it through, since nobody can
//! ask it: that is the one exception, for as long as it does not know better.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use lightbyte_api::assigned::{HostObject, VirtualAddress};
use lightbyte_api::kinds::loadbalancer::{HeldAddress, Proxy, Spec as BalancerSpec};
use lightbyte_api::observed::{Observed, ObservedVirtualAddress, ObservedVm};
use lightbyte_api::{Key, Kind, ObjectRef, Uid, VmId, WorkerId};
use lightbyte_plan::agent::{Step, address};
use lightbyte_plan::planner::loadbalancer::TAKEN_OVER_AFTER;
use lightbyte_plan::view::View;

use crate::balancers::choice;
use crate::cluster::{Checked, Cluster};
use crate::oracle::{placement, told, violated};
use crate::worker::Worker;

/// How often a worker that is cut off may do something.
const ALONE_TURNS: usize = 30;

/// What is known of workers that are away, and of addresses there.
#[derive(Default)]
pub(crate) struct Absences {
    /// Since when a worker is away, in milliseconds of the simulation.
    since: BTreeMap<WorkerId, u64>,
    /// Those that were away for long, or whose worker was, when they had an address.
    unasked: BTreeSet<(VmId, Ipv4Addr)>,
}

impl Cluster {
    /// Nobody has the virtual address of another, and it is claimed for as long as anybody has it.
    pub(crate) fn check_virtual_addresses(&mut self) -> Checked {
        let truth = self.oracle.truth();
        let mut holders: BTreeMap<Ipv4Addr, Vec<(WorkerId, VmId)>> = BTreeMap::new();
        for worker in &self.workers {
            let since = &mut self.absences.since;
            match truth.alive(worker.id) {
                Some(_) => drop(since.remove(&worker.id)),
                None => {
                    since.entry(worker.id).or_insert(self.now_millis);
                }
            }
            for vm in worker.host.everything().into_iter().map(VmId::new) {
                if let Some(address) = let_through(worker, vm) {
                    holders.entry(address).or_default().push((worker.id, vm));
                }
            }
        }
        let is_there = |vm: VmId, address: &Ipv4Addr| {
            holders.get(address).into_iter().flatten().any(|(_, holder)| *holder == vm)
        };
        self.absences.unasked.retain(|(vm, address)| is_there(*vm, address));
        for (address, holders) in &holders {
            for (worker, vm) in holders {
                let since = self.absences.since.get(worker);
                let away_millis = since.map_or(0, |since| self.now_millis.saturating_sub(*since));
                let is_rightful = truth
                    .objects_of(Kind::LoadBalancer)
                    .any(|balancer| held(truth, balancer).is_some_and(|held| held.holder == Some(vm.uid())));
                if away_millis >= TAKEN_OVER_AFTER.millis() {
                    self.absences.unasked.insert((*vm, *address));
                } else if since.is_none() && is_rightful {
                    self.absences.unasked.remove(&(*vm, *address));
                }
            }
            let asked = holders.iter().filter(|(_, vm)| !self.absences.unasked.contains(&(*vm, *address)));
            if asked.count() > 1 {
                return violated("rule 6", format!("{address} is let through for all of {holders:?}"));
            }
            let is_claimed = truth.objects_of(Kind::Network).any(|network| {
                let key = Key::Address(network.name.clone(), *address);
                let owner = truth.address_claim(&network.name, *address).map(|claim| claim.object.kind);
                truth.unreadable(&key).is_some() || owner == Some(Kind::LoadBalancer)
            });
            if !is_claimed {
                return violated("rule 6", format!("{address} is at {holders:?}, and no load balancer's"));
            }
        }
        Ok(())
    }

    /// A machine is ended because that is asked for only when its virtual address is to be elsewhere, or nowhere.
    pub(crate) fn check_address_left(&self, index: usize, object: HostObject, step: &Step) -> Checked {
        let vm = VmId::new(object.uid);
        let is_end = matches!(step, Step::Shutdown | Step::Kill);
        let Some(address) = let_through(&self.workers[index], vm).filter(|_| is_end) else { return Ok(()) };
        let truth = self.oracle.truth();
        let of = truth.objects_of(Kind::LoadBalancer).find(|balancer| {
            held(truth, balancer)
                .is_some_and(|held| held.holder == Some(object.uid) && held.address == address)
        });
        match of {
            Some(balancer) => {
                violated("balancer", format!("{step:?} of VM {vm}, which has the address of {balancer}"))
            }
            None => Ok(()),
        }
    }

    /// Whether somebody on another host answers for a virtual address: all hosts are on one LAN.
    fn somebody_else_has(&self, index: usize, wanted: Option<VirtualAddress>) -> bool {
        let Some(VirtualAddress { address, .. }) = wanted else { return false };
        let mut others = self.workers.iter().enumerate().filter(|(other, _)| *other != index);
        self.squatters.contains_key(&address) || others.any(|(_, worker)| answers(worker, address))
    }

    /// A worker that is cut off does what it can without anybody.
    pub(crate) fn goes_on_alone(&mut self, index: usize) -> Checked {
        for _ in 0..ALONE_TURNS {
            self.agent_turns(index)?;
            self.take_errand(index);
            self.do_step(index)?;
        }
        Ok(())
    }

    /// A guest is told of its virtual address.
    pub(crate) fn tell_address(&mut self, index: usize, object: HostObject, errand: address::Errand) {
        let now = self.now();
        let runs = self.workers[index].host.running().contains(&VmId::new(object.uid));
        let told = if errand.ask && self.somebody_else_has(index, errand.wanted) {
            self.counts.add("virtual address yielded");
            address::Told::Taken
        } else if !runs || (self.faults && self.rng.once_in(6)) {
            address::Told::Failed("it does not answer".to_owned())
        } else {
            self.counts.add("virtual address told");
            address::Told::Done { left: !self.faults || self.rng.once_in(3) }
        };
        self.tell(|| format!("the guest of {} on n{} is told {errand:?}: {told:?}", object.uid, index + 1));
        if let Some(agent) = self.workers[index].agent_mut() {
            agent.addressed(object, told, now);
        }
    }
}

fn let_through(worker: &Worker, vm: VmId) -> Option<Ipv4Addr> {
    worker.host.taps(vm).first()?.virtual_address.map(|has| has.address)
}

/// Whether a machine of this host may answer for the address.
fn answers(worker: &Worker, address: Ipv4Addr) -> bool {
    worker.host.running().into_iter().any(|vm| let_through(worker, vm) == Some(address))
}

/// What is said of a proxy that does as it was told and whose end nobody asks for.
fn told_proxy(view: &View, uid: Uid) -> Option<&ObservedVm> {
    let vm = view.object_of(uid).filter(|vm| view.living(vm).is_some())?;
    match view.observed(placement(view, vm)?.worker, HostObject { kind: Kind::Vm, uid })?.as_ref() {
        Observed::Vm(observed) => {
            let is_told = observed.proxy.as_ref().is_some_and(|proxy| proxy.revision > 0);
            is_told.then_some(observed)
        }
        _ => None,
    }
}

fn held(view: &View, balancer: &ObjectRef) -> Option<HeldAddress> {
    choice(view, balancer).virtual_address
}

/// When all is at rest a proxy that serves has the address that is asked for, and the network knows; and nobody else has it.
pub(crate) fn check_goal(
    view: &View,
    object: &ObjectRef,
    spec: &BalancerSpec,
    workers: &[Worker],
) -> Checked {
    let held = held(view, object);
    let wrong =
        |what: &str| violated("balancer", format!("{object} {what}: {held:?}, {}", told(view, object)));
    if spec.virtual_address.is_none() {
        return if held.is_some() { wrong("has an address that nobody asks for") } else { Ok(()) };
    }
    // One that is not to be had is waited for.
    let Some(held) = &held else { return Ok(()) };
    let serves = |uid| {
        let observed = told_proxy(view, uid)?;
        let runs = workers.iter().any(|worker| worker.ready().contains(&VmId::new(uid)));
        let is_silent = observed.virtual_address.is_some_and(|has| has.silent);
        let is_good = !is_silent && (held.holder == Some(uid) || observed.problem.is_none());
        (runs && is_good).then_some(observed.virtual_address)
    };
    let proxies = choice(view, object).proxies;
    let has = |has: Option<ObservedVirtualAddress>| {
        has.is_some_and(|has| has.address == held.address && has.turn == held.turn && !has.left)
    };
    match held.holder.and_then(serves) {
        Some(observed) if !has(observed) => return wrong(&format!("and its worker says {observed:?}")),
        None if proxies.iter().any(|proxy| serves(proxy.uid).is_some()) => {
            return wrong("is not at a proxy that serves");
        }
        _ => {}
    }
    for worker in workers {
        for vm in worker.host.everything().into_iter().map(VmId::new) {
            if let_through(worker, vm) == Some(held.address) && held.holder != Some(vm.uid()) {
                return wrong(&format!("is at VM {vm} too"));
            }
        }
    }
    Ok(())
}

/// While `lost` is away for long its address is at a proxy elsewhere, if any serves there.
pub(crate) fn check_taken_over(view: &View, lost: WorkerId, workers: &[Worker]) -> Checked {
    for balancer in view.objects_of(Kind::LoadBalancer) {
        let Some(held) = held(view, balancer) else { continue };
        let worker_of = |uid| Some(placement(view, view.object_of(uid)?)?.worker);
        let proxies = choice(view, balancer).proxies;
        let serves = |proxy: &&Proxy| proxy.worker != lost && told_proxy(view, proxy.uid).is_some();
        let others = proxies.iter().filter(serves);
        let is_at_lost = held.holder.and_then(worker_of) == Some(lost);
        let has_it = |worker: &Worker| {
            worker.ready().into_iter().any(|vm| let_through(worker, vm) == Some(held.address))
        };
        let is_kept = workers.iter().any(|worker| worker.id == lost && has_it(worker));
        if is_kept && workers.iter().any(|worker| worker.id != lost && has_it(worker)) {
            return violated("rule 6", format!("{balancer} is at a worker that is cut off too: {held:?}"));
        }
        if is_at_lost && others.count() > 0 {
            let what =
                format!("{balancer} is still at a worker that is lost: {held:?}, {}", told(view, balancer));
            return violated("balancer", what);
        }
    }
    Ok(())
}
