//! The driver of machine processes, whichever program they are: a [`Machines`] keeps the directories and threads of VMs,
//! and a program knows how its process is started, found and ended. Behaviour (what to do next) must not live here, and
//! nothing waits for a guest.
//!
//! VMs outlive this process and are found again in the run directory, see `room`. A VM is there in some form as long as
//! its directory is. What it says on its console is kept in the state directory, see `console`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lightbyte_api::assigned::{AssignedVm, HostObject};
use lightbyte_api::wire::EndedVm;
use lightbyte_api::{ByteSize, Kind, Name, Uid, VmId, VolumeId};
use lightbyte_guest::protocol;
use lightbyte_plan::agent::VmmState;
use lightbyte_plan::agent::vm::SHUTDOWN_GRACE;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::driver::{ConsoleChunk, ConsoleFrom, DriverError, Guest, Listener, Vmm, VmmEvent};
use crate::files::Files;
use crate::minder::Minder;
use crate::process::{Held, Identity};
use crate::room::{Room, bind, check_run, refuse, system};
use crate::{channel, console, ended, identity};

/// How long a guest may take to take the word that it is to shut down.
const ASK_MAX: Duration = Duration::from_secs(2);

/// Stack of a VM's thread: it holds a few small buffers.
const MINDER_STACK_BYTES: usize = 256 * 1024;

/// What there is of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// No trace.
    Nothing,
    /// The machine runs.
    Running(Identity),
    /// The process was started and is not set up yet.
    Starting,
    /// A directory, and no process.
    Ended,
}

/// What every driver needs to know of its host.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// Directory of the VMs' run directories.
    pub(crate) run: PathBuf,
    /// The name of this worker, for the guests.
    pub(crate) worker: String,
    /// Where parts of images, disks and consoles are.
    pub(crate) files: Files,
}

impl Host {
    /// The same, or where it is kept of a VM that is no more.
    pub(crate) fn kept_console(&self, vm: VmId) -> PathBuf {
        let console = self.console_file(vm);
        let kept = ended::directory(&self.files.ended(), vm.uid()).join(console::CONSOLE);
        if !console.exists() && kept.exists() { kept } else { console }
    }

    /// The file of a VM's console.
    pub(crate) fn console_file(&self, vm: VmId) -> PathBuf {
        let object = HostObject { kind: Kind::Vm, uid: vm.uid() };
        self.files.directory(object).join(console::CONSOLE)
    }
}

/// Starts the process of a VM whose parts are held, in a room that was just made. It gives where the guest will call,
/// with the process. What it has made when it fails is cleared by [`Program::clear`].
pub(crate) type Start<'a> = Box<dyn FnOnce(&Room, &Shared) -> Result<(UnixListener, Held), DriverError> + 'a>;

/// A program that machine processes are of.
pub(crate) trait Program: fmt::Debug + Send + Sync {
    /// The directory below a VM's in which its sockets are; nothing if they are in the VM's own.
    fn sockets(&self) -> &'static str;

    /// Whether a process whose starter died before it was set up goes on by itself. Another is good for nothing.
    fn goes_on(&self) -> bool;

    /// Finds and holds everything that the VM is made of.
    ///
    /// # Errors
    /// [`DriverError::Refused`] if a part is missing or in use.
    fn resolve<'a>(&'a self, vm: VmId, assigned: &'a AssignedVm) -> Result<Start<'a>, DriverError>;

    /// What there is of a VM now.
    ///
    /// # Errors
    /// If it cannot be found out.
    fn look(&self, room: &Room) -> Result<Found, DriverError>;

    /// The VM's process once it is set up, or nothing if there is none that will be.
    ///
    /// # Errors
    /// If it is stuck in its start.
    fn settled(&self, room: &Room) -> Result<Option<Identity>, DriverError>;

    /// Ends the process, if there is one, and waits until it is gone.
    ///
    /// # Errors
    /// If it does not die.
    fn end(&self, room: &Room) -> Result<(), DriverError>;

    /// Ends and removes what there is of a VM beside its process and its directory. With patience, what ends by itself
    /// is let do so.
    ///
    /// # Errors
    /// If it cannot be ended or removed.
    fn clear(&self, vm: VmId, room: &Room, is_patient: bool) -> Result<(), DriverError>;

    /// Makes the disk of that index of a machine that runs as large as `size`, its file `disk` included.
    ///
    /// # Errors
    /// If the machine does not take it; the file may be larger all the same.
    fn grow_disk(&self, room: &Room, index: usize, disk: &Path, size: ByteSize) -> Result<(), DriverError>;

    /// Reaches the console of a VM that runs.
    ///
    /// # Errors
    /// If it cannot be reached.
    fn open_console(&self, room: &Room, console: &Path, process: Identity) -> io::Result<UnixStream>;

    /// Listens again for the guest of a VM that was found running. Without it the guest is still asked, which is how it
    /// is found well in most cases.
    fn listen_again(&self, room: &Room) -> Option<UnixListener> {
        bind(&room.ready).ok()
    }

    /// Files beside the console that the process writes, and that are to be kept small.
    fn logs(&self, _room: &Room) -> Vec<PathBuf> {
        Vec::new()
    }
}

/// The driver.
#[derive(Debug)]
pub struct Machines {
    host: Host,
    program: Box<dyn Program>,
    shared: Arc<Shared>,
    /// The thread of each VM; reserved without one while the VM is being started.
    minders: Mutex<BTreeMap<VmId, Option<JoinHandle<()>>>>,
    /// Closed with the driver, which ends the threads.
    alive: Option<OwnedFd>,
}

/// What the threads of VMs share.
pub(crate) struct Shared {
    listener: Mutex<Option<Listener>>,
    /// Children that are to be reaped.
    children: Mutex<Vec<Child>>,
    /// Has something to say (POLLHUP, poll(2)) once the driver has gone.
    pub(crate) alive: OwnedFd,
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Machines {
    /// Makes the run directory.
    ///
    /// # Errors
    /// If the directory cannot be made, or is too long for sockets below it.
    pub(crate) fn new(host: Host, program: Box<dyn Program>) -> Result<Machines, DriverError> {
        check_run(&host.run, program.sockets()).map_err(system("take the run directory"))?;
        fs::create_dir_all(&host.run).map_err(system(format!("create {}", host.run.display())))?;
        let (reader, writer) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| system("make a pipe")(error.into()))?;
        let shared = Shared { listener: Mutex::default(), children: Mutex::default(), alive: reader };
        Ok(Machines {
            host,
            program,
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
        match self.program.look(&self.room(vm))? {
            Found::Running(process) => Ok(Some(process.pid)),
            _ => Ok(None),
        }
    }

    fn room(&self, vm: VmId) -> Room {
        Room::new(&self.host.run, vm, self.program.sockets())
    }

    /// The process of a VM that runs.
    fn running(&self, room: &Room) -> Result<Identity, DriverError> {
        match self.program.look(room)? {
            Found::Running(process) => Ok(process),
            _ => refuse("the guest does not run"),
        }
    }

    /// What the agent is told. A process that is not set up yet counts as a machine if it will be one.
    fn state_of(&self, vm: VmId) -> Result<VmmState, DriverError> {
        Ok(match self.program.look(&self.room(vm))? {
            Found::Nothing => VmmState::Absent,
            Found::Running(_) => VmmState::Running,
            Found::Starting if self.program.goes_on() || self.minders().contains_key(&vm) => {
                VmmState::Running
            }
            Found::Starting | Found::Ended => VmmState::Exited,
        })
    }

    fn identity(&self, vm: VmId, assigned: &AssignedVm) -> Result<Vec<u8>, DriverError> {
        let identity = identity::of(vm, assigned, &self.host.worker);
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
        let room = self.room(vm);
        let minder = Minder {
            vm,
            logs: self.program.logs(&room),
            room,
            console: self.host.console_file(vm),
            identity: self.identity(vm, assigned)?,
            listener,
            process,
            shared: Arc::clone(&self.shared),
            is_found,
            is_hindered: Cell::new(false),
        };
        // Names of threads have 15 bytes (pthread_setname_np(3)).
        let thread = std::thread::Builder::new().name("vm".to_owned()).stack_size(MINDER_STACK_BYTES);
        thread.spawn(move || minder.run()).map_err(system("start a VM's thread"))
    }

    /// Minds a VM that was found running; nothing if it has ended meanwhile.
    fn adopt(&self, vm: VmId) -> Result<Option<JoinHandle<()>>, DriverError> {
        let room = self.room(vm);
        let Some(process) = self.program.settled(&room)?.and_then(|process| process.open()) else {
            return Ok(None);
        };
        let assigned = started_with(&room)?;
        self.mind(vm, &assigned, self.program.listen_again(&room), process, true).map(Some)
    }

    /// Starts a VM whose place in `minders` is reserved. If it fails nothing is left.
    fn start(&self, vm: VmId, assigned: &AssignedVm) -> Result<JoinHandle<()>, DriverError> {
        let start = self.program.resolve(vm, assigned)?;
        let room = self.room(vm);
        match fs::create_dir(&room.directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return refuse("an ended machine process has left its traces");
            }
            made => made.map_err(system(format!("create {}", room.directory.display())))?,
        }
        let started = start(&room, &self.shared)
            .and_then(|(listener, process)| self.mind(vm, assigned, Some(listener), process, false));
        started.or_else(|error| {
            self.program.end(&room)?;
            // Nobody reads from a VM that did not start, so nothing is gained by patience.
            self.clear(vm, &room, false)?;
            Err(error)
        })
    }

    /// Removes what is left of a VM whose process has ended.
    fn clear(&self, vm: VmId, room: &Room, is_patient: bool) -> Result<(), DriverError> {
        self.program.clear(vm, room, is_patient)?;
        self.shared.reap();
        match fs::remove_dir_all(&room.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(system(format!("remove {}", room.directory.display()))(error))
            }
            _ => Ok(()),
        }
    }

    fn minders(&self) -> MutexGuard<'_, BTreeMap<VmId, Option<JoinHandle<()>>>> {
        // The map is whole at every moment, whoever panicked.
        self.minders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vmm for Machines {
    /// A process that does not start is a refusal with what it said.
    fn ensure(&self, vm: VmId, assigned: &AssignedVm) -> Result<(), DriverError> {
        match self.state_of(vm)? {
            VmmState::Running => return Ok(()),
            VmmState::Exited => return refuse("an ended machine process has left its traces"),
            VmmState::Absent => {}
        }
        // Without the note this life is taken for the end of the one before.
        let _ = console::begin_life(&self.host.console_file(vm));
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
        let room = self.room(vm);
        self.running(&room)?;
        let grace_ms = SHUTDOWN_GRACE.millis();
        // The guest gets half of the time for its programs, and has the other half to write what they left.
        let body = serde_json::to_vec(&protocol::Shutdown { grace_ms: grace_ms / 2 })
            .map_err(|error| system("write the request")(error.into()))?;
        match channel::request(&room.uds, "POST", "/v1/shutdown", &body, ASK_MAX) {
            Ok((202, _)) => Ok(()),
            Ok((status, _)) => refuse(format!("the guest's agent answers {status}")),
            Err(error) => Err(system("ask the guest to shut down")(error)),
        }
    }

    /// The end is told before this returns.
    fn remove(&self, vm: VmId) -> Result<(), DriverError> {
        let room = self.room(vm);
        self.program.end(&room)?;
        // Everything that a VM's thread waits for is bounded, and most of it ends with the process.
        let minder = self.minders().remove(&vm).flatten();
        if let Some(minder) = minder {
            let _ = minder.join();
        }
        self.clear(vm, &room, true)
    }

    fn grow_disk(&self, vm: VmId, disk: VolumeId, size: ByteSize) -> Result<(), DriverError> {
        let room = self.room(vm);
        let Found::Running(_) = self.program.look(&room)? else { return Ok(()) };
        // A disk that is only read has nobody in the machine who could make it larger.
        let disks = started_with(&room)?.disks;
        let place = disks.iter().position(|started| started.volume == disk && !started.read_only);
        match place {
            Some(index) => self.program.grow_disk(&room, index, &self.host.files.disk(disk), size),
            None => Ok(()),
        }
    }

    fn place_of(&self, vm: VmId, disk: VolumeId) -> Result<Option<usize>, DriverError> {
        let room = self.room(vm);
        match self.program.look(&room)? {
            Found::Nothing | Found::Ended => Ok(None),
            Found::Running(_) | Found::Starting => {
                Ok(started_with(&room)?.disks.iter().position(|started| started.volume == disk))
            }
        }
    }

    fn state(&self, vm: VmId) -> Result<VmmState, DriverError> {
        self.state_of(vm)
    }

    fn list(&self) -> Result<Vec<VmId>, DriverError> {
        let failed = || format!("list {}", self.host.run.display());
        let mut vms = Vec::new();
        for entry in fs::read_dir(&self.host.run).map_err(system(failed()))? {
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

/// What a VM that runs was started with.
fn started_with(room: &Room) -> Result<AssignedVm, DriverError> {
    let failed = || format!("read {}", room.spec.display());
    let spec = fs::read(&room.spec).map_err(system(failed()))?;
    serde_json::from_slice(&spec).map_err(|error| system(failed())(error.into()))
}

impl Guest for Machines {
    fn connect(&self, vm: VmId, port: u32, wait: Duration) -> Result<UnixStream, DriverError> {
        let room = self.room(vm);
        self.running(&room)?;
        channel::dial(&room.uds, port, Instant::now() + wait).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => DriverError::nobody_at(port),
            _ => system(format!("reach port {port} of the guest"))(error),
        })
    }

    fn previous_life(&self, vm: VmId) -> Result<Range<u64>, DriverError> {
        let console = self.host.kept_console(vm);
        let (before, last) =
            console::lives(&console).map_err(system(format!("read {}", console.display())))?;
        // All lives of one that is no more are over.
        Ok(if console == self.host.console_file(vm) { before..last } else { last..u64::MAX })
    }

    fn ended(&self, name: &Name) -> Result<Option<EndedVm>, DriverError> {
        Ok(ended::find(&self.host.files.ended(), name))
    }

    fn open_console(&self, vm: VmId) -> Result<UnixStream, DriverError> {
        let room = self.room(vm);
        let process = self.running(&room)?;
        let stream = self.program.open_console(&room, &self.host.console_file(vm), process);
        stream.map_err(system("reach the guest's console"))
    }

    fn read_console(&self, vm: VmId, from: ConsoleFrom) -> Result<ConsoleChunk, DriverError> {
        let console = self.host.kept_console(vm);
        console::read(&console, from).map_err(system(format!("read {}", console.display())))
    }
}

impl Drop for Machines {
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
    pub(crate) fn tell(&self, event: VmmEvent) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(listener) = listener {
            listener(event);
        }
    }

    /// Keeps a child that is to be reaped when it has ended.
    pub(crate) fn keep(&self, child: Child) {
        self.children.lock().unwrap_or_else(PoisonError::into_inner).push(child);
    }

    /// Takes leave of children that have ended.
    pub(crate) fn reap(&self) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}
