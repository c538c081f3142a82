//! A host in memory: real in everything but the machine. It refuses what a real host would refuse, so that a wrong
//! order of steps fails here as it would there. It outlives agents, as a host does.

mod disks;
mod guest;
mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lightbyte_api::assigned::{Assigned, AssignedVm, HostObject};
use lightbyte_api::kinds::image::Part;
use lightbyte_api::wire::EndedVm;
use lightbyte_api::{ByteSize, MacAddress, Name, Timestamp, VmId, VolumeId};
use lightbyte_plan::agent::{Leaving, Saved, VmmState};
use serde::{Deserialize, Serialize};

use self::disks::{FakeDisk, FakeFetched};
use self::network::FakeTaps;
use crate::driver::{ConsoleChunk, DriverError, Drivers, Listener, Parts, Records, Vmm, VmmEvent};
use crate::ended::ENDED_MAX;
use crate::fake_guest::Calls;
use crate::files::short;
use crate::peers::Peers;

/// How much of a console is kept.
const CONSOLE_BYTES_MAX: usize = 1 << 20;

/// A host without hardware.
#[derive(Clone)]
pub struct FakeHost {
    state: Arc<Mutex<State>>,
}

/// What a host has on its disks, as it is kept in a file.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    disks: Vec<(VolumeId, FakeDisk)>,
    arriving: Vec<(VolumeId, FakeFetched)>,
    records: Vec<(HostObject, Saved)>,
}

#[derive(Default)]
struct State {
    /// The file that stands for the host's disks.
    kept_in: Option<PathBuf>,
    memory: Option<ByteSize>,
    bridges: BTreeSet<String>,
    vms: BTreeMap<VmId, FakeVm>,
    taps: BTreeMap<VmId, FakeTaps>,
    /// Who else is on the host's networks, whatever the bridge.
    squatters: BTreeMap<Ipv4Addr, MacAddress>,
    disks: BTreeMap<VolumeId, FakeDisk>,
    arriving: BTreeMap<VolumeId, FakeFetched>,
    peers: Option<Arc<dyn Peers>>,
    records: BTreeMap<HostObject, Saved>,
    consoles: BTreeMap<VmId, ConsoleChunk>,
    /// Where the last two lives of a console begin.
    lives: BTreeMap<VmId, (u64, u64)>,
    /// VMs of which only the console is left.
    ended: BTreeMap<Name, EndedVm>,
    /// VMs whose checks fail.
    sick: BTreeSet<VmId>,
    /// The revision that the proxy in a VM was told last: its disk outlives its machine.
    proxies: BTreeMap<VmId, Arc<AtomicU64>>,
    listener: Option<Listener>,
    on_start: Option<OnStart>,
    failures_left: u32,
    /// The parts of images that are there; all that there are when it is not said.
    parts: Option<BTreeSet<String>>,
}

type OnStart = Arc<dyn Fn(&FakeHost, VmId) + Send + Sync>;

struct FakeVm {
    assigned: AssignedVm,
    running: bool,
    shutdown_asked: bool,
    started: Instant,
    calls: Calls,
}

impl FakeVm {
    /// Its process ends, if it runs, and with it every connection to its guest.
    fn end(&mut self) -> bool {
        self.calls = Calls::default();
        std::mem::replace(&mut self.running, false)
    }
}

impl FakeHost {
    /// A host with so much memory, and the given bridges.
    #[must_use]
    pub fn new(memory: ByteSize, bridges: impl IntoIterator<Item = String>) -> FakeHost {
        let state =
            State { memory: Some(memory), bridges: bridges.into_iter().collect(), ..State::default() };
        FakeHost { state: Arc::new(Mutex::new(state)) }
    }

    /// Keeps disks and records in a file from now on, and begins with those that are there: the host has disks that outlive
    /// this process, as real ones do. Machines and taps end with it, as with the power.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn keep_in(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        match fs::read(path) {
            Ok(text) => {
                let kept: Kept = serde_json::from_slice(&text)?;
                state.disks = kept.disks.into_iter().collect();
                state.arriving = kept.arriving.into_iter().collect();
                state.records = kept.records.into_iter().collect();
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        state.kept_in = Some(path.to_owned());
        Ok(())
    }

    /// The drivers of this host.
    #[must_use]
    pub fn drivers(&self) -> Drivers {
        let host = Arc::new(self.clone());
        Drivers {
            vmm: host.clone(),
            disks: host.clone(),
            network: host.clone(),
            parts: host.clone(),
            records: host.clone(),
            guest: host,
        }
    }

    /// The way to the hosts that disks are fetched from.
    pub fn set_peers(&self, peers: Arc<dyn Peers>) {
        self.lock().peers = Some(peers);
    }

    /// What to do when a VM was started, such as letting its guest become ready after a while.
    pub fn on_start(&self, act: impl Fn(&FakeHost, VmId) + Send + Sync + 'static) {
        self.lock().on_start = Some(Arc::new(act));
    }

    /// The guest of `vm` says that it is ready, if it runs.
    pub fn guest_ready(&self, vm: VmId, agent_at: Timestamp) {
        let running = self.lock().vms.get(&vm).is_some_and(|found| found.running);
        if running {
            self.lease(vm);
            self.tell(VmmEvent::Ready { vm, agent_at });
        }
    }

    /// The guest of `vm` says how it ends its machine, if it runs, and ends it.
    pub fn leave(&self, vm: VmId, leaving: Leaving) {
        if self.running().contains(&vm) {
            self.tell(VmmEvent::Leaving { vm, leaving });
            self.exit(vm);
        }
    }

    /// The machine process of `vm` ends by itself, if it runs.
    pub fn exit(&self, vm: VmId) {
        let ended = match self.lock().vms.get_mut(&vm) {
            Some(found) => found.end(),
            None => false,
        };
        if ended {
            self.tell(VmmEvent::Exited(vm));
        }
    }

    /// From now on checks of the health of `vm` fail, or do not.
    pub fn make_sick(&self, vm: VmId, is_sick: bool) {
        let mut state = self.lock();
        if is_sick {
            state.sick.insert(vm);
        } else {
            state.sick.remove(&vm);
        }
    }

    /// Whether checks of the health of `vm` fail.
    #[must_use]
    pub fn is_sick(&self, vm: VmId) -> bool {
        self.lock().sick.contains(&vm)
    }

    /// The guest of `vm` says something on its console.
    pub fn say(&self, vm: VmId, bytes: &[u8]) {
        self.lock().say(vm, bytes);
    }

    /// The host loses power and comes back: nothing runs, taps are gone, disks and records are there.
    pub fn reboot(&self) {
        let mut state = self.lock();
        state.vms.values_mut().for_each(|vm| {
            vm.end();
        });
        state.taps.clear();
    }

    /// The next `count` changes fail, as on a full disk.
    pub fn fail_next(&self, count: u32) {
        self.lock().failures_left = count;
    }

    /// From now on no part of an image is there but those that were brought.
    pub fn without_parts(&self) {
        self.lock().parts = Some(BTreeSet::new());
    }

    /// A part of an image comes to the host.
    pub fn bring_part(&self, part: &Part) {
        if let Some(parts) = &mut self.lock().parts {
            parts.insert(part.sha256.clone());
        }
    }

    /// A part of an image is found damaged, and is there no more. Says whether it was.
    pub fn lose_part(&self, part: &Part) -> bool {
        self.lock().parts.as_mut().is_some_and(|parts| parts.remove(&part.sha256))
    }

    /// The VMs that run.
    #[must_use]
    pub fn running(&self) -> Vec<VmId> {
        self.lock().running().map(|(id, _)| *id).collect()
    }

    /// Looks at every VM that runs, and at what it was started with.
    pub fn each_running(&self, mut look: impl FnMut(VmId, &AssignedVm)) {
        let state = self.lock();
        state.running().for_each(|(id, vm)| look(*id, &vm.assigned));
    }

    /// The uids of everything that is left of anything.
    #[must_use]
    pub fn everything(&self) -> BTreeSet<lightbyte_api::Uid> {
        let state = self.lock();
        let vms = state.vms.keys().chain(state.taps.keys()).map(|vm| vm.uid());
        let disks = state.disks.keys().chain(state.arriving.keys()).map(|volume| volume.uid());
        vms.chain(disks).chain(state.records.keys().map(|object| object.uid)).collect()
    }

    /// The VMs whose guest was asked to shut down and that still run.
    #[must_use]
    pub fn shutting_down(&self) -> Vec<VmId> {
        let state = self.lock();
        state.vms.iter().filter(|(_, vm)| vm.running && vm.shutdown_asked).map(|(id, _)| *id).collect()
    }

    /// The disks that are there.
    #[must_use]
    pub fn disks(&self) -> Vec<VolumeId> {
        self.lock().disks.keys().copied().collect()
    }

    /// Every VM that runs writes once to each disk that it may write to. Gives how often each was written to.
    pub fn guests_write(&self) -> Vec<(VolumeId, u64)> {
        let mut state = self.lock();
        let written: Vec<VolumeId> = state
            .running()
            .flat_map(|(_, vm)| vm.assigned.disks.iter().filter(|disk| !disk.read_only))
            .map(|disk| disk.volume)
            .collect();
        let mut counts = Vec::new();
        for volume in written {
            if let Some(disk) = state.disks.get_mut(&volume) {
                disk.writes += 1;
                counts.push((volume, disk.writes));
            }
        }
        counts
    }

    /// How often a disk was written to, before it came here too; nothing when it is not there.
    #[must_use]
    pub fn writes(&self, volume: VolumeId) -> Option<u64> {
        Some(self.lock().disks.get(&volume)?.writes)
    }

    /// A disk vanishes, as by a broken file system.
    pub fn lose_disk(&self, volume: VolumeId) {
        self.lock().disks.remove(&volume);
    }

    fn tell(&self, event: VmmEvent) {
        let listener = self.lock().listener.clone();
        if let Some(listener) = listener {
            listener(event);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of another holder leaves plain data behind, which is as good as before.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, unless this change is one that was asked to fail.
    fn change(&self) -> Result<MutexGuard<'_, State>, DriverError> {
        let mut state = self.lock();
        if state.failures_left > 0 {
            state.failures_left -= 1;
            let source = io::Error::from(io::ErrorKind::StorageFull);
            return Err(DriverError::System { context: "write to the host".to_owned(), source });
        }
        Ok(state)
    }
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, DriverError> {
    Err(DriverError::Refused(reason.into()))
}

impl State {
    /// The first of these parts that is not there.
    fn without<'a>(&self, mut parts: impl Iterator<Item = &'a Part>) -> Option<&'a Part> {
        let there = self.parts.as_ref()?;
        parts.find(|part| !there.contains(&part.sha256))
    }

    /// Brings disks and records to the file that stands for them.
    fn keep(&self) -> Result<(), DriverError> {
        let Some(path) = &self.kept_in else { return Ok(()) };
        let kept = Kept {
            disks: self.disks.iter().map(|(volume, disk)| (*volume, *disk)).collect(),
            arriving: self.arriving.iter().map(|(volume, fetched)| (*volume, *fetched)).collect(),
            records: self.records.iter().map(|(object, saved)| (*object, saved.clone())).collect(),
        };
        let write = || {
            let new = path.with_extension("new");
            fs::write(&new, serde_json::to_vec(&kept)?)?;
            fs::rename(&new, path)
        };
        write().map_err(|source| DriverError::System { context: format!("write {}", path.display()), source })
    }

    /// Why `vm` cannot be started.
    fn refusal(&self, vm: VmId, assigned: &AssignedVm) -> Option<String> {
        let taps = self.taps.get(&vm).map_or(0, |taps| taps.nics.len());
        let used: u64 = self.running().map(|(_, other)| other.assigned.memory.bytes()).sum();
        let missing = assigned.disks.iter().find(|disk| !self.disks.contains_key(&disk.volume));
        let taken = assigned.disks.iter().find_map(|disk| self.user(disk.volume, disk.read_only));
        if let Some(part) = self.without([&assigned.kernel].into_iter().chain(&assigned.initrd)) {
            Some(not_here(part))
        } else if taps < assigned.nics.len() {
            Some(format!("{taps} of {} taps are there", assigned.nics.len()))
        } else if let Some(disk) = missing {
            Some(format!("disk {} is not there", disk.volume))
        } else if let Some(other) = taken {
            Some(format!("a disk is in use by VM {other}"))
        } else if self.memory.is_some_and(|memory| used + assigned.memory.bytes() > memory.bytes()) {
            Some("the host has too little memory".to_owned())
        } else {
            None
        }
    }

    /// A VM that runs with the disk: one that writes to it, or any.
    fn user(&self, disk: VolumeId, only_writers: bool) -> Option<VmId> {
        let uses = |vm: &FakeVm| {
            vm.assigned.disks.iter().any(|used| used.volume == disk && !(only_writers && used.read_only))
        };
        self.running().find(|(_, vm)| uses(vm)).map(|(id, _)| *id)
    }

    fn grow(&mut self, disk: VolumeId, size: ByteSize) -> Result<(), DriverError> {
        match self.disks.get_mut(&disk) {
            Some(found) => found.size = size.max(found.size),
            None => return refuse(format!("disk {disk} is not there")),
        }
        self.keep()
    }

    /// As many consoles of VMs that are no more are kept as a real host keeps.
    fn forget_oldest(&mut self) {
        let oldest =
            self.ended.iter().min_by_key(|(_, ended)| ended.at).map(|(name, ended)| (name.clone(), ended.vm));
        if let Some((name, vm)) = oldest.filter(|_| self.ended.len() > ENDED_MAX) {
            self.ended.remove(&name);
            self.consoles.remove(&vm);
            self.lives.remove(&vm);
        }
    }

    /// The guest says something on its console.
    fn say(&mut self, vm: VmId, bytes: &[u8]) {
        let console = self.consoles.entry(vm).or_default();
        console.bytes.extend_from_slice(bytes);
        let gone = console.bytes.len().saturating_sub(CONSOLE_BYTES_MAX);
        console.bytes.drain(..gone);
        console.begin += gone as u64;
    }

    fn running(&self) -> impl Iterator<Item = (&VmId, &FakeVm)> {
        self.vms.iter().filter(|(_, vm)| vm.running)
    }
}

impl Vmm for FakeHost {
    fn ensure(&self, vm: VmId, assigned: &AssignedVm) -> Result<(), DriverError> {
        let mut state = self.change()?;
        match state.vms.get(&vm) {
            Some(found) if found.running => return Ok(()),
            Some(_) => return refuse("an ended machine process has left its traces"),
            None => {}
        }
        if let Some(refusal) = state.refusal(vm, assigned) {
            return refuse(refusal);
        }
        let started = FakeVm {
            assigned: assigned.clone(),
            running: true,
            shutdown_asked: false,
            started: Instant::now(),
            calls: Calls::default(),
        };
        let end = state.consoles.get(&vm).map_or(0, ConsoleChunk::next);
        let (_, last) = state.lives.get(&vm).copied().unwrap_or_default();
        state.lives.insert(vm, (last, end));
        state.vms.insert(vm, started);
        state.say(vm, format!("{} begins\n", assigned.name).as_bytes());
        let on_start = state.on_start.clone();
        drop(state);
        if let Some(act) = on_start {
            act(self, vm);
        }
        Ok(())
    }

    fn shut_down(&self, vm: VmId) -> Result<(), DriverError> {
        match self.change()?.vms.get_mut(&vm) {
            Some(found) if found.running => {
                found.shutdown_asked = true;
                Ok(())
            }
            _ => refuse("the guest does not run"),
        }
    }

    fn remove(&self, vm: VmId) -> Result<(), DriverError> {
        self.change()?.vms.remove(&vm);
        Ok(())
    }

    fn grow_disk(&self, vm: VmId, disk: VolumeId, size: ByteSize) -> Result<(), DriverError> {
        let mut state = self.change()?;
        match state.vms.get(&vm) {
            Some(found) if found.running && found.assigned.disks.iter().any(|used| used.volume == disk) => {
                state.grow(disk, size)
            }
            _ => Ok(()),
        }
    }

    fn place_of(&self, vm: VmId, disk: VolumeId) -> Result<Option<usize>, DriverError> {
        let state = self.lock();
        let found = state.vms.get(&vm).filter(|found| found.running);
        Ok(found.and_then(|found| found.assigned.disks.iter().position(|used| used.volume == disk)))
    }

    fn state(&self, vm: VmId) -> Result<VmmState, DriverError> {
        Ok(match self.lock().vms.get(&vm) {
            None => VmmState::Absent,
            Some(found) if found.running => VmmState::Running,
            Some(_) => VmmState::Exited,
        })
    }

    fn list(&self) -> Result<Vec<VmId>, DriverError> {
        Ok(self.lock().vms.keys().copied().collect())
    }

    fn watch(&self, listener: Listener) {
        self.lock().listener = Some(listener);
    }
}

impl Parts for FakeHost {
    fn has(&self, part: &Part) -> Result<bool, DriverError> {
        Ok(self.lock().without([part].into_iter()).is_none())
    }
}

fn not_here(part: &Part) -> String {
    format!("image part {} is not on this host", short(part))
}

impl Records for FakeHost {
    fn save(&self, object: HostObject, saved: &Saved) -> Result<(), DriverError> {
        let mut state = self.change()?;
        state.records.insert(object, saved.clone());
        state.keep()
    }

    fn forget(&self, object: HostObject) -> Result<(), DriverError> {
        let mut state = self.change()?;
        if state.vms.contains_key(&VmId::new(object.uid)) {
            return refuse("the object still has a machine process");
        }
        let forgotten = state.records.remove(&object);
        let vm = VmId::new(object.uid);
        state.proxies.remove(&vm);
        if let (Some(Saved { assigned: Assigned::Vm(assigned), .. }), true) =
            (forgotten, state.consoles.contains_key(&vm))
        {
            let before = state.ended.insert(assigned.name, EndedVm { vm, at: Timestamp::now() });
            if let Some(EndedVm { vm, .. }) = before.filter(|before| before.vm != vm) {
                state.consoles.remove(&vm);
                state.lives.remove(&vm);
            }
            state.forget_oldest();
        }
        state.keep()
    }

    fn load(&self, object: HostObject) -> Result<Option<Saved>, DriverError> {
        Ok(self.lock().records.get(&object).cloned())
    }

    fn list(&self) -> Result<Vec<HostObject>, DriverError> {
        Ok(self.lock().records.keys().copied().collect())
    }
}
