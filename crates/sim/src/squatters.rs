//! Machines that are none of ours and have addresses of our pools: how they come, and what must hold of them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use lightbyte_api::assigned::HostObject;
use lightbyte_api::kinds::vm;
use lightbyte_api::{Assigned, Key, Kind, MacAddress, ObjectRef, Observed, Spec, Uid, VmId};
use lightbyte_plan::agent::Step;
use lightbyte_plan::request::{self, Context, Outcome, Refusal};
use lightbyte_plan::view::View;
use lightbyte_vmm::hands;

use crate::cluster::{Checked, Cluster};
use crate::oracle::{placement, told, violated};
use crate::worker::Worker;

/// What was heard when an address of a VM was probed for last, since its taps were made: whether somebody had it.
pub(crate) type Heard = BTreeMap<(VmId, Ipv4Addr), bool>;

impl Cluster {
    /// Somebody takes an address of a pool, or gives one back. All workers are on one LAN.
    pub(crate) fn somebody_squats(&mut self) {
        let address = match self.rng.below(4) {
            // The one that some VMs must have.
            0 => Ipv4Addr::new(10, 77, 0, 3),
            1 => Ipv4Addr::new(10, 78, 0, 1 + self.rng.below(3) as u8),
            _ => Ipv4Addr::new(10, 77, 0, 2 + self.rng.below(6) as u8),
        };
        if self.squatters.remove(&address).is_some() {
            self.tell(|| format!("{address} is squatted no more"));
        } else {
            self.counts.add("fault: address squatted");
            self.tell(|| format!("somebody squats {address}"));
            self.squatters.insert(address, MacAddress::new([2, 0, 0, 0, 0, address.octets()[3]]));
        }
        for worker in &self.workers {
            worker.host.set_squatters(self.squatters.clone());
        }
    }

    /// A person says of some address that nobody squats it any more, right or wrong.
    pub(crate) fn some_release(
        &mut self,
        view: &View,
        context: &Context,
    ) -> Option<(ObjectRef, Result<Outcome, Refusal>)> {
        let claims = view.objects_of(Kind::Network).flat_map(|network| {
            view.claimed_addresses(&network.name).map(move |address| (network.clone(), address))
        });
        let claims: Vec<(ObjectRef, Ipv4Addr)> = claims.collect();
        let (network, address) = self.rng.pick(&claims).cloned()?;
        Some((network.clone(), request::release_address(view, &network, address, context)))
    }
}

impl Worker {
    /// Notes what a step has found out of addresses, and holds a start to it.
    pub(crate) fn check_probes(
        &mut self,
        object: HostObject,
        step: &Step,
        squatters: &BTreeMap<Ipv4Addr, MacAddress>,
    ) -> Checked {
        let vm = VmId::new(object.uid);
        match step {
            Step::RemoveTaps => self.heard.retain(|(of, _), _| *of != vm),
            Step::Probe => {
                let facts = hands::facts(&self.drivers, object);
                let saved = facts.ok().and_then(|facts| facts.saved).map(|saved| saved.assigned);
                if let Some(Assigned::Vm(assigned)) = saved {
                    let heard = assigned.nics.iter().filter_map(|nic| nic.address);
                    let heard = heard.map(|address| ((vm, address), squatters.contains_key(&address)));
                    self.heard.extend(heard);
                }
            }
            Step::Start => {
                let mut checked = Ok(());
                self.host.each_running(|running, assigned| {
                    let own = assigned.nics.iter().filter(|_| running == vm);
                    for address in own.filter_map(|nic| nic.address) {
                        let problem = match self.heard.get(&(vm, address)) {
                            Some(false) => continue,
                            Some(true) => "was heard to be somebody else's",
                            None => "was not probed for",
                        };
                        checked =
                            violated("squatters", format!("VM {vm} starts with {address}, which {problem}"));
                    }
                });
                return checked;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether a placed VM has to wait because somebody else has an address of it: it can have no other.
///
/// # Errors
/// When it could have another.
pub(crate) fn must_wait(
    view: &View,
    object: &ObjectRef,
    uid: Uid,
) -> Result<bool, crate::cluster::Violation> {
    let Some(placement) = placement(view, object) else { return Ok(false) };
    let host_object = HostObject { kind: Kind::Vm, uid };
    let (Some(Observed::Vm(observed)), Some(Assigned::Vm(assigned)), Some(Spec::Vm(spec))) = (
        view.observed(placement.worker, host_object).map(AsRef::as_ref),
        view.assigned(placement.worker, host_object).map(AsRef::as_ref),
        view.asked(object).map(|asked| &asked.spec),
    ) else {
        return Ok(false);
    };
    if observed.sequence != assigned.sequence || observed.squatters.is_empty() {
        return Ok(false);
    }
    for squatter in &observed.squatters {
        let Some(nic) = spec.nics.get(squatter.nic as usize) else { continue };
        if nic.address.is_none() && has_free(view, nic) {
            return violated(
                "rule 10",
                format!("{object} could have another address: {}", told(view, object)),
            );
        }
    }
    Ok(true)
}

fn has_free(view: &View, nic: &vm::Nic) -> bool {
    let network = ObjectRef::new(Kind::Network, nic.network.clone());
    let Some(Spec::Network(network)) = view.living(&network).map(|asked| &asked.spec) else { return false };
    let claimed = |address| view.contains(&Key::Address(nic.network.clone(), address));
    network
        .pool()
        .is_some_and(|pool| pool.addresses().any(|address| network.may_give(address) && !claimed(address)))
}
