//! Files, taps and each VMM keep the contract.

use std::sync::Arc;

use lightbyte_api::VmId;
use lightbyte_vmm::{Drivers, Machines};

use super::{Needs, Runner, World, in_namespace, kill};
use crate::contract::{Image, Subject, contract};

struct Real {
    world: World,
    machines: Arc<Machines>,
    drivers: Drivers,
}

impl Real {
    fn new(needs: Needs) -> Real {
        let world = World::new(needs);
        let machines = Arc::new(world.machines().expect("make the driver"));
        let files = Arc::new(world.files.clone());
        let drivers = Drivers {
            vmm: machines.clone(),
            disks: files.clone(),
            network: Arc::new(world.taps),
            parts: Arc::new(world.files.parts().clone()),
            records: files,
            guest: machines.clone(),
        };
        Real { world, machines, drivers }
    }
}

impl Subject for Real {
    fn drivers(&self) -> &Drivers {
        &self.drivers
    }
    fn bridge(&self) -> String {
        "br0".to_owned()
    }
    fn image(&self) -> Image {
        self.world.image()
    }
    fn let_guest_become_ready(&self, _vm: VmId) {}
    fn end(&self, vm: VmId) {
        kill(&self.machines, vm);
    }
    fn let_guest_shut_down(&self, _vm: VmId) {}
}

fn keeps_the_contract(name: &str, runner: Runner) {
    in_namespace(name, Needs::find(runner), |needs| {
        let real = Real::new(needs);
        contract(&real);
        real.world.nothing_is_left();
    });
}

#[test]
fn files_taps_and_qemu_keep_the_contract() {
    keeps_the_contract("real::contract::files_taps_and_qemu_keep_the_contract", Runner::Qemu);
}

#[test]
fn files_taps_and_firecracker_keep_the_contract() {
    keeps_the_contract("real::contract::files_taps_and_firecracker_keep_the_contract", Runner::Firecracker);
}

#[test]
fn files_taps_and_a_jailed_firecracker_keep_the_contract() {
    keeps_the_contract(
        "real::contract::files_taps_and_a_jailed_firecracker_keep_the_contract",
        Runner::Jailed,
    );
}
