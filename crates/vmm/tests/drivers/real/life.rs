//! A VM's life under each VMM, and what a killed starter leaves of it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use lightbyte_api::address::MacAddress;
use lightbyte_api::assigned::{
    AssignedDisk, AssignedNic, AssignedVm, AssignedVolume, Source, WantedVm, WantedVolume,
};
use lightbyte_api::first_boot::FirstBoot;
use lightbyte_api::kinds::vm::RestartPolicy;
use lightbyte_api::{ByteSize, Name, Timestamp, Uid, VmId, VolumeId};
use lightbyte_plan::agent::VmmState;
use lightbyte_vmm::{Disks, DriverError, Machines, Network as _, Vmm as _, VmmEvent, firecracker};
use rustix::event::Timespec;

use crate::guest;

use super::{Needs, Runner, World, in_namespace, kill, this_test};

/// The directory of the world in which a copy of this test is to start a VM and be killed.
const STARTER: &str = "LIGHTBYTE_TEST_STARTER";
/// How often a starter is killed: from before its first effect to after its last.
const KILLS: i64 = 12;
/// In nanoseconds.
const SECOND: i64 = 1_000_000_000;
/// How much later each is killed than the one before it. A host that is emulated itself takes its time.
const fn kill_step_nanoseconds(runner: Runner) -> i64 {
    match runner {
        Runner::Qemu => 1_000_000,
        Runner::Firecracker | Runner::Jailed => 250_000_000,
    }
}
/// How long a boot may take on a loaded machine.
const BOOT_MAX: Duration = Duration::from_secs(120);
/// More than the image's root disk has, so that the guest has something to grow into.
const DISK_MIB: u64 = 192;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
pub(super) const VM: VmId = VmId::new(Uid::from_bits(0x51));
const OTHER: VmId = VmId::new(Uid::from_bits(0x52));
const DISK: VolumeId = VolumeId::new(Uid::from_bits(0x61));
const DATA: VolumeId = VolumeId::new(Uid::from_bits(0x62));

#[test]
fn a_vm_runs_is_adopted_and_leaves_nothing() {
    lives("real::life::a_vm_runs_is_adopted_and_leaves_nothing", Runner::Qemu);
}

#[test]
fn a_vm_of_firecracker_runs_is_adopted_and_leaves_nothing() {
    lives("real::life::a_vm_of_firecracker_runs_is_adopted_and_leaves_nothing", Runner::Firecracker);
}

#[test]
fn a_jailed_vm_runs_is_adopted_and_leaves_nothing() {
    lives("real::life::a_jailed_vm_runs_is_adopted_and_leaves_nothing", Runner::Jailed);
}

fn lives(name: &str, runner: Runner) {
    in_namespace(name, Needs::find(runner), |needs| World::new(needs).life());
}

#[test]
fn a_killed_starter_leaves_one_vm_or_none() {
    is_killed("real::life::a_killed_starter_leaves_one_vm_or_none", Runner::Qemu);
}

#[test]
fn a_killed_starter_of_a_jailed_vm_leaves_one_or_none() {
    is_killed("real::life::a_killed_starter_of_a_jailed_vm_leaves_one_or_none", Runner::Jailed);
}

fn is_killed(name: &str, runner: Runner) {
    if let Some(place) = std::env::var_os(STARTER) {
        return start_and_wait(Path::new(&place), runner);
    }
    in_namespace(name, Needs::find(runner), |needs| World::new(needs).kills(name));
}

/// What is killed: starts a VM in the world that another has made, and goes on until its input ends.
fn start_and_wait(place: &Path, runner: Runner) {
    let needs = Needs::find(runner).expect("what the test has found");
    let world = std::mem::ManuallyDrop::new(World::at(place.to_owned(), needs));
    let driver = world.machines().expect("make the driver");
    eprintln!("{STARTER}");
    driver.ensure(VM, &world.assigned(VM)).expect("start");
    let _ = std::io::stdin().read(&mut [0]);
}

impl World {
    pub(super) fn assigned(&self, vm: VmId) -> AssignedVm {
        let image = self.image();
        AssignedVm {
            sequence: 1,
            generation: 1,
            name: Name::new("web-1").expect("a name"),
            wanted: WantedVm::Running,
            restarts_asked: 0,
            shape: 1,
            restart: RestartPolicy::default(),
            health: None,
            cpus: 1,
            memory: ByteSize::from_mib(128),
            image: Name::new("demo").expect("a name"),
            image_version: "v7".to_owned(),
            kernel: image.kernel,
            initrd: image.initrd,
            command_line: image.command_line,
            disks: [DISK, DATA].map(|volume| AssignedDisk { volume, read_only: false, mount: None }).to_vec(),
            nics: vec![AssignedNic {
                bridge: "br0".to_owned(),
                mac: MacAddress::of_nic(vm.uid(), 0),
                address: Some(ADDRESS),
                prefix_length: 24,
                gateway: Some(Ipv4Addr::new(10, 77, 0, 1)),
                dns: vec![Ipv4Addr::new(10, 77, 0, 1).into()],
                mtu: None,
                ipv6: None,
                firewall: None,
                ports: Vec::new(),
                virtual_address: None,
            }],
            first_boot: FirstBoot::default(),
            asked_at: Timestamp::UNIX_EPOCH,
        }
    }

    pub(super) fn make_disks(&self) {
        let assigned = AssignedVolume {
            sequence: 1,
            generation: 1,
            name: Name::new("web-1-root").expect("a name"),
            wanted: WantedVolume::Present,
            size: ByteSize::from_mib(DISK_MIB),
            source: Source::Image(self.part("root")),
            arriving: None,
        };
        for disk in [DISK, DATA] {
            Disks::ensure(&self.files, disk, &assigned, None).expect("make a disk");
        }
    }

    pub(super) fn driver(&self) -> (Machines, Receiver<VmmEvent>) {
        let driver = self.machines().expect("make the driver");
        let events = listen(&driver);
        (driver, events)
    }

    fn life(&self) {
        let assigned = self.assigned(VM);
        let (driver, events) = self.driver();
        refused(driver.ensure(VM, &assigned), "is not there");
        self.make_disks();
        refused(driver.ensure(VM, &assigned), "is not there");
        self.taps.ensure(VM, &assigned.nics).expect("make the taps");
        for _ in 0..2 {
            driver.ensure(VM, &assigned).expect("start");
            assert_eq!(driver.state(VM).expect("a state"), VmmState::Running);
        }
        let agent_at = self.ready(&events);
        self.what_runs_is_kept(&driver);
        self.is_in_its_jail(&driver);
        // In blocks of 1 KiB, as a kernel counts its partitions.
        let (disks, _) = guest::run(&driver, VM, &["cat", "/proc/partitions"]);
        let second = format!("{} vdb", DISK_MIB * 1024);
        assert!(disks.contains(&second), "no `{second}` in: {disks}");
        drop(driver);

        let (driver, events) = self.driver();
        assert_eq!(driver.state(VM).expect("a state"), VmmState::Running);
        assert_eq!(self.ready(&events), agent_at, "an adopted guest began when it began");
        driver.ensure(VM, &assigned).expect("it runs");

        kill(&driver, VM);
        assert_eq!(next(&events), VmmEvent::Exited(VM));
        assert_eq!(driver.state(VM).expect("a state"), VmmState::Exited);
        refused(driver.ensure(VM, &assigned), "traces");
        refused(driver.shut_down(VM), "does not run");
        driver.remove(VM).expect("clean up");
        assert_eq!(driver.state(VM).expect("a state"), VmmState::Absent);

        // Adopted before its guest has called.
        driver.ensure(VM, &assigned).expect("start again");
        drop(driver);
        let (driver, events) = self.driver();
        assert!(self.ready(&events) > agent_at, "a new start is a new agent");
        driver.shut_down(VM).expect("ask");
        assert_eq!(next(&events), VmmEvent::Exited(VM));
        assert!(
            self.console(VM).contains("the root file system has"),
            "it did not grow: {}",
            self.console(VM)
        );
        driver.remove(VM).expect("clean up");
        assert!(events.try_recv().is_err(), "an end is told once");
        self.all_goes(&driver);
    }

    fn kills(&self, name: &str) {
        self.make_disks();
        let assigned = self.assigned(VM);
        self.taps.ensure(VM, &assigned.nics).expect("make the taps");
        let mut found = [0; 3];
        for kill in 0..KILLS {
            self.kill_starter(name, kill * kill_step_nanoseconds(self.needs.runner));
            let (driver, events) = self.driver();
            let state = driver.state(VM).expect("a state");
            found[state as usize] += 1;
            if state == VmmState::Running {
                // Running, or a start that has nobody any more: it ends in one or the other.
                driver.ensure(VM, &assigned).expect("it runs");
            }
            driver.remove(VM).expect("clean up");
            assert!(events.try_iter().all(|event| event == VmmEvent::Exited(VM)));
            assert_eq!(self.processes(), Vec::<PathBuf>::new(), "after kill {kill} and {state:?}");
        }
        eprintln!("absent, running, exited: {found:?}");
        let (driver, events) = self.driver();
        driver.ensure(VM, &assigned).expect("start");
        self.ready(&events);
        driver.remove(VM).expect("clean up");
        self.all_goes(&driver);
    }

    fn kill_starter(&self, name: &str, after_nanoseconds: i64) {
        let mut command = Command::new(this_test());
        command.args(["--exact", name, "--nocapture"]);
        command.env(STARTER, &self.place).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut starter = command.spawn().expect("start a starter");
        let lines = BufReader::new(starter.stderr.take().expect("its words")).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == STARTER), "it did not begin");
        // Not to wait for something, but to kill it wherever it is then.
        let after = Timespec { tv_sec: after_nanoseconds / SECOND, tv_nsec: after_nanoseconds % SECOND };
        let _ = rustix::event::poll(&mut [], Some(&after));
        starter.kill().expect("kill it");
        starter.wait().expect("reap it");
    }

    /// Waits until the guest is ready, sees its page, and gives when its agent began.
    pub(super) fn ready(&self, events: &Receiver<VmmEvent>) -> Timestamp {
        let VmmEvent::Ready { vm, agent_at } = next(events) else { panic!("not ready") };
        assert_eq!(vm, VM);
        let page = page();
        for text in ["hello from web-1\n", " n1\n", " demo\n", " v7\n"] {
            assert!(page.contains(text), "no `{text}` in: {page}");
        }
        agent_at
    }

    fn what_runs_is_kept(&self, driver: &Machines) {
        refused(self.taps.remove(VM), "in use");
        assert_eq!(self.taps.count(VM).expect("a count"), 1);
        assert_eq!(self.taps.list().expect("a list"), [VM]);
        // A disk is used by one machine at a time.
        let other = self.assigned(OTHER);
        self.taps.ensure(OTHER, &other.nics).expect("make the taps");
        refused(driver.ensure(OTHER, &other), "in use");
        assert_eq!(driver.list().expect("a list"), [VM], "a refused start leaves nothing");
        self.taps.remove(OTHER).expect("remove the taps");
    }

    /// What a jailed process may do, as the kernel tells it.
    fn is_in_its_jail(&self, driver: &Machines) {
        if self.needs.runner != Runner::Jailed {
            return;
        }
        let pid = driver.pid(VM).expect("an answer").expect("a process");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
        let uid = firecracker::UIDS.start();
        for line in [
            format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"),
            format!("Gid:\t{uid}\t{uid}\t{uid}\t{uid}"),
            format!("CapEff:\t{:016x}", 0),
            "NoNewPrivs:\t1".to_owned(),
        ] {
            assert!(status.contains(&line), "no `{line}` in: {status}");
        }
        let root = fs::read_link(format!("/proc/{pid}/root")).expect("a root");
        let inside = fs::read_dir(format!("/proc/{pid}/root")).expect("a directory").flatten();
        let mut names: Vec<String> =
            inside.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        eprintln!("{} in {}: {}", driver_name(pid), root.display(), names.join(" "));
        assert!(
            names.iter().any(|name| name == "disk1") && !names.iter().any(|name| name == "etc"),
            "{names:?}"
        );
        has_limits(pid);
    }

    pub(super) fn all_goes(&self, driver: &Machines) {
        for _ in 0..2 {
            self.taps.remove(VM).expect("remove the taps");
            for disk in [DISK, DATA] {
                Disks::remove(&self.files, disk).expect("remove a disk");
            }
            driver.remove(VM).expect("remove nothing");
        }
        assert!(self.taps.list().expect("a list").is_empty());
        assert!(driver.list().expect("a list").is_empty());
        self.nothing_is_left();
    }
}

fn driver_name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).expect("a name").trim().to_owned()
}

/// On hosts whose control groups can limit it, a VM has its memory and its CPUs, and a little more for its VMM.
fn has_limits(pid: i32) {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its groups");
    let place = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    let place = Path::new("/sys/fs/cgroup").join(place.trim_start_matches('/'));
    let Ok(memory) = fs::read_to_string(place.join("memory.max")) else {
        return eprintln!("its control groups have no version 2: {groups}");
    };
    let cpus = fs::read_to_string(place.join("cpu.max")).expect("its CPUs");
    let expected = ((128 + 64) << 20).to_string();
    assert_eq!((memory.trim(), cpus.trim()), (expected.as_str(), "150000 100000"), "{}", place.display());
}

fn listen(driver: &Machines) -> Receiver<VmmEvent> {
    let (sender, events) = mpsc::channel();
    driver.watch(Arc::new(move |event| {
        // A listener whose test is over has nobody to tell.
        let _ = sender.send(event);
    }));
    events
}

fn next(events: &Receiver<VmmEvent>) -> VmmEvent {
    events.recv_timeout(BOOT_MAX).expect("an event in time")
}

fn page() -> String {
    let wait = Duration::from_secs(10);
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::from((ADDRESS, 80)), wait).expect("connect to the guest");
    stream.set_read_timeout(Some(wait)).expect("set a time-out");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: vm\r\nConnection: close\r\n\r\n").expect("ask");
    let mut text = String::new();
    stream.take(65_536).read_to_string(&mut text).expect("a page");
    text
}

pub(super) fn refused(outcome: Result<(), DriverError>, word: &str) {
    match outcome {
        Err(DriverError::Refused(reason)) => assert!(reason.contains(word), "{reason}"),
        other => panic!("{other:?} is no refusal"),
    }
}
