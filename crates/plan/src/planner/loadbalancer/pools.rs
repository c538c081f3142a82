//! Who is in each pool: who is asked for, and serves as far as workers say.

use std::collections::{BTreeMap, BTreeSet};

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

/// Those that were in some pool until now.
type Known = BTreeMap<Uid, Member>;

/// Somebody who is asked to be in a pool.
#[derive(Clone)]
struct Candidate {
    member: Member,
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
        let known: Known = choice.members.iter().map(|member| (member.uid, member.clone())).collect();
        let had = pools_of(choice);
        let (mut members, mut added) = (Known::new(), BTreeSet::new());
        for configuration in &mut choice.configurations {
            for pool in &configuration.serving.pools {
                // A new configuration begins with whom another has for the same words.
                let others = had.iter().find(|(words, uids)| *words == pool.members && !uids.is_empty());
                let own = configuration.pools.get(&pool.name);
                let old = own.or(others.map(|(_, uids)| uids)).cloned().unwrap_or_default();
                let mut chosen = self.choose(&pool.members, &old, &known);
                chosen.retain(|member| may_come(member.uid, &known, &mut added));
                configuration.pools.insert(pool.name.clone(), chosen.iter().map(|member| member.uid).collect());
                members.extend(chosen.into_iter().map(|member| (member.uid, member)));
            }
        }
        for object in added.iter().filter_map(|uid| self.view.object_of(*uid)) {
            plan.rests_on.extend([Key::Asked(object.clone()), Key::Decided(object.clone())]);
        }
        choice.members = members.into_values().collect();
    }

    /// Who is to be in a pool that had `old` in it.
    fn choose(&self, members: &Members, old: &[Uid], known: &Known) -> Vec<Member> {
        let mut chosen = choose(&self.candidates(members, known), old);
        if self.is_hidden(members) {
            self.keep_old(&mut chosen, old, known);
        }
        chosen
    }

    /// Everybody who is asked to be in a pool and has an address, in order of name.
    fn candidates(&self, members: &Members, known: &Known) -> Vec<Candidate> {
        let candidate = |object: &ObjectRef| self.candidate(object, known);
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
    fn keep_old(&self, chosen: &mut Vec<Member>, old: &[Uid], known: &Known) {
        let goes = |uid: &Uid| {
            let object = self.view.object_of(*uid);
            object.is_some_and(|object| {
                let asked = self.view.living(object).map(|asked| &asked.spec);
                !matches!(asked, Some(Spec::Vm(spec)) if spec.running)
            })
        };
        for uid in old.iter().filter(|uid| !goes(uid)) {
            let is_there = chosen.iter().any(|member| member.uid == *uid);
            chosen.extend(known.get(uid).filter(|_| !is_there).cloned());
        }
    }

    fn candidate(&self, object: &ObjectRef, known: &Known) -> Option<Candidate> {
        let asked = self.view.living(object)?;
        let Spec::Vm(spec) = &asked.spec else { return None };
        let uid = asked.meta.uid;
        // What cannot be read takes nobody out.
        let known = known.get(&uid).cloned();
        let as_before = |known: Option<Member>| Some(Candidate { member: known?, standing: Standing::Unknown });
        let host_object = HostObject { kind: Kind::Vm, uid };
        let is_readable = |key: &Key| self.view.unreadable(key).is_none();
        if !is_readable(&Key::Decided(object.clone())) {
            return as_before(known).filter(|_| spec.running);
        }
        let placement = placement(self.view, object)?;
        let observed = observed_vm(self.view, placement.worker, host_object);
        if !is_asked_to_serve(asked, spec, observed) {
            return None;
        }
        let keys = [Key::Assigned(placement.worker, host_object), Key::Observed(placement.worker, host_object)];
        let Some(Assigned::Vm(assigned)) = self.view.assigned(placement.worker, host_object).map(AsRef::as_ref) else {
            return as_before(known);
        };
        if !keys.iter().all(is_readable) {
            return as_before(known);
        }
        let member = self.reached(uid, placement, observed).or(known)?;
        Some(Candidate { member, standing: standing(self.view, placement, assigned, observed) })
    }

    /// Where proxies reach it: on their own network, or else by its first card that has an address.
    fn reached(&self, uid: Uid, placement: &Placement, observed: Option<&ObservedVm>) -> Option<Member> {
        let leases = observed.map(|observed| observed.leases.as_slice()).unwrap_or_default();
        let cards = (0..).zip(&placement.nics).filter_map(|(index, nic)| {
            let leased = || leases.iter().find(|lease| lease.nic == index).map(|lease| lease.address);
            Some(Member { uid, address: nic.address.or_else(leased)?, network: nic.network.clone() })
        });
        let mut cards: Vec<Member> = cards.collect();
        cards.sort_by_key(|member| member.network != self.spec.proxies.network);
        cards.into_iter().next()
    }
}

/// Whom each configuration has for which words.
fn pools_of(choice: &BalancerChoice) -> Vec<(Members, Vec<Uid>)> {
    let pools = choice.configurations.iter().flat_map(|one| one.serving.pools.iter().map(move |pool| (one, pool)));
    pools.map(|(one, pool)| (pool.members.clone(), one.pools.get(&pool.name).cloned().unwrap_or_default())).collect()
}

/// Whether somebody may be in a pool: those who are new come so many at a time.
fn may_come(uid: Uid, known: &Known, added: &mut BTreeSet<Uid>) -> bool {
    known.contains_key(&uid) || added.contains(&uid) || (added.len() < ADDED_PER_PLAN_MAX && added.insert(uid))
}

/// Those that serve, and those of `old` of whom nobody can say. If these are none, all of `old` that are still asked for:
/// health alone empties no pool.
fn choose(candidates: &[Candidate], old: &[Uid]) -> Vec<Member> {
    let is_old = |candidate: &&Candidate| old.contains(&candidate.member.uid);
    let stays = |candidate: &&Candidate| match candidate.standing {
        Standing::Serves => true,
        Standing::Unknown => is_old(candidate),
        Standing::Fails => false,
    };
    let chosen: Vec<Member> = candidates.iter().filter(stays).map(|one| one.member.clone()).collect();
    match chosen.is_empty() {
        true => candidates.iter().filter(is_old).map(|one| one.member.clone()).collect(),
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use lightbyte_api::Name;

    use super::*;

    /// One letter for each candidate: `s`erves, `u`nknown, `f`ails; capital letters were in the pool. The answer has those that
    /// are chosen.
    fn check(candidates: &str, expected: &str) {
        let network = Name::new("default").expect("a name");
        let letters: Vec<char> = candidates.chars().collect();
        let uid = |index: usize| Uid::from_bits(index as u128 + 1);
        let candidate = |(index, letter): (usize, &char)| Candidate {
            member: Member { uid: uid(index), address: Ipv4Addr::LOCALHOST, network: network.clone() },
            standing: match letter.to_ascii_lowercase() {
                's' => Standing::Serves,
                'u' => Standing::Unknown,
                _ => Standing::Fails,
            },
        };
        let old = (0..letters.len()).filter(|index| letters[*index].is_uppercase()).map(uid).collect::<Vec<_>>();
        let all: Vec<Candidate> = letters.iter().enumerate().map(candidate).collect();
        let chosen = choose(&all, &old);
        let is_chosen = |index: &usize| chosen.iter().any(|member| member.uid == uid(*index));
        let found: String = (0..letters.len()).filter(is_chosen).map(|index| letters[index]).collect();
        assert_eq!(found, expected, "{candidates}");
    }

    #[test]
    fn who_serves_is_in_and_health_alone_empties_nothing() {
        check("", "");
        check("sss", "sss");
        check("Ssf", "Ss");
        check("SF", "S");
        check("Us", "Us");
        check("us", "s");
        check("uU", "U");
        check("FFf", "FF");
        check("f", "");
    }
}
