//! QEMU's microvm as a VMM. Behaviour (what to do next) must not live here, and nothing waits for a guest.
//!
//! ```text
//! RUN/<uid>/            on a tmpfs, gone after a reboot, as the processes are
//!   lock, qemu.pid      which QEMU lives; see `start`
//!   spec.json           what it was started with
//!   qmp, console,       sockets
//!   vhost, vsock
//! STATE/vm/<uid>/       console.log, console.log.1, console.begin; see `console`
//! ```
//!
//! VMs outlive this process and are found again in RUN. A VM is there in some form as long as its directory is.

mod arguments;
mod channel;
mod console;
mod minder;
mod paths;
mod process;
mod qmp;
mod spawn;
mod start;
mod tsc;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lightbyte_api::assigned::{AssignedVm, HostObject};
use lightbyte_api::{ByteSize, Kind, Uid, VmId, VolumeId};
use lightbyte_guest::protocol;
use lightbyte_plan::agent::VmmState;
use lightbyte_plan::agent::vm::SHUTDOWN_GRACE;
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::json;

use self::arguments::Accelerator;
use self::minder::Minder;
use self::paths::Paths;
use self::process::Held;
use self::qmp::{Qmp, QmpError};
use self::start::Found;
use crate::driver::{ConsoleChunk, ConsoleFrom, DriverError, Guest, Listener, Vmm, VmmEvent};
use crate::files::Files;
use crate::identity;
use crate::kvm::KvmVerdict;

/// How long a guest may take to take the word that it is to shut down.
const ASK_MAX: Duration = Duration::from_secs(2);

/// Stack of a VM's thread: it holds a few small buffers.
const MINDER_STACK_BYTES: usize = 256 * 1024;

/// Most of a program's words that go into an error.
const WORDS_BYTES_MAX: u64 = 4096;

/// What the driver needs to know of its host.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of the VMs' run directories, such as `/run/lightbyte/NAME`: on a tmpfs, and at most 53 bytes long, so
    /// that sockets fit below it.
    pub run: PathBuf,
    /// `qemu-system-x86_64`; looked for in `PATH` if it is a bare name.
    pub qemu: PathBuf,
    /// Program and first arguments of the vsock backend, such as `lightbyte vsock`.
    pub vsock: Vec<PathBuf>,
    /// Whether VMs are run by KVM, see [`crate::kvm::probe`]; else by QEMU itself, many times slower.
    pub kvm: KvmVerdict,
    /// The name of this worker, for the guests.
    pub worker: String,
    /// Where parts of images, disks and consoles are.
    pub files: Files,
}

/// The driver.
#[derive(Debug)]
pub struct Qemu {
    settings: Settings,
    accelerator: Accelerator,
    shared: Arc<Shared>,
    /// The thread of each VM; reserved without one while the VM is being started.
    minders: Mutex<BTreeMap<VmId, Option<JoinHandle<()>>>>,
    /// Closed with the driver, which ends the threads.
    alive: Option<OwnedFd>,
}

/// What the threads of VMs share.
struct Shared {
    listener: Mutex<Option<Listener>>,
    /// Children that are to be reaped.
    children: Mutex<Vec<Child>>,
    /// Has something to say (POLLHUP, poll(2)) once the driver has gone.
    alive: OwnedFd,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Qemu {
    /// Makes the run directory. Without KVM it measures the time stamp counter, which takes 150 ms.
    ///
    /// # Errors
    /// If the directory cannot be made, or is too long for sockets below it.
    pub fn new(settings: Settings) -> Result<Qemu, DriverError> {
        paths::check_run(&settings.run).map_err(system("take the run directory"))?;
        fs::create_dir_all(&settings.run).map_err(system(format!("create {}", settings.run.display())))?;
        let (reader, writer) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| system("make a pipe")(error.into()))?;
        let accelerator = match settings.kvm.is_usable() {
            true => Accelerator::Kvm,
            false => Accelerator::Tcg { tsc_khz: tsc::measure_khz() },
        };
        let shared = Shared { listener: Mutex::default(), children: Mutex::default(), alive: reader };
        Ok(Qemu {
            accelerator,
            settings,
            shared: Arc::new(shared),
            minders: Mutex::default(),
            alive: Some(writer),
        })
    }

    /// The process of a VM that runs, for tests and for people.
    ///
    /// # Errors
    /// If it cannot be found out.
    pub fn pid(&self, vm: VmId) -> Result<Option<i32>, DriverError> {
        match start::look(&self.paths(vm))? {
            Found::Running(process) => Ok(Some(process.pid)),
            _ => Ok(None),
        }
    }

    fn paths(&self, vm: VmId) -> Paths {
        Paths::new(&self.settings.run, vm)
    }

    fn console_file(&self, vm: VmId) -> PathBuf {
        let object = HostObject { kind: Kind::Vm, uid: vm.uid() };
        self.settings.files.directory(object).join(console::CONSOLE)
    }

    fn identity(&self, vm: VmId, assigned: &AssignedVm) -> Result<Vec<u8>, DriverError> {
        let identity = identity::of(vm, assigned, &self.settings.worker);
        serde_json::to_vec(&identity).map_err(|error| system("write the identity")(error.into()))
    }

    /// Begins to mind a VM that runs. The place in `minders` is the caller's to reserve.
    fn mind(
        &self,
        vm: VmId,
        assigned: &AssignedVm,
        listener: Option<UnixListener>,
        process: Held,
        is_found: bool,
    ) -> Result<JoinHandle<()>, DriverError> {
        let minder = Minder {
            vm,
            paths: self.paths(vm),
            console: self.console_file(vm),
            identity: self.identity(vm, assigned)?,
            listener,
            process,
            shared: Arc::clone(&self.shared),
            is_found,
        };
        // Names of threads have 15 bytes (pthread_setname_np(3)).
        let thread = std::thread::Builder::new().name("vm".to_owned()).stack_size(MINDER_STACK_BYTES);
        thread.spawn(move || minder.run()).map_err(system("start a VM's thread"))
    }

    /// Minds a VM that was found running; nothing if it has ended meanwhile.
    fn adopt(&self, vm: VmId) -> Result<Option<JoinHandle<()>>, DriverError> {
        let paths = self.paths(vm);
        let Some(process) = start::settled(&paths)?.and_then(|process| process.open()) else {
            return Ok(None);
        };
        let assigned = read_spec(&paths)?;
        // Without the listener the guest is still asked, which is how it is found well in most cases.
        let listener = bind(&paths.ready).ok();
        self.mind(vm, &assigned, listener, process, true).map(Some)
    }

    /// Starts a VM whose place in `minders` is reserved. If it fails nothing is left.
    fn start(&self, vm: VmId, assigned: &AssignedVm) -> Result<JoinHandle<()>, DriverError> {
        let parts = self.resolve(vm, assigned)?;
        let paths = self.paths(vm);
        match fs::create_dir(&paths.directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return refuse("an ended machine process has left its traces");
            }
            made => made.map_err(system(format!("create {}", paths.directory.display())))?,
        }
        let started = self
            .start_all(parts, &paths, assigned)
            .and_then(|(listener, process)| self.mind(vm, assigned, Some(listener), process, false));
        started.or_else(|error| {
            // Nobody reads from a VM that did not start, so nothing is gained by patience.
            self.clear(&paths, Duration::ZERO)?;
            Err(error)
        })
    }

    /// Ends what runs of a VM and removes its directory.
    fn clear(&self, paths: &Paths, patience: Duration) -> Result<(), DriverError> {
        start::end_qemu(paths)?;
        start::end_backend(paths, patience)?;
        self.shared.reap();
        match fs::remove_dir_all(&paths.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(system(format!("remove {}", paths.directory.display()))(error))
            }
            _ => Ok(()),
        }
    }

    fn minders(&self) -> MutexGuard<'_, BTreeMap<VmId, Option<JoinHandle<()>>>> {
        // The map is whole at every moment, whoever panicked.
        self.minders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vmm for Qemu {
    /// A QEMU that does not start is a refusal with what it said: most often a disk that another VM holds.
    fn ensure(&self, vm: VmId, assigned: &AssignedVm) -> Result<(), DriverError> {
        match start::look(&self.paths(vm))? {
            Found::Running(_) | Found::Starting => return Ok(()),
            Found::Ended => return refuse("an ended machine process has left its traces"),
            Found::Nothing => {}
        }
        // A thread that ended by itself may have left its handle.
        self.minders().insert(vm, None);
        match self.start(vm, assigned) {
            Ok(minder) => {
                self.minders().insert(vm, Some(minder));
                Ok(())
            }
            Err(error) => {
                self.minders().remove(&vm);
                Err(error)
            }
        }
    }

    fn shut_down(&self, vm: VmId) -> Result<(), DriverError> {
        let paths = self.paths(vm);
        let Found::Running(_) = start::look(&paths)? else { return refuse("the guest does not run") };
        let grace_ms = SHUTDOWN_GRACE.millis();
        // The guest gets half of the time for its programs, and has the other half to write what they left.
        let body = serde_json::to_vec(&protocol::Shutdown { grace_ms: grace_ms / 2 })
            .map_err(|error| system("write the request")(error.into()))?;
        match channel::request(&paths.uds, "POST", "/v1/shutdown", &body, ASK_MAX) {
            Ok((202, _)) => Ok(()),
            Ok((status, _)) => refuse(format!("the guest's agent answers {status}")),
            Err(error) => Err(system("ask the guest to shut down")(error)),
        }
    }

    /// The end is told before this returns.
    fn remove(&self, vm: VmId) -> Result<(), DriverError> {
        let paths = self.paths(vm);
        start::end_qemu(&paths)?;
        // Everything that a VM's thread waits for is bounded, and most of it ends with the process.
        let minder = self.minders().remove(&vm).flatten();
        if let Some(minder) = minder {
            let _ = minder.join();
        }
        // A backend whose QEMU was never started has nobody who reads, and would wait for it.
        let was_started = paths.qmp.exists();
        self.clear(&paths, if was_started { start::BACKEND_END_MAX } else { Duration::ZERO })
    }

    fn grow_disk(&self, vm: VmId, disk: VolumeId, size: ByteSize) -> Result<(), DriverError> {
        let paths = self.paths(vm);
        let Found::Running(_) = start::look(&paths)? else { return Ok(()) };
        // A disk that is only read has nobody in the machine who could make it larger.
        let started_with = read_spec(&paths)?.disks;
        let place = started_with.iter().position(|started| started.volume == disk && !started.read_only);
        let Some(index) = place else { return Ok(()) };
        let what = || format!("grow disk {disk} of the machine to {size}");
        let said = |error: QmpError| system(what())(io::Error::other(error));
        let mut qmp = Qmp::connect(&paths.qmp, ASK_MAX).map_err(said)?;
        let words = json!({ "device": arguments::disk_id(index), "size": size.bytes() });
        qmp.execute("block_resize", &words).map(drop).map_err(said)
    }

    fn state(&self, vm: VmId) -> Result<VmmState, DriverError> {
        Ok(match start::look(&self.paths(vm))? {
            Found::Nothing => VmmState::Absent,
            Found::Running(_) | Found::Starting => VmmState::Running,
            Found::Ended => VmmState::Exited,
        })
    }

    fn list(&self) -> Result<Vec<VmId>, DriverError> {
        let failed = || format!("list {}", self.settings.run.display());
        let mut vms = Vec::new();
        for entry in fs::read_dir(&self.settings.run).map_err(system(failed()))? {
            let name = entry.map_err(system(failed()))?.file_name();
            // What is not named by a uid is not ours to judge.
            vms.extend(name.to_str().and_then(|name| name.parse::<Uid>().ok()).map(VmId::new));
        }
        vms.sort_unstable();
        Ok(vms)
    }

    /// VMs that run already and cannot be adopted are not told of; the caller finds them by [`Vmm::list`], and ends
    /// or keeps them.
    fn watch(&self, listener: Listener) {
        *self.shared.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener);
        for vm in self.list().unwrap_or_default() {
            let is_new = !self.minders().contains_key(&vm);
            if is_new && let Ok(Some(minder)) = self.adopt(vm) {
                self.minders().insert(vm, Some(minder));
            }
        }
    }
}

impl Guest for Qemu {
    fn connect(&self, vm: VmId, port: u32, wait: Duration) -> Result<UnixStream, DriverError> {
        let paths = self.paths(vm);
        let Found::Running(_) = start::look(&paths)? else { return refuse("the guest does not run") };
        channel::dial(&paths.uds, port, Instant::now() + wait).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                DriverError::Refused(format!("the guest takes no connection on port {port}"))
            }
            _ => system(format!("reach port {port} of the guest"))(error),
        })
    }

    /// QEMU serves one at a time; a second one waits until the first is closed.
    fn open_console(&self, vm: VmId) -> Result<UnixStream, DriverError> {
        let paths = self.paths(vm);
        let Found::Running(_) = start::look(&paths)? else { return refuse("the guest does not run") };
        channel::reach(&paths.console).map_err(system("reach the guest's console"))
    }

    fn read_console(&self, vm: VmId, from: ConsoleFrom) -> Result<ConsoleChunk, DriverError> {
        let console = self.console_file(vm);
        console::read(&console, from).map_err(system(format!("read {}", console.display())))
    }
}

impl Drop for Qemu {
    /// Ends the threads, not the VMs.
    fn drop(&mut self) {
        self.alive = None;
        let minders = std::mem::take(&mut *self.minders());
        for minder in minders.into_values().flatten() {
            let _ = minder.join();
        }
    }
}

impl Shared {
    fn tell(&self, event: VmmEvent) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(listener) = listener {
            listener(event);
        }
    }

    fn keep(&self, child: Child) {
        self.children.lock().unwrap_or_else(PoisonError::into_inner).push(child);
    }

    /// Takes leave of children that have ended.
    fn reap(&self) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}

/// What a VM that runs was started with.
fn read_spec(paths: &Paths) -> Result<AssignedVm, DriverError> {
    let read = || system(format!("read {}", paths.spec.display()));
    let spec = fs::read(&paths.spec).map_err(read())?;
    serde_json::from_slice(&spec).map_err(|error| read()(error.into()))
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, DriverError> {
    Err(DriverError::Refused(reason.into()))
}

fn system(context: impl Into<String>) -> impl FnOnce(io::Error) -> DriverError {
    let context = context.into();
    move |source| DriverError::System { context, source }
}

/// Replaces a file by a whole new one. It need not outlive a power cut: nothing here does.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), DriverError> {
    let new = path.with_extension("new");
    let write = || {
        fs::write(&new, bytes)?;
        fs::rename(&new, path)
    };
    write().map_err(system(format!("write {}", path.display())))
}

/// Listens at a path of a VM that is ours: what stands there is of a former life.
fn bind(path: &Path) -> Result<UnixListener, DriverError> {
    let _ = fs::remove_file(path);
    UnixListener::bind(path).map_err(system(format!("listen at {}", path.display())))
}

fn last_words(log: &Path) -> String {
    let mut text = String::new();
    let _ = File::open(log).map(|file| file.take(WORDS_BYTES_MAX).read_to_string(&mut text));
    let text = text.trim();
    if text.is_empty() { "it said nothing".to_owned() } else { text.to_owned() }
}
