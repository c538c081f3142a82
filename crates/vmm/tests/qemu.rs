//! Real VMs by the real drivers, in a network namespace of their own. Needs root, QEMU, the demo image
//! (`cargo xtask images`) and the vsock backend; without one of them it says so and is skipped.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use lightbyte_api::address::MacAddress;
use lightbyte_api::assigned::{AssignedNic, AssignedVm, AssignedVolume, HostObject, WantedVm, WantedVolume};
use lightbyte_api::kinds::image::Part;
use lightbyte_api::{ByteSize, Kind, Name, Timestamp, Uid, VmId, VolumeId};
use lightbyte_plan::agent::VmmState;
use lightbyte_vmm::qemu::Settings;
use lightbyte_vmm::{Disks, DriverError, Files, Network, Qemu, Taps, Vmm, VmmEvent};
use rustix::event::Timespec;

/// Set in the copy of this test that has a namespace of its own.
const INSIDE: &str = "LIGHTBYTE_TEST_NAMESPACE";
/// The directory of the world in which a copy of this test is to start a VM and be killed.
const STARTER: &str = "LIGHTBYTE_TEST_STARTER";
/// How often a starter is killed: from before its first effect to after its last.
const KILLS: i64 = 12;
/// How much later each is killed than the one before it.
const KILL_STEP_NANOSECONDS: i64 = 1_000_000;
/// How long a boot may take on a loaded machine.
const BOOT_MAX: Duration = Duration::from_secs(120);
/// More than the image's root disk has, so that the guest has something to grow into.
const DISK_MIB: u64 = 192;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const VM: VmId = VmId::new(Uid::from_bits(0x51));
const OTHER: VmId = VmId::new(Uid::from_bits(0x52));
const DISK: VolumeId = VolumeId::new(Uid::from_bits(0x61));

struct Needs {
    image: PathBuf,
    vsock: Vec<PathBuf>,
}

impl Needs {
    fn find() -> Result<Needs, String> {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let cache =
            std::env::var_os("LIGHTBYTE_CACHE").map_or_else(|| home.join(".cache/lightbyte"), PathBuf::from);
        let image =
            std::env::var_os("LIGHTBYTE_IMAGE").map_or_else(|| cache.join("images/demo"), PathBuf::from);
        let vsock: Vec<PathBuf> = match std::env::var("LIGHTBYTE_VSOCK") {
            Ok(words) => words.split_whitespace().map(PathBuf::from).collect(),
            Err(_) => vec![beside("lightbyte-vsock")],
        };
        let is_root = fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_installed = |name: &str| std::env::split_paths(&path).any(|place| place.join(name).exists());
        if !is_root {
            return Err("not root; run it as root".to_owned());
        }
        if !Path::new("/dev/net/tun").exists() {
            return Err("no /dev/net/tun; load the module tun".to_owned());
        }
        if let Some(tool) = ["qemu-system-x86_64", "ip", "unshare"].iter().find(|tool| !is_installed(tool)) {
            return Err(format!("no {tool}; run cargo xtask setup"));
        }
        if !image.join("manifest.json").exists() {
            return Err(format!(
                "no image in {}; run cargo xtask images, or set LIGHTBYTE_IMAGE",
                image.display()
            ));
        }
        if !vsock.first().is_some_and(|program| program.exists()) {
            return Err("no vsock backend; set LIGHTBYTE_VSOCK to `…/lightbyte vsock`".to_owned());
        }
        Ok(Needs { image, vsock })
    }
}

/// A program in the directory above this test's.
fn beside(name: &str) -> PathBuf {
    this_test().ancestors().nth(2).expect("two directories").join(name)
}

/// As the tests of the store do: to standard error, and to the end of the file that `LIGHTBYTE_SKIPPED` names.
fn tell_skipped(why: &str) {
    let line = format!("skipped: real VMs: {why}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("LIGHTBYTE_SKIPPED") {
        let file = fs::File::options().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("append to LIGHTBYTE_SKIPPED");
    }
}

#[test]
fn a_vm_runs_is_adopted_and_leaves_nothing() {
    in_namespace("a_vm_runs_is_adopted_and_leaves_nothing", World::life);
}

#[test]
fn a_killed_starter_leaves_one_vm_or_none() {
    if let Some(place) = std::env::var_os(STARTER) {
        return start_and_wait(Path::new(&place));
    }
    in_namespace("a_killed_starter_leaves_one_vm_or_none", World::kills);
}

/// Runs the test of that name again in a network namespace of its own, and there `test`.
fn in_namespace(name: &str, test: impl FnOnce(&World)) {
    let needs = match Needs::find() {
        Ok(needs) => needs,
        Err(why) => return tell_skipped(&why),
    };
    if std::env::var_os(INSIDE).is_some() {
        return test(&World::new(&needs));
    }
    let mut command = Command::new("unshare");
    command.arg("-n").arg(this_test()).args(["--exact", name, "--nocapture"]).env(INSIDE, "1");
    assert!(command.status().expect("start unshare").success(), "the test in its namespace failed");
}

fn this_test() -> PathBuf {
    std::env::current_exe().expect("this program has a path")
}

/// What is killed: starts a VM in the world that another has made, and goes on until its input ends.
fn start_and_wait(place: &Path) {
    let needs = Needs::find().expect("what the test has found");
    let world = std::mem::ManuallyDrop::new(World::at(place.to_owned(), &needs));
    let driver = Qemu::new(world.settings.clone()).expect("make the driver");
    eprintln!("{STARTER}");
    driver.ensure(VM, &world.assigned(VM)).expect("start");
    let _ = std::io::stdin().read(&mut [0]);
}

struct World {
    place: PathBuf,
    settings: Settings,
    manifest: serde_json::Value,
    taps: Taps,
}

impl World {
    fn new(needs: &Needs) -> World {
        for words in
            ["link set lo up", "link add br0 type bridge", "addr add 10.77.0.1/24 dev br0", "link set br0 up"]
        {
            let status = Command::new("ip").args(words.split(' ')).status().expect("start ip");
            assert!(status.success(), "ip {words}");
        }
        let world = World::at(std::env::temp_dir().join(format!("lbq{}", std::process::id())), needs);
        for name in ["kernel", "initrd", "root"] {
            let file = world.manifest[name]["file"].as_str().expect("text");
            let target = world.place.join("images").join(world.part(name).sha256);
            symlink(needs.image.join(file), target).expect("link a part");
        }
        world
    }

    fn at(place: PathBuf, needs: &Needs) -> World {
        let images = place.join("images");
        fs::create_dir_all(&images).expect("make a directory");
        let text = fs::read(needs.image.join("manifest.json")).expect("read the manifest");
        let manifest: serde_json::Value = serde_json::from_slice(&text).expect("a manifest");
        let settings = Settings {
            run: place.join("run"),
            qemu: "qemu-system-x86_64".into(),
            vsock: needs.vsock.clone(),
            worker: "n1".to_owned(),
            files: Files::new(&place.join("state"), &images).expect("make the state"),
        };
        World { place, settings, manifest, taps: Taps::new() }
    }

    fn part(&self, name: &str) -> Part {
        let part = &self.manifest[name];
        Part {
            sha256: part["sha256"].as_str().expect("text").to_owned(),
            size: ByteSize::from_bytes(part["bytes"].as_u64().expect("a number")),
        }
    }

    fn assigned(&self, vm: VmId) -> AssignedVm {
        AssignedVm {
            sequence: 1,
            generation: 1,
            name: Name::new("web-1").expect("a name"),
            wanted: WantedVm::Running,
            restarts_asked: 0,
            cpus: 1,
            memory: ByteSize::from_mib(128),
            image: Name::new("demo").expect("a name"),
            image_version: "v7".to_owned(),
            kernel: self.part("kernel"),
            initrd: Some(self.part("initrd")),
            command_line: self.manifest["command_line"].as_str().expect("text").to_owned(),
            disks: vec![DISK],
            nics: vec![AssignedNic {
                bridge: "br0".to_owned(),
                mac: MacAddress::of_nic(vm.uid(), 0),
                address: ADDRESS,
                prefix_length: 24,
                gateway: Some(Ipv4Addr::new(10, 77, 0, 1)),
                dns: vec![Ipv4Addr::new(10, 77, 0, 1)],
            }],
            asked_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn make_disk(&self) {
        let assigned = AssignedVolume {
            sequence: 1,
            generation: 1,
            name: Name::new("web-1-root").expect("a name"),
            wanted: WantedVolume::Present,
            size: ByteSize::from_mib(DISK_MIB),
            source: self.part("root"),
        };
        Disks::ensure(&self.settings.files, DISK, &assigned).expect("make the disk");
    }

    fn driver(&self) -> (Qemu, Receiver<VmmEvent>) {
        let driver = Qemu::new(self.settings.clone()).expect("make the driver");
        let events = listen(&driver);
        (driver, events)
    }

    fn console(&self) -> String {
        let object = HostObject { kind: Kind::Vm, uid: VM.uid() };
        let console = self.settings.files.directory(object).join("console.log");
        fs::read(console).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    fn life(&self) {
        let assigned = self.assigned(VM);
        let (driver, events) = self.driver();
        refused(driver.ensure(VM, &assigned), "is not there");
        self.make_disk();
        refused(driver.ensure(VM, &assigned), "is not there");
        self.taps.ensure(VM, &assigned.nics).expect("make the taps");
        for _ in 0..2 {
            driver.ensure(VM, &assigned).expect("start");
            assert_eq!(driver.state(VM).expect("a state"), VmmState::Running);
        }
        let agent_at = self.ready(&events);
        self.what_runs_is_kept(&driver);
        drop(driver);

        let (driver, events) = self.driver();
        assert_eq!(driver.state(VM).expect("a state"), VmmState::Running);
        assert_eq!(self.ready(&events), agent_at, "an adopted guest began when it began");
        driver.ensure(VM, &assigned).expect("it runs");

        kill(&driver);
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
        assert!(self.console().contains("the root file system has"), "it did not grow: {}", self.console());
        driver.remove(VM).expect("clean up");
        assert!(events.try_recv().is_err(), "an end is told once");
        self.nothing_is_left(&driver);
    }

    fn kills(&self) {
        self.make_disk();
        let assigned = self.assigned(VM);
        self.taps.ensure(VM, &assigned.nics).expect("make the taps");
        let mut found = [0; 3];
        for kill in 0..KILLS {
            self.kill_starter(kill * KILL_STEP_NANOSECONDS);
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
        self.nothing_is_left(&driver);
    }

    fn kill_starter(&self, after_nanoseconds: i64) {
        let mut command = Command::new(this_test());
        command.args(["--exact", "a_killed_starter_leaves_one_vm_or_none", "--nocapture"]);
        command.env(STARTER, &self.place).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut starter = command.spawn().expect("start a starter");
        let lines = BufReader::new(starter.stderr.take().expect("its words")).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == STARTER), "it did not begin");
        // Not to wait for something, but to kill it wherever it is then.
        let after = Timespec { tv_sec: 0, tv_nsec: after_nanoseconds };
        let _ = rustix::event::poll(&mut [], Some(&after));
        starter.kill().expect("kill it");
        starter.wait().expect("reap it");
    }

    /// Waits until the guest is ready, sees its page, and gives when its agent began.
    fn ready(&self, events: &Receiver<VmmEvent>) -> Timestamp {
        let VmmEvent::Ready { vm, agent_at } = next(events) else { panic!("not ready") };
        assert_eq!(vm, VM);
        let page = page();
        for text in ["hello from web-1\n", " n1\n", " demo\n", " v7\n"] {
            assert!(page.contains(text), "no `{text}` in: {page}");
        }
        agent_at
    }

    fn what_runs_is_kept(&self, driver: &Qemu) {
        refused(self.taps.remove(VM), "in use");
        assert_eq!(self.taps.count(VM).expect("a count"), 1);
        assert_eq!(self.taps.list().expect("a list"), [VM]);
        // A disk is used by one machine at a time.
        let other = self.assigned(OTHER);
        self.taps.ensure(OTHER, &other.nics).expect("make the taps");
        refused(driver.ensure(OTHER, &other), "lock");
        assert_eq!(driver.list().expect("a list"), [VM], "a refused start leaves nothing");
        self.taps.remove(OTHER).expect("remove the taps");
    }

    fn nothing_is_left(&self, driver: &Qemu) {
        for _ in 0..2 {
            self.taps.remove(VM).expect("remove the taps");
            Disks::remove(&self.settings.files, DISK).expect("remove the disk");
            driver.remove(VM).expect("remove nothing");
        }
        assert!(self.taps.list().expect("a list").is_empty());
        assert!(driver.list().expect("a list").is_empty());
        assert_eq!(fs::read_dir(&self.settings.run).expect("a directory").count(), 0);
        let links = Command::new("ip").args(["-o", "link"]).output().expect("start ip").stdout;
        assert_eq!(String::from_utf8_lossy(&links).lines().count(), 2, "more than lo and br0");
        assert_eq!(self.processes(), Vec::<PathBuf>::new());
    }

    /// Processes whose words name our directory.
    fn processes(&self) -> Vec<PathBuf> {
        let place = self.place.display().to_string();
        let of_ours = |pid: &PathBuf| {
            fs::read(pid.join("cmdline")).is_ok_and(|words| String::from_utf8_lossy(&words).contains(&place))
        };
        let processes = fs::read_dir("/proc").expect("a directory").flatten().map(|entry| entry.path());
        processes.filter(of_ours).collect()
    }
}

impl Drop for World {
    /// Whatever failed, no VM stays behind.
    fn drop(&mut self) {
        if let Ok(driver) = Qemu::new(self.settings.clone()) {
            for vm in driver.list().unwrap_or_default() {
                if std::thread::panicking() {
                    eprintln!("the console of {vm}:\n{}", self.console());
                }
                let _ = driver.remove(vm);
            }
        }
        let _ = fs::remove_dir_all(&self.place);
    }
}

fn listen(driver: &Qemu) -> Receiver<VmmEvent> {
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

fn kill(driver: &Qemu) {
    let pid = driver.pid(VM).expect("an answer").expect("a process");
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status().expect("start kill");
    assert!(status.success());
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

fn refused(outcome: Result<(), DriverError>, word: &str) {
    match outcome {
        Err(DriverError::Refused(reason)) => assert!(reason.contains(word), "{reason}"),
        other => panic!("{other:?} is no refusal"),
    }
}
