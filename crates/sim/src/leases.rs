//! Cards whose addresses come by DHCP: nothing is claimed for them, nothing is asked of them that needs an address, and the
//! cluster says of them what their host saw last.

use lightbyte_api::assigned::{Assigned, HostObject};
use lightbyte_api::kinds::vm::{self, Placement};
use lightbyte_api::object::ObjectRef;
use lightbyte_api::observed::Observed;
use lightbyte_api::{Kind, Uid, VmId};
use lightbyte_plan::view::View;

use crate::cluster::{Checked, Cluster};
use crate::oracle::{told, violated};
use crate::worker::Worker;

impl Cluster {
    /// A DHCP server gives another address to a guest of this worker, which says so.
    pub(crate) fn server_gives_another(&mut self, index: usize) {
        let now = self.now();
        let worker = &mut self.workers[index];
        let Some(vm) = self.rng.pick(&worker.ready()).copied() else { return };
        if worker.host.lease(vm)
            && let Some(agent) = worker.agent_mut()
        {
            agent.guest_ready(HostObject { kind: Kind::Vm, uid: vm.uid() }, now, now);
            self.counts.add("fault: another lease");
            self.tell(|| format!("VM {vm} has another lease"));
        }
    }
}

/// Whether a VM asks for what a card without a known address cannot have. VMs here have one card.
pub(crate) fn asks_for_pool(spec: &vm::Spec) -> bool {
    spec.firewall.is_some() || !spec.ports.is_empty() || spec.nics.iter().any(|nic| nic.address.is_some())
}

/// What is assigned to such a card has no rules, and what is told of its address is what the host saw.
pub(crate) fn check_goal(
    view: &View,
    object: &ObjectRef,
    uid: Uid,
    placement: &Placement,
    workers: &[Worker],
) -> Checked {
    let host_object = HostObject { kind: Kind::Vm, uid };
    let (Some(Assigned::Vm(assigned)), Some(Observed::Vm(observed))) = (
        view.assigned(placement.worker, host_object).map(AsRef::as_ref),
        view.observed(placement.worker, host_object).map(AsRef::as_ref),
    ) else {
        return Ok(());
    };
    let mut without = assigned.nics.iter().filter(|nic| nic.address.is_none());
    if without.any(|nic| nic.firewall.is_some() || !nic.ports.is_empty()) {
        return violated("leases", format!("{object} has rules for a card whose address nobody knows"));
    }
    let vm = VmId::new(uid);
    for worker in workers.iter().filter(|worker| worker.host.running().contains(&vm)) {
        let seen = worker.host.leases(vm);
        if observed.leases != seen {
            return violated(
                "leases",
                format!("{object} has {:?}, its host saw {seen:?}: {}", observed.leases, told(view, object)),
            );
        }
    }
    Ok(())
}
