//! From an assignment to a process, and how it is found and ended by whoever comes later.
//!
//! ```text
//! directory made -> lock taken, carried by the process from its fork to its end, with the locks of the disks
//!   -> pid noted by the process itself -> told everything by its API -> machine started -> process.json written
//! ```
//!
//! The jailer closes what it has inherited but its standard streams, so locks travel inside of one, see
//! `spawn::carrier`. A process whose starter died before process.json was there has never run a guest: it is ended, not
//! gone on with.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lightbyte_api::address::tap_name;
use lightbyte_api::assigned::AssignedVm;
use lightbyte_api::{ByteSize, VmId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::Firecracker;
use super::api::Api;
use super::console;
use super::jail::Jail;
use super::machine::{Disk, Machine, disk_id};
use super::paths::{API, Paths};
use super::types::DriveChange;
use crate::driver::DriverError;
use crate::machines::{Found, Shared};
use crate::process::{Held, Identity, wait_for_end};
use crate::room::{Room, bind, refuse, system, write_whole};
use crate::{spawn, taps};

/// How long Firecracker may take until its API answers, with its jailer. It takes some 30 ms on a quiet machine.
const START_MAX: Duration = Duration::from_secs(60);

/// How long one call may take; the start of a machine, which takes its memory, is the longest.
const CALL_MAX: Duration = Duration::from_secs(30);

/// Pause between looks at a process that does not tell when it is as far.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

/// Most of a program's words that go into an error.
const WORDS_BYTES_MAX: u64 = 4096;

/// Parts that are there, with what is handed over to the process.
pub(super) struct Parts {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    /// The disks, and whether the machine can only read them.
    disks: Vec<(PathBuf, bool)>,
    /// Names of taps, and what holds them until Firecracker opens them itself.
    taps: Vec<(String, OwnedFd)>,
    /// The locks of the disks.
    locks: Vec<OwnedFd>,
}

impl Firecracker {
    /// Finds everything that the VM is made of. Firecracker itself would make a tap that is missing.
    pub(super) fn parts(&self, vm: VmId, assigned: &AssignedVm) -> Result<Parts, DriverError> {
        let files = &self.host.files;
        let locks = files.hold_all(&assigned.disks)?;
        let mut open = Vec::with_capacity(assigned.nics.len());
        for index in 0..assigned.nics.len() {
            let name = tap_name(vm.uid(), index);
            let tap = taps::open(&name)?;
            open.push((name, tap));
        }
        Ok(Parts {
            kernel: files.part(&assigned.kernel)?,
            initrd: assigned.initrd.as_ref().map(|part| files.part(part)).transpose()?,
            disks: assigned.disks.iter().map(|disk| (files.disk(disk.volume), disk.read_only)).collect(),
            taps: open,
            locks,
        })
    }

    /// Starts Firecracker and its machine, and gives where the guest will call, with the process.
    pub(super) fn start_all(
        &self,
        parts: Parts,
        (vm, room): (VmId, &Room),
        assigned: &AssignedVm,
        shared: &Shared,
    ) -> Result<(UnixListener, Held), DriverError> {
        let Some(lock) = room.hold()? else { return refuse("somebody else is starting this VM") };
        let spec =
            serde_json::to_vec_pretty(assigned).map_err(|error| system("write the spec")(error.into()))?;
        write_whole(&room.spec, &spec)?;
        let paths = Paths::of(room);
        let (jail, mut command) = match &self.jails {
            Some(jails) => jails.make(vm, room, assigned).map(|(jail, command)| (Some(jail), command))?,
            None => (None, self.free(vm, room, &paths)?),
        };
        command.args(["--api-sock", API]);
        let machine = machine(&parts, assigned, jail.as_ref())?;
        let listener = bind(&room.ready)?;
        if let Some(jail) = &jail {
            jail.own(&room.ready)?;
            for (_, tap) in &parts.taps {
                taps::give(tap, jail.uid).map_err(system("give the VM its tap"))?;
            }
        }
        // Firecracker opens them by name.
        drop(parts.taps);
        let locks = std::iter::once(lock).chain(parts.locks).collect();
        let process = self.run(command, vm, (&paths, &machine), locks, shared)?;
        Ok((listener, process))
    }

    /// Firecracker without a jail, in the VM's own directory.
    fn free(&self, vm: VmId, room: &Room, paths: &Paths) -> Result<Command, DriverError> {
        symlink(".", &paths.root).map_err(system(format!("create {}", paths.root.display())))?;
        let mut command = Command::new(&self.firecracker);
        command.current_dir(&room.directory).args(["--id", &vm.to_string()]);
        Ok(command)
    }

    fn run(
        &self,
        mut command: Command,
        vm: VmId,
        (paths, machine): (&Paths, &Machine),
        locks: Vec<OwnedFd>,
        shared: &Shared,
    ) -> Result<Held, DriverError> {
        let output = self.host.console_file(vm);
        command.stdin(console::make_input(&paths.typed).map_err(system("make the console's pipe"))?);
        command.stdout(console::make_output(&output).map_err(system("open the console's file"))?);
        let (carrier, words) = spawn::carrier(&locks).map_err(system("hand over descriptors"))?;
        command.stderr(carrier);
        let note = File::create(&paths.pid).map_err(system("note the process"))?;
        spawn::detach(&mut command, note.into());
        let program = command.get_program().to_owned();
        let mut child = command.spawn().map_err(system(format!("start {}", program.display())))?;
        // Our copies go, so that the process alone has its locks.
        drop((command, locks));
        let process = i32::try_from(child.id()).ok().and_then(Identity::of);
        let started = match process.and_then(|process| process.open().map(|held| (process, held))) {
            Some((process, held)) => start_machine(paths, machine, &words).and_then(|()| {
                let text =
                    serde_json::to_vec(&process).map_err(|error| system("note the process")(error.into()))?;
                write_whole(&paths.process, &text)?;
                Ok(held)
            }),
            None => refuse("Firecracker ended at once"),
        };
        match started {
            Ok(held) => {
                shared.keep(child);
                Ok(held)
            }
            Err(error) => {
                child
                    .kill()
                    .and_then(|()| child.wait())
                    .map_err(system("end a Firecracker that did not start"))?;
                Err(with_words(error, words))
            }
        }
    }
}

fn start_machine(paths: &Paths, machine: &Machine, words: &UnixStream) -> Result<(), DriverError> {
    let api = Api::new(paths.api.clone(), CALL_MAX);
    await_api(&api, words)?;
    machine.start(&api)
}

/// Waits until the API answers. Firecracker makes its socket itself and tells nobody.
fn await_api(api: &Api, words: &UnixStream) -> Result<(), DriverError> {
    let until = Instant::now() + START_MAX;
    while let Err(error) = api.instance() {
        // The other end of its standard error, which is closed when it ends.
        let mut end = [PollFd::new(words, PollFlags::empty())];
        let woken = poll(&mut end, Some(&PAUSE)).unwrap_or(0);
        if woken > 0 && end[0].revents().contains(PollFlags::HUP) {
            return refuse("Firecracker did not start");
        }
        if Instant::now() > until {
            return refuse(format!("Firecracker does not answer: {error}"));
        }
    }
    Ok(())
}

/// Adds what the process has said before it ended, which is mostly why.
fn with_words(error: DriverError, words: UnixStream) -> DriverError {
    let mut said = Vec::new();
    // It has ended, so there is an end; a child of its own that is still there must not hold us up.
    let _ = words.set_nonblocking(true);
    let _ = words.take(WORDS_BYTES_MAX).read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    if said.is_empty() { error } else { DriverError::Refused(format!("{}: {said}", error.chain())) }
}

/// Makes the file larger and tells Firecracker. It is never made smaller again: the guest may have seen it, whatever the
/// answer was.
///
/// # Errors
/// If the file cannot be made larger, or Firecracker does not take it.
pub(super) fn grow_disk(paths: &Paths, index: usize, disk: &Path, size: ByteSize) -> Result<(), DriverError> {
    let what = || format!("grow disk {index} of the machine to {size}");
    let file = File::options().write(true).open(disk).map_err(system(what()))?;
    if file.metadata().map_err(system(what()))?.len() < size.bytes() {
        file.set_len(size.bytes()).map_err(system(what()))?;
    }
    let path_on_host = if paths.jail.exists() { disk_id(index) } else { text(disk)? };
    let change = DriveChange { drive_id: disk_id(index), path_on_host };
    let told = Api::new(paths.api.clone(), CALL_MAX).change_drive(&change);
    told.map_err(|error| system(what())(io::Error::other(error)))
}

/// What Firecracker is to be told, with the files where it sees them.
fn machine(parts: &Parts, assigned: &AssignedVm, jail: Option<&Jail>) -> Result<Machine, DriverError> {
    let file = |path: &Path, name: &str| match jail {
        Some(jail) => jail.take_file(path, name).map(|()| name.to_owned()),
        None => text(path),
    };
    let disk = |(index, (path, read_only)): (usize, &(PathBuf, bool))| {
        let name = disk_id(index);
        let path = match jail {
            Some(jail) => jail.take_disk(path, &name, *read_only).map(|()| name),
            None => text(path),
        };
        Ok(Disk { path: path?, read_only: *read_only })
    };
    let taps = parts.taps.iter().map(|(name, _)| name.clone());
    Ok(Machine {
        kernel: file(&parts.kernel, "kernel")?,
        initrd: parts.initrd.as_ref().map(|path| file(path, "initrd")).transpose()?,
        command_line: assigned.command_line.clone(),
        disks: parts.disks.iter().enumerate().map(disk).collect::<Result<_, _>>()?,
        taps: taps.zip(assigned.nics.iter().map(|nic| nic.mac)).collect(),
        memory_mib: assigned.memory.bytes().div_ceil(1 << 20),
        cpus: assigned.cpus,
    })
}

/// A path as JSON can hold it.
fn text(path: &Path) -> Result<String, DriverError> {
    // Firecracker does not run in our directory.
    let path = std::path::absolute(path).map_err(system(format!("find {}", path.display())))?;
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => refuse(format!("{} is not UTF-8", path.display())),
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
    let paths = Paths::of(room);
    let process = match fs::read(&paths.process) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        text => Some(text.map_err(system(format!("read {}", paths.process.display())))?),
    };
    let failed = || format!("read {}", paths.process.display());
    let process: Option<Identity> = process
        .map(|text| serde_json::from_slice(&text))
        .transpose()
        .map_err(|error| system(failed())(error.into()))?;
    Ok(match process {
        Some(process) if process.alive() => Found::Running(process),
        None if room.is_held()? => Found::Starting,
        _ => Found::Ended,
    })
}

/// Ends Firecracker, if there is one, and waits until it is gone.
///
/// # Errors
/// If it does not die.
pub(super) fn end(room: &Room) -> Result<(), DriverError> {
    let until = Instant::now() + START_MAX;
    loop {
        let process = match look(room)? {
            Found::Running(process) => Some(process),
            Found::Starting => noted(room)?,
            Found::Nothing | Found::Ended => return Ok(()),
        };
        if let Some(process) = process.and_then(|process| process.open()) {
            process.signal(Signal::KILL);
            return wait_for_end(&process, "Firecracker");
        }
        if Instant::now() > until {
            return refuse("a Firecracker is stuck in its start");
        }
        // A child between its fork and its first words, or one that is just going: neither tells anybody.
        let _ = poll(&mut [], Some(&PAUSE));
    }
}

/// The process that has the lock, if it has noted itself. As long as somebody has the lock it is that process: its starter
/// has none any more.
fn noted(room: &Room) -> Result<Option<Identity>, DriverError> {
    let pid = fs::read_to_string(Paths::of(room).pid).unwrap_or_default();
    let found = pid.parse().ok().and_then(Identity::of);
    // Looked at after its identity was read: a pid that has changed hands since is not taken for it.
    Ok(if room.is_held()? { found } else { None })
}
