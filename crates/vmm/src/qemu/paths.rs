//! Where the parts of one VM's run lie.

use std::io;
use std::path::{Path, PathBuf};

use lightbyte_api::VmId;

/// Longest path of a socket: `sockaddr_un` holds 108 bytes with the nought at the end (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The longest name that is added to a VM's directory: the guest's highest port beside the vsock's socket.
const NAME_LONGEST: &str = "/vsock_4294967295";

/// A uid as text.
const UID_BYTES: usize = 36;

/// Everything of one VM that a reboot of the host may take away.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// All of the following are in it.
    pub(super) directory: PathBuf,
    /// The assignment that it was started with.
    pub(super) spec: PathBuf,
    /// Which process is the vsock backend.
    pub(super) backend: PathBuf,
    /// Held by QEMU from its fork to its end.
    pub(super) lock: PathBuf,
    /// Locked by QEMU, and so names its pid.
    pub(super) pid_file: PathBuf,
    /// QEMU's machine protocol.
    pub(super) qmp: PathBuf,
    /// Where the guest's serial console is typed at.
    pub(super) console: PathBuf,
    /// Where host programs reach the guest's vsock; guests reach `<uds>_<port>`.
    pub(super) uds: PathBuf,
    /// Where QEMU reaches the vsock backend.
    pub(super) vhost: PathBuf,
    /// Where the guest's agent says that it is ready.
    pub(super) ready: PathBuf,
    /// When it said so.
    pub(super) agent_at: PathBuf,
    /// What QEMU said.
    pub(super) qemu_log: PathBuf,
    /// What the backend said.
    pub(super) backend_log: PathBuf,
}

impl Paths {
    pub(super) fn new(run: &Path, vm: VmId) -> Paths {
        let directory = run.join(vm.to_string());
        let file = |name: &str| directory.join(name);
        Paths {
            spec: file("spec.json"),
            backend: file("vsock.json"),
            lock: file("lock"),
            pid_file: file("qemu.pid"),
            qmp: file("qmp"),
            console: file("console"),
            uds: file("vsock"),
            vhost: file("vhost"),
            ready: file(&format!("vsock_{}", lightbyte_guest::protocol::READY_PORT)),
            agent_at: file("agent_at"),
            qemu_log: file("qemu.log"),
            backend_log: file("vsock.log"),
            directory,
        }
    }
}

/// Whether sockets of VMs can lie below `run`.
///
/// # Errors
/// If it is too long.
pub(super) fn check_run(run: &Path) -> io::Result<()> {
    if run.as_os_str().len() + 1 + UID_BYTES + NAME_LONGEST.len() <= SOCKET_PATH_BYTES_MAX {
        return Ok(());
    }
    let most = SOCKET_PATH_BYTES_MAX - 1 - UID_BYTES - NAME_LONGEST.len();
    let text = format!("{} is too long for sockets below it; at most {most} bytes fit", run.display());
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}
