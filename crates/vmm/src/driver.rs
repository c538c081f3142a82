//! What a driver must be able to do. The fake and the real ones pass the same suite.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use lightbyte_api::assigned::{Arriving, AssignedNic, AssignedVm, AssignedVolume, HostObject};
use lightbyte_api::kinds::image::Part;
use lightbyte_api::observed::{Lease, Squatter};
use lightbyte_api::wire::EndedVm;
use lightbyte_api::{ByteSize, Name, Timestamp, VmId, VolumeId};
use lightbyte_guest::protocol::AGENT_PORT;
use lightbyte_plan::agent::{Fetched, Leaving, Saved, VmmState};

use crate::peers::Sum;

/// Why a driver could not do it, in words for people: it ends up in the status of the object.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The host does not allow it in its present state.
    #[error("{0}")]
    Refused(String),
    /// A call to the system failed.
    #[error("{context}")]
    System {
        /// What was tried, verb first.
        context: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl DriverError {
    /// Nobody in the guest listens on that port of vsock.
    pub(crate) fn nobody_at(port: u32) -> DriverError {
        DriverError::Refused(match port {
            AGENT_PORT => {
                "the guest's agent is not there: it boots, shuts down, or its image has none".to_owned()
            }
            port => format!("the guest takes no connection on port {port}"),
        })
    }
}

impl DriverError {
    /// The error and all its causes, in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        text
    }
}

/// What happens to a VM without being asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmmEvent {
    /// Its machine process has ended.
    Exited(VmId),
    /// Its guest has said how it is about to end the machine.
    Leaving {
        /// The VM.
        vm: VmId,
        /// What it said.
        leaving: Leaving,
    },
    /// Its guest has said what hinders it.
    Hindered {
        /// The VM.
        vm: VmId,
        /// In the guest's words; bounded, and not to be believed.
        problem: String,
    },
    /// Its guest has said that it is ready.
    Ready {
        /// The VM.
        vm: VmId,
        /// When the guest's agent began to run.
        agent_at: Timestamp,
    },
}

/// Who is told of events. Called from threads of the driver; must not block.
pub type Listener = Arc<dyn Fn(VmmEvent) + Send + Sync>;

/// Machine processes. They outlive the agent: what runs is found again by [`Vmm::list`].
pub trait Vmm: Send + Sync {
    /// Starts the machine process unless it runs. Its disks and taps must be there.
    ///
    /// # Errors
    /// [`DriverError::Refused`] when a part is missing, or when traces of an ended process are left.
    fn ensure(&self, vm: VmId, assigned: &AssignedVm) -> Result<(), DriverError>;

    /// Asks the guest to shut down, and returns at once.
    ///
    /// # Errors
    /// When the guest cannot be asked; the caller will end the process after its grace time.
    fn shut_down(&self, vm: VmId) -> Result<(), DriverError>;

    /// Ends the process, waits until it is gone, and removes what it leaves. Without one nothing happens.
    ///
    /// # Errors
    /// When it cannot be ended.
    fn remove(&self, vm: VmId) -> Result<(), DriverError>;

    /// Makes a disk of a machine that runs as large as `size`, its file included. A machine that does not use the disk,
    /// or has it as large, is left as it is.
    ///
    /// # Errors
    /// When the machine does not take it. Its file may be larger all the same, and then so is the disk from the next start on.
    fn grow_disk(&self, vm: VmId, disk: VolumeId, size: ByteSize) -> Result<(), DriverError>;

    /// Which of the machine's disks this is, the root being 0; nothing if it does not run, or does not have it.
    ///
    /// # Errors
    /// When it cannot be found out.
    fn place_of(&self, vm: VmId, disk: VolumeId) -> Result<Option<usize>, DriverError>;

    /// The state of the machine process.
    ///
    /// # Errors
    /// When it cannot be found out; that is never taken for absence.
    fn state(&self, vm: VmId) -> Result<VmmState, DriverError>;

    /// Every VM of which there is a process or a trace.
    ///
    /// # Errors
    /// When the list cannot be made whole.
    fn list(&self) -> Result<Vec<VmId>, DriverError>;

    /// Sets who is told of events from now on, also of processes that run already.
    fn watch(&self, listener: Listener);
}

/// Whether the machines that may be writing to a disk have held their breath ever since they were asked to.
pub type StillFlushed<'a> = &'a dyn Fn() -> Result<(), DriverError>;

/// Disks of VMs, and their snapshots. A disk is made once; that it must exist afterwards is decided elsewhere.
pub trait Disks: Send + Sync {
    /// Makes the disk from its source unless it is there: whole or not at all. It is at least as large as assigned.
    /// `still_flushed` is for a source that machines may be writing to: asked when all is copied, and an error of it
    /// leaves nothing.
    ///
    /// # Errors
    /// When the source is missing, the disk does not fit, or a machine uses the source and `still_flushed` is `None`.
    fn ensure(
        &self,
        volume: VolumeId,
        assigned: &AssignedVolume,
        still_flushed: Option<StillFlushed<'_>>,
    ) -> Result<(), DriverError>;

    /// Makes a disk as large as `size`; one that is as large is left as it is.
    ///
    /// # Errors
    /// [`DriverError::Refused`] when it is not there, or smaller and used by a VM.
    fn grow(&self, volume: VolumeId, size: ByteSize) -> Result<(), DriverError>;

    /// Removes the disk. Without one nothing happens.
    ///
    /// # Errors
    /// [`DriverError::Refused`] while a VM uses it.
    fn remove(&self, volume: VolumeId) -> Result<(), DriverError>;

    /// The size of the disk, if it is there.
    ///
    /// # Errors
    /// When it cannot be found out; that is never taken for absence.
    fn size(&self, volume: VolumeId) -> Result<Option<ByteSize>, DriverError>;

    /// Whether the disk is there.
    ///
    /// # Errors
    /// When it cannot be found out; that is never taken for absence.
    fn exists(&self, volume: VolumeId) -> Result<bool, DriverError> {
        Ok(self.size(volume)?.is_some())
    }

    /// Every disk that is there, or of which something was fetched.
    ///
    /// # Errors
    /// When the list cannot be made whole.
    fn list(&self) -> Result<Vec<VolumeId>, DriverError>;

    /// Fetches some more of a disk that another worker has, for a few seconds at the most. Where it was broken off it goes
    /// on, and when nobody writes to the source any more it begins again with what differs.
    ///
    /// # Errors
    /// When the worker cannot be reached, does not have the disk, or what came is not what was sent; what was fetched stays.
    fn fetch(&self, volume: VolumeId, arriving: &Arriving) -> Result<(), DriverError>;

    /// What was fetched of a disk that another worker has.
    ///
    /// # Errors
    /// When it cannot be found out; that is never taken for absence.
    fn fetched(&self, volume: VolumeId) -> Result<Option<Fetched>, DriverError>;

    /// Makes what was fetched the disk, durably. When it is already, nothing happens.
    ///
    /// # Errors
    /// [`DriverError::Refused`] when not all was fetched since nobody writes to the source.
    fn take_fetched(&self, volume: VolumeId) -> Result<(), DriverError>;

    /// Removes what was fetched. Without any nothing happens.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn drop_fetched(&self, volume: VolumeId) -> Result<(), DriverError>;

    /// Puts the disk where nothing finds it but a person, who has a day for that. Without one nothing happens.
    ///
    /// # Errors
    /// [`DriverError::Refused`] while a VM uses it.
    fn quarantine(&self, volume: VolumeId) -> Result<(), DriverError>;

    /// Takes away disks that were put aside and have had their day.
    fn sweep(&self);

    /// The sums of these chunks of a disk, for a worker that fetches it; see [`crate::peers`]. At most
    /// [`SUMS_MAX`](crate::peers::SUMS_MAX), and none beyond the end.
    ///
    /// # Errors
    /// [`DriverError::Refused`] when it is not there.
    fn sums(&self, volume: VolumeId, chunks: Range<u64>) -> Result<Vec<Sum>, DriverError>;

    /// These bytes of a disk, for a worker that fetches it. At most
    /// [`READ_BYTES_MAX`](crate::peers::READ_BYTES_MAX), and none beyond the end.
    ///
    /// # Errors
    /// [`DriverError::Refused`] when it is not there.
    fn read(&self, volume: VolumeId, bytes: Range<u64>) -> Result<Vec<u8>, DriverError>;
}

/// What there is of a VM's taps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapState {
    /// How many are there.
    pub count: usize,
    /// Whether all are there that are assigned, with what is assigned to them.
    pub as_assigned: bool,
    /// Whether these have been probed for, and nobody answered.
    pub probed: bool,
    /// What DHCP servers have given to those that have no address assigned.
    pub leases: Vec<Lease>,
    /// The virtual address that the first lets through.
    pub virtual_address: Option<Ipv4Addr>,
}

/// Taps of VMs, on the bridges of their networks.
pub trait Network: Send + Sync {
    /// Makes the taps as they are assigned: what is missing, and what is otherwise.
    ///
    /// # Errors
    /// When a bridge is missing.
    fn ensure(&self, vm: VmId, nics: &[AssignedNic]) -> Result<(), DriverError>;

    /// Removes all taps of the VM. Without any nothing happens.
    ///
    /// # Errors
    /// [`DriverError::Refused`] while the VM runs.
    fn remove(&self, vm: VmId) -> Result<(), DriverError>;

    /// Asks on the bridges who has the addresses of `nics`, of whom there should be nobody: the VM does not run. Takes at
    /// most a quarter of a second. If nobody answers, that is noted with the taps and lasts as long as they do.
    ///
    /// # Errors
    /// When it cannot be asked, or a tap is missing.
    fn probe(&self, vm: VmId, nics: &[AssignedNic]) -> Result<Vec<Squatter>, DriverError>;

    /// Tells the networks of `nics` that their virtual addresses are at these cards: whoever remembers somebody else forgets them.
    ///
    /// # Errors
    /// When a bridge is missing, or nothing can be sent there.
    fn announce(&self, nics: &[AssignedNic]) -> Result<(), DriverError>;

    /// Whether somebody else on the networks of `nics` has one of their virtual addresses. Takes at most a quarter of a second.
    ///
    /// # Errors
    /// As [`Network::announce`].
    fn is_taken(&self, nics: &[AssignedNic]) -> Result<bool, DriverError>;

    /// What there is of the VM's taps, compared with `nics`. Of a virtual address only the address is compared.
    ///
    /// # Errors
    /// When it cannot be found out; that is never taken for absence.
    fn state(&self, vm: VmId, nics: &[AssignedNic]) -> Result<TapState, DriverError>;

    /// How many taps of the VM are there.
    ///
    /// # Errors
    /// As [`Network::state`].
    fn count(&self, vm: VmId) -> Result<usize, DriverError> {
        Ok(self.state(vm, &[])?.count)
    }

    /// Every VM that has a tap. Those that cannot be told from their names are not listed, see the sweeper.
    ///
    /// # Errors
    /// When the list cannot be made whole.
    fn list(&self) -> Result<Vec<VmId>, DriverError>;
}

/// What the agent keeps on disk: one directory for each object, by uid.
pub trait Records: Send + Sync {
    /// Saves durably: after a crash either the old or the new record is there, whole.
    ///
    /// # Errors
    /// When the disk is full or broken. The old record is still there then.
    fn save(&self, object: HostObject, saved: &Saved) -> Result<(), DriverError>;

    /// Removes the record and the object's directory. Without one nothing happens.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn forget(&self, object: HostObject) -> Result<(), DriverError>;

    /// The record, if there is one.
    ///
    /// # Errors
    /// When it cannot be read; that is never taken for absence.
    fn load(&self, object: HostObject) -> Result<Option<Saved>, DriverError>;

    /// Every object that has a record.
    ///
    /// # Errors
    /// When the list cannot be made whole.
    fn list(&self) -> Result<Vec<HostObject>, DriverError>;
}

/// Parts of images on this host. How they come is not the drivers' business.
pub trait Parts: Send + Sync {
    /// Whether the part is there, as far as a look at it tells: its content is checked when it is used.
    ///
    /// # Errors
    /// When it cannot be found out; that is never taken for absence.
    fn has(&self, part: &Part) -> Result<bool, DriverError>;
}

/// Most bytes of one [`ConsoleChunk`]: what a pipe holds, so that whoever passes it on need not cut it.
pub const CONSOLE_CHUNK_BYTES_MAX: u64 = 64 * 1024;

/// Where to begin in a guest's console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleFrom {
    /// So many bytes before its end, or as far back as it is kept.
    Last(u64),
    /// At a position, such as [`ConsoleChunk::next`] of the chunk before. One that is not kept any more means the oldest
    /// that is, and one beyond the end means the end.
    Position(u64),
}

impl ConsoleFrom {
    /// The positions of the chunk that begins here, of a console of which `kept` is there.
    pub(crate) fn within(self, kept: Range<u64>) -> Range<u64> {
        let begin = match self {
            ConsoleFrom::Last(bytes) => kept.end.saturating_sub(bytes),
            ConsoleFrom::Position(position) => position,
        };
        let begin = begin.clamp(kept.start, kept.end);
        begin..kept.end.min(begin + CONSOLE_CHUNK_BYTES_MAX)
    }
}

/// A part of what a guest has said on its console.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsoleChunk {
    /// Position of the first byte, counted from the first that the VM ever said. It goes on over restarts of the VM, and
    /// when the console is shortened. More than was asked for means that what lay between is not kept any more.
    pub begin: u64,
    /// At most [`CONSOLE_CHUNK_BYTES_MAX`]; empty at the end.
    pub bytes: Vec<u8>,
}

impl ConsoleChunk {
    /// Where the next chunk begins.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.begin + self.bytes.len() as u64
    }
}

/// The way into a guest.
pub trait Guest: Send + Sync {
    /// A byte stream to `port` of the guest's vsock, blocking and without time-outs of its own. It breaks off when the
    /// machine process ends. The call is over after `wait`.
    ///
    /// # Errors
    /// [`DriverError::Refused`] when the guest does not run, or takes no connection on that port.
    fn connect(&self, vm: VmId, port: u32, wait: Duration) -> Result<UnixStream, DriverError>;

    /// The guest's serial console: what it says from now on, and what is typed at it, as raw bytes. Blocking and without
    /// time-outs; it breaks off when the machine process ends. Only one at a time is served, and it must be read: a guest
    /// whose words nobody takes waits for them to be taken.
    ///
    /// # Errors
    /// [`DriverError::Refused`] when the guest does not run.
    fn open_console(&self, vm: VmId) -> Result<UnixStream, DriverError>;

    /// The positions of what the guest said in the life of the machine before the last one; of a VM that is no more, in its
    /// last. Empty if there was none. What lies there may not be kept any more.
    ///
    /// # Errors
    /// When it cannot be read.
    fn previous_life(&self, vm: VmId) -> Result<Range<u64>, DriverError>;

    /// The newest VM of that name of which nothing but its console is left, if one ended within [`ENDED_KEPT_FOR`](crate::ended::ENDED_KEPT_FOR).
    ///
    /// # Errors
    /// When it cannot be read.
    fn ended(&self, name: &Name) -> Result<Option<EndedVm>, DriverError>;

    /// What the guest has said on its console, as far as it is kept: at least the newest MiB; for a week after the VM is forgotten.
    /// To follow it, ask again for what comes next: nothing tells of new bytes. A VM that has said nothing, or is not
    /// there, has an empty console.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read_console(&self, vm: VmId, from: ConsoleFrom) -> Result<ConsoleChunk, DriverError>;
}

/// All drivers of one host.
#[derive(Clone)]
pub struct Drivers {
    /// Machine processes.
    pub vmm: Arc<dyn Vmm>,
    /// Disks.
    pub disks: Arc<dyn Disks>,
    /// Taps.
    pub network: Arc<dyn Network>,
    /// Parts of images.
    pub parts: Arc<dyn Parts>,
    /// Records.
    pub records: Arc<dyn Records>,
    /// The way into guests.
    pub guest: Arc<dyn Guest>,
}
