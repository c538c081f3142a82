//! Who is in each pool: who is asked for, and serves as far as workers say.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use lightbyte_api::assigned::{Assigned, AssignedVm, HostObject, WantedVm};
use lightbyte_api::kinds::loadbalancer::{Choice as BalancerChoice, Member, Members};
use lightbyte_api::kinds::vm::{Placement, Spec as VmSpec};
use lightbyte_api::object::Asked;
use lightbyte_api::observed::{ObservedVm, VmPhase};
use lightbyte_api::{Key, Kind, ObjectRef, Spec, Uid};

use super::Balancer;
use crate::planner::vm::{is_healthy, observed_vm, placement};
use crate::planner::{Plan, scalegroup, worker};
use crate::view::View;

/// How many members one plan adds: what each of them rests on is guarded.
const ADDED_PER_PLAN_MAX: usize = 24;

/// Somebody who is asked to be in a pool.
#[derive(Clone, Copy)]
struct Candidate {
    uid: Uid,
    address: Ipv4Addr,
    standing: Standing,
}

/// Whether somebody serves.
#[derive(Clone, Copy, PartialEq)]
enum Standing {
    /// Its worker says so, of what is assigned now.
    Serves,
    /// Nobody can say: who is in stays, and nobody comes in.
    Unknown,
    /// Its worker says that it does not, or is lost.
    Fails,
}

impl Balancer<'_> {
    /// Puts into each pool of each configuration who is to be there.
    pub(super) fn fill(&self, choice: &mut BalancerChoice, plan: &mut Plan) {
        let mut members: BTreeMap<Uid, Ipv4Addr> = BTreeMap::new();
        let before: BTreeMap<Uid, Ipv4Addr> =
            choice.members.iter().map(|member| (member.uid, member.address)).collect();
        let mut added = BTreeMap::new();
        let had: Vec<(Members, Vec<Uid>)> = choice
            .configurations
            .iter()
            .flat_map(|one| one.serving.pools.iter().map(|pool| (pool.members.clone(), uids(one.pools.get(&pool.name)))))
            .collect();
        for configuration in &mut choice.configurations {
            for pool in &configuration.serving.pools {
                let old = match configuration.pools.get(&pool.name) {
                    Some(old) => old.clone(),
                    // A new configuration begins with whom another has for the same words.
                    None => had.iter().find(|(words, uids)| *words == pool.members && !uids.is_empty()).map(|(_, uids)| uids.clone()).unwrap_or_default(),
                };
                let candidates = self.candidates(&pool.members, &before);
                let mut chosen = choose(&candidates, &old);
                if self.is_hidden(&pool.members) {
                    self.keep_old(&mut chosen, &old, &before);
                }
                chosen.retain(|candidate| {
                    let is_known = before.contains_key(&candidate.uid) || added.contains_key(&candidate.uid);
                    if !is_known && added.len() == ADDED_PER_PLAN_MAX {
                        return false;
                    }
                    if !is_known {
                        added.insert(candidate.uid, ());
                    }
                    true
                });
                members.extend(chosen.iter().map(|candidate| (candidate.uid, candidate.address)));
                configuration.pools.insert(pool.name.clone(), chosen.iter().map(|one| one.uid).collect());
            }
        }
        for object in added.keys().filter_map(|uid| self.view.object_of(*uid)) {
            plan.rests_on.extend([Key::Asked(object.clone()), Key::Decided(object.clone())]);
        }
        choice.members = members.into_iter().map(|(uid, address)| Member { uid, address }).collect();
    }

    /// Everybody who is asked to be in a pool and has an address, in order of name.
    fn candidates(&self, members: &Members, before: &BTreeMap<Uid, Ipv4Addr>) -> Vec<Candidate> {
        let candidate = |object: &ObjectRef| self.candidate(object, before);
        match members {
            Members::Group(name) => {
                let group = self.view.asked(&ObjectRef::new(Kind::ScaleGroup, name.clone()));
                let children = group.into_iter().flat_map(|group| self.view.children(group.meta.uid));
                children.filter_map(candidate).collect()
            }
            Members::Labels(labels) => {
                self.view.vms_with(labels).filter_map(|(object, _)| candidate(&object)).collect()
            }
            Members::Vms(names) => {
                let vms = names.iter().map(|name| ObjectRef::new(Kind::Vm, name.clone()));
                vms.filter_map(|object| candidate(&object)).collect()
            }
        }
    }

    /// Whether somebody who is asked to be in a pool may not be seen, since it cannot be read.
    fn is_hidden(&self, members: &Members) -> bool {
        let is_meant = |object: &ObjectRef| match members {
            Members::Group(name) => {
                let group = ObjectRef::new(Kind::ScaleGroup, name.clone());
                *object == group || scalegroup::is_named_like_member(&group, object)
            }
            Members::Labels(_) => object.kind == Kind::Vm,
            Members::Vms(names) => object.kind == Kind::Vm && names.contains(&object.name),
        };
        self.view.unreadable_asked().any(|key| matches!(key, Key::Asked(object) if is_meant(object)))
    }

    /// Keeps all that were there and are not known to go: one of them may be among those that cannot be read.
    fn keep_old(&self, chosen: &mut Vec<Candidate>, old: &[Uid], before: &BTreeMap<Uid, Ipv4Addr>) {
        let goes = |uid: &Uid| {
            let object = self.view.object_of(*uid);
            object.is_some_and(|object| {
                let asked = self.view.living(object).map(|asked| &asked.spec);
                !matches!(asked, Some(Spec::Vm(spec)) if spec.running)
            })
        };
        for uid in old.iter().filter(|uid| !goes(uid)) {
            let is_there = chosen.iter().any(|candidate| candidate.uid == *uid);
            if let Some(address) = before.get(uid).filter(|_| !is_there) {
                chosen.push(Candidate { uid: *uid, address: *address, standing: Standing::Unknown });
            }
        }
    }

    fn candidate(&self, object: &ObjectRef, before: &BTreeMap<Uid, Ipv4Addr>) -> Option<Candidate> {
        let asked = self.view.living(object)?;
        let Spec::Vm(spec) = &asked.spec else { return None };
        let uid = asked.meta.uid;
        // What cannot be read takes nobody out.
        let as_before = || Some(Candidate { uid, address: *before.get(&uid)?, standing: Standing::Unknown });
        let host_object = HostObject { kind: Kind::Vm, uid };
        let is_readable = |key: &Key| self.view.unreadable(key).is_none();
        if !is_readable(&Key::Decided(object.clone())) {
            return as_before().filter(|_| spec.running);
        }
        let placement = placement(self.view, object)?;
        let observed = observed_vm(self.view, placement.worker, host_object);
        if !is_asked_to_serve(asked, spec, observed) {
            return None;
        }
        let keys = [Key::Assigned(placement.worker, host_object), Key::Observed(placement.worker, host_object)];
        let Some(Assigned::Vm(assigned)) = self.view.assigned(placement.worker, host_object).map(AsRef::as_ref) else {
            return as_before();
        };
        if !keys.iter().all(is_readable) {
            return as_before();
        }
        let address = self.address(placement, observed)?;
        Some(Candidate { uid, address, standing: standing(self.view, placement, assigned, observed) })
    }

    /// Where proxies reach it: on their own network, or else by its first card that has an address.
    fn address(&self, placement: &Placement, observed: Option<&ObservedVm>) -> Option<Ipv4Addr> {
        let leases = observed.map(|observed| observed.leases.as_slice()).unwrap_or_default();
        let cards = (0..).zip(&placement.nics).filter_map(|(index, nic)| {
            let leased = || leases.iter().find(|lease| lease.nic == index).map(|lease| lease.address);
            Some((&nic.network, nic.address.or_else(leased)?))
        });
        let mut cards: Vec<_> = cards.collect();
        cards.sort_by_key(|(network, _)| **network != self.spec.proxies.network);
        cards.first().map(|(_, address)| *address)
    }
}

/// Those that serve, and those of `old` of whom nobody can say. If these are none, all of `old` that are still asked for:
/// health alone empties no pool.
fn choose(candidates: &[Candidate], old: &[Uid]) -> Vec<Candidate> {
    let is_old = |candidate: &&Candidate| old.contains(&candidate.uid);
    let stays = |candidate: &&Candidate| match candidate.standing {
        Standing::Serves => true,
        Standing::Unknown => is_old(candidate),
        Standing::Fails => false,
    };
    let chosen: Vec<Candidate> = candidates.iter().filter(stays).copied().collect();
    match chosen.is_empty() {
        true => candidates.iter().filter(is_old).copied().collect(),
        false => chosen,
    }
}

/// Whether it is to run, and not about to be stopped for a restart.
fn is_asked_to_serve(asked: &Asked, spec: &VmSpec, observed: Option<&ObservedVm>) -> bool {
    let restarts_done = observed.map_or(asked.meta.restarts_asked, |observed| observed.restarts_done);
    spec.running && asked.meta.restarts_asked <= restarts_done
}

fn standing(
    view: &View,
    placement: &Placement,
    assigned: &AssignedVm,
    observed: Option<&ObservedVm>,
) -> Standing {
    if view.alive(placement.worker).is_none() {
        let worker = view.object_of(placement.worker.uid());
        let is_lost = worker.is_some_and(|worker| worker::choice(view, worker).lost);
        return if is_lost { Standing::Fails } else { Standing::Unknown };
    }
    match observed {
        Some(observed) if observed.phase == VmPhase::Running && is_healthy(assigned, observed) => {
            // Until it says so of what is assigned now, it may be about to stop.
            let is_sure = assigned.wanted == WantedVm::Running && observed.sequence >= assigned.sequence;
            if is_sure { Standing::Serves } else { Standing::Unknown }
        }
        _ => Standing::Fails,
    }
}

fn uids(found: Option<&Vec<Uid>>) -> Vec<Uid> {
    found.cloned().unwrap_or_default()
}
