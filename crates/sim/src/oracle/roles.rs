//! Who may write what, judged by the store as it was before.

use lightbyte_api::kinds::vm;
use lightbyte_api::records::Record;
use lightbyte_api::{Choice, Key, Kind, ObjectRef, Spec};
use lightbyte_plan::view::View;
use lightbyte_plan::{Transaction, Write};

use super::{Writer, placement, violated};
use crate::cluster::Checked;
use crate::{balancers, moves, slots};

/// Rules 2, 4 and 8, and that sequences rise: who may write what, judged by the store as it was before.
pub(crate) fn check_roles(decision: &Transaction, before: &View, writer: &Writer) -> Checked {
    if let Writer::Leader(run) = writer {
        let leads = matches!(before.record(&Key::Leader), Some(Record::Leader(leader)) if leader.run == *run);
        if !leads {
            return violated("rule 4", format!("{run} wrote and does not lead"));
        }
    }
    for (key, write) in &decision.writes {
        if !may_write(writer, key, write, before) {
            return violated("rule 2", format!("{writer:?} wrote {key}"));
        }
        if before.unreadable(key).is_some() {
            return violated("rule 13", format!("{writer:?} wrote over {key}, which it cannot read"));
        }
        check_order(key, write, before)?;
        moves::check_copies(key, write, before)?;
        check_choice(key, write, before)?;
        balancers::check_choice(key, write, before, decision)?;
    }
    Ok(())
}

fn may_write(writer: &Writer, key: &Key, write: &Write, before: &View) -> bool {
    match (writer, key) {
        (Writer::Person, Key::Asked(_)) => matches!(write, Write::Put(..)),
        (Writer::Person, Key::Address(network, address)) => {
            let claim = before.address_claim(network, *address);
            matches!(write, Write::Delete(_)) && claim.is_some_and(|claim| claim.squatted.is_some())
        }
        (Writer::Leader(_), Key::Asked(object)) => match write {
            Write::Put(_, Record::Asked(asked)) => {
                asked.meta.owner.is_some() || slots::may_make(object, asked, before)
            }
            Write::Put(..) => false,
            // Which copy may go when its volume takes copies in turn is judged by `check_copies`.
            Write::Delete(_) if moves::is_taken_in_turn(before, object) => true,
            Write::Delete(_) => before.asked(object).is_some_and(|asked| {
                // One batch may ask for the end of a child and carry it out; `members_let_go` judges whether it may.
                let is_members = |object: &ObjectRef| {
                    let owner = before.asked(object).and_then(|asked| asked.meta.owner.as_ref());
                    owner.is_some_and(|owner| owner.object.kind == Kind::ScaleGroup)
                };
                if is_members(object)
                    || asked.meta.owner.as_ref().is_some_and(|owner| is_members(&owner.object))
                {
                    return true;
                }
                let owner = asked.meta.owner.as_ref().and_then(|owner| before.asked(&owner.object));
                [Some(&asked.meta), owner.map(|owner| &owner.meta)]
                    .into_iter()
                    .flatten()
                    .any(|meta| meta.deleting_since.is_some())
            }),
        },
        (
            Writer::Leader(_),
            Key::Decided(_) | Key::Assigned(..) | Key::WorkerLedger(_) | Key::Address(..),
        ) => true,
        (Writer::Leader(_), Key::Observed(_, object)) => {
            object.kind == Kind::Worker && matches!(write, Write::Delete(_))
        }
        (Writer::Worker(worker), Key::Observed(of, object)) => of == worker && object.kind != Kind::Worker,
        (Writer::Registration(worker), Key::Observed(of, _) | Key::WorkerLedger(of)) => of == worker,
        (Writer::Registration(_), Key::Asked(object)) => object.kind == Kind::Worker,
        (Writer::Server, Key::Alive(_)) | (Writer::Candidate, Key::Leader) => true,
        _ => false,
    }
}

/// A choice rests on what is true when it is stored, and not only when it was made.
fn check_choice(key: &Key, write: &Write, before: &View) -> Checked {
    let (Key::Decided(object), Write::Put(_, Record::Decided(decided))) = (key, write) else { return Ok(()) };
    let Choice::Vm(vm::Choice { placement: Some(chosen), .. }) = &decided.choice else { return Ok(()) };
    if placement(before, object).is_some() {
        return Ok(());
    }
    let worker = ObjectRef::new(Kind::Worker, chosen.worker_name.clone());
    let open = before.living(&worker).is_some_and(|asked| {
        asked.meta.uid == chosen.worker.uid()
            && matches!(&asked.spec, Spec::Worker(spec) if !spec.cordoned && !spec.draining)
            && before.alive(chosen.worker).is_some()
    });
    if !open {
        return violated("rule 3", format!("{object} was placed on {worker}, which takes nothing now"));
    }
    let Some(asked) = before.asked(object) else { return Ok(()) };
    let Spec::Vm(spec) = &asked.spec else { return Ok(()) };
    let image = ObjectRef::new(Kind::Image, spec.image.clone());
    let image_asked = if asked.meta.owner.is_some() { before.asked(&image) } else { before.living(&image) };
    let current = match image_asked.map(|asked| &asked.spec) {
        Some(Spec::Image(image)) => Some(spec.image_version.clone().unwrap_or_else(|| image.current.clone())),
        _ => None,
    };
    if current.as_ref() != Some(&chosen.image_version) {
        return violated(
            "rule 3",
            format!("{object} was placed with {image} {}, current is {current:?}", chosen.image_version),
        );
    }
    for nic in &chosen.nics {
        let network = ObjectRef::new(Kind::Network, nic.network.clone());
        let gives = match (before.living(&network).map(|asked| &asked.spec), nic.address) {
            (Some(Spec::Network(spec)), Some(address)) => {
                spec.may_give(address) && nic.address6 == spec.address6(address)
            }
            (Some(Spec::Network(spec)), None) => spec.pool().is_none() && nic.address6.is_none(),
            _ => false,
        };
        if !gives {
            return violated(
                "rule 3",
                format!(
                    "{object} got {:?} and {:?} of {network}, which does not give them",
                    nic.address, nic.address6
                ),
            );
        }
    }
    Ok(())
}

fn check_order(key: &Key, write: &Write, before: &View) -> Checked {
    match (write, before.record(key)) {
        (Write::Put(_, Record::Asked(after)), Some(Record::Asked(before)))
            if before.meta.uid == after.meta.uid
                && before.meta.deleting_since.is_some()
                && after.meta.deleting_since.is_none() =>
        {
            return violated("rule 8", format!("{key} is no more being deleted"));
        }
        (Write::Put(_, Record::Assigned(after)), before) => {
            let known = match before {
                Some(Record::Assigned(before)) => before.sequence(),
                _ => 0,
            };
            // One batch may hold two plans of one object: what is stored has been raised twice.
            if after.sequence() <= known {
                return violated(
                    "rule 3",
                    format!("{key} went from sequence {known} to {}", after.sequence()),
                );
            }
        }
        _ => {}
    }
    Ok(())
}
