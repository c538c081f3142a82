//! Files, taps and QEMU keep the contract.

use std::sync::Arc;

use lightbyte_api::VmId;
use lightbyte_vmm::{Drivers, Machines};

use super::{Needs, World, in_namespace, kill};
use crate::contract::{Image, Subject, contract};

struct Real {
    world: World,
    qemu: Arc<Machines>,
    drivers: Drivers,
}

impl Real {
    fn new(needs: Needs) -> Real {
        let world = World::new(needs);
        let qemu = Arc::new(world.machines().expect("make the driver"));
        let files = Arc::new(world.files.clone());
        let drivers = Drivers {
            vmm: qemu.clone(),
            disks: files.clone(),
            network: Arc::new(world.taps),
            records: files,
            guest: qemu.clone(),
        };
        Real { world, qemu, drivers }
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
        kill(&self.qemu, vm);
    }
    fn let_guest_shut_down(&self, _vm: VmId) {}
}

#[test]
fn files_taps_and_qemu_keep_the_contract() {
    in_namespace("real::contract::files_taps_and_qemu_keep_the_contract", Needs::find(), |needs| {
        let real = Real::new(needs);
        contract(&real);
        real.world.nothing_is_left();
    });
}
