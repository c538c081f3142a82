//! Where the parts of one VM's run lie that every VMM has, and the lock that tells whether its process lives.
//!
//! ```text
//! RUN/<uid>/            on a tmpfs, gone after a reboot, as the processes are
//!   lock                held by the machine process from its fork to its end
//!   spec.json           what it was started with
//!   agent_at            when the guest's agent said that it is ready
//!   vsock, vsock_PORT   sockets, here or in a directory of the VMM's choice below
//! ```

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use lightbyte_api::VmId;
use rustix::fs::{FlockOperation, flock};

use crate::driver::DriverError;

/// Longest path of a socket: `sockaddr_un` holds 108 bytes with the nought at the end (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The longest name that is added to a VM's directory: the guest's highest port beside the vsock's socket.
const NAME_LONGEST: &str = "/vsock_4294967295";

/// A uid as text.
const UID_BYTES: usize = 36;

/// Most of a program's words that go into an error.
const WORDS_BYTES_MAX: u64 = 4096;

/// What of one VM a reboot of the host may take away.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    /// All of the following are in it.
    pub(crate) directory: PathBuf,
    /// The assignment that it was started with.
    pub(crate) spec: PathBuf,
    /// Held by the machine process from its fork to its end.
    pub(crate) lock: PathBuf,
    /// Where host programs reach the guest's vsock; guests reach `<uds>_<port>`.
    pub(crate) uds: PathBuf,
    /// Where the guest's agent says that it is ready.
    pub(crate) ready: PathBuf,
    /// When it said so.
    pub(crate) agent_at: PathBuf,
}

impl Room {
    /// The room of a VM below `run`, with its sockets in the directory `sockets` of it.
    pub(crate) fn new(run: &Path, vm: VmId, sockets: &str) -> Room {
        let directory = run.join(vm.to_string());
        let file = |name: &str| directory.join(name);
        let socket = |name: &str| if sockets.is_empty() { file(name) } else { file(sockets).join(name) };
        Room {
            spec: file("spec.json"),
            lock: file("lock"),
            agent_at: file("agent_at"),
            uds: socket("vsock"),
            ready: socket(&format!("vsock_{}", lightbyte_guest::protocol::READY_PORT)),
            directory,
        }
    }

    /// Takes the VM's lock; nothing if somebody has it. It passes to the machine process with its descriptor and is free
    /// again only when that process has ended.
    ///
    /// # Errors
    /// If the file cannot be opened or locked.
    pub(crate) fn hold(&self) -> Result<Option<OwnedFd>, DriverError> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&self.lock);
        let file = file.map_err(system("open the VM's lock"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file.into())),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(system("take the VM's lock")(error.into())),
        }
    }

    /// Whether somebody has the VM's lock. Those who look share a lock, and so do not mistake each other for a machine.
    ///
    /// # Errors
    /// If it cannot be found out.
    pub(crate) fn is_held(&self) -> Result<bool, DriverError> {
        let file = match File::open(&self.lock) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file.map_err(system("open the VM's lock"))?,
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(system("look at the VM's lock")(error.into())),
        }
    }

    /// Whether there is any trace of the VM.
    ///
    /// # Errors
    /// If it cannot be found out.
    pub(crate) fn is_there(&self) -> Result<bool, DriverError> {
        self.directory.try_exists().map_err(system(format!("look at {}", self.directory.display())))
    }
}

/// Whether sockets of VMs can lie below `run`, in the directory `sockets` of each.
///
/// # Errors
/// If it is too long.
pub(crate) fn check_run(run: &Path, sockets: &str) -> io::Result<()> {
    let below = 1 + UID_BYTES + sockets.len() + usize::from(!sockets.is_empty()) + NAME_LONGEST.len();
    if run.as_os_str().len() + below <= SOCKET_PATH_BYTES_MAX {
        return Ok(());
    }
    let most = SOCKET_PATH_BYTES_MAX - below;
    let text = format!("{} is too long for sockets below it; at most {most} bytes fit", run.display());
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// Replaces a file by a whole new one. It need not outlive a power cut: nothing here does.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), DriverError> {
    let new = path.with_extension("new");
    let write = || {
        fs::write(&new, bytes)?;
        fs::rename(&new, path)
    };
    write().map_err(system(format!("write {}", path.display())))
}

/// Listens at a path of a VM that is ours: what stands there is of a former life.
///
/// # Errors
/// If it cannot be bound.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, DriverError> {
    let _ = fs::remove_file(path);
    UnixListener::bind(path).map_err(system(format!("listen at {}", path.display())))
}

/// What a program has said, for an error.
pub(crate) fn last_words(log: &Path) -> String {
    let mut text = String::new();
    let _ = File::open(log).map(|file| file.take(WORDS_BYTES_MAX).read_to_string(&mut text));
    let text = text.trim();
    if text.is_empty() { "it said nothing".to_owned() } else { text.to_owned() }
}

/// A refusal.
pub(crate) fn refuse<T>(reason: impl Into<String>) -> Result<T, DriverError> {
    Err(DriverError::Refused(reason.into()))
}

/// Says what was tried when a call to the system failed.
pub(crate) fn system(context: impl Into<String>) -> impl FnOnce(io::Error) -> DriverError {
    let context = context.into();
    move |source| DriverError::System { context, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbyte_api::Uid;

    #[test]
    fn sockets_fit_or_the_directory_is_refused() {
        let vm = VmId::new(Uid::from_bits(7));
        for sockets in ["", "root"] {
            let lengths: Vec<usize> = (1..80)
                .filter(|length| check_run(Path::new(&"r".repeat(*length)), sockets).is_ok())
                .collect();
            let longest = "r".repeat(*lengths.last().expect("some fit"));
            let room = Room::new(Path::new(&longest), vm, sockets);
            let highest = format!("{}_{}", room.uds.display(), u32::MAX);
            assert_eq!(highest.len(), SOCKET_PATH_BYTES_MAX, "{sockets}");
            assert_eq!(lengths.len(), longest.len());
        }
    }
}
