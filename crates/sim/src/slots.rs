//! Members whose volumes outlive them, and what people ask of single members.

use std::collections::{BTreeMap, BTreeSet};

use lightbyte_api::kinds::scalegroup::{RetiredFor, Spec as GroupSpec};
use lightbyte_api::kinds::{vm, volume};
use lightbyte_api::object::Asked;
use lightbyte_api::{ByteSize, Kind, Manifest, ObjectRef, Spec, Uid, WaitingOn};
use lightbyte_plan::request::{self, Context, Outcome, Refusal};
use lightbyte_plan::view::View;

use crate::cluster::{Checked, Cluster};
use crate::oracle::{told, violated};
use crate::user::name;

const KEPT: &str = "data";

impl Cluster {
    /// Whether the group keeps volumes. One that is there stays as it is, but for a wish that is refused now and then.
    pub(crate) fn keep_some(&mut self, group: &ObjectRef, spec: &mut GroupSpec) {
        let living = self.oracle.truth().living(group).map(|asked| &asked.spec);
        let keeps = match living {
            Some(Spec::ScaleGroup(living)) if !self.rng.once_in(16) => living.template.keeps_volumes(),
            _ => self.rng.once_in(3),
        };
        if keeps {
            let size = Some(ByteSize::from_mib(1_024));
            spec.template.vm.disks.push(vm::Disk { size, keep: true, ..vm::Disk::own(name(KEPT)) });
            spec.update.max_surge = 0;
            spec.update.max_unavailable = spec.update.max_unavailable.max(1);
        }
    }

    /// Somebody asks something of a member, or of a volume that outlives members.
    pub(crate) fn member_user(&mut self, view: &View, context: &Context) -> Asking {
        let is_member =
            |object: &&ObjectRef| view.asked(object).is_some_and(|asked| asked.meta.group().is_some());
        let members: Vec<ObjectRef> = view.objects_of(Kind::Vm).filter(is_member).cloned().collect();
        let volumes: Vec<ObjectRef> =
            view.objects_of(Kind::Volume).filter(|volume| slot_in(volume).is_some()).cloned().collect();
        if self.rng.once_in(2)
            && let Some(volume) = self.rng.pick(&volumes).cloned()
        {
            if self.rng.once_in(3) {
                return ("delete", volume.clone(), request::delete(view, &volume, context));
            }
            return ("change", volume.clone(), self.move_kept(view, &volume, context));
        }
        let nobody = ObjectRef::new(Kind::Vm, name("web-0"));
        let member = self.rng.pick(&members).cloned().unwrap_or(nobody);
        let outcome = match self.rng.below(3) {
            0 => request::delete(view, &member, context),
            step => request::protect(view, &member, step == 1, context),
        };
        ("change", member, outcome)
    }

    /// Notes groups that stay larger than they are to be because members are protected: when all is at rest they are met most.
    pub(crate) fn count_protected(&mut self) {
        let view = self.oracle.truth();
        let stays = |group: &&ObjectRef| told(view, group).contains("Protected");
        for _ in 0..view.objects_of(Kind::ScaleGroup).filter(stays).count() {
            self.counts.add("wait: protected");
        }
    }

    fn move_kept(&mut self, view: &View, volume: &ObjectRef, context: &Context) -> Result<Outcome, Refusal> {
        let Some(Spec::Volume(spec)) = view.asked(volume).map(|asked| &asked.spec) else {
            return Err(Refusal::NotFound { object: volume.clone() });
        };
        let worker = Some(name(["n1", "n2", "n3"][self.rng.below(3)]));
        let spec = Spec::Volume(volume::Spec { worker, ..spec.clone() });
        request::apply(view, &Manifest { name: volume.name.clone(), labels: BTreeMap::new(), spec }, context)
    }
}

/// A verb, an object, and what becomes of it.
pub(crate) type Asking = (&'static str, ObjectRef, Result<Outcome, Refusal>);

/// The group and the slot that a volume is of, by its name.
fn slot_in(volume: &ObjectRef) -> Option<(&str, u64)> {
    let (group, slot) = volume.name.as_str().rsplit_once(&format!("-{KEPT}-"))?;
    Some((group, slot.parse().ok()?))
}

/// Whether a leader may make this volume: it belongs to nobody, is of a slot, and was not there, or goes in
/// the same batch.
pub(crate) fn may_make(object: &ObjectRef, asked: &Asked, before: &View) -> bool {
    object.kind == Kind::Volume
        && asked.meta.owner.is_none()
        && asked.meta.generation == 1
        && before.living(object).is_none()
        && before.asked(object).is_none_or(|gone| gone.meta.uid != asked.meta.uid)
        && slot_in(object).is_some()
}

pub(crate) fn slot_of(view: &View, member: &ObjectRef) -> Option<u64> {
    view.asked(member)?.meta.owner.as_ref()?.slot
}

fn kept_of<'a>(view: &'a View, member: &ObjectRef) -> impl Iterator<Item = ObjectRef> + use<'a> {
    let spec = view.asked(member).map(|asked| &asked.spec);
    let disks = match spec {
        Some(Spec::Vm(spec)) => spec.disks.as_slice(),
        _ => &[],
    };
    let volumes = disks.iter().filter_map(|disk| disk.volume.clone());
    volumes.map(|volume| ObjectRef::new(Kind::Volume, volume)).filter(|volume| slot_in(volume).is_some())
}

/// Nobody goes because there are too many who is protected by the store as it is.
pub(crate) fn check_protected(gone: &[(Uid, RetiredFor)], truth: &View) -> Checked {
    for (member, _) in gone.iter().filter(|(_, because)| *because == RetiredFor::Scale) {
        let asked = truth.object_of(*member).and_then(|object| truth.asked(object));
        if asked.is_some_and(|asked| asked.meta.protected) {
            return violated("protected", format!("{member} is let go because there are too many"));
        }
    }
    Ok(())
}

/// No two of the members that stay have one slot, and each has the volume of its own.
pub(crate) fn check_slots(view: &View, group: &ObjectRef, staying: &BTreeSet<Uid>) -> Checked {
    let mut taken = BTreeSet::new();
    for member in staying.iter().filter_map(|uid| view.object_of(*uid)) {
        let Some(slot) = slot_of(view, member) else { continue };
        if !taken.insert(slot) {
            return violated("slots", format!("two members of {group} have slot {slot}: {staying:?}"));
        }
        let is_its = |volume: ObjectRef| slot_in(&volume) == Some((group.name.as_str(), slot));
        if !kept_of(view, member).any(is_its) {
            return violated("slots", format!("{member} has not the volume of slot {slot}"));
        }
    }
    Ok(())
}

/// The slots of a group that is as asked are those from 1 on, and no volume of them waits for nothing but its holder.
pub(crate) fn check_settled(
    view: &View,
    group: &ObjectRef,
    (members, size): (&[&ObjectRef], u64),
) -> Checked {
    let slots: BTreeSet<u64> = members.iter().filter_map(|member| slot_of(view, member)).collect();
    let is_protected = |member: &&ObjectRef| view.asked(member).is_some_and(|asked| asked.meta.protected);
    let are_right = slots.iter().copied().eq(1..=size) || members.iter().any(is_protected);
    if !slots.is_empty() && !are_right {
        return violated("slots", format!("{group} is to have {size} members, and has the slots {slots:?}"));
    }
    for volume in members.iter().flat_map(|member| kept_of(view, member)) {
        let waiting_on =
            view.decided(&volume).map(|decided| decided.waiting_on.as_slice()).unwrap_or_default();
        let is_held = |on: &WaitingOn| matches!(on, WaitingOn::VolumeHeld { .. });
        let ends = view.living(&volume).is_none();
        if !ends && !waiting_on.is_empty() && waiting_on.iter().all(|waiting| is_held(&waiting.on)) {
            return violated(
                "slots",
                format!("{volume} waits for a member to let go of it: {}", told(view, group)),
            );
        }
    }
    Ok(())
}
