//! Firewalls and ports of workers: what people ask, and what must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use lightbyte_api::address::Cidr;
use lightbyte_api::assigned::{AssignedNic, HostObject};
use lightbyte_api::firewall::{Firewall, From, Opening, Protocol, Rule, Wall};
use lightbyte_api::kinds::vm::{self, PortForward, WorkerPort};
use lightbyte_api::{Assigned, Kind, ObjectRef, Spec, Subnet, Uid, VmId, WorkerId};
use lightbyte_plan::view::View;

use crate::cluster::{Checked, Cluster};
use crate::oracle::{placement, told, violated};
use crate::worker::Worker;

const APPS: [&str; 3] = ["web", "db", "proxy"];

impl Cluster {
    pub(crate) fn some_labels(&mut self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        if self.rng.once_in(2) {
            labels.insert("app".to_owned(), APPS[self.rng.below(APPS.len())].to_owned());
        }
        if self.rng.once_in(3) {
            labels.insert("tier".to_owned(), "a".to_owned());
        }
        labels
    }

    pub(crate) fn some_firewall(&mut self) -> Option<Firewall> {
        if self.rng.once_in(2) {
            return None;
        }
        let mut labels = BTreeMap::from([("app".to_owned(), APPS[self.rng.below(APPS.len())].to_owned())]);
        if self.rng.once_in(3) {
            labels.insert("tier".to_owned(), "a".to_owned());
        }
        let rule = |from| Rule { from: Some(from), protocol: Protocol::Tcp, ports: Vec::new() };
        let lan = From::Cidr(Cidr::V4(Subnet::of(Ipv4Addr::new(10, 78, 0, 0), 24)));
        Some(Firewall { allow: vec![rule(From::Labels(labels)), rule(lan)] })
    }

    /// Few, so that VMs want the same.
    pub(crate) fn some_ports(&mut self) -> Vec<PortForward> {
        let worker_port = 8_000 + self.rng.below(3) as u16;
        let port = PortForward { worker_port, port: 80, protocol: Protocol::Tcp };
        if self.rng.once_in(3) { vec![port] } else { Vec::new() }
    }
}

/// No port of a worker is two VMs'; and the ledger says whose they are.
pub(crate) fn check_ports(view: &View) -> Checked {
    let mut given: BTreeMap<WorkerId, BTreeSet<WorkerPort>> = BTreeMap::new();
    for object in view.objects_of(Kind::Vm) {
        let (Some(placement), Some(Spec::Vm(spec))) =
            (placement(view, object), view.asked(object).map(|asked| &asked.spec))
        else {
            continue;
        };
        let ports = given.entry(placement.worker).or_default();
        for port in spec.ports.iter().map(PortForward::worker_side) {
            if !ports.insert(port) {
                return violated("ports", format!("{object} has {port:?}, which another VM there has"));
            }
        }
    }
    let all_readable = view.unreadable_keys().next().is_none();
    for object in view.objects_of(Kind::Worker).filter(|_| all_readable) {
        let Some(worker) = view.worker_id(object) else { continue };
        let Some(ledger) = view.worker_ledger(worker) else { continue };
        let placed = given.remove(&worker).unwrap_or_default();
        if ledger.ports.iter().copied().collect::<BTreeSet<_>>() != placed {
            return violated(
                "ports",
                format!("the ledger of {object} says {:?}, placed: {placed:?}", ledger.ports),
            );
        }
    }
    Ok(())
}

/// Whether a VM there has a port that this one is to have, by the decisions.
pub(crate) fn takes_ports(view: &View, worker: WorkerId, spec: &vm::Spec) -> bool {
    let placed = view.objects_of(Kind::Vm).filter_map(|object| placement(view, object));
    let mut there =
        placed.filter(|placement| placement.worker == worker).flat_map(|placement| &placement.ports);
    there.any(|port| spec.ports.iter().any(|wanted| wanted.worker_side() == *port))
}

/// What may come in to a placed VM is what is asked, with the VMs that there are; on its host as well while it runs.
pub(crate) fn check_goal(view: &View, object: &ObjectRef, uid: Uid, workers: &[Worker]) -> Checked {
    let (Some(placement), Some(Spec::Vm(spec))) =
        (placement(view, object), view.asked(object).map(|asked| &asked.spec))
    else {
        return Ok(());
    };
    let expected = wall(view, uid, spec);
    let host_object = HostObject { kind: Kind::Vm, uid };
    let Some(Assigned::Vm(assigned)) = view.assigned(placement.worker, host_object).map(AsRef::as_ref) else {
        return Ok(());
    };
    let known = |nic: &&AssignedNic| nic.address.is_some();
    if assigned.nics.iter().filter(known).any(|nic| nic.firewall != expected) {
        return violated(
            "firewall",
            format!("{object} has {:?}, not {expected:?}: {}", assigned.nics, told(view, object)),
        );
    }
    let vm = VmId::new(uid);
    for worker in workers.iter().filter(|worker| worker.host.running().contains(&vm)) {
        // Virtual addresses are looked at with their load balancers.
        let own = |nics: &[AssignedNic]| -> Vec<AssignedNic> {
            nics.iter().map(|nic| AssignedNic { virtual_address: None, ..nic.clone() }).collect()
        };
        if own(&worker.host.taps(vm)) != own(&assigned.nics) {
            return violated("firewall", format!("{object} runs with other taps than it is assigned"));
        }
    }
    Ok(())
}

/// The same from all VMs, one by one.
fn wall(view: &View, uid: Uid, spec: &vm::Spec) -> Option<Wall> {
    let firewall = spec.firewall.as_ref()?;
    let mut allow = Vec::new();
    for rule in &firewall.allow {
        let from = match &rule.from {
            None => Vec::new(),
            Some(From::Cidr(subnet)) => vec![*subnet],
            Some(From::Labels(labels)) => {
                let mut found = BTreeSet::new();
                for other in view.objects_of(Kind::Vm) {
                    let (Some(asked), Some(placement)) = (view.asked(other), placement(view, other)) else {
                        continue;
                    };
                    let has = labels.iter().all(|(key, value)| asked.meta.labels.get(key) == Some(value));
                    if has && asked.meta.deleting_since.is_none() && asked.meta.uid != uid {
                        for nic in &placement.nics {
                            found.extend(nic.address.map(IpAddr::from));
                            found.extend(nic.address6.map(IpAddr::from));
                        }
                    }
                }
                if found.is_empty() {
                    continue;
                }
                found.into_iter().map(Cidr::only).collect()
            }
        };
        allow.push(Opening { from, protocol: rule.protocol, ports: rule.ports.clone() });
    }
    Some(Wall { allow })
}
