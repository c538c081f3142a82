//! The fake host keeps the contract, and does what a real one cannot be told to.

use lightbyte_api::kinds::image::Part;
use lightbyte_api::{ByteSize, Timestamp, VmId};
use lightbyte_plan::agent::VmmState;
use lightbyte_vmm::{Drivers, FakeHost};

use crate::contract::{Bed, Image, Subject, contract, refused, vm, volume};

/// The host in memory.
struct Fake {
    host: FakeHost,
    drivers: Drivers,
}

impl Fake {
    fn new() -> Fake {
        let host = FakeHost::new(ByteSize::from_mib(1_024), ["br0".to_owned()]);
        Fake { drivers: host.drivers(), host }
    }
}

impl Subject for Fake {
    fn drivers(&self) -> &Drivers {
        &self.drivers
    }
    fn bridge(&self) -> String {
        "br0".to_owned()
    }
    fn image(&self) -> Image {
        let part = Part { sha256: "a".repeat(64), size: ByteSize::from_mib(64) };
        Image { kernel: part.clone(), initrd: None, command_line: String::new(), root: part }
    }
    fn let_guest_become_ready(&self, vm: VmId) {
        self.host.guest_ready(vm, Timestamp::UNIX_EPOCH);
    }
    fn end(&self, vm: VmId) {
        self.host.exit(vm);
    }
    fn let_guest_shut_down(&self, vm: VmId) {
        assert!(self.host.shutting_down().contains(&vm), "the guest was asked");
        self.host.exit(vm);
    }
}

#[test]
fn the_fake_host_keeps_the_contract() {
    contract(&Fake::new());
}

#[test]
fn the_fake_host_fails_when_it_is_told_to() {
    let fake = Fake::new();
    let bed = Bed::new(&fake);
    let assigned = bed.prepare(vm(1), volume(1));
    fake.host.fail_next(2);
    let failed = fake.drivers.vmm.ensure(vm(1), &assigned).expect_err("the first failure");
    assert_eq!(failed.chain(), "write to the host: no storage space");
    assert!(fake.drivers.disks.ensure(volume(2), &bed.assigned_volume(), None).is_err());
    fake.drivers.vmm.ensure(vm(1), &assigned).expect("the failures are used up");
    assert!(!fake.drivers.disks.exists(volume(2)).expect("an answer"), "what failed was not done");
}

#[test]
fn the_fake_host_has_only_so_much_memory() {
    let fake = Fake::new();
    let bed = Bed::new(&fake);
    for number in 1..=8 {
        let assigned = bed.prepare(vm(number), volume(number));
        fake.drivers.vmm.ensure(vm(number), &assigned).expect("room for eight");
    }
    let assigned = bed.prepare(vm(9), volume(9));
    refused(fake.drivers.vmm.ensure(vm(9), &assigned));
    // What ended by itself needs none.
    fake.host.exit(vm(1));
    fake.drivers.vmm.ensure(vm(9), &assigned).expect("room again");
}

#[test]
fn a_reboot_of_the_fake_host_keeps_disks_and_records_only() {
    let fake = Fake::new();
    let bed = Bed::new(&fake);
    let assigned = bed.prepare(vm(1), volume(1));
    fake.drivers.vmm.ensure(vm(1), &assigned).expect("start");
    fake.host.reboot();
    assert_eq!(bed.state(vm(1)), VmmState::Exited);
    assert_eq!(fake.drivers.network.count(vm(1)).expect("an answer"), 0);
    assert!(fake.drivers.disks.exists(volume(1)).expect("an answer"));
}
