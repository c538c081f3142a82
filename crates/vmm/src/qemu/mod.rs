//! QEMU's microvm as a VMM. What it shares with other VMMs is in `machines`.
//!
//! ```text
//! RUN/<uid>/            beside what every VMM has, see `room`
//!   qemu.pid            locked by QEMU; see `start`
//!   qmp, console,       sockets
//!   vhost
//!   vsock.json          which process is the vsock backend
//! ```

mod arguments;
mod paths;
mod qmp;
mod start;
mod tsc;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lightbyte_api::assigned::AssignedVm;
use lightbyte_api::{ByteSize, VmId};
use serde_json::json;

use self::arguments::Accelerator;
use self::paths::Paths;
use self::qmp::{Qmp, QmpError};
use crate::channel;
use crate::driver::DriverError;
use crate::files::Files;
use crate::kvm::KvmVerdict;
use crate::machines::{Found, Host, Machines, Program, Start};
use crate::process::Identity;
use crate::room::Room;

/// How long QEMU may take for a command.
const ASK_MAX: Duration = Duration::from_secs(2);

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

/// QEMU on this host.
#[derive(Debug)]
struct Qemu {
    host: Host,
    qemu: PathBuf,
    vsock: Vec<PathBuf>,
    accelerator: Accelerator,
}

impl Machines {
    /// The driver of QEMU. Without KVM it measures the time stamp counter, which takes 150 ms.
    ///
    /// # Errors
    /// If the run directory cannot be made, or is too long for sockets below it.
    pub fn qemu(settings: Settings) -> Result<Machines, DriverError> {
        let accelerator = match settings.kvm.is_usable() {
            true => Accelerator::Kvm,
            false => Accelerator::Tcg { tsc_khz: tsc::measure_khz() },
        };
        let host = Host { run: settings.run, worker: settings.worker, files: settings.files };
        let qemu = Qemu { host: host.clone(), qemu: settings.qemu, vsock: settings.vsock, accelerator };
        Machines::new(host, Box::new(qemu))
    }
}

impl Program for Qemu {
    fn sockets(&self) -> &'static str {
        ""
    }

    fn goes_on(&self) -> bool {
        true
    }

    fn resolve<'a>(&'a self, vm: VmId, assigned: &'a AssignedVm) -> Result<Start<'a>, DriverError> {
        let parts = self.parts(vm, assigned)?;
        Ok(Box::new(move |room, shared| self.start_all(parts, room, assigned, shared)))
    }

    fn look(&self, room: &Room) -> Result<Found, DriverError> {
        start::look(room)
    }

    fn settled(&self, room: &Room) -> Result<Option<Identity>, DriverError> {
        start::settled(room)
    }

    fn end(&self, room: &Room) -> Result<(), DriverError> {
        start::end_qemu(room)
    }

    fn clear(&self, _vm: VmId, room: &Room, is_patient: bool) -> Result<(), DriverError> {
        let paths = Paths::of(room);
        // A backend whose QEMU was never started has nobody who reads, and would wait for it.
        let was_started = paths.qmp.exists();
        let patience = if is_patient && was_started { start::BACKEND_END_MAX } else { Duration::ZERO };
        start::end_backend(&paths, patience)
    }

    /// QEMU makes the file larger itself.
    fn grow_disk(&self, room: &Room, index: usize, _disk: &Path, size: ByteSize) -> Result<(), DriverError> {
        let said = |error: QmpError| DriverError::System {
            context: format!("grow disk {index} of the machine to {size}"),
            source: io::Error::other(error),
        };
        let mut qmp = Qmp::connect(&Paths::of(room).qmp, ASK_MAX).map_err(said)?;
        let words = json!({ "device": arguments::disk_id(index), "size": size.bytes() });
        qmp.execute("block_resize", &words).map(drop).map_err(said)
    }

    /// QEMU serves one at a time; a second one waits until the first is closed.
    fn open_console(&self, room: &Room, _console: &Path, _process: Identity) -> io::Result<UnixStream> {
        channel::reach(&Paths::of(room).console)
    }
}
