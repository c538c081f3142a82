//! People: they ask for things through any server, however old its view is.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use lightbyte_api::address::Subnet6;
use lightbyte_api::kinds::network::{Ipv4, Pool, Prefix6};
use lightbyte_api::kinds::{image, network, vm, worker};
use lightbyte_api::{ByteSize, Kind, Manifest, Name, ObjectRef, Spec, Uid};
use lightbyte_plan::request::{self, Context, Refusal};

use crate::cluster::{Checked, Cluster, Sent, Violation};
use crate::oracle::Writer;

const VMS: usize = 14;
const IMAGES: [&str; 2] = ["demo", "base"];
const NETWORKS: [&str; 3] = ["default", "lan", "home"];

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap_or_else(|_| unreachable!("names of the simulation are names"))
}

impl Cluster {
    /// Somebody asks for something.
    pub(crate) fn user_acts(&mut self) -> Checked {
        let servers: Vec<usize> = self.up_servers().into();
        let Some(server) = self.rng.pick(&servers).copied() else { return Ok(()) };
        let view = self.servers[server].feed.view().clone();
        let context = Context { now: self.now(), uid: Uid::from_bits(self.rng.bits()), if_match: None };
        let vm = ObjectRef::new(Kind::Vm, name(&format!("vm-{}", self.rng.below(VMS))));
        let is_of_group = self.has_groups && self.rng.once_in(3);
        let is_of_balancer = self.has_balancers && self.rng.once_in(5);
        let choice = match (is_of_balancer, is_of_group) {
            (true, _) => 28,
            (_, true) => 27,
            _ => self.rng.below(27),
        };
        let (verb, object, outcome) = match choice {
            28 => self.balancer_user(&view, &context),
            27 => self.group_user(&view, &context),
            0..=7 => {
                let manifest = self.some_vm(vm.name.clone());
                ("create", vm, request::create(&view, &manifest, &context))
            }
            8..=10 => ("delete", vm.clone(), request::delete(&view, &vm, &context)),
            11 | 12 => {
                let running = self.rng.once_in(2);
                ("change", vm.clone(), request::set_running(&view, &vm, running, &context))
            }
            13 => ("restart", vm.clone(), request::restart(&view, &vm, &context)),
            14 => {
                let manifest = self.something_else();
                ("change", manifest.object(), request::apply(&view, &manifest, &context))
            }
            15..=17 => {
                let manifest = self.some_ground();
                ("change", manifest.object(), request::apply(&view, &manifest, &context))
            }
            18 => {
                let object =
                    if self.rng.once_in(4) { self.something_else() } else { self.some_ground() }.object();
                ("delete", object.clone(), request::delete(&view, &object, &context))
            }
            19 => {
                let manifest = self.some_cordon();
                ("change", manifest.object(), request::apply(&view, &manifest, &context))
            }
            20 | 21 => match self.some_other_machine(&view, &vm) {
                Some(manifest) => ("change", vm, request::apply(&view, &manifest, &context)),
                None => return Ok(()),
            },
            26 => match self.some_release(&view, &context) {
                Some((network, outcome)) => ("change", network, outcome),
                None => return Ok(()),
            },
            22..=24 => {
                let manifest = self.some_volume();
                ("change", manifest.object(), request::apply(&view, &manifest, &context))
            }
            _ => {
                let object = self.some_volume().object();
                ("delete", object.clone(), request::delete(&view, &object, &context))
            }
        };
        let Some(outcome) = self.count_refusal(outcome) else { return Ok(()) };
        let created = matches!(outcome, request::Outcome::Create(_));
        let Some(decision) = outcome.transaction() else { return Ok(()) };
        self.tell(|| format!("somebody asks to {verb} {object} of s{server}"));
        if verb == "delete" {
            self.oracle.deletion_asked(&view, &object);
        }
        match self.commit(&decision, &view, Writer::Person, |_| None)? {
            Sent::Committed(_) => {
                self.counts.add(match verb {
                    _ if created => "ack: create",
                    "delete" => "ack: delete",
                    "restart" => "ack: restart",
                    _ => "ack: change",
                });
                self.oracle.acknowledged(&decision);
            }
            Sent::Conflict(..) => self.counts.add("conflict: api"),
            // Nobody was told that it was done, so nobody may rely on it.
            Sent::Unknown => {}
        }
        Ok(())
    }

    /// Somebody applies a manifest, on the newest view. The inner error is the refusal.
    pub(crate) fn ask_for(&mut self, manifest: &Manifest) -> Result<Result<(), Refusal>, Violation> {
        let view = self.oracle.truth().clone();
        let context = Context { now: self.now(), uid: Uid::from_bits(self.rng.bits()), if_match: None };
        match request::apply(&view, manifest, &context) {
            Ok(outcome) => self.make_true(outcome).map(Ok),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// Commits what somebody was granted on the newest view.
    pub(crate) fn make_true(&mut self, outcome: request::Outcome) -> Checked {
        let view = self.oracle.truth().clone();
        let Some(decision) = outcome.transaction() else { return Ok(()) };
        if let Sent::Committed(_) = self.commit(&decision, &view, Writer::Person, |_| None)? {
            self.oracle.acknowledged(&decision);
        }
        Ok(())
    }

    /// Somebody sets up what VMs stand on, a piece in each round.
    pub(crate) fn user_prepares(&mut self, round: usize) -> Checked {
        let view = self.servers[0].feed.view().clone();
        let context = Context { now: self.now(), uid: Uid::from_bits(self.rng.bits()), if_match: None };
        let is_image = round.is_multiple_of(2);
        let manifest =
            self.ground(is_image, (round / 2) % if is_image { IMAGES.len() } else { NETWORKS.len() });
        if let Ok(Some(decision)) =
            request::apply(&view, &manifest, &context).map(request::Outcome::transaction)
        {
            self.commit(&decision, &view, Writer::Person, |_| None)?;
        }
        Ok(())
    }

    fn count_refusal(&mut self, outcome: Result<request::Outcome, Refusal>) -> Option<request::Outcome> {
        match outcome {
            Ok(outcome) => return Some(outcome),
            Err(Refusal::NotFound { .. }) => self.counts.add("refused: not found"),
            Err(Refusal::Exists { .. }) => self.counts.add("refused: exists"),
            Err(Refusal::Deleting { .. }) => self.counts.add("refused: deleting"),
            Err(_) => self.counts.add("refused: other"),
        }
        None
    }

    pub(crate) fn some_vm(&mut self, vm_name: Name) -> Manifest {
        let mut spec = vm::Spec::of_image(name(IMAGES[self.rng.below(IMAGES.len())]));
        spec.cpus = 1 + self.rng.below(2) as u64;
        spec.memory = ByteSize::from_mib(128 << self.rng.below(3));
        if self.rng.once_in(4) {
            spec.nics[0].network = name(NETWORKS[1 + self.rng.below(2)]);
        }
        if self.rng.once_in(8) {
            spec.nics[0].address = Some(Ipv4Addr::new(10, 77, 0, 3));
        }
        if self.rng.once_in(3) {
            self.attach_some(&mut spec);
        }
        spec.health = self.some_health();
        spec.firewall = self.some_firewall();
        spec.ports = self.some_ports();
        spec.placement = self.some_placing();
        (spec.priority, spec.placement.preempt) = self.some_priority();
        Manifest { name: vm_name, labels: self.some_labels(), spec: Spec::Vm(spec) }
    }

    /// An object of a kind that nothing on any host belongs to. Kinds join by themselves; without any it is an image or
    /// a network.
    fn something_else(&mut self) -> Manifest {
        let of_hosts = [
            Kind::Vm,
            Kind::ScaleGroup,
            Kind::LoadBalancer,
            Kind::Network,
            Kind::Worker,
            Kind::Volume,
            Kind::Snapshot,
        ];
        let others = Kind::ALL.iter().filter(|kind| !of_hosts.contains(kind));
        let others: Vec<(Kind, serde_json::Value)> =
            others.filter_map(|kind| Some((*kind, kind.shortest()?))).collect();
        let Some((kind, spec)) = self.rng.pick(&others) else { return self.some_ground() };
        let name = format!("other-{}", self.rng.below(3));
        let manifest = Manifest::read(&serde_json::json!({ "kind": kind, "name": name, "spec": spec }));
        manifest.unwrap_or_else(|problems| unreachable!("the shortest {kind} is complete: {problems:?}"))
    }

    /// What VMs stand on: an image or a network.
    fn some_ground(&mut self) -> Manifest {
        let is_image = self.rng.once_in(2);
        let index = self.rng.below(if is_image { IMAGES.len() } else { NETWORKS.len() });
        self.ground(is_image, index)
    }

    fn ground(&mut self, is_image: bool, index: usize) -> Manifest {
        if is_image {
            let version = format!("v{}", self.rng.below(3));
            let part =
                |digit: &str, size| image::Part { sha256: digit.repeat(64), size: ByteSize::from_mib(size) };
            let versions = ["v0", "v1", "v2"].map(|version| image::Version {
                version: version.to_owned(),
                architecture: "x86_64".to_owned(),
                kernel: part("0", 40),
                initrd: Some(part("1", 3)),
                command_line: String::new(),
                root: part("2", 64),
            });
            let spec = image::Spec { current: version, versions: versions.into() };
            Manifest { name: name(IMAGES[index]), labels: BTreeMap::new(), spec: Spec::Image(spec) }
        } else {
            // Few addresses, so that they run out.
            let subnet = if index == 0 { [10, 77, 0, 0] } else { [10, 78, 0, 0] };
            let at = |host| Ipv4Addr::new(subnet[0], subnet[1], 0, host);
            let pool = Pool {
                subnet: format!("{}/24", at(0)).parse().unwrap_or_else(|_| unreachable!("a subnet")),
                gateway: Some(at(1)),
                first: at(1),
                last: at(if index == 0 { 7 } else { 3 }),
            };
            let by_dhcp = index == 2;
            let spec = network::Spec {
                ipv4: if by_dhcp { Ipv4::DHCP } else { Ipv4::Pool(pool) },
                dns: Vec::new(),
                bridge: if index == 1 && self.rng.once_in(6) { "br9" } else { "br0" }.to_owned(),
                mtu: None,
                subnet6: self.rng.once_in(2).then(|| {
                    if by_dhcp {
                        return Prefix6::Auto;
                    }
                    Prefix6::Subnet(Subnet6::of(Ipv6Addr::new(0xfd00, index as u16, 0, 0, 0, 0, 0, 0), 64))
                }),
                gateway6: None,
            };
            Manifest { name: name(NETWORKS[index]), labels: BTreeMap::new(), spec: Spec::Network(spec) }
        }
    }

    fn some_cordon(&mut self) -> Manifest {
        let index = self.rng.below(self.workers.len());
        let cordoned = self.rng.once_in(2);
        let name = self.workers[index].said.name.clone();
        let labels = self.some_zone();
        let spec = worker::Spec { cordoned, only_for: self.some_keeping(), ..worker::Spec::default() };
        Manifest { name, labels, spec: Spec::Worker(spec) }
    }
}
