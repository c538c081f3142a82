//! Real drivers, in a network namespace of their own. They need root and some programs; what starts VMs needs the demo
//! image (`cargo xtask images`) too, and QEMU with the vsock backend, or Firecracker with a KVM that is usable (`cargo
//! xtask nested` makes a host that has one). Without one of them a test says so and is skipped.

mod contract;
mod dhcp;
mod firecracker;
mod ipv6;
mod life;
mod machine;
mod squatters;
mod taps;
mod walls;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use lightbyte_api::assigned::HostObject;
use lightbyte_api::kinds::image::Part;
use lightbyte_api::{ByteSize, Kind, VmId};
use lightbyte_vmm::{DriverError, Files, KvmVerdict, Machines, Taps, Vmm as _, firecracker as fc, kvm, qemu};

use crate::contract::Image;

/// Set in the copy of this test that has a namespace of its own.
const INSIDE: &str = "LIGHTBYTE_TEST_NAMESPACE";

/// What runs the VMs of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runner {
    Qemu,
    /// With the rights of the test.
    Firecracker,
    /// Locked in by the jailer.
    Jailed,
}

/// What VMs need of this machine.
#[derive(Clone)]
struct Needs {
    runner: Runner,
    image: PathBuf,
    /// The vsock backend of QEMU.
    vsock: Vec<PathBuf>,
    firecracker: PathBuf,
    jailer: PathBuf,
    kvm: KvmVerdict,
}

impl Needs {
    fn find(runner: Runner) -> Result<Needs, String> {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let cache =
            std::env::var_os("LIGHTBYTE_CACHE").map_or_else(|| home.join(".cache/lightbyte"), PathBuf::from);
        let image =
            std::env::var_os("LIGHTBYTE_IMAGE").map_or_else(|| cache.join("images/demo"), PathBuf::from);
        let mut needs = Needs {
            runner,
            vsock: match std::env::var("LIGHTBYTE_VSOCK") {
                Ok(words) => words.split_whitespace().map(PathBuf::from).collect(),
                Err(_) => vec![beside("lightbyte-vsock")],
            },
            firecracker: PathBuf::new(),
            jailer: PathBuf::new(),
            kvm: kvm::probe(),
            image,
        };
        network_is_possible()?;
        needs.find_programs()?;
        if !needs.image.join("manifest.json").exists() {
            return Err(format!(
                "no image in {}; run cargo xtask images, or set LIGHTBYTE_IMAGE",
                needs.image.display()
            ));
        }
        Ok(needs)
    }

    fn find_programs(&mut self) -> Result<(), String> {
        if self.runner == Runner::Qemu {
            is_installed("qemu-system-x86_64")?;
            if !self.vsock.first().is_some_and(|program| program.exists()) {
                return Err("no vsock backend; set LIGHTBYTE_VSOCK to `…/lightbyte vsock`".to_owned());
            }
            return Ok(());
        }
        let nested = "cargo xtask nested --firecracker PATH makes a host for it";
        if !self.kvm.is_usable() {
            return Err(format!("Firecracker: {}; {nested}", self.kvm));
        }
        let found = |variable: &str| {
            let path = std::env::var_os(variable).map(PathBuf::from);
            path.ok_or_else(|| format!("Firecracker: {variable} is not set to its path; {nested}"))
        };
        self.firecracker = found("LIGHTBYTE_FIRECRACKER")?;
        if self.runner == Runner::Jailed {
            self.jailer = found("LIGHTBYTE_JAILER")?;
        }
        Ok(())
    }
}

/// Whether taps can be made in a namespace here.
fn network_is_possible() -> Result<(), String> {
    if !fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0) {
        return Err("not root; run it as root".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Err("no /dev/net/tun; load the module tun".to_owned());
    }
    ["ip", "nft", "unshare"].into_iter().try_for_each(is_installed)
}

fn is_installed(tool: &str) -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|place| place.join(tool).exists());
    if found { Ok(()) } else { Err(format!("no {tool}; run cargo xtask setup")) }
}

/// A program in the directory above this test's.
fn beside(name: &str) -> PathBuf {
    this_test().ancestors().nth(2).expect("two directories").join(name)
}

/// The names of protocols, which not every host has: what needs them is found out here.
const PROTOCOLS: &str = "/etc/protocols";

/// Where control groups are.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

fn this_test() -> PathBuf {
    std::env::current_exe().expect("this program has a path")
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

/// Runs the test of that name again in a network namespace of its own, with a bridge `br0`, and there `test`.
fn in_namespace<N>(name: &str, needs: Result<N, String>, test: impl FnOnce(N)) {
    let needs = match needs {
        Ok(needs) => needs,
        Err(why) => return tell_skipped(&why),
    };
    if std::env::var_os(INSIDE).is_some() {
        if Path::new(PROTOCOLS).exists() {
            let hidden = Command::new("mount").args(["--bind", "/dev/null", PROTOCOLS]).status();
            assert!(hidden.expect("start mount").success(), "hide {PROTOCOLS}");
        }
        for words in
            ["link set lo up", "link add br0 type bridge", "addr add 10.77.0.1/24 dev br0", "link set br0 up"]
        {
            let status = Command::new("ip").args(words.split(' ')).status().expect("start ip");
            assert!(status.success(), "ip {words}");
        }
        return test(needs);
    }
    let mut command = Command::new("unshare");
    command
        .args(["-n", "-m", "--propagation", "private"])
        .arg(this_test())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1");
    assert!(command.status().expect("start unshare").success(), "the test in its namespace failed");
}

/// Where the drivers of one test keep everything.
struct World {
    place: PathBuf,
    needs: Needs,
    run: PathBuf,
    files: Files,
    manifest: serde_json::Value,
    taps: Taps,
}

impl World {
    fn new(needs: Needs) -> World {
        let world = World::at(std::env::temp_dir().join(format!("lb{}", std::process::id())), needs);
        for name in ["kernel", "initrd", "root"] {
            let file = world.manifest[name]["file"].as_str().expect("text");
            let target = world.place.join("images").join(world.part(name).sha256);
            symlink(world.needs.image.join(file), target).expect("link a part");
        }
        world
    }

    fn at(place: PathBuf, needs: Needs) -> World {
        let images = place.join("images");
        fs::create_dir_all(&images).expect("make a directory");
        let text = fs::read(needs.image.join("manifest.json")).expect("read the manifest");
        let manifest: serde_json::Value = serde_json::from_slice(&text).expect("a manifest");
        let files = Files::new(&place.join("state"), &images).expect("make the state");
        let taps = Taps::new().expect("make the rules");
        World { run: place.join("run"), place, needs, files, manifest, taps }
    }

    /// A driver that finds what another one has left.
    fn machines(&self) -> Result<Machines, DriverError> {
        let (run, worker, files) = (self.run.clone(), "n1".to_owned(), self.files.clone());
        let jail =
            fc::JailSettings { jailer: self.needs.jailer.clone(), jails: self.jails(), uids: fc::UIDS };
        match self.needs.runner {
            Runner::Qemu => Machines::qemu(qemu::Settings {
                run,
                qemu: "qemu-system-x86_64".into(),
                vsock: self.needs.vsock.clone(),
                kvm: self.needs.kvm.clone(),
                worker,
                files,
            }),
            Runner::Firecracker | Runner::Jailed => Machines::firecracker(fc::Settings {
                run,
                firecracker: self.needs.firecracker.clone(),
                jail: (self.needs.runner == Runner::Jailed).then_some(jail),
                worker,
                files,
            }),
        }
    }

    /// Where the jails of Firecracker are.
    fn jails(&self) -> PathBuf {
        self.place.join("jails")
    }

    fn part(&self, name: &str) -> Part {
        let part = &self.manifest[name];
        Part {
            sha256: part["sha256"].as_str().expect("text").to_owned(),
            size: ByteSize::from_bytes(part["bytes"].as_u64().expect("a number")),
        }
    }

    fn image(&self) -> Image {
        Image {
            kernel: self.part("kernel"),
            initrd: Some(self.part("initrd")),
            command_line: self.manifest["command_line"].as_str().expect("text").to_owned(),
            root: self.part("root"),
        }
    }

    fn console(&self, vm: VmId) -> String {
        let object = HostObject { kind: Kind::Vm, uid: vm.uid() };
        let console = self.files.directory(object).join("console.log");
        fs::read(console).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    /// Whether nothing of a VM is left, in processes, interfaces or files.
    fn nothing_is_left(&self) {
        assert_eq!(fs::read_dir(&self.run).expect("a directory").count(), 0);
        if let Ok(programs) = fs::read_dir(self.jails()) {
            let jails =
                programs.flatten().map(|program| fs::read_dir(program.path()).expect("a directory").count());
            assert_eq!(jails.sum::<usize>(), 0, "a jail is left");
        }
        assert_eq!(control_groups(Path::new(CONTROL_GROUPS)), Vec::<PathBuf>::new());
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

/// The control groups of VMs: each is in one that is called as we are, in any tree of them.
fn control_groups(tree: &Path) -> Vec<PathBuf> {
    let inside = |directory: &Path| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    // Version 1 and a joint tree have one level more.
    let trees = inside(tree).into_iter().chain([tree.to_owned()]);
    trees.flat_map(|tree| inside(&tree.join("lightbyte"))).collect()
}

impl Drop for World {
    /// Whatever failed, no VM stays behind.
    fn drop(&mut self) {
        if let Ok(driver) = self.machines() {
            for vm in driver.list().unwrap_or_default() {
                if std::thread::panicking() {
                    eprintln!("the console of {vm}:\n{}", self.console(vm));
                }
                let _ = driver.remove(vm);
            }
        }
        let _ = fs::remove_dir_all(&self.place);
    }
}

/// Ends a VM's machine process, as a crash would.
fn kill(driver: &Machines, vm: VmId) {
    let pid = driver.pid(vm).expect("an answer").expect("a process");
    // The shell's own word: the program of that name is not on every machine.
    let status = Command::new("sh").args(["-c", &format!("kill -9 {pid}")]).status().expect("a shell");
    assert!(status.success());
}
