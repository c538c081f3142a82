//! Who a guest is, in the words that it takes.

use lightbyte_api::VmId;
use lightbyte_api::assigned::{AssignedNic, AssignedVm};
use lightbyte_guest::protocol::{Identity, Nic};

/// The identity of a VM on `worker`.
pub(crate) fn of(vm: VmId, assigned: &AssignedVm, worker: &str) -> Identity {
    let nic = |nic: &AssignedNic| Nic {
        mac: nic.mac.to_string(),
        address: format!("{}/{}", nic.address, nic.prefix_length),
        gateway: nic.gateway.map(Into::into),
    };
    let mut dns = Vec::new();
    for address in assigned.nics.iter().flat_map(|nic| &nic.dns).map(|address| (*address).into()) {
        if !dns.contains(&address) {
            dns.push(address);
        }
    }
    Identity {
        name: assigned.name.to_string(),
        uid: vm.to_string(),
        worker: worker.to_owned(),
        image: assigned.image.to_string(),
        image_version: assigned.image_version.clone(),
        nics: assigned.nics.iter().map(nic).collect(),
        dns,
        ..Identity::default()
    }
}
