//! Where the parts of one VM's run lie that only QEMU has.

use std::path::PathBuf;

use crate::room::Room;

/// All of them are in the VM's directory.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// Which process is the vsock backend.
    pub(super) backend: PathBuf,
    /// Locked by QEMU, and so names its pid.
    pub(super) pid_file: PathBuf,
    /// QEMU's machine protocol.
    pub(super) qmp: PathBuf,
    /// Where the guest's serial console is typed at.
    pub(super) console: PathBuf,
    /// Where QEMU reaches the vsock backend.
    pub(super) vhost: PathBuf,
    /// What QEMU said.
    pub(super) qemu_log: PathBuf,
    /// What the backend said.
    pub(super) backend_log: PathBuf,
}

impl Paths {
    pub(super) fn of(room: &Room) -> Paths {
        let file = |name: &str| room.directory.join(name);
        Paths {
            backend: file("vsock.json"),
            pid_file: file("qemu.pid"),
            qmp: file("qmp"),
            console: file("console"),
            vhost: file("vhost"),
            qemu_log: file("qemu.log"),
            backend_log: file("vsock.log"),
        }
    }
}
