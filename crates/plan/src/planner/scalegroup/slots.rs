//! Members whose volumes outlive them. Each has a **slot**, a number from 1 to as many as there are to be, and in it the volumes
//! `<group>-<disk>-<slot>`. Who takes the place of a member has its slot, and gets its volumes when they are given back, which
//! their own planner decides. The group makes those that are not there; from then on they are volumes like any other.

use std::collections::BTreeSet;

use lightbyte_api::kinds::scalegroup::{Choice as GroupChoice, RetiredFor, Version};
use lightbyte_api::kinds::{vm, volume};
use lightbyte_api::object::{Asked, Meta};
use lightbyte_api::records::Record;
use lightbyte_api::{Key, Kind, Name, ObjectRef, Spec};

use super::members::{Member, State, slot_of};
use super::{Group, Plan};
use crate::transaction::Write;

/// How many volumes one plan makes, but for those of one member.
const VOLUMES_PER_PLAN_MAX: usize = 16;

/// Who has a slot that the group is not to have goes, unless it is protected.
pub(super) fn free_those_beyond(replicas: u64, members: &mut [Member<'_>]) {
    for member in members.iter_mut().filter(|member| !member.asked.meta.protected) {
        let is_beyond = member.slot.is_some_and(|slot| slot > replicas);
        member.leaves = member.leaves.or(is_beyond.then_some(RetiredFor::Scale));
    }
}

/// How many members of a version one plan makes at most, of `most`.
pub(super) fn made_per_plan(most: usize, version: &Version) -> usize {
    let volumes = version.template.kept_disks().count().max(1);
    most.min((VOLUMES_PER_PLAN_MAX / volumes).max(1))
}

impl Group<'_> {
    /// The slots that no member has, those made by `plan` included; the least first.
    pub(super) fn free_slots(&self, choice: &GroupChoice, plan: &Plan) -> Vec<u64> {
        let children = self.view.children(self.asked.meta.uid).filter_map(|child| self.view.living(child));
        let staying = children.filter(|child| !choice.lets_go(child.meta.uid));
        let staying = staying.filter_map(|child| slot_of(child));
        let made = plan.writes.iter().filter_map(|write| match write {
            Write::Put(_, Record::Asked(asked)) if asked.meta.deleting_since.is_none() => slot_of(asked),
            _ => None,
        });
        let taken: BTreeSet<u64> = staying.chain(made).collect();
        (1..=self.replicas).filter(|slot| !taken.contains(slot)).collect()
    }

    /// The template's disks, as the member in `slot` has them.
    pub(super) fn disks_in(&self, slot: Option<u64>, version: &Version) -> Vec<vm::Disk> {
        let in_slot = |disk: &vm::Disk| match slot.filter(|_| disk.keep).and_then(|slot| self.volume_name(disk, slot)) {
            Some(volume) => vm::Disk { volume: Some(volume), size: None, keep: false, ..disk.clone() },
            None => disk.clone(),
        };
        version.template.vm.disks.iter().map(in_slot).collect()
    }

    /// Asks for the volumes of a slot that are not there.
    pub(super) fn make_volumes(&self, slot: u64, version: &Version, plan: &mut Plan) {
        for disk in version.template.kept_disks() {
            let Some(name) = self.volume_name(disk, slot) else { continue };
            let key = Key::Asked(ObjectRef::new(Kind::Volume, name));
            if self.view.contains(&key) || plan.writes.iter().any(|write| *write.key() == key) {
                continue;
            }
            let uid = self.inputs.uid(plan.writes.len() as u64);
            let meta = Meta::new(uid, None, version.template.labels.clone(), self.inputs.now);
            let spec = Spec::Volume(volume::Spec { size: disk.size, ..volume::Spec::default() });
            plan.writes.push(Write::put(key, Asked { meta, spec }));
        }
    }

    /// Who waits for a volume that somebody has deleted begins with an empty one.
    pub(super) fn renew_volumes(&self, choice: &GroupChoice, members: &[Member<'_>], plan: &mut Plan) {
        let waiting = members.iter().filter(|member| member.state == State::Unplaced);
        let slots = waiting.filter_map(|member| member.slot.zip(choice.version(member.version)));
        let before = plan.writes.len();
        for (slot, version) in slots {
            if plan.writes.len() - before >= VOLUMES_PER_PLAN_MAX {
                break;
            }
            self.make_volumes(slot, version, plan);
        }
    }

    fn volume_name(&self, disk: &vm::Disk, slot: u64) -> Option<Name> {
        self.object.name.child(disk.name.as_str()).and_then(|name| name.child(&slot.to_string())).ok()
    }
}
