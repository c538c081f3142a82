//! What only Firecracker shows: its refusals in words for people, and what its API can do with a machine that runs.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lightbyte_api::assigned::AssignedVm;
use lightbyte_plan::agent::VmmState;
use lightbyte_vmm::firecracker::api::{Api, ApiError};
use lightbyte_vmm::firecracker::types::{MemoryBackend, SnapshotCreate, SnapshotLoad};
use lightbyte_vmm::{Network as _, Vmm as _};
use rustix::event::{Timespec, poll};

use super::life::{VM, refused};
use super::{CONTROL_GROUPS, Needs, Runner, World, control_groups, in_namespace, kill};
use crate::guest;

/// How many machines come and go.
const LIVES: usize = 100;
/// How long a call may take: a snapshot writes the guest's memory.
const CALL_MAX: Duration = Duration::from_secs(60);
/// How long a Firecracker may take until it answers.
const START_MAX: Duration = Duration::from_secs(30);
/// The pause between two looks at one that does not answer yet.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

#[test]
fn a_refusal_of_firecracker_is_in_plain_words() {
    let name = "real::firecracker::a_refusal_of_firecracker_is_in_plain_words";
    in_namespace(name, Needs::find(Runner::Firecracker), |needs| World::new(needs).refusals());
}

#[test]
fn a_refusal_of_a_jailed_one_is_in_plain_words() {
    let name = "real::firecracker::a_refusal_of_a_jailed_one_is_in_plain_words";
    in_namespace(name, Needs::find(Runner::Jailed), |needs| World::new(needs).refusals());
}

#[test]
fn a_vm_of_firecracker_is_paused_saved_and_loaded() {
    let name = "real::firecracker::a_vm_of_firecracker_is_paused_saved_and_loaded";
    in_namespace(name, Needs::find(Runner::Firecracker), |needs| World::new(needs).is_saved());
}

#[test]
fn the_hundredth_jailed_machine_leaves_no_more_than_the_first() {
    let name = "real::firecracker::the_hundredth_jailed_machine_leaves_no_more_than_the_first";
    in_namespace(name, Needs::find(Runner::Jailed), |needs| World::new(needs).comes_and_goes());
}

impl World {
    /// Jails, control groups, taps and rules of a hundred machines, every second of which is killed from outside.
    fn comes_and_goes(&self) {
        self.make_disks();
        let (driver, _events) = self.driver();
        let assigned = self.assigned(VM);
        let descriptors = || fs::read_dir("/proc/self/fd").expect("a directory").count();
        let mut before = None;
        for life in 0..LIVES {
            self.taps.ensure(VM, &assigned.nics).expect("make the taps");
            driver.ensure(VM, &assigned).unwrap_or_else(|error| panic!("life {life}: {}", error.chain()));
            if life == 0 {
                eprintln!("while it runs: {:?}", control_groups(Path::new(CONTROL_GROUPS)));
            }
            if life % 2 == 1 {
                kill(&driver, VM);
            }
            driver.remove(VM).expect("end it");
            self.taps.remove(VM).expect("remove the taps");
            self.nothing_is_left();
            let now = descriptors();
            assert!(now <= *before.get_or_insert(now), "life {life} leaves a descriptor");
        }
        self.all_goes(&driver);
    }

    fn refusals(&self) {
        self.make_disks();
        let (driver, _events) = self.driver();
        let assigned = self.assigned(VM);
        self.taps.ensure(VM, &assigned.nics).expect("make the taps");
        let no_kernel = AssignedVm { kernel: self.part("initrd"), ..assigned.clone() };
        let many_cpus = AssignedVm { cpus: 99, ..assigned.clone() };
        for (wrong, word, next) in [
            (&no_kernel, "Firecracker does not take the image's kernel: ", "uncompressed ELF kernels only"),
            (&many_cpus, "Firecracker does not take 99 CPUs and 128 MiB: ", "change the VM's size"),
        ] {
            let told = driver.ensure(VM, wrong).expect_err("it is refused").chain();
            assert!(told.starts_with(word) && told.contains(next), "{told}");
            eprintln!("{told}");
            assert_eq!(
                driver.state(VM).expect("a state"),
                VmmState::Absent,
                "a refused start leaves nothing"
            );
        }
        // What was refused holds nothing of what the next one needs.
        driver.ensure(VM, &assigned).expect("start");
        refused(self.taps.remove(VM), "in use");
        driver.remove(VM).expect("end it");
        self.all_goes(&driver);
    }

    fn is_saved(&self) {
        self.make_disks();
        let (driver, events) = self.driver();
        let assigned = self.assigned(VM);
        self.taps.ensure(VM, &assigned.nics).expect("make the taps");
        driver.ensure(VM, &assigned).expect("start");
        self.ready(&events);
        let api = Api::new(self.run.join(VM.to_string()).join("root/api"), CALL_MAX);
        let state = || api.instance().expect("an instance").state;
        assert_eq!(state(), "Running");
        api.pause().expect("pause");
        assert_eq!(state(), "Paused");
        let [cpus, memory] = ["snapshot", "memory"].map(|name| text(&self.place.join(name)));
        let saved = SnapshotCreate { snapshot_path: cpus.clone(), mem_file_path: memory.clone() };
        api.create_snapshot(&saved).expect("save it");
        api.resume().expect("go on");
        assert_eq!(state(), "Running");
        assert_eq!(guest::run(&driver, VM, &["echo", "on"]), ("on\n".to_owned(), 0));
        api.start().expect_err("it runs already");
        driver.remove(VM).expect("end it");

        let backend = |path: &str| MemoryBackend { backend_type: "File", backend_path: path.to_owned() };
        let load = |memory: &str| SnapshotLoad {
            snapshot_path: cpus.clone(),
            mem_backend: backend(memory),
            resume_vm: false,
        };
        let (mut child, api) = self.bare("first");
        let missing = api.load_snapshot(&load("/nowhere")).expect_err("there is no memory");
        assert!(matches!(&missing, ApiError::Refused(why) if why.contains("No such file")), "{missing:?}");
        end(&mut child);
        let (mut child, api) = self.bare("second");
        api.load_snapshot(&load(&memory)).expect("load it");
        assert_eq!(api.instance().expect("an instance").state, "Paused");
        api.resume().expect("go on");
        assert_eq!(api.instance().expect("an instance").state, "Running");
        end(&mut child);
        self.all_goes(&driver);
    }

    /// A Firecracker that was told nothing yet, in a directory of its own.
    fn bare(&self, name: &str) -> (Child, Api) {
        let place = self.place.join(name);
        fs::create_dir_all(&place).expect("make a directory");
        let mut command = Command::new(&self.needs.firecracker);
        command.args(["--api-sock", "api"]).current_dir(&place);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("start Firecracker");
        let api = Api::new(place.join("api"), CALL_MAX);
        let begin = Instant::now();
        while api.instance().is_err() {
            assert!(begin.elapsed() < START_MAX, "it does not answer");
            // It tells nobody when its socket is there.
            let _ = poll(&mut [], Some(&PAUSE));
        }
        (child, api)
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("text").to_owned()
}

fn end(child: &mut Child) {
    // One that has refused a snapshot ends by itself.
    let _ = child.kill();
    child.wait().expect("reap it");
}
