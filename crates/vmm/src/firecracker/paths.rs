//! Where the parts of one VM's run lie that only Firecracker has.

use std::path::PathBuf;

use crate::room::Room;

/// The directory of a VM's sockets: a link to its jail, or to its room. Paths of sockets are short, wherever the jail is.
pub(super) const ROOT: &str = "root";

/// Name of the note of what was allotted to a jailed VM.
pub(super) const JAIL: &str = "jail.json";

/// Names that Firecracker is told, in its own directory.
pub(super) const API: &str = "api";
/// The host's end of its vsock.
pub(super) const VSOCK: &str = "vsock";
/// Its log.
pub(super) const LOG: &str = "log";
/// Its metrics.
pub(super) const METRICS: &str = "metrics";

/// All of them are in the VM's directory.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// Where Firecracker's own directory is.
    pub(super) root: PathBuf,
    /// Firecracker's API.
    pub(super) api: PathBuf,
    /// What it logs.
    pub(super) log: PathBuf,
    /// Its metrics, a line a minute.
    pub(super) metrics: PathBuf,
    /// What is typed at the guest: a pipe.
    pub(super) typed: PathBuf,
    /// The process's pid, which it notes itself before anything else.
    pub(super) pid: PathBuf,
    /// Which process it is, noted once the machine runs.
    pub(super) process: PathBuf,
    /// What was allotted to a jailed VM.
    pub(super) jail: PathBuf,
}

impl Paths {
    pub(super) fn of(room: &Room) -> Paths {
        let file = |name: &str| room.directory.join(name);
        let root = file(ROOT);
        Paths {
            api: root.join(API),
            log: root.join(LOG),
            metrics: root.join(METRICS),
            root,
            typed: file("typed"),
            pid: file("pid"),
            process: file("process.json"),
            jail: file(JAIL),
        }
    }
}
