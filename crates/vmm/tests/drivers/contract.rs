//! One suite for every set of drivers, which passes it by a [`Subject`] of its own: `fake.rs`, `real/contract.rs`.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use lightbyte_api::assigned::{
    Assigned, AssignedDisk, AssignedNic, AssignedVm, AssignedVolume, HostObject, Source, VirtualAddress,
    WantedVm, WantedVolume,
};
use lightbyte_api::first_boot::FirstBoot;
use lightbyte_api::kinds::image::Part;
use lightbyte_api::kinds::vm::RestartPolicy;
use lightbyte_api::{ByteSize, Kind, MacAddress, Name, Span, Timestamp, Uid, VmId, VolumeId};
use lightbyte_plan::agent::{Saved, VmmState};
use lightbyte_vmm::{DriverError, Drivers, VmmEvent, hands};

use crate::guest;

/// How long an event may take: a guest under software emulation on a loaded machine boots in up to 120 s.
const EVENT_WAIT: Duration = Duration::from_secs(150);

/// A set of drivers under test, with what a test must be able to do behind its back.
pub(crate) trait Subject {
    fn drivers(&self) -> &Drivers;
    /// The bridge that the host has.
    fn bridge(&self) -> String;
    /// What its VMs are made from.
    fn image(&self) -> Image;
    /// Lets the guest of a started VM become ready; a real one does so by itself.
    fn let_guest_become_ready(&self, vm: VmId);
    /// Ends the machine process of a VM, as a crash would.
    fn end(&self, vm: VmId);
    /// Lets a guest that was asked to shut down obey; a real one does so by itself.
    fn let_guest_shut_down(&self, vm: VmId);
}

/// The parts of an image.
pub(crate) struct Image {
    pub(crate) kernel: Part,
    pub(crate) initrd: Option<Part>,
    pub(crate) command_line: String,
    pub(crate) root: Part,
}

pub(crate) struct Bed<'a> {
    subject: &'a dyn Subject,
    pub(crate) drivers: &'a Drivers,
    events: Receiver<VmmEvent>,
}

impl<'a> Bed<'a> {
    pub(crate) fn new(subject: &'a dyn Subject) -> Bed<'a> {
        let drivers = subject.drivers();
        Bed { subject, drivers, events: listen(drivers) }
    }

    fn assigned_vm(&self, vm: VmId, disk: VolumeId) -> AssignedVm {
        let image = self.subject.image();
        let nic = |index: usize, last: u8| AssignedNic {
            bridge: self.subject.bridge(),
            mac: MacAddress::of_nic(vm.uid(), index),
            address: Some(Ipv4Addr::new(10, 77, 0, last)),
            prefix_length: 24,
            gateway: None,
            dns: Vec::new(),
            mtu: None,
            ipv6: None,
            firewall: None,
            ports: Vec::new(),
            virtual_address: None,
        };
        AssignedVm {
            sequence: 1,
            generation: 1,
            name: Name::new("a").expect("a name"),
            wanted: WantedVm::Running,
            restarts_asked: 0,
            shape: 1,
            restart: RestartPolicy::default(),
            health: None,
            cpus: 1,
            memory: ByteSize::from_mib(128),
            image: Name::new("demo").expect("a name"),
            image_version: "v1".to_owned(),
            kernel: image.kernel,
            initrd: image.initrd,
            command_line: image.command_line,
            disks: vec![AssignedDisk { volume: disk, read_only: false, mount: None }],
            nics: vec![nic(0, 2), nic(1, 3)],
            first_boot: FirstBoot::default(),
            asked_at: Timestamp::UNIX_EPOCH,
        }
    }

    pub(crate) fn assigned_volume(&self) -> AssignedVolume {
        let root = self.subject.image().root;
        AssignedVolume {
            sequence: 1,
            generation: 1,
            name: Name::new("a-root").expect("a name"),
            wanted: WantedVolume::Present,
            size: root.size,
            source: Source::Image(root),
            arriving: None,
        }
    }

    /// A VM whose disk and taps are there.
    pub(crate) fn prepare(&self, vm: VmId, disk: VolumeId) -> AssignedVm {
        let assigned = self.assigned_vm(vm, disk);
        self.drivers.disks.ensure(disk, &self.assigned_volume(), None).expect("make the disk");
        self.drivers.network.ensure(vm, &assigned.nics).expect("make the taps");
        assigned
    }

    /// Waits for an event of `vm` that `wanted` takes.
    fn wait_for(&self, vm: VmId, wanted: impl Fn(&VmmEvent) -> bool) {
        loop {
            let event = self.events.recv_timeout(EVENT_WAIT).expect("an event in time");
            let of = match event {
                VmmEvent::Exited(of)
                | VmmEvent::Ready { vm: of, .. }
                | VmmEvent::Hindered { vm: of, .. }
                | VmmEvent::Leaving { vm: of, .. } => of,
            };
            if of == vm && wanted(&event) {
                return;
            }
        }
    }

    pub(crate) fn state(&self, vm: VmId) -> VmmState {
        self.drivers.vmm.state(vm).expect("a state")
    }
}

fn listen(drivers: &Drivers) -> Receiver<VmmEvent> {
    let (sender, events) = mpsc::channel();
    drivers.vmm.watch(Arc::new(move |event| {
        // A listener whose test is over has nobody to tell.
        let _ = sender.send(event);
    }));
    events
}

pub(crate) fn vm(number: u128) -> VmId {
    VmId::new(Uid::from_bits(0x1_0000 + number))
}

pub(crate) fn volume(number: u128) -> VolumeId {
    VolumeId::new(Uid::from_bits(0x2_0000 + number))
}

pub(crate) fn refused(outcome: Result<(), DriverError>) {
    match outcome {
        Err(DriverError::Refused(reason)) => assert!(!reason.is_empty(), "a refusal says why"),
        other => panic!("{other:?} is no refusal"),
    }
}

/// Everything that every set of drivers promises. The host must have nothing of ours at the beginning, and has
/// nothing of ours at the end.
pub(crate) fn contract(subject: &dyn Subject) {
    let bed = Bed::new(subject);
    nothing_is_there(&bed);
    what_is_absent_may_be_removed(&bed);
    guest::is_absent(&bed, vm(0));
    disks_are_made_once(&bed);
    taps_are_made_and_removed(&bed);
    records_are_whole(&bed);
    a_machine_needs_its_parts(&bed);
    a_machine_runs_once(&bed);
    guest::answers(&bed, vm(1));
    guest::runs_programs(&bed, vm(1));
    guest::has_a_console(&bed, vm(1));
    guest::can_be_typed_at(&bed, vm(1));
    what_a_machine_uses_stays(&bed);
    a_machine_that_ends_leaves_its_traces(&bed);
    a_guest_is_asked_to_shut_down(&bed);
    a_new_listener_hears_of_old_machines(&bed);
    machines_do_not_touch_each_other(&bed);
    a_forgotten_vm_has_no_console(&bed);
    nothing_is_there(&bed);
}

fn nothing_is_there(bed: &Bed<'_>) {
    assert_eq!(hands::find_all(bed.drivers).expect("a whole list"), Vec::new());
}

fn what_is_absent_may_be_removed(bed: &Bed<'_>) {
    for kind in [Kind::Vm, Kind::Volume] {
        bed.drivers.records.forget(HostObject { kind, uid: vm(0).uid() }).expect("forget nothing");
    }
    bed.drivers.vmm.remove(vm(0)).expect("end nothing");
    bed.drivers.disks.remove(volume(0)).expect("remove no disk");
    bed.drivers.network.remove(vm(0)).expect("remove no taps");
    refused(bed.drivers.vmm.shut_down(vm(0)));
    assert_eq!(bed.state(vm(0)), VmmState::Absent);
    assert!(!bed.drivers.disks.exists(volume(0)).expect("an answer"));
    assert_eq!(bed.drivers.network.count(vm(0)).expect("an answer"), 0);
}

fn disks_are_made_once(bed: &Bed<'_>) {
    let assigned = bed.assigned_volume();
    for _ in 0..2 {
        bed.drivers.disks.ensure(volume(1), &assigned, None).expect("make the disk");
        assert!(bed.drivers.disks.exists(volume(1)).expect("an answer"));
        assert_eq!(bed.drivers.disks.list().expect("a list"), [volume(1)]);
    }
    for _ in 0..2 {
        bed.drivers.disks.remove(volume(1)).expect("remove the disk");
        assert!(!bed.drivers.disks.exists(volume(1)).expect("an answer"));
        assert!(bed.drivers.disks.list().expect("a list").is_empty());
    }
}

fn taps_are_made_and_removed(bed: &Bed<'_>) {
    let assigned = bed.assigned_vm(vm(1), volume(1));
    let mut elsewhere = assigned.nics.clone();
    elsewhere[0].bridge = "no-such-bridge".to_owned();
    refused(bed.drivers.network.ensure(vm(1), &elsewhere));
    // A part of them first, as after a crash: the others are added.
    bed.drivers.network.ensure(vm(1), &assigned.nics[..1]).expect("make one tap");
    assert_eq!(bed.drivers.network.count(vm(1)).expect("an answer"), 1);
    for _ in 0..2 {
        bed.drivers.network.ensure(vm(1), &assigned.nics).expect("make the taps");
        assert_eq!(bed.drivers.network.count(vm(1)).expect("an answer"), 2);
        assert_eq!(bed.drivers.network.list().expect("a list"), [vm(1)]);
    }
    taps_let_a_virtual_address_through(bed, &assigned.nics);
    for _ in 0..2 {
        bed.drivers.network.remove(vm(1)).expect("remove the taps");
        assert_eq!(bed.drivers.network.count(vm(1)).expect("an answer"), 0);
        assert!(bed.drivers.network.list().expect("a list").is_empty());
    }
}

fn taps_let_a_virtual_address_through(bed: &Bed<'_>, nics: &[AssignedNic]) {
    let network = &bed.drivers.network;
    let with = |last: u8, turn: u64, leaving: bool| {
        let mut nics = nics.to_vec();
        let address = Ipv4Addr::new(10, 77, 0, last);
        let leaves_within = leaving.then_some(Span::from_secs(30));
        nics[0].virtual_address = Some(VirtualAddress { address, turn, leaves_within });
        nics
    };
    let check = |nics: &[AssignedNic], as_assigned: bool, last: Option<u8>| {
        let state = network.state(vm(1), nics).expect("an answer");
        let address = last.map(|last| Ipv4Addr::new(10, 77, 0, last));
        assert_eq!((state.as_assigned, state.virtual_address), (as_assigned, address));
    };
    check(nics, true, None);
    check(&with(9, 1, false), false, None);
    network.ensure(vm(1), &with(9, 1, false)).expect("let it through");
    check(&with(9, 1, false), true, Some(9));
    // How it is to be told is nothing to taps.
    check(&with(9, 2, true), true, Some(9));
    check(&with(8, 1, false), false, Some(9));
    check(nics, false, Some(9));
    for _ in 0..2 {
        network.announce(&with(9, 1, false)).expect("tell the network");
    }
    network.ensure(vm(1), nics).expect("let it through no more");
    check(nics, true, None);
    let mut elsewhere = with(9, 1, false);
    elsewhere[0].bridge = "no-such-bridge".to_owned();
    refused(network.announce(&elsewhere));
}

fn records_are_whole(bed: &Bed<'_>) {
    let of_vm = HostObject { kind: Kind::Vm, uid: vm(1).uid() };
    let of_volume = HostObject { kind: Kind::Volume, uid: volume(1).uid() };
    let first = Saved {
        restarts: 3,
        restarts_done: 2,
        started_shape: 1,
        ..Saved::of(Assigned::Vm(bed.assigned_vm(vm(1), volume(1))))
    };
    let second = Saved { restarts: 4, ..first.clone() };
    let other = Saved { created: true, ..Saved::of(Assigned::Volume(bed.assigned_volume())) };
    for (object, saved) in [(of_vm, &first), (of_vm, &second), (of_vm, &second), (of_volume, &other)] {
        bed.drivers.records.save(object, saved).expect("save");
        assert_eq!(bed.drivers.records.load(object).expect("an answer").as_ref(), Some(saved));
    }
    let mut listed = bed.drivers.records.list().expect("a list");
    listed.sort_unstable();
    let mut expected = [of_vm, of_volume];
    expected.sort_unstable();
    assert_eq!(listed, expected);
    for object in [of_vm, of_volume, of_vm] {
        bed.drivers.records.forget(object).expect("forget");
        assert_eq!(bed.drivers.records.load(object).expect("an answer"), None);
    }
}

fn a_machine_needs_its_parts(bed: &Bed<'_>) {
    let assigned = bed.assigned_vm(vm(1), volume(1));
    refused(bed.drivers.vmm.ensure(vm(1), &assigned));
    bed.drivers.network.ensure(vm(1), &assigned.nics).expect("make the taps");
    refused(bed.drivers.vmm.ensure(vm(1), &assigned));
    bed.drivers.network.remove(vm(1)).expect("remove the taps");
    bed.drivers.disks.ensure(volume(1), &bed.assigned_volume(), None).expect("make the disk");
    refused(bed.drivers.vmm.ensure(vm(1), &assigned));
    bed.drivers.disks.remove(volume(1)).expect("remove the disk");
    assert_eq!(bed.state(vm(1)), VmmState::Absent, "a refused start leaves nothing");
    assert!(bed.drivers.vmm.list().expect("a list").is_empty());
}

fn a_machine_runs_once(bed: &Bed<'_>) {
    let assigned = bed.prepare(vm(1), volume(1));
    for _ in 0..2 {
        bed.drivers.vmm.ensure(vm(1), &assigned).expect("start");
        assert_eq!(bed.state(vm(1)), VmmState::Running);
        assert_eq!(bed.drivers.vmm.list().expect("a list"), [vm(1)]);
    }
    bed.subject.let_guest_become_ready(vm(1));
    bed.wait_for(vm(1), |event| matches!(event, VmmEvent::Ready { .. }));
}

fn what_a_machine_uses_stays(bed: &Bed<'_>) {
    refused(bed.drivers.disks.remove(volume(1)));
    refused(bed.drivers.network.remove(vm(1)));
    assert!(bed.drivers.disks.exists(volume(1)).expect("an answer"));
    assert_eq!(bed.drivers.network.count(vm(1)).expect("an answer"), 2);
    // A disk is used by one machine at a time.
    let other = bed.prepare(vm(2), volume(1));
    refused(bed.drivers.vmm.ensure(vm(2), &other));
    assert_eq!(bed.state(vm(2)), VmmState::Absent);
    bed.drivers.network.remove(vm(2)).expect("remove the taps");
}

fn a_machine_that_ends_leaves_its_traces(bed: &Bed<'_>) {
    let assigned = bed.assigned_vm(vm(1), volume(1));
    let stream = guest::waits(bed, vm(1));
    bed.subject.end(vm(1));
    bed.wait_for(vm(1), |event| matches!(event, VmmEvent::Exited(_)));
    guest::has_ended(bed, vm(1), stream);
    assert_eq!(bed.state(vm(1)), VmmState::Exited);
    assert_eq!(bed.drivers.vmm.list().expect("a list"), [vm(1)]);
    refused(bed.drivers.vmm.ensure(vm(1), &assigned));
    refused(bed.drivers.vmm.shut_down(vm(1)));
    for _ in 0..2 {
        bed.drivers.vmm.remove(vm(1)).expect("clean up");
        assert_eq!(bed.state(vm(1)), VmmState::Absent);
        assert!(bed.drivers.vmm.list().expect("a list").is_empty());
    }
    assert!(bed.drivers.disks.exists(volume(1)).expect("an answer"), "its disk outlives it");
    // A machine that runs is ended as well.
    bed.drivers.network.ensure(vm(1), &assigned.nics).expect("make the taps");
    bed.drivers.vmm.ensure(vm(1), &assigned).expect("start again");
    bed.drivers.vmm.remove(vm(1)).expect("end");
    assert_eq!(bed.state(vm(1)), VmmState::Absent);
}

fn a_guest_is_asked_to_shut_down(bed: &Bed<'_>) {
    let assigned = bed.prepare(vm(1), volume(1));
    bed.drivers.vmm.ensure(vm(1), &assigned).expect("start");
    bed.subject.let_guest_become_ready(vm(1));
    bed.wait_for(vm(1), |event| matches!(event, VmmEvent::Ready { .. }));
    bed.drivers.vmm.shut_down(vm(1)).expect("ask");
    bed.subject.let_guest_shut_down(vm(1));
    bed.wait_for(vm(1), |event| matches!(event, VmmEvent::Exited(_)));
    assert_eq!(bed.state(vm(1)), VmmState::Exited);
    bed.drivers.vmm.remove(vm(1)).expect("clean up");
}

fn a_new_listener_hears_of_old_machines(bed: &Bed<'_>) {
    let assigned = bed.prepare(vm(1), volume(1));
    bed.drivers.vmm.ensure(vm(1), &assigned).expect("start");
    let later = Bed::new(bed.subject);
    later.subject.end(vm(1));
    later.wait_for(vm(1), |event| matches!(event, VmmEvent::Exited(_)));
    // The first listener hears from now on, as one that is told anew.
    let events = listen(bed.drivers);
    bed.drivers.vmm.remove(vm(1)).expect("clean up");
    bed.drivers.vmm.ensure(vm(1), &assigned).expect("start again");
    bed.subject.end(vm(1));
    let again = Bed { subject: bed.subject, drivers: bed.drivers, events };
    again.wait_for(vm(1), |event| matches!(event, VmmEvent::Exited(_)));
    assert!(later.events.try_iter().all(|event| event != VmmEvent::Exited(vm(1))), "one listener at a time");
    bed.drivers.vmm.remove(vm(1)).expect("clean up");
    bed.drivers.network.remove(vm(1)).expect("remove the taps");
    bed.drivers.disks.remove(volume(1)).expect("remove the disk");
}

fn machines_do_not_touch_each_other(bed: &Bed<'_>) {
    for number in [1, 2] {
        let assigned = bed.prepare(vm(number), volume(number));
        bed.drivers.vmm.ensure(vm(number), &assigned).expect("start");
    }
    let mut listed = bed.drivers.vmm.list().expect("a list");
    listed.sort_unstable();
    assert_eq!(listed, [vm(1), vm(2)]);
    bed.drivers.vmm.remove(vm(1)).expect("end");
    bed.drivers.network.remove(vm(1)).expect("remove the taps");
    bed.drivers.disks.remove(volume(1)).expect("remove the disk");
    assert_eq!(bed.state(vm(2)), VmmState::Running);
    assert_eq!(bed.drivers.network.count(vm(2)).expect("an answer"), 2);
    assert!(bed.drivers.disks.exists(volume(2)).expect("an answer"));
    let found = hands::find_all(bed.drivers).expect("a whole list");
    assert!(
        found.iter().all(|(object, _)| [vm(2).uid(), volume(2).uid()].contains(&object.uid)),
        "{found:?}"
    );
    bed.drivers.vmm.remove(vm(2)).expect("end");
    bed.drivers.network.remove(vm(2)).expect("remove the taps");
    bed.drivers.disks.remove(volume(2)).expect("remove the disk");
}

fn a_forgotten_vm_has_no_console(bed: &Bed<'_>) {
    guest::has_a_console(bed, vm(1));
    bed.drivers.records.forget(HostObject { kind: Kind::Vm, uid: vm(1).uid() }).expect("forget");
    guest::is_absent(bed, vm(1));
}
