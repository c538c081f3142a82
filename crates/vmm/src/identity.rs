//! Who a guest is, in the words that it takes.

use lightbyte_api::VmId;
use lightbyte_api::address::InterfaceId;
use lightbyte_api::assigned::{AssignedDisk, AssignedIpv6, AssignedNic, AssignedVm};
use lightbyte_guest::protocol::{FirstBoot, Identity, Ipv6, Mount, NewFile, Nic};

/// The identity of a VM on `worker`.
pub(crate) fn of(vm: VmId, assigned: &AssignedVm, worker: &str) -> Identity {
    // A guest has one default route: by the first card that leads anywhere.
    let out = assigned.nics.iter().position(|nic| nic.gateway.is_some() || nic.address.is_none());
    // Where routers say the addresses, they say the way out as well.
    let leads_out6 = |nic: &AssignedNic| {
        nic.ipv6.as_ref().is_some_and(|ipv6| ipv6.address.is_none() || ipv6.gateway.is_some())
    };
    let out6 = assigned.nics.iter().position(leads_out6);
    let ipv6 = |index, interface: InterfaceId, ipv6: &AssignedIpv6| Ipv6 {
        link_local: interface.link_local().to_string(),
        address: ipv6.address.map_or_else(String::new, |address| format!("{address}/{}", ipv6.prefix_length)),
        gateway: ipv6.gateway.filter(|_| out6 == Some(index)).map(Into::into),
    };
    let nic = |(index, nic): (usize, &AssignedNic)| Nic {
        mac: nic.mac.to_string(),
        address: nic.address.map_or_else(String::new, |address| format!("{address}/{}", nic.prefix_length)),
        gateway: nic.gateway.filter(|_| out == Some(index)).map(Into::into),
        takes_route: nic.address.is_none() && out == Some(index),
        mtu: nic.mtu,
        ipv6: nic
            .interface6()
            .zip(nic.ipv6.as_ref())
            .map(|(interface, of_nic)| ipv6(index, interface, of_nic)),
    };
    let mut dns = Vec::new();
    for address in assigned.nics.iter().flat_map(|nic| &nic.dns) {
        if !dns.contains(address) {
            dns.push(*address);
        }
    }
    Identity {
        name: assigned.name.to_string(),
        uid: vm.to_string(),
        worker: worker.to_owned(),
        image: assigned.image.to_string(),
        image_version: assigned.image_version.clone(),
        nics: assigned.nics.iter().enumerate().map(nic).collect(),
        dns,
        first_boot: first_boot(&assigned.first_boot),
        mounts: mounts(assigned),
    }
}

fn first_boot(wanted: &lightbyte_api::first_boot::FirstBoot) -> FirstBoot {
    let file = |file: &lightbyte_api::first_boot::NewFile| NewFile {
        path: file.path.clone(),
        mode: file.mode_bits(),
        content: file.content.clone(),
    };
    FirstBoot {
        ssh_keys: wanted.ssh_keys.clone(),
        files: wanted.files.iter().map(file).collect(),
        script: wanted.script.clone(),
    }
}

/// Where the disks are mounted. What is on one is the guest's to know; it is taken for an ext4.
fn mounts(assigned: &AssignedVm) -> Vec<Mount> {
    let mount = |(index, disk): (usize, &AssignedDisk)| {
        let (disk_index, path) = (u16::try_from(index).ok()?, disk.mount.clone()?);
        Some(Mount { disk: disk_index, path, read_only: disk.read_only, filesystem: true })
    };
    assigned.disks.iter().enumerate().filter_map(mount).collect()
}
