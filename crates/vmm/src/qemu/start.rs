//! From an assignment to two processes, and how they are found and ended by whoever comes later.
//!
//! One uid never runs twice: a file with a lock (flock(2)) is inherited by QEMU, so that the lock lasts from the fork to
//! QEMU's end, whoever dies in between. QEMU's own lock on its pid file comes a few milliseconds later, and tells the
//! pid.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lightbyte_api::VmId;
use lightbyte_api::address::tap_name;
use lightbyte_api::assigned::AssignedVm;
use rustix::event::{Timespec, poll};
use rustix::process::Signal;

use super::Qemu;
use super::arguments::{self, Disk, Machine};
use super::paths::Paths;
use super::qmp::Qmp;
use crate::driver::DriverError;
use crate::machines::{Found, Shared};
use crate::process::{self, Held, Identity, lock_holder, wait_for_end};
use crate::room::{Room, bind, last_words, refuse, system, write_whole};
use crate::{spawn, taps};

/// How long QEMU may take to set itself up (until it greets on QMP). It takes 0.1 s on a quiet machine.
const START_MAX: Duration = Duration::from_secs(60);

/// Pause between looks at a VM whose starter died in the middle of starting a program.
const SETTLE_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// How long the vsock backend may take to end by itself after QEMU: it lets readers finish for 5 s.
pub(super) const BACKEND_END_MAX: Duration = Duration::from_secs(7);

/// Address of every guest on its own vsock (CIDs below are taken, vsock(7)). It need not be unique on a host.
const GUEST_CID: u32 = 3;

/// Parts that are there, with what is handed over to the process.
pub(super) struct Parts {
    machine: Machine,
    taps: Vec<OwnedFd>,
    /// The locks of the disks.
    disks: Vec<OwnedFd>,
}

impl Qemu {
    /// Finds everything that the VM is made of.
    pub(super) fn parts(&self, vm: VmId, assigned: &AssignedVm) -> Result<Parts, DriverError> {
        let files = &self.host.files;
        let held = files.hold_all(&assigned.disks)?;
        let mut open = Vec::with_capacity(assigned.nics.len());
        for index in 0..assigned.nics.len() {
            open.push(taps::open(&tap_name(vm.uid(), index))?);
        }
        let machine = Machine {
            name: vm.to_string(),
            kernel: files.part(&assigned.kernel)?,
            initrd: assigned.initrd.as_ref().map(|part| files.part(part)).transpose()?,
            command_line: assigned.command_line.clone(),
            disks: assigned
                .disks
                .iter()
                .map(|disk| Disk { path: files.disk(disk.volume), read_only: disk.read_only })
                .collect(),
            memory_mib: assigned.memory.bytes().div_ceil(1 << 20),
            cpus: assigned.cpus,
            macs: assigned.nics.iter().map(|nic| nic.mac).collect(),
            console: self.host.console_file(vm),
            accelerator: self.accelerator,
        };
        Ok(Parts { machine, taps: open, disks: held })
    }

    /// Starts backend and QEMU, and gives where the guest will call, with its process.
    pub(super) fn start_all(
        &self,
        parts: Parts,
        room: &Room,
        assigned: &AssignedVm,
        shared: &Shared,
    ) -> Result<(UnixListener, Held), DriverError> {
        let Some(lock) = room.hold()? else { return refuse("somebody else is starting this VM") };
        let spec =
            serde_json::to_vec_pretty(assigned).map_err(|error| system("write the spec")(error.into()))?;
        write_whole(&room.spec, &spec)?;
        if let Some(directory) = parts.machine.console.parent() {
            fs::create_dir_all(directory).map_err(system(format!("create {}", directory.display())))?;
        }
        let listener = bind(&room.ready)?;
        let paths = Paths::of(room);
        self.start_backend(room, &paths, shared)?;
        Ok((listener, self.start_qemu(parts, &paths, lock, shared)?))
    }

    fn start_backend(&self, room: &Room, paths: &Paths, shared: &Shared) -> Result<(), DriverError> {
        let Some((program, first)) = self.vsock.split_first() else {
            return refuse("no program of the vsock backend is set");
        };
        // Bound here and handed over: QEMU can connect at once, and a backend whose starter dies cannot bind late, over
        // the sockets of the next one.
        let (frontend, host) = (bind(&paths.vhost)?, bind(&room.uds)?);
        let log = File::create(&paths.backend_log).map_err(system("make the vsock backend's log"))?;
        let mut command = Command::new(program);
        command.args(first).arg("--inherited").arg("--vhost-socket").arg(&paths.vhost);
        command.arg("--uds").arg(&room.uds).args(["--guest-cid", &GUEST_CID.to_string()]);
        command.stdin(OwnedFd::from(frontend)).stdout(OwnedFd::from(host)).stderr(log);
        let child = command.spawn().map_err(system(format!("start {}", program.display())))?;
        let identity = i32::try_from(child.id()).ok().and_then(Identity::of);
        shared.keep(child);
        let Some(identity) = identity else {
            return refuse(format!("the vsock backend ended: {}", last_words(&paths.backend_log)));
        };
        let text = serde_json::to_vec(&identity)
            .map_err(|error| system("write the vsock backend's identity")(error.into()))?;
        write_whole(&paths.backend, &text)
    }

    fn start_qemu(
        &self,
        parts: Parts,
        paths: &Paths,
        lock: OwnedFd,
        shared: &Shared,
    ) -> Result<Held, DriverError> {
        // We bind QEMU's socket: a connection can be made at once, and its greeting comes when QEMU is set up.
        let qmp = bind(&paths.qmp)?;
        let log = File::create(&paths.qemu_log).map_err(system("make QEMU's log"))?;
        let mut command = Command::new(&self.qemu);
        command.args(arguments::arguments(&parts.machine, paths));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let inherited = std::iter::once(qmp.into()).chain(parts.taps).chain(parts.disks).chain([lock]);
        spawn::inherit(&mut command, inherited.collect()).map_err(system("hand over descriptors"))?;
        let mut child = command.spawn().map_err(system(format!("start {}", self.qemu.display())))?;
        // Our copies go, so that QEMU alone holds its taps, and its end closes the socket.
        drop(command);
        let greeted = Qmp::connect(&paths.qmp, START_MAX);
        let held = i32::try_from(child.id()).ok().and_then(Identity::of).and_then(|process| process.open());
        if let (Ok(_), Some(held)) = (&greeted, held) {
            shared.keep(child);
            return Ok(held);
        }
        // It ended, or is stuck; what it said is of more use than how the socket failed.
        child.kill().and_then(|()| child.wait()).map_err(system("end a QEMU that did not start"))?;
        let (words, backend) = (last_words(&paths.qemu_log), last_words(&paths.backend_log));
        let how = greeted.err().map_or_else(|| "it ended at once".to_owned(), |error| error.to_string());
        refuse(format!("QEMU did not start: {words} ({how}; vsock backend: {backend})"))
    }
}

/// What there is of a VM now.
///
/// # Errors
/// If it cannot be found out.
pub(super) fn look(room: &Room) -> Result<Found, DriverError> {
    if !room.is_there()? {
        return Ok(Found::Nothing);
    }
    Ok(match lock_holder(&Paths::of(room).pid_file) {
        Some(qemu) => Found::Running(qemu),
        None if room.is_held()? => Found::Starting,
        None => Found::Ended,
    })
}

/// The VM's QEMU once it is set up, or nothing if there is none.
///
/// # Errors
/// If it is stuck in its start.
pub(super) fn settled(room: &Room) -> Result<Option<Identity>, DriverError> {
    let until = Instant::now() + START_MAX;
    loop {
        match look(room)? {
            Found::Running(qemu) => return Ok(Some(qemu)),
            Found::Nothing | Found::Ended => return Ok(None),
            Found::Starting if Instant::now() > until => return refuse("a QEMU is stuck in its start"),
            Found::Starting => {}
        }
        // Started by somebody who died: its greeting comes when it is set up. Where nobody answers, the lock is held by
        // a child between its fork and its exec, which is a matter of milliseconds and tells nobody when it is over.
        if Qmp::connect(&Paths::of(room).qmp, START_MAX).is_err() {
            let _ = poll(&mut [], Some(&SETTLE_PAUSE));
        }
    }
}

/// Ends QEMU, if there is one, and waits until it is gone.
///
/// # Errors
/// If it does not die.
pub(super) fn end_qemu(room: &Room) -> Result<(), DriverError> {
    match settled(room)?.and_then(|qemu| qemu.open()) {
        Some(qemu) => {
            qemu.signal(Signal::KILL);
            wait_for_end(&qemu, "QEMU")
        }
        None => Ok(()),
    }
}

/// Ends the vsock backend, if there is one: after `patience`, in which it ends by itself.
///
/// # Errors
/// If it does not die.
pub(super) fn end_backend(paths: &Paths, patience: Duration) -> Result<(), DriverError> {
    let identity =
        fs::read(&paths.backend).ok().and_then(|text| serde_json::from_slice::<Identity>(&text).ok());
    let Some(identity) = identity else { return dismiss_backend(paths) };
    let Some(backend) = identity.open() else { return Ok(()) };
    if backend.wait(patience).map_err(system("wait for the vsock backend"))? {
        return Ok(());
    }
    backend.signal(Signal::KILL);
    wait_for_end(&backend, "the vsock backend")
}

/// Ends a backend whose starter died before it could note which process it is: it takes us for its QEMU, which leaves.
/// When nobody listens any more it is about to go.
fn dismiss_backend(paths: &Paths) -> Result<(), DriverError> {
    let until = Instant::now() + process::KILL_MAX;
    while let Ok(mut stream) = UnixStream::connect(&paths.vhost) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return refuse("the vsock backend does not end");
        }
        let asked = stream.shutdown(Shutdown::Write).and_then(|()| stream.set_read_timeout(Some(left)));
        asked.map_err(system("dismiss the vsock backend"))?;
        // Its end, in whatever form.
        let _ = stream.read(&mut [0]);
    }
    match process::named(paths.vhost.as_os_str()).map_err(system("look for the vsock backend"))? {
        Some(backend) => wait_for_end(&backend, "the vsock backend"),
        None => Ok(()),
    }
}
