//! Firecracker as a VMM, in a jail unless that is not wanted. What it shares with other VMMs is in `machines`.
//!
//! ```text
//! RUN/<uid>/            beside what every VMM has, see `room`
//!   pid, process.json   which process it is; see `start`
//!   typed               what is typed at the guest; see `console`
//!   jail.json           what was allotted to it; see `jail`
//!   root/               a link to the jail's root directory, or to this directory: Firecracker's own
//!     api, vsock        sockets
//!     log, metrics
//! ```

pub mod api;
mod console;
mod jail;
mod limits;
mod machine;
mod paths;
mod start;
pub mod types;
mod version;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use lightbyte_api::assigned::AssignedVm;
use lightbyte_api::{ByteSize, VmId};

use self::jail::Jails;
pub use self::jail::{Settings as JailSettings, UIDS};
use self::paths::Paths;
use crate::driver::DriverError;
use crate::files::Files;
use crate::machines::{Found, Host, Machines, Program, Start};
use crate::process::Identity;
use crate::room::{Room, bind};

/// What the driver needs to know of its host.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of the VMs' run directories, such as `/run/lightbyte/NAME`: on a tmpfs, and at most 48 bytes long, so
    /// that sockets fit below it.
    pub run: PathBuf,
    /// Firecracker, as a path; see [`find`].
    pub firecracker: PathBuf,
    /// How it is jailed. Without a jail it has this process's rights.
    pub jail: Option<JailSettings>,
    /// The name of this worker, for the guests.
    pub worker: String,
    /// Where parts of images, disks and consoles are.
    pub files: Files,
}

/// Firecracker on this host.
#[derive(Debug)]
struct Firecracker {
    host: Host,
    firecracker: PathBuf,
    jails: Option<Jails>,
}

/// A program in `PATH`, for names without a slash; a path as it is. Nothing if it is not there.
#[must_use]
pub fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|place| place.join(program)).find(|found| found.is_file())
}

impl Machines {
    /// The driver of Firecracker. It asks the programs for their versions.
    ///
    /// # Errors
    /// [`DriverError::Refused`] if a version is not supported, or jails cannot be made here.
    pub fn firecracker(settings: Settings) -> Result<Machines, DriverError> {
        version::check(&settings.firecracker, settings.jail.as_ref().map(|jail| jail.jailer.as_path()))?;
        let run = settings.run.clone();
        // The jailer names its directories after the file, not after a link to it.
        let firecracker = std::fs::canonicalize(&settings.firecracker)
            .map_err(crate::room::system(format!("find {}", settings.firecracker.display())))?;
        let jails = settings.jail.map(|jail| Jails::new(jail, firecracker.clone(), run)).transpose()?;
        let host = Host { run: settings.run, worker: settings.worker, files: settings.files };
        let program = Firecracker { host: host.clone(), firecracker, jails };
        Machines::new(host, Box::new(program))
    }
}

impl Program for Firecracker {
    fn sockets(&self) -> &'static str {
        paths::ROOT
    }

    fn goes_on(&self) -> bool {
        false
    }

    fn resolve<'a>(&'a self, vm: VmId, assigned: &'a AssignedVm) -> Result<Start<'a>, DriverError> {
        let parts = self.parts(vm, assigned)?;
        Ok(Box::new(move |room, shared| self.start_all(parts, (vm, room), assigned, shared)))
    }

    fn look(&self, room: &Room) -> Result<Found, DriverError> {
        start::look(room)
    }

    fn settled(&self, room: &Room) -> Result<Option<Identity>, DriverError> {
        match start::look(room)? {
            Found::Running(process) => Ok(Some(process)),
            _ => Ok(None),
        }
    }

    fn end(&self, room: &Room) -> Result<(), DriverError> {
        start::end(room)
    }

    fn clear(&self, _vm: VmId, room: &Room, _is_patient: bool) -> Result<(), DriverError> {
        jail::remove(room)
    }

    /// Firecracker looks at the file anew.
    fn grow_disk(&self, room: &Room, index: usize, disk: &Path, size: ByteSize) -> Result<(), DriverError> {
        start::grow_disk(&Paths::of(room), index, disk, size)
    }

    /// Any number is served: all see what the guest says, and what each types reaches it.
    fn open_console(&self, room: &Room, console: &Path, process: Identity) -> io::Result<UnixStream> {
        let process = process.open().ok_or(io::ErrorKind::ConnectionRefused)?;
        console::open(console, &Paths::of(room).typed, process)
    }

    /// A jailed process owns the directory in which the socket would be made and might put something else in its
    /// place, so that is done only while it does not run yet.
    fn listen_again(&self, room: &Room) -> Option<UnixListener> {
        let is_jailed = Paths::of(room).jail.exists();
        if is_jailed { None } else { bind(&room.ready).ok() }
    }

    fn logs(&self, room: &Room) -> Vec<PathBuf> {
        let paths = Paths::of(room);
        vec![paths.log, paths.metrics]
    }
}
